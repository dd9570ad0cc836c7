"""Plans, parts and going on, without Ray: the worker's class is called as an actor would be."""

import json
import os

import pyarrow.parquet as pq
import pytest
from PIL import Image

import multibox
from multibox.builtin import find_model, runnable
from multibox.cluster import block_worker
from multibox.cluster.block_worker import as_parquet, model_files, open_shipped
from multibox.cluster.image_sources import find_blocks
from multibox.cluster.places import join, names_in, open_binary
from multibox.cluster.plan import Block, Part, finish, is_part, make_plan, open_folder
from multibox.data.sprites import render
from multibox.errors import ConfigError, DataError, ImageError

FILES = model_files(runnable(find_model("face")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster") / "photos"
    folder.mkdir()
    for index in range(9):
        image = Image.fromarray(render(index, classes=3, objects=(1, 4), size=64 + 16 * (index % 3))[0])
        image.save(folder / f"{index}.jpg", quality=90)
    (folder / "5.jpg").write_bytes((folder / "5.jpg").read_bytes()[:-300])
    return folder


def rows_of(out):
    """Return the rows in the order of the parts."""
    names = sorted(name for name in names_in(str(out)) if name.endswith(".parquet"))
    rows = []
    for name in names:
        with open_binary(join(str(out), name)) as file:
            rows += pq.read_table(file).to_pylist()
    return rows


@pytest.mark.slow
def test_rows_equal_what_predict_writes(photos, tmp_path, run, monkeypatch, run_job):
    # Which of two boxes with equal scores is kept depends on the batch in bfloat16: give the command batches of 4, too
    monkeypatch.setattr("multibox.cli.predict.SHARED_FROM", 1)
    out = tmp_path / "found.parquet"
    parts, plan = run_job([photos], out)
    finish(str(out), parts, plan)
    assert sorted(names_in(str(out))) == ["_SUCCESS", "_plan.json", *(f"part-0000{part}.parquet" for part in range(3))]
    code, _, _ = run(
        "predict", "face", photos, "--threshold", "0.05", "--json", tmp_path / "a.json", "--out", tmp_path / "d"
    )
    assert code == 1
    expected = json.loads((tmp_path / "a.json").read_text())
    rows = rows_of(out)
    bad = rows.pop(5)
    assert bad["file"] == str(photos / "5.jpg") and "truncated" in bad["error"] and bad["detections"] == []
    assert bad["width"] is None
    assert sum(part.unreadable for part in parts) == 1 and parts[1].complaint == bad["error"]
    assert sum(part.objects for part in parts) == sum(len(row["detections"]) for row in expected) > 0
    for row, wanted in zip(rows, expected, strict=True):
        assert (row["file"], row["width"], row["height"]) == (wanted["file"], wanted["width"], wanted["height"])
        assert row["error"] is None
        for found, other in zip(row["detections"], wanted["detections"], strict=True):
            assert (found["label"], found["name"]) == (other["label"], other["name"])
            assert found["score"] == pytest.approx(other["score"], abs=6e-6)
            assert found["box"] == pytest.approx(other["box"], abs=6e-3)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["", "local://"])
def test_a_job_goes_on_where_it_ended(photos, tmp_path, store, run_job):
    out = f"{store}{tmp_path}/found.parquet"
    run_job([photos], out, only=[0, 2])
    part = tmp_path / "found.parquet/part-00002.parquet"
    before = part.stat().st_mtime_ns
    whole = rows_of(out)
    assert len(whole) == 5
    # As a power cut leaves it
    (tmp_path / "found.parquet/part-00000.parquet").write_bytes(b"")
    parts, plan = run_job([photos], out)
    finish(out, parts, plan)
    assert part.stat().st_mtime_ns == before
    assert [row["file"] for row in rows_of(out)] == [str(photos / f"{index}.jpg") for index in range(9)]
    assert [row for row in rows_of(out) if row in whole] == whole
    assert not [name for name in names_in(out) if name.startswith(".")]
    again, _ = run_job([photos], out)
    assert sorted(again) == sorted(parts)


@pytest.mark.slow
def test_another_job_is_refused_and_overwrite_starts_again(photos, tmp_path, run_job):
    out = tmp_path / "found.parquet"
    run_job([photos], out)
    with pytest.raises(ConfigError, match=r"begun with threshold 0\.05 \(now threshold 0\.5\); repeat the command"):
        run_job([photos], out, threshold=0.5)
    with pytest.raises(ConfigError, match=r"other images \(9 then, 1 now\)"):
        run_job([photos / "3.jpg"], out)
    parts, _ = run_job([photos / "3.jpg"], out, overwrite=True)
    assert len(parts) == len(rows_of(out)) == 1


def test_results_without_their_plan_can_be_replaced_and_others_not(photos, tmp_path, run_job):
    out = tmp_path / "found.parquet"
    run_job([photos], out)
    (out / "_SUCCESS").touch()
    (out / "_plan.json").unlink()
    with pytest.raises(ConfigError, match="holds other files"):
        run_job([photos], out)
    parts, _ = run_job([photos / "3.jpg"], out, overwrite=True)
    assert len(parts) == len(rows_of(out)) == 1 and not (out / "_SUCCESS").exists()
    # A table of somebody else's
    (out / "_plan.json").unlink()
    pq.write_table(pq.read_table(out / "part-00000.parquet").replace_schema_metadata(), out / "part-00000.parquet")
    with pytest.raises(ConfigError, match="holds other files"):
        run_job([photos], out, overwrite=True)


def test_differences_are_told_in_words(tmp_path):
    first = make_plan([Block("files", ("a",), (1,), 0, 1)], "m", None)
    open_folder(str(tmp_path / "out"), first)
    for changed, words in (
        (first._replace(threshold=0.5), r"begun with the model's own threshold \(now threshold 0.5\);"),
        (first._replace(source="x"), "begun with other images: names, sizes or their order differ;"),
        (first._replace(background=(0, 0, 9)), r"the model's own background \(now background 0,0,9\);"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_folder(str(tmp_path / "out"), changed)


def test_an_image_that_has_changed_is_another_source(tmp_path, run_job):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    run_job([tmp_path / "a.png"], tmp_path / "out")
    Image.new("RGB", (90, 90)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="other images"):
        run_job([tmp_path / "a.png"], tmp_path / "out")


def test_folders_of_other_things_are_left_alone(photos, tmp_path, run_job):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds other files \(letter.txt\)"):
            run_job([photos], tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        run_job([photos], tmp_path / "mine/letter.txt")
    parts, plan = run_job([photos], tmp_path / "out")
    run_job([photos], tmp_path / "other", threshold=0.7)
    (tmp_path / "other/part-00001.parquet").replace(tmp_path / "out/part-00001.parquet")
    with pytest.raises(ConfigError, match="belongs to another run"):
        open_folder(str(tmp_path / "out"), plan)
    (tmp_path / "out/part-00001.parquet").unlink()
    with pytest.raises(ConfigError, match="1 parts are missing"):
        finish(str(tmp_path / "out"), parts, plan)


def test_a_node_without_the_disk_calls_no_image_unreadable(photos, tmp_path, monkeypatch, run_job):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(DataError, match=f"has no folder {tmp_path}/photos, which holds 0.jpg"):
        run_job(["photos"], tmp_path / "out", base=tmp_path)
    assert not [name for name in names_in(str(tmp_path / "out")) if name.startswith("part")]


def test_on_bad_stop(photos, tmp_path, run_job):
    with pytest.raises(ImageError, match=r"5\.jpg is truncated"):
        run_job([photos], tmp_path / "out", stop=True)


def test_nodes_have_one_version(photos, tmp_path, monkeypatch, run_job):
    monkeypatch.setattr(block_worker, "__version__", "9.9")
    with pytest.raises(DataError, match=r"has multibox 9\.9, the command .*: install one version"):
        run_job([photos], tmp_path / "out")


@pytest.mark.slow
def test_a_model_is_opened_from_its_bytes(photos):
    shipped = open_shipped(FILES, "cpu", background=(1, 2, 3))
    own = multibox.load("face", threads=1)
    assert shipped.background == (1, 2, 3)
    image = Image.open(photos / "1.jpg")
    assert shipped.predict(image, 0.05).boxes.tolist() == own.predict(image, 0.05).boxes.tolist()


def test_part_names_keep_their_order_beyond_a_hundred_thousand(photos):
    blocks, _ = find_blocks([str(photos)])
    plan = make_plan(blocks, "", None)._replace(blocks=1_000_000)
    assert plan.part(42) == "part-000042.parquet"


def test_names_that_are_no_text_become_rows(tmp_path, run_job):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    run_job([tmp_path / name], tmp_path / "out")
    assert rows_of(tmp_path / "out")[0]["file"] == f"{tmp_path}/caf\\udce9.png"


def test_an_empty_block_is_a_table_as_well():
    part = Part("", 0, 0, 0, 0, "")
    assert as_parquet([], ("a",), part)


def test_only_our_own_parts_are_removed():
    assert is_part("part-00000.parquet") and is_part("part-123456.parquet")
    assert not is_part("part-00000-ab12.snappy.parquet") and not is_part("part-mine.parquet")
