"""`multibox predict` on videos, as a user runs it."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from multibox.inference.load import load
from multibox.video.addresses import as_file
from multibox.video.reading import Frame, Reader

from .clips import BLUE, Square, SquareFinder, drawn, frames_of, write_clip

LOW = ("--threshold", "0.05")
"""Squares are no class of COCO: with a low threshold something is found in every frame."""


@pytest.fixture
def finder(monkeypatch):
    """Let `predict` open the detector of squares, whatever model is named."""
    found = SquareFinder()
    monkeypatch.setattr("multibox.cli.predict._open", lambda *_: [found])
    return found


def rows_of(path):
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["coco", "face"])
def test_rows_are_those_of_frame_by_frame_prediction(run, tmp_path, model):
    # Photographs where there are none: noise in which the models find something at a low threshold
    rng = np.random.default_rng(0)
    noise = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240)))
    path = write_clip(tmp_path / "clip.mp4", 40, size=(320, 240), picture=lambda k: np.roll(noise, 4 * k, 1))
    threshold = ("--threshold", "0.02")
    out = ("--out", tmp_path / "o", "--json", tmp_path / "p.jsonl")
    code, _, err = run("predict", model, path, "--track", *threshold, *out)
    assert code == 0, err
    detector, boxes = load(model), 0
    for row, (seconds, pixels) in zip(rows_of(tmp_path / "p.jsonl"), frames_of(path), strict=True):
        plain = detector.predict(pixels, 0.02)
        written = [(one["label"], one["score"], *one["box"]) for one in row["detections"]]
        wanted = [(label, round(score, 5), *(round(float(x), 2) for x in box)) for box, score, label, _ in plain]
        assert sorted(written) == sorted(wanted)
        assert row["time"] == pytest.approx(seconds, abs=1e-4)
        boxes += len(plain)
    assert boxes > 40


def test_a_video_is_drawn_listed_and_counted(run, finder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "my clip.mp4", 30)
    code, out, err = run("predict", "coco", "my clip.mp4", "--track", "--json", "p.json", "--csv", "p.csv")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "my clip.mp4: 30 frames, 30 detections of 1 tracks, drawn in predictions/my clip.mp4"
    assert len(frames_of(tmp_path / "predictions" / "my clip.mp4")) == 30
    rows = rows_of(tmp_path / "p.json")
    assert [row["frame"] for row in rows] == list(range(30))
    assert [row["detections"][0]["track"] for row in rows] == [None, *[0] * 29]
    assert rows[0].keys() == {"file", "frame", "time", "width", "height", "detections"}
    with (tmp_path / "p.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 30 and [row["track"] for row in table] == ["", *["0"] * 29]
    assert [row["frame"] for row in table] == [str(number) for number in range(30)]
    run("predict", "coco", "my clip.mp4")
    assert (tmp_path / "predictions-2" / "my clip.mp4").is_file()


def test_images_and_videos_in_one_command(run, finder, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.fromarray(drawn([Square(20, 20, colour=BLUE)])).save(folder / "b.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    write_clip(folder / "a.mp4", 5)
    write_clip(folder / "b.mkv", 4)
    code, out, err = run(
        "predict", "coco", folder, "--out", tmp_path / "o", "--json", tmp_path / "p.jsonl", "--csv", tmp_path / "p.csv"
    )
    assert code == 1 and "1 image of 2 could not be read" in err
    rows = rows_of(tmp_path / "p.jsonl")
    names = [row["file"].rpartition("/")[2] for row in rows]
    assert names == ["b.png", *["a.mp4"] * 5, *["b.mkv"] * 4]
    assert "frame" not in rows[0] and rows[0]["detections"][0]["name"] == "blue"
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["a.mp4", "b.jpg", "b.mp4"]
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 11
    assert "1 image with 1 objects drawn" in out


def test_a_csv_of_images(run, finder, tmp_path):
    Image.fromarray(drawn([Square(20, 30)])).save(tmp_path / "a.png")
    code, _, err = run("predict", "coco", tmp_path / "a.png", "--out", tmp_path / "o", "--csv", tmp_path / "p.csv")
    assert code == 0, err
    head, row = (tmp_path / "p.csv").read_text().splitlines()
    assert head == "file,frame,time,track,label,name,score,x1,y1,x2,y2"
    assert row == f"{tmp_path / 'a.png'},,,,0,red,1.0,20.0,30.0,44.0,54.0"


def test_json_on_standard_output_stands_alone(run, finder, tmp_path):
    write_clip(tmp_path / "a.mp4", 4)
    code, out, err = run("predict", "coco", tmp_path / "a.mp4", "--json", "-", "--out", tmp_path / "o")
    assert code == 0 and len(json.loads(out)) == 4 and "4 frames, 4 detections, drawn in" in err


def test_a_damaged_video_is_told_and_costs_nothing_but_itself(run, finder, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    write_clip(tmp_path / "fine.mp4", 4)
    sources = (tmp_path / "junk.mp4", tmp_path / "fine.mp4")
    code, out, err = run("predict", "coco", *sources, "--out", tmp_path / "a", "--json", tmp_path / "a.json")
    assert code == 1 and "4 frames" in out
    assert err.startswith(f"multibox: {sources[0]} is no video that can be read") and err.count("\n") == 1
    assert len(rows_of(tmp_path / "a.json")) == 4
    code, _, err = run(
        "predict", "coco", *sources, "--out", tmp_path / "b", "--json", tmp_path / "b.json", "--on-bad", "stop"
    )
    assert code == 2 and err.count("\n") == 1
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("source", ["text.mp4", "camera:9", "rtsp://127.0.0.1:9/x"])
def test_a_source_that_cannot_be_opened_changes_no_file_and_leaves_none(run, finder, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    for name in ("good.jsonl", "good.json", "good.csv"):
        (tmp_path / name).write_text("results\n")
    for ending in ("jsonl", "json"):
        old = ("--json", f"good.{ending}", "--csv", "good.csv", "--overwrite")
        new = ("--json", f"new.{ending}", "--csv", "new.csv")
        for files in (old, new):
            code, _, err = run("predict", "coco", source, *files, "--out", "gv")
            assert code == 2 and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"text.mp4", "good.jsonl", "good.json", "good.csv"}
    assert all((tmp_path / name).read_text() == "results\n" for name in ("good.jsonl", "good.json", "good.csv"))


def test_ctrl_c_before_the_first_frame_changes_no_file(run, finder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("multibox.video.pipeline.Reader", interrupted)
    clip = write_clip(tmp_path / "clip.mp4", 2)
    (tmp_path / "good.json").write_text("[1]")
    files = ("--json", tmp_path / "good.json", "--csv", tmp_path / "new.csv", "--overwrite")
    code, out, _ = run("predict", "coco", clip, *files, "--out", tmp_path / "o")
    assert code == 130 and "nothing is written" in out
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "good.json"}
    assert (tmp_path / "good.json").read_text() == "[1]"


@pytest.mark.slow
def test_a_cut_video_ends_with_exit_code_1(run, finder, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 90)
    run("predict", "coco", clip, "--out", tmp_path / "o")
    data = (tmp_path / "o" / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    code, out, err = run("predict", "coco", tmp_path / "cut.mp4", "--out", tmp_path / "p")
    assert code == 1 and "frames" in out and "was it cut off?" in err
    code, _, err = run("predict", "coco", tmp_path / "o" / "clip.mp4", "--out", tmp_path / "q")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.png", "--track"], "--track is for videos, streams and cameras, and none is among the sources"),
        (["photo.png", "--every", "2"], "--every is for videos"),
        (["clip.mp4", "--coco", "x.json"], "--coco names images, which frames of a video are not (clip.mp4)"),
        (["camera:x"], "camera:x: expected the number of a camera, such as camera:0"),
        (["gone.mp4"], "gone.mp4 does not exist: give image or video files, folders or glob patterns"),
        (["camera:9"], "camera:9 is not there: this machine has no /dev/video9"),
        (["http://127.0.0.1:9/x"], "http://127.0.0.1:9/x cannot be opened (Connection refused)"),
        (["rtsp://anna:secret@127.0.0.1:9/x"], "rtsp://127.0.0.1:9/x cannot be opened"),
        (["clip.mp4", "--json", "clip.mp4"], "belongs to the input"),
        (["clip.mp4", "--out", ".", "--overwrite"], "belongs to the input"),
        (["clip.mp4", "--csv", "old.csv"], "old.csv exists already"),
    ],
)
def test_mistakes_are_one_sentence(run, finder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(drawn([])).save("photo.png")
    write_clip(tmp_path / "clip.mp4", 2)
    (tmp_path / "old.csv").write_text("mine\n")
    before = (tmp_path / "clip.mp4").read_bytes()
    code, _, err = run("predict", "coco", *arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and "secret" not in err
    assert (tmp_path / "clip.mp4").read_bytes() == before and (tmp_path / "old.csv").read_text() == "mine\n"
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize(("missing", "option"), [("av", ()), ("trackers", ("--track",))])
def test_a_missing_package_is_named(run, finder, tmp_path, monkeypatch, missing, option):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("multibox.cli.predict_video.find_spec", lambda name: None if name == missing else find(name))
    code, _, err = run("predict", "coco", write_clip(tmp_path / "clip.mp4", 2), *option)
    assert code == 2 and "needs packages that are not installed: pip install 'multibox[video]'" in err


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_what_can_be_played(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (240, 320, 3), np.uint8)
    path = write_clip(tmp_path / "clip.mp4", 90, size=(320, 240), picture=lambda k: np.roll(noise, k, 1))
    command = [sys.executable, "-m", "multibox", "predict", "face", str(path), "--out", str(tmp_path / "o")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "clip.mp4 cannot be written (File too large)" in done.stderr and "Traceback" not in done.stderr
    # The last fragment is half written
    kept = [item for item in Reader(as_file(tmp_path / "o" / "clip.mp4")) if isinstance(item, Frame)]
    assert len(kept) >= 25


def start(tmp_path, *options):
    """Start `predict` on a long video, and wait until some of it is done."""
    path = write_clip(tmp_path / "clip.mp4", 3000, size=(320, 240), options={"preset": "ultrafast"})
    command = [sys.executable, "-m", "multibox", "predict", "coco", str(path), *LOW, *options]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "o"), "--json", str(tmp_path / "p.jsonl")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    rows, deadline = tmp_path / "p.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if rows.exists() and rows.read_bytes().count(b"\n") > 150:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to a process group is a Unix matter")
def test_ctrl_c_keeps_what_was_done(tmp_path):
    process = start(tmp_path, "--csv", str(tmp_path / "p.csv"))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped; what was done until then is kept" in out and "Traceback" not in err
    frames, rows = frames_of(tmp_path / "o" / "clip.mp4"), rows_of(tmp_path / "p.jsonl")
    assert 150 < len(frames) < 3000 and 0 <= len(rows) - len(frames) <= 1
    assert [row["frame"] for row in rows] == list(range(len(rows)))
    files = Counter(row.split(",")[1] for row in (tmp_path / "p.csv").read_text().splitlines()[1:])
    assert sum(files.values()) == sum(len(row["detections"]) for row in rows)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a Unix matter")
def test_sigkill_leaves_a_playable_file_and_whole_rows(tmp_path):
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    rows = rows_of(tmp_path / "p.jsonl")
    kept = [item for item in Reader(as_file(tmp_path / "o" / "clip.mp4")) if isinstance(item, Frame)]
    # A fragment of one second is written at a time, and frames wait before that
    assert len(rows) - 2 * 30 - 32 - 5 <= len(kept) <= len(rows)
    assert len(kept) >= 30


@pytest.mark.slow
def test_no_torch_is_imported(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 3)
    code = (
        "import sys; from multibox.cli.main import main; sys.argv[1:] = sys.argv[1:]\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    command = [sys.executable, "-c", code, "predict", "face", str(path), "--track", "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
