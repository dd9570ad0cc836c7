"""`multibox inspect`: the page, the table, the data, and what it refuses."""

import json

import pytest


@pytest.fixture
def inspect(run, tiny_file, squares, tmp_path, monkeypatch):
    """Run the verb in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *more, data=squares: run("inspect", tiny_file, data, *more)


def test_the_page_and_a_table(inspect, tmp_path):
    code, out, err = inspect("--split", "val", "--worst", "2", "--json", "all.json")
    assert code == 0, err
    page = (tmp_path / "inspection" / "index.html").read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "all.json").read_text())
    assert page.count('id="image-') == len(rows) == 2
    assert out.splitlines()[0].split()[:3] == ["image", "objects", "found"]
    assert all(row["file"] in out for row in rows)
    assert out.splitlines()[-1] == "look at inspection/index.html"
    assert inspect("--split", "val", "--image", "012.png")[0] == 0
    assert (tmp_path / "inspection-2" / "index.html").is_file()


def test_json_on_standard_output_stands_alone(inspect):
    code, out, err = inspect("--split", "val", "--image", "013", "--json", "-", "--out", "here")
    assert code == 0
    assert [row["file"] for row in json.loads(out)] == ["013.png"]
    assert "look at here/index.html" in err


def test_mistakes_are_sentences(inspect, run, squares, tmp_path):
    code, _, err = inspect("--split", "val", "--image", "nowhere.png")
    assert (code, err.count("\n")) == (2, 1)
    assert "image 'nowhere.png'" in err
    assert not (tmp_path / "inspection").exists()
    code, _, err = inspect("--split", "val", "--threshold", "30")
    assert (code, err) == (2, "multibox: --threshold 30: expected a score from 0 to 1, such as 0.3\n")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "index.html").write_text("mine")
    code, _, err = inspect("--split", "val", "--out", "here")
    assert (code, "exists already" in err) == (2, True)
    code, _, err = run("inspect", "face", squares, "--split", "val")
    assert code == 2
