"""No output of any verb lands on a file that it did not make."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def place(squares, tmp_path, tiny_file, monkeypatch):
    """A folder with data, a model, an image and a run's metrics, in which commands run."""
    monkeypatch.chdir(tmp_path)
    squares.rename("data")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save("x.jpg")
    os.link(tiny_file, "model.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("epoch,loss\n1,2.0\n2,1.0\n")
    (tmp_path / "mine").write_bytes(b"mine")
    return tmp_path


EXPLICIT = [
    (["predict", "model.safetensors", "x.jpg", "--out", "d"], "d/x.jpg"),
    (["predict", "model.safetensors", "x.jpg", "--out", "d", "--json", "found.json"], "found.json"),
    (["predict", "model.safetensors", "x.jpg", "--out", "d", "--coco", "coco.json"], "coco.json"),
    (["predict", "model.safetensors", "x.jpg", "--out", "d", "--yolo", "y"], "y/x.txt"),
    (["predict", "model.safetensors", "x.jpg", "--out", "d", "--voc", "v"], "v/comp4_det_test_red.txt"),
    (["eval", "model.safetensors", "data", "--split", "val", "--json", "scores.json"], "scores.json"),
    (["eval", "model.safetensors", "data", "--split", "val", "--plot", "pr.png"], "pr.png"),
    (["data", "show", "data", "--out", "sheet.jpg"], "sheet.jpg"),
    (["anchors", "data", "--preset", "tinyssd", "--json", "a.json"], "a.json"),
    (["compare", "model.safetensors", "model.safetensors", "data", "--split", "val", "--json", "c.json"], "c.json"),
    (["plot", "losses", "--out", "l.png"], "l.png"),
    (["plot", "curves", "run", "--out", "c.svg"], "c.svg"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "target"), EXPLICIT)
def test_an_output_that_exists_is_refused_before_any_work(run, place, monkeypatch, arguments, target):
    path = place / target
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    before = sorted(place.rglob("*"))
    code, _, err = run(*arguments)
    assert code == 2
    assert err == f"multibox: {target} exists already; give another place, or --overwrite to replace it\n"
    assert path.read_bytes() == b"mine"
    assert sorted(place.rglob("*")) == before
    code, _, err = run(*arguments, "--overwrite")
    assert code == 0, err
    assert path.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["export", "model.safetensors"], "model.onnx"),
        (["export", "model.safetensors", "--out", "m.onnx"], "m.onnx"),
        (["export", "model.safetensors", "--to", "openvino", "--out", "m.xml"], "m.xml"),
        (["export", "model.safetensors", "--to", "openvino", "--out", "m.xml"], "m.bin"),
        (["import", "linzaer", "mine", "--out", "new.safetensors"], "new.safetensors"),
        (["demo", "--out", "tour"], "tour/mine"),
        (["data", "make", "sprites", "tour"], "tour/mine"),
        (["data", "convert", "data", "tour", "--to", "yolo"], "tour/mine"),
        (["train", "data", "--out", "tour"], "tour/mine"),
    ],
)
def test_models_and_data_sets_are_refused_too(run, place, arguments, target):
    path = place / target
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith(f"multibox: {target.split('/')[0]}") and err.count("\n") == 1
    assert path.read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["predict", "model.safetensors", "x.jpg"], ["predictions", "predictions-2"]),
        (["data", "show", "data"], ["sheet.png", "sheet-2.png"]),
        (["plot", "losses"], ["losses.png", "losses-2.png"]),
        (["plot", "curves", "run"], ["curves.png", "curves-2.png"]),
    ],
)
def test_default_names_are_numbered(run, place, arguments, names):
    first = None
    for name in names:
        code, out, err = run(*arguments)
        assert code == 0, err
        assert out.rstrip().endswith(name)
        path = place / name
        first = first or path.stat().st_mtime_ns
    assert (place / names[0]).stat().st_mtime_ns == first


@pytest.mark.parametrize("how", ["same", "symlink", "hard link", "linked folder", "spelling"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_source_image_is_never_replaced(run, place, how, more):
    out = place / "out"
    if how == "same":
        out = place
    elif how == "linked folder":
        out.symlink_to(place)
    elif how == "spelling":
        out.mkdir()
        out = out / ".."
    else:
        out.mkdir()
        (os.link if how == "hard link" else os.symlink)(place / "x.jpg", out / "x.jpg")
    before = (place / "x.jpg").read_bytes()
    code, _, err = run("predict", "model.safetensors", "x.jpg", "--out", out, *more)
    assert code == 2
    assert err.startswith(f"multibox: {out / 'x.jpg'} belongs to the input and is never replaced; ")
    assert (place / "x.jpg").read_bytes() == before


def test_images_beside_their_drawings_stay(run, place):
    """A PNG's drawing is STEM.jpg, which may be another source."""
    Image.new("RGB", (30, 30)).save("y.png")
    (place / "photos").mkdir()
    for name in ("x.jpg", "y.png"):
        (place / name).rename(place / "photos" / name)
    before = {path.name: path.read_bytes() for path in (place / "photos").iterdir()}
    code, _, err = run("predict", "model.safetensors", "photos", "--out", "photos", "--overwrite")
    assert code == 2
    assert "photos/x.jpg belongs to the input" in err
    assert {path.name: path.read_bytes() for path in (place / "photos").iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "model.safetensors", "x.jpg", "--out", "d", "--json", "model.safetensors"],
        ["predict", "model.safetensors", "x.jpg", "--out", "d", "--json", "x.jpg"],
        ["eval", "model.safetensors", "data", "--split", "val", "--json", "data/Annotations/000.xml"],
        ["data", "show", "data", "--out", "data/JPEGImages/000.png"],
        ["plot", "curves", "run", "--out", "run/c.png"],
        ["import", "linzaer", "mine.safetensors", "--out", "mine.safetensors"],
    ],
)
def test_overwrite_spares_the_other_inputs(run, place, arguments):
    (place / "run" / "c.png").write_bytes(b"mine")
    (place / "mine").rename(place / "mine.safetensors")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    code, _, err = run(*arguments, "--overwrite")
    assert code == 2
    assert f"{arguments[-1]} belongs to the input" in err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_overwrite_takes_other_results_of_a_run_folder(run, place):
    (place / "model.safetensors").rename(place / "run" / "best.safetensors")
    arguments = ("predict", "run", "x.jpg", "--out", "run/predictions", "--overwrite")
    assert run(*arguments)[0] == 0
    assert run(*arguments)[0] == 0


def test_two_outputs_of_one_name_are_refused(run, place):
    code, _, err = run("predict", "model.safetensors", "x.jpg", "--out", "d", "--json", "f.json", "--coco", "./F.json")
    assert code == 2
    assert "two outputs would be written to f.json" in err


def test_a_device_is_written_to(run, place):
    if sys.platform == "win32":
        pytest.skip("has no /dev/null")
    code, _, err = run("predict", "model.safetensors", "x.jpg", "--out", "d", "--json", os.devnull)
    assert code == 0, err
    assert not Path(os.devnull).is_file()


def test_a_folder_that_may_not_be_written_to(run, place, monkeypatch):
    (place / "locked").mkdir()
    # Not by its mode: root may write anywhere
    monkeypatch.setattr("os.access", lambda path, mode: "locked" not in str(path))
    code, _, err = run("predict", "model.safetensors", "x.jpg", "--out", "locked/d")
    assert code == 2
    assert err == f"multibox: {place / 'locked'} is a folder that you may not write to; give another place\n"


def test_show_skips_broken_images_where_asked(run, place):
    (place / "data" / "JPEGImages" / "000.png").write_bytes(b"")
    code, _, err = run("data", "show", "data")
    assert code == 2
    assert "000.png is empty" in err
    code, out, err = run("data", "show", "data", "--on-bad", "skip")
    assert code == 0, err
    assert "1 image that cannot be read was skipped; the first: " in out and "train has 11 images" in out


def test_an_ending_that_is_not_written(run, place):
    for arguments in (["data", "show", "data", "--out", "s.gif"], ["plot", "losses", "--out", "l.xyz"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert "expected a file name that ends in .png" in err
