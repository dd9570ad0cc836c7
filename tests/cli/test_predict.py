"""`multibox predict`: broken images, sources, output that a code page cannot show, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.cli import console as bars

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """Three images of three shapes and formats."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (40, 30, 3)), ("b.jpg", (30, 40, 3)), ("c.jfif", (50, 50, 3))):
        pixels = Image.fromarray(RNG.integers(0, 256, size, np.uint8))
        pixels.save(folder / name, "PNG" if name.endswith("png") else "JPEG")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_drawn_and_listed(run, tiny_file, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("predictions", "predictions-2"):
        code, out, err = run("predict", tiny_file, photos, "--threshold", 0)
        assert code == 0, err
        assert [line.split(":")[0] for line in out.splitlines()[1:4]] == [str(p) for p in sorted(photos.iterdir())]
        assert re.search(rf"^3 images with [\d,]+ objects drawn in {folder}$", out, re.MULTILINE)
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    with Image.open("predictions/a.jpg") as drawn:
        assert (drawn.format, drawn.size) == ("JPEG", (30, 40))


def test_json_on_standard_output_stands_alone(run, tiny_file, photos, tmp_path):
    code, out, err = run("predict", tiny_file, photos, "--json", "-", "--out", tmp_path / "drawn")
    assert code == 0
    assert [row["file"] for row in json.loads(out)] == [str(path) for path in sorted(photos.iterdir())]
    assert "drawn in" in err


def test_a_broken_image_costs_nothing_but_itself(run, tiny_file, photos, tmp_path):
    data = (photos / "b.jpg").read_bytes()
    (photos / "bb.jpg").write_bytes(data[: len(data) // 2])
    (photos / "bc.jpg").write_bytes(b"")
    code, out, err = run(
        "predict", tiny_file, photos, "--out", tmp_path / "d", "--json", tmp_path / "p.json", "--coco",
        tmp_path / "c.json", "--yolo", tmp_path / "y", "--voc", tmp_path / "v",
    )  # fmt: skip
    assert code == 1
    assert "multibox: 2 images of 5 could not be read; the first: " in err and "bb.jpg is truncated" in err
    assert "3 images with" in out
    rows = json.loads((tmp_path / "p.json").read_text())
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.jpg", "c.jfif"]
    assert sorted(contents(tmp_path / "d")) == ["a.jpg", "b.jpg", "c.jpg"]
    assert sorted(contents(tmp_path / "y")) == ["a.txt", "b.txt", "c.txt"]
    assert len(contents(tmp_path / "v")) == 2


def test_a_broken_image_stops_where_asked_and_leaves_no_half_file(run, tiny_file, photos, tmp_path):
    (photos / "bb.jpg").write_bytes(b"nonsense")
    arguments = ("--out", tmp_path / "d", "--json", tmp_path / "p.json", "--on-bad", "stop")
    code, _, err = run("predict", tiny_file, photos, *arguments)
    assert code == 2
    assert err.startswith(f"multibox: {photos / 'bb.jpg'} is no image") and err.count("\n") == 1
    assert not (tmp_path / "p.json").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_no_image_that_can_be_read_is_unreadable_input(run, tiny_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jpg").write_bytes(b"nonsense")
    code, _, err = run("predict", tiny_file, "x.jpg", "--json", "p.json")
    assert code == 2
    assert "multibox: no image could be read, so nothing is written: 1 image of 1 could not be read" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.jpg"]


def test_above_twenty_images_a_log_has_few_lines(run, tiny_file, tmp_path, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(21):
        Image.new("RGB", (20, 20)).save(folder / f"{index}.png")
    (folder / "0.png").write_bytes(b"")
    code, out, err = run("predict", tiny_file, folder, "--out", tmp_path / "a")
    assert code == 1
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(bars, "EVERY", 0.0)
    _, _, err = run("predict", tiny_file, folder, "--out", tmp_path / "b")
    assert re.search(r"^images: \d+ of 21, \S+ per second, \d+ s left$", err, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.org/a.jpg", ["is an address", "nothing is downloaded"]),
        ("rtsp://127.0.0.1:9/1", ["cannot be opened", "whether the server can be reached"]),
        ("0", ["names a camera", "camera:0", "image files, folders of images or glob patterns"]),
        ("clip.mp4", ["clip.mp4 is no video that can be read"]),
        ("all.tar.gz", ["is an archive", "unpack it"]),
        ("nowhere.mp4", ["does not exist"]),
        ("empty", ["no image or video in folder empty", "empty/**/*"]),
        ("others", ["no image or video in folder others", "2 HEIC images were passed over; pip install"]),
    ],
)
def test_what_is_no_source_says_what_is(run, tiny_file, tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("multibox.data.image_listing.reads_heif", lambda: False)
    for name in ("empty/", "others/x.HEIC", "others/y.heif", "others/notes.txt", "clip.mp4", "all.tar.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"x")
    code, _, err = run("predict", tiny_file, source)
    assert code == 2
    assert err.startswith("multibox: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_what_is_passed_over_is_counted(run, tiny_file, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.data.image_listing.reads_heif", lambda: False)
    for name in ("x.HEIC", "notes.txt", "more.txt", "README", ".hidden"):
        (photos / name).write_bytes(b"x")
    code, out, _ = run("predict", tiny_file, photos, "--out", tmp_path / "d")
    assert code == 0
    assert "1 HEIC image was passed over; pip install 'multibox[heic]' reads them\n" in out
    assert "3 other files were passed over: 1 without an ending, 2 .txt\n" in out


def heed_ctrl_c():
    """Undo what a shell does to tests that it runs in the background: their children would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**changes):
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_names_that_the_output_cannot_show(tiny_file, photos, tmp_path, encoding):
    (photos / "a.png").rename(photos / "日本.png")
    command = [sys.executable, "-m", "multibox", "predict", tiny_file, photos, "--out", "d", "--json", "p.json"]
    done = subprocess.run(
        command, capture_output=True, cwd=tmp_path, check=False, env=environment(PYTHONIOENCODING=encoding)
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u65e5\\u672c.png" in done.stdout
    assert (tmp_path / "d" / "日本.jpg").is_file()
    assert any("日本" in row["file"] for row in json.loads((tmp_path / "p.json").read_text()))
    (photos / "日本.png").write_bytes(b"")
    done = subprocess.run(
        [*command[:-4], "--out", "e"], capture_output=True, cwd=tmp_path, check=False,
        env=environment(PYTHONIOENCODING=encoding),
    )  # fmt: skip
    assert done.returncode == 1
    assert b"\\u65e5\\u672c.png is empty" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to a process group is a Unix matter")
def test_ctrl_c_leaves_no_half_file(tiny_file, photos, tmp_path):
    for index in range(3000):
        os.link(photos / "b.jpg", photos / f"x{index}.jpg")
    command = [sys.executable, "-m", "multibox", "predict", str(tiny_file), str(photos), "--json", "p.json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(),
        start_new_session=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "predictions" / "b.jpg").is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert re.search(r"stopped: [\d,]+ images? with [\d,]+ objects drawn in predictions; no --json", out), out
    assert not (tmp_path / "p.json").exists()
    assert not list(tmp_path.rglob("*.part"))
    for path in (tmp_path / "predictions").iterdir():
        with Image.open(path) as image:
            image.load()


def test_a_full_disk_is_a_sentence(run, tiny_file, photos, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        Image.fromarray(RNG.integers(0, 256, (500, 500, 3), np.uint8)).save(photos / "large.png")
        code, _, err = run("predict", tiny_file, photos, "--out", disk, "--json", tmp_path / "p.json")
        assert code == 2
        # Images are written side by side: while the large one is on its way a small one may find no room
        assert "No space left on device" in err and f"{disk}{os.sep}" in err and err.count("\n") == 1
        assert not (tmp_path / "p.json").exists()
        assert not list(tmp_path.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_names_that_fill_gaps_are_not_counted():
    from multibox.builtin import about
    from multibox.cli.predict import describe_thresholds

    line = describe_thresholds((0.5, 0.4, 0.4, 0.4), ("dog", "unused 2", "cat", "cow"), None)
    assert line.endswith("dog 0.500, cat 0.400, cow 0.400")
    names = tuple(about("coco")["names"])
    line = describe_thresholds((0.5, *(0.4 for _ in names[1:])), names, None)
    assert len(names) > 80 and line.endswith("the other 79 classes 0.400")
