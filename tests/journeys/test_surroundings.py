"""Where a run takes place: two at once, another folder, data that cannot be written to, files that are there."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.slow
def test_two_runs_at_once_without_a_name_get_folders_of_their_own(launch, squares, tmp_path, train_options):
    both = [launch("train", squares, "--epochs", "2", *train_options, cwd=tmp_path) for _ in range(2)]
    folders = set()
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        folders.add(re.search(r"folder (\S+)", out)[1])
    assert folders == {"runs/tinyssd-1", "runs/tinyssd-2"}
    for folder in folders:
        assert (tmp_path / folder / "best.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="folders are not held on Windows")
def test_of_two_runs_at_once_in_one_folder_one_wins_and_the_other_harms_nothing(
    launch, squares, tmp_path, train_options
):
    command = ["train", squares, "--out", "run", "--epochs", "40", *train_options]
    both = [launch(*command, cwd=tmp_path) for _ in range(2)]
    ended = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    codes = sorted(code for _, code in ended)
    assert codes == [0, 2], ended
    refused = next(err for err, code in ended if code == 2)
    assert "another process trains in run" in refused or "run holds a run" in refused
    assert refused.count("\n") == 1
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.toml", "best.safetensors", "last.safetensors", "metrics.csv", "state"} <= kept


@pytest.mark.slow
def test_another_run_does_not_disturb_one_that_is_held(launch, call, squares, tmp_path, train_options):
    run = tmp_path / "run"
    process = launch("train", squares, "--out", run, "--epochs", "5000", *train_options)
    deadline = time.monotonic() + 200
    while not (run / "state" / "state.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    for command in (["train", squares, "--out", run, *train_options], ["train", "--resume", run]):
        code, _, err = call(*command)
        assert code == 2
        if sys.platform != "win32":
            assert "another process trains in" in err or "holds a run" in err
    assert process.poll() is None
    assert (run / "config.toml").is_file()


@pytest.mark.slow
def test_a_resumed_run_finds_relative_paths_again(call, squares, tmp_path, monkeypatch, train_options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    squares.rename("my data")
    code, _, err = call("train", "my data", "--out", "my run", "--epochs", "1", *train_options)
    assert code == 0, err
    monkeypatch.chdir("elsewhere")
    code, out, err = call("train", "--resume", "../my run", "--epochs", "2")
    assert code == 0, err
    assert "4 for validation (val)" in out
    assert list(Path().iterdir()) == []


@pytest.fixture
def read_only(squares):
    """The data in a folder that nobody may write to, root neither where a mount can say so."""
    if os.geteuid() != 0:
        modes = {path: path.stat().st_mode for path in (squares, *squares.rglob("*"))}
        for path, mode in modes.items():
            path.chmod(mode & 0o555)
        yield squares
        for path, mode in modes.items():
            path.chmod(mode)
        return
    done = subprocess.run(["mount", "--bind", "-o", "ro", squares, squares], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a folder cannot be made read-only for root here: {done.stderr.decode()}")
    yield squares
    subprocess.run(["umount", "-l", squares], check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="permissions of Unix")
def test_data_that_cannot_be_written_to(call, read_only, tmp_path, monkeypatch, train_options):
    with pytest.raises(OSError):
        (read_only / "probe").touch()
    monkeypatch.chdir(tmp_path)
    code, _, err = call("train", read_only, "--out", "run", "--epochs", "1", *train_options)
    assert code == 0, err
    for command in (
        ["data", "show", read_only, "--split", "val"],
        ["eval", "run", read_only, "--split", "val", "--json", "metrics.json"],
        ["predict", "run", read_only / "JPEGImages", "--json", "found.json"],
        ["data", "convert", read_only, "coco", "--to", "coco"],
    ):
        code, _, err = call(*command)
        assert code == 0, (command, err)
    monkeypatch.chdir(read_only)
    for command in (["predict", tmp_path / "run", "JPEGImages"], ["train", ".", *train_options]):
        code, _, err = call(*command)
        assert code == 2
        assert err.startswith("multibox: ") and err.count("\n") == 1, err


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--out", "."], [], ["--out", "sub", "--yolo", "."]])
def test_predicting_into_the_source_folder_harms_no_image(call, squares, tmp_path, monkeypatch, options):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((squares / "JPEGImages").iterdir())[:3]:
        Image.open(path).save(photos / f"{path.stem}.jpg")
    shutil.copy(photos / "000.jpg", photos / "000.jpeg")
    monkeypatch.chdir(photos)
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    for _ in range(2):
        call("predict", "coco", ".", *options)
    assert {name: (photos / name).read_bytes() for name in before} == before
