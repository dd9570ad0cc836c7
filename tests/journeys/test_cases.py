"""Reports of users of other programs that also held here once: the files of ../shared/cases, and what is right."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def case(shared, tmp_path, monkeypatch):
    """Return a copy of a case's input; the test runs in an empty folder."""

    def take(name, part=""):
        folder = shared / "cases" / name
        if not folder.is_dir():
            pytest.skip(f"needs ../shared/cases/{name}")
        monkeypatch.chdir(tmp_path)
        if not part:
            return folder
        return shutil.copytree(folder / part, tmp_path / part)

    return take


@pytest.fixture
def photo(shared, tmp_path):
    path = shared / "data" / "photos" / "dog.jpg"
    if not path.is_file():
        pytest.skip("needs ../shared/data/photos")
    return shutil.copy(path, tmp_path / "dog.jpg")


@pytest.mark.slow
def test_cp1252_output(case, photo, multibox, tmp_path):
    case("cp1252-output")
    Path(photo).rename(tmp_path / "日本.jpg")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    code, out, err = multibox("predict", "coco", "日本.jpg", "--json", "o.json", cwd=tmp_path, env=environment)
    assert code == 0, err
    assert r"\u65e5\u672c.jpg" in out
    assert json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))[0]["file"].endswith("日本.jpg")
    assert (tmp_path / "predictions" / "日本.jpg").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_docker_shm_hang(case, launch, squares, tmp_path, patched, train_options, processes):
    """64 MB of shared memory are what Docker gives; here 1 MB, for the images are small."""
    case("docker-shm-hang")
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("another /dev/shm needs root and unshare")
    environment = patched(WITH_PROCESSES if processes else "")
    command = [sys.executable, "-m", "multibox", "train", squares, "--out", "run", "--epochs", "3"]
    command += [*train_options, "--set", "train.workers=7"]
    inner = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {shlex.join(map(str, command))}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", inner], capture_output=True, text=True, timeout=300, check=False,
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "best.safetensors").is_file()


WITH_PROCESSES = """
NAME = "multibox.training.splits"
def patch(module):
    module.use_processes = lambda workers, device: True
"""


@pytest.mark.slow
def test_exported_detector_pickle(case, call, photo):
    case("exported-detector-pickle")
    import pickle

    import multibox

    code, _, err = call("export", "coco", "--out", "coco.onnx")
    assert code == 0, err
    detector = multibox.load("coco.onnx")
    again = pickle.loads(pickle.dumps(detector))
    assert again.predict(photo) == detector.predict(photo)
    assert len(again.predict(photo))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_fork_after_predict(case, multibox, tmp_path, device):
    case("fork-after-predict")
    (tmp_path / "script.py").write_text(
        "import multiprocessing as mp, numpy as np, multibox\n"
        f"d = multibox.load('coco', device={device!r}); a = np.zeros((300, 300, 3), np.uint8); d.predict(a)\n"
        "with mp.get_context('fork').Pool(1) as p:\n"
        "    print(p.apply(len, ([],)), len(p.apply_async(d.predict, (a,)).get(timeout=100)))\n"
    )
    code, out, err = multibox("-W", "ignore", "script.py", cwd=tmp_path, script=True)
    assert (code, out) == (0, "0 0\n"), err


@pytest.mark.slow
@pytest.mark.parametrize("split", [["--val-split", "none"], [], ["--val-split", "test"]])
def test_next_hint_cannot_be_run(case, call, tmp_path, train_options, split):
    """The command printed after training can be pasted, with blanks in the paths and several splits."""
    case("next-hint-cannot-be-run", "y07_roboflow").rename(tmp_path / "my data")
    code, out, err = call("train", "my data", "--epochs", "1", *split, "--out", "my run", *train_options)
    assert code == 0, err
    printed = out.rstrip().splitlines()[-1].partition("next: ")[2]
    words = shlex.split(printed)
    assert words[:3] == ["multibox", "eval", "my run"]
    assert words[words.index("--split") + 1] != "train"
    code, out, err = call(*words[1:])
    assert code == 0, err


def test_cjk_names_drawn_as_boxes(case, call, tmp_path, caplog):
    """Names that no font here has become "class 0", which is said; they are never empty boxes."""
    from multibox.plots import labels as lettering

    data = case("cjk-names-drawn-as-boxes", "v11_chinese")
    code, _, err = call("data", "show", data, "--out", "cn.png")
    assert code == 0, err
    with Image.open(tmp_path / "cn.png") as sheet:
        assert sheet.width > 100
    names = ("猫", "狗")
    drawn = lettering.drawable_names(names)
    for name, shown in zip(names, drawn, strict=True):
        assert shown == name or shown.startswith("class ")
        font = lettering.font_for(shown, 16)
        missing = np.asarray(font.getmask("\uffff"))
        assert not any(np.array_equal(np.asarray(font.getmask(letter)), missing) for letter in shown if letter != " ")
