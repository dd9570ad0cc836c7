"""`multibox inspect`: the page, the table, the data, and what it refuses."""

import json

import pytest
import torch

from multibox import api
from multibox.cli import console
from multibox.models.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture
def inspect(run, tiny_file, squares, tmp_path, monkeypatch):
    """Run the verb in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *more, data=squares: run("inspect", tiny_file, data, *more)


@pytest.mark.slow
def test_the_page_and_a_table(inspect, tmp_path):
    code, out, err = inspect("--split", "val", "--worst", "2", "--json", "all.json")
    assert code == 0, err
    page = (tmp_path / "inspection" / "index.html").read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "all.json").read_text())
    assert page.count('id="image-') == len(rows) == 2
    assert out.splitlines()[0].split()[:3] == ["image", "objects", "found"]
    assert all(row["file"] in out for row in rows)
    assert out.splitlines()[-1] == "look at inspection/index.html"
    pictures = {path.name for path in (tmp_path / "inspection").glob("*.png")}
    assert pictures == {f"{row['file'][:-4]}-{kind}.png" for row in rows for kind in ("matches", "detections")}
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


@pytest.mark.slow
def test_explanations_look_like_their_training_objects(run, squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector = api.create("tinyssd", ["red", "blue"])
    with torch.no_grad():
        for _, layer in detector.model.heads.class_layers():
            layer.bias.zero_()  # so that every anchor scores about 0.3
    config = detector.config.updated({"model.input_size": (64, 64)})
    save_checkpoint(tmp_path / "sure.safetensors", Checkpoint(detector.model.state_dict(), config, ("red", "blue")))
    options = ("--split", "val", "--image", "012", "--explain", "--training", squares, "--json", "a.json")
    code, _, err = run("inspect", "sure.safetensors", squares, *options)
    assert code == 0, err
    explanations = json.loads((tmp_path / "a.json").read_text())[0]["explanations"]
    assert all(len(one["similar"]) == 5 for one in explanations)
    page = (tmp_path / "inspection" / "index.html").read_text(encoding="utf-8")
    assert page.count('"crop":{"src":"data:image/jpeg') == 5 * len(explanations) > 0


def test_slow_work_tells_seconds_and_quick_work_a_speed(capsys, monkeypatch):
    times = iter([0.0, 40.0, 80.0])
    monkeypatch.setattr(console, "monotonic", lambda: next(times))
    with console.counting("looking", 200) as tell:
        tell(10)
        tell(100)
    assert capsys.readouterr().err.splitlines() == [
        "looking: 10 of 200, 4 s each, 13 min left",
        "looking: 100 of 200, 1.25 per second, 80 s left",
    ]
