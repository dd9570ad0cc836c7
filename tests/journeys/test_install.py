"""A fresh environment: the wheel with the core's packages alone, offline, without PyTorch."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ABSENT = ("torch", "torchvision", "onnx", "openvino", "matplotlib", "yaml", "supervision")
"""Packages that the core does without."""
WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and not isinstance(arguments[-1], str):
        raise OSError(f"network: {event} {arguments}")
sys.addaudithook(watch)
"""


def core_packages() -> set[Path]:
    """Return the folders and files of what the package needs without extras, as they are installed here."""
    seen: set[str] = set()
    waiting = ["multibox"]
    found: set[Path] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system or Python
        needed = [need for need in distribution.requires or [] if "extra ==" not in need]
        waiting += [re.match(r"[\w.-]+", need)[0] for need in needed]
        if name != "multibox":
            tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
            found |= {Path(str(distribution.locate_file(top))) for top in tops}
    return {path for path in found if path.exists()}


def run(*command, **options):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=600, check=False, encoding="utf-8", **options
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the backend that pyproject.toml names."""
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "-w", folder, root]
    built = run(*command, "--no-build-isolation")
    if built.returncode:
        built = run(*command)
    if built.returncode:
        pytest.skip(f"pip cannot build a wheel here: {built.stderr.strip().splitlines()[-1:]}")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
    """An empty environment with the wheel; what it depends on is linked from here, without the extras."""
    folder = tmp_path_factory.mktemp("venv")
    made = run(sys.executable, "-m", "venv", "--without-pip", folder)
    if made.returncode:
        pytest.skip(f"no virtual environment can be made here: {made.stderr}")
    site = next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")
    installed = run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check",
        "--target", site, wheel,
    )  # fmt: skip
    if installed.returncode:
        pytest.skip(f"pip cannot install here: {installed.stderr}")
    for path in core_packages():
        (site / path.name).symlink_to(path)
    (site / "sitecustomize.py").write_text(WATCH)
    return folder


def python(venv):
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment():
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}


@pytest.mark.slow
def test_the_wheel_is_small_and_carries_models_and_licences(wheel):
    assert wheel.stat().st_size < 10_000_000
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "builtin_models/coco.safetensors",
        "builtin_models/coco.onnx",
        "builtin_models/face.safetensors",
        "NOTICE",
        "LICENSE",
    ):
        assert any(name.endswith(wanted) for name in names), wanted
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]


@pytest.mark.slow
def test_the_core_predicts_with_built_in_models_alone(venv, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    run_options = {"cwd": tmp_path, "env": environment()}
    where = run(python(venv), "-c", "import multibox; print(multibox.__file__)", **run_options)
    assert Path(where.stdout.strip()).is_relative_to(venv), where
    for module in ABSENT:
        assert run(python(venv), "-c", f"import {module}", **run_options).returncode == 1
    for model in ("coco", "face"):
        done = run(
            python(venv), "-m", "multibox", "predict", model, "photo.jpg", "--json", f"{model}.json", **run_options
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert len(json.loads((tmp_path / f"{model}.json").read_text())) == 1
    for verb in (["--help"], ["list", "models"], ["train", "--help"], ["predict", "--help"]):
        done = run(python(venv), "-m", "multibox", *verb, **run_options)
        assert done.returncode == 0, done.stderr
    done = run(python(venv), "-m", "multibox", "train", ".", **run_options)
    assert done.returncode == 2
    assert "pip install 'multibox[train]'" in done.stderr and done.stderr.count("\n") == 1
    script = "import multibox; print(len(multibox.load('coco').predict('photo.jpg', 0.0)) > 0)"
    done = run(python(venv), "-c", script, **run_options)
    assert done.stdout == "True\n", done.stderr


def test_the_entry_point_is_the_command():
    found = [point.value for point in importlib.metadata.entry_points(name="multibox", group="console_scripts")]
    assert set(found) == {"multibox.cli.main:main"}
