"""The README's blocks run: Python as it stands, commands with a small data set and few epochs."""

import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK = [
    "--epochs",
    "1",
    "--set",
    "model.input_size=[64,64]",
    "--set",
    "train.batch_size=4",
    "--set",
    "train.workers=0",
]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def short(line):
    """Return the arguments of a documented command, its training shortened."""
    arguments = shlex.split(line, comments=True)[1:]
    if arguments[0] not in ("train", "profile"):
        return arguments
    if "--minutes" in arguments:
        at = arguments.index("--minutes")
        del arguments[at : at + 2]
    return [*arguments, *QUICK]


@pytest.fixture
def folder(squares, tmp_path, monkeypatch):
    """The data and photographs that the documents speak of, in the working directory."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    squares.rename(tmp_path / "my-data")
    (tmp_path / "my-photos").symlink_to(tmp_path / "my-data/JPEGImages")
    shutil.copy(tmp_path / "my-data/JPEGImages/000.png", tmp_path / "photo.jpg")
    return tmp_path


def test_python_blocks_run(folder, capsys):
    found = blocks("python")
    assert len(found) >= 2
    for block in found:
        exec(compile(block.replace("minutes=10", "minutes=0.05"), "README.md", "exec"), {})
    assert "mAP@0.5" in capsys.readouterr().out
    assert (folder / "drawn.jpg").is_file()


@pytest.mark.slow
def test_commands_run(folder, call, fake_runtime):
    write_clip(folder / "clip.mp4", folder / "photo.jpg")
    lines = [line for line in commands("README.md") if "ssd.safetensors" not in line]
    lines += [line for line in commands("docs/weights.md") if "--weights coco " in line]
    assert len(lines) >= 9
    for line in lines:
        arguments = short(line)
        if arguments[0] == "serve":
            answer_and_end(arguments)
        elif "--ray" in arguments:
            # Ray's threads and warnings stay out of this process
            assert subprocess.run([sys.executable, "-m", "multibox", *arguments], timeout=300).returncode == 0, line
        else:
            assert call(*arguments) == 0, line
    assert Path("sheet.png").is_file()
    assert Path("found.json").is_file()
    assert list(Path("drawn").glob("*.jpg"))
    assert list(Path().glob("predictions*/clip.mp4"))
    assert list(Path("found.parquet").glob("*.parquet"))
    assert Path("site/index.html").is_file()


def write_clip(path, photo):
    """Write ten frames of a photograph."""
    av = pytest.importorskip("av", reason="needs the extra video")
    frame = av.VideoFrame.from_ndarray(np.asarray(Image.open(photo).convert("RGB").resize((160, 120))))
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=10, width=160, height=120, pix_fmt="yuv420p")
        for _ in range(10):
            clip.mux(stream.encode(frame.reformat(format="yuv420p")))
        clip.mux(stream.encode())


def answer_and_end(arguments):
    """Start the server on a free port, ask it whether it is ready, and end it."""
    command = [sys.executable, "-m", "multibox", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = re.search(r"http://[\w.:]+", server.stdout.readline())[0]
        with urllib.request.urlopen(f"{address}/v2/health/live", timeout=60) as answer:
            assert answer.status == 200
        server.terminate()
        assert server.wait(60) == 0


@pytest.mark.slow
def test_commands_with_weights_from_elsewhere_run(folder, call, shared):
    file = shared / "weights/ssd_mobilenet_v1_coco/coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
    (folder / "ssd_mobilenet_v1.tflite").symlink_to(file)
    lines = [line for name in ("README.md", "docs/weights.md") for line in commands(name) if "ssd.safetensors" in line]
    assert len(lines) >= 2
    for line in lines:
        assert call(*short(line)) == 0, line
    assert Path("runs/tuned/last.safetensors").is_file()


def commands(document):
    """Return the lines of a document's console blocks that call multibox."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line for block in found for line in block.splitlines() if line.startswith("multibox ")]


def test_make_targets_of_the_documents_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE))
    assert named >= {"demo", "test", "check"}
    assert named <= targets


def test_paths_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", text):
        assert (ROOT / "src" / "multibox" / path).exists() or (ROOT / path).exists(), path
