"""Exported files opened by `multibox.load`: the detector's answers without torch, and refusals in a sentence."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

import multibox
from multibox.api import evaluate, open_for
from multibox.errors import ConfigError, ImageError, MissingExtraError, WeightsError
from multibox.exporting import export
from multibox.exporting.verify import match
from multibox.inference.detector import Detector, find_all
from multibox.inference.engines import KEY
from multibox.privacy import LIGHT_OPENVINO

THRESHOLD = 0.2


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    for name in ("model.onnx", "model.xml"):
        export(tiny, folder / name)
    return folder


@pytest.fixture(params=["onnxruntime", "OpenVINO", "OpenVINO of ONNX"])
def exported(request, files, monkeypatch):
    if request.param == "onnxruntime":
        monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)
    path = files / ("model.xml" if request.param == "OpenVINO" else "model.onnx")
    found = multibox.load(path, threads=1, precision="float32")
    assert found.engine.name == request.param.partition(" ")[0]
    return found


def agree(found, wanted, side):
    assert len(wanted) > 20
    assert len(found) == len(wanted)
    assert match(found, wanted, side).matched >= len(wanted) * 0.98


@pytest.mark.slow
def test_it_needs_no_torch(files, noise, tmp_path):
    np.save(tmp_path / "image.npy", noise(50, 70))
    code = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "jaxtyping"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import multibox
import numpy as np
found = multibox.load(sys.argv[1]).predict(np.load(sys.argv[2]), 0.2)
assert len(found) > 0
assert "torch" not in sys.modules
assert not getattr(sys.modules.get("openvino_telemetry"), "__file__", None)  # a stand-in that reports nothing
import openvino
assert callable(openvino.convert_model) and not hasattr(openvino, "nothing")
print("fine")
"""
    # The command line sets it for its process, where other tests ran it
    environment = {name: value for name, value in os.environ.items() if name != LIGHT_OPENVINO}
    for name in ("model.onnx", "model.xml"):
        arguments = [sys.executable, "-c", code, str(files / name), str(tmp_path / "image.npy")]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
        assert done.stdout == "fine\n", done.stderr


@pytest.mark.slow
def test_signals_are_safe_after_files_were_closed(files):
    """Closed in the order of opening, OpenVINO's cores left a freed signal stack behind: death without a word."""
    code = """
import faulthandler, signal, subprocess, sys
from pathlib import Path
from multibox.inference.engines import open_engine

faulthandler.enable()  # its signal stack is the one that OpenVINO replaces
signal.signal(signal.SIGCHLD, lambda *_: None)
opened = [open_engine(Path(sys.argv[1]), 1) for _ in range(2)]
del opened[0]
del opened[0]
subprocess.run([sys.executable, "-c", ""], check=True)
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(files / "model.xml")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "fine\n", done.returncode


def test_threads_get_their_own_answers(exported, noise):
    images = [noise(40, 60), noise(64, 64)[::-1], noise(90, 30)]
    wanted = [exported.predict(image, THRESHOLD) for image in images]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: exported.predict(image, THRESHOLD), images * 8))
    for one, same in zip(found, wanted * 8, strict=True):
        assert len(one) == len(same) > 0
        np.testing.assert_array_equal(one.boxes, same.boxes)


def test_it_answers_what_the_detector_answers(exported, tiny, noise):
    # Of the network's size, so that rounding in the resize plays no part
    image = noise(64, 64)
    agree(exported.predict(image, THRESHOLD), tiny.predict(image, THRESHOLD), 64)
    assert exported.names == tiny.names


def test_a_list_keeps_its_order_whatever_the_sizes(exported, noise):
    images = [noise(64, 64) for _ in range(20)]
    images[3:3] = [noise(40, 90)]
    one_by_one = [exported.predict(image, THRESHOLD) for image in images]
    for found, alone, image in zip(exported.predict(images, THRESHOLD), one_by_one, images, strict=True):
        agree(found, alone, max(image.shape))
    assert exported.predict([]) == []


@pytest.mark.slow
def test_thresholds_of_the_classes_travel_along(tiny, noise, tmp_path):
    least = (0.1, 0.9, 0.5)
    detector = Detector(tiny.model, tiny.config.updated({"post.thresholds": least}), tiny.names)
    export(detector, tmp_path / "model.onnx")
    image = noise(64, 64)
    found = multibox.load(tmp_path / "model.onnx", precision="float32").predict(image)
    agree(found, detector.predict(image), 64)
    assert (found.scores >= np.array(least)[found.labels]).all()
    assert {0, 2} <= set(found.labels.tolist())


@pytest.mark.slow
def test_a_data_set_is_seen_as_the_detector_sees_it(exported, tiny, squares):
    renamed = {"red": "a", "blue": "b"}
    dataset = open_for(tiny, squares, split="train", rename=renamed)
    counts = [sum(map(len, find_all(each, dataset))) for each in (tiny, exported)]
    # The network's input may differ by a grey level
    assert counts[1] == pytest.approx(counts[0], rel=0.05)
    figures = evaluate(exported, squares, split="train", rename=renamed)
    assert figures["images"] == 12
    assert set(figures["coco"]["per_class"]) <= {"a", "b", "c"}


def rewritten(files, tmp_path, change):
    proto = onnx.load(files / "model.onnx")
    (entry,) = (p for p in proto.metadata_props if p.key == KEY)
    values = json.loads(entry.value)
    change(values)
    entry.value = json.dumps(values)
    path = tmp_path / "changed.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "OpenVINO"])
def test_what_is_no_model_of_ours_is_refused_in_a_sentence(files, tiny, tmp_path, monkeypatch, runtime):
    if runtime == "onnxruntime":
        monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"nowhere.onnx does not exist"):
        multibox.load(tmp_path / "nowhere.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model at all")
    with pytest.raises(WeightsError, match=r"broken.onnx is no readable model .*was it copied whole\?"):
        multibox.load(tmp_path / "broken.onnx")
    newer = rewritten(files, tmp_path, lambda values: values.update(format_version=99))
    with pytest.raises(WeightsError, match=r"format version 99, this multibox reads 1; update"):
        multibox.load(newer)
    proto = onnx.load(files / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match=r"foreign.onnx says nothing of multibox"):
        multibox.load(tmp_path / "foreign.onnx")


@pytest.mark.parametrize(
    ("dialect", "how"),
    [
        ("raw", "without --raw"),
        ("ultralytics", "without --dialect"),
        ("jetson", "without --dialect"),
        ("triton", "with --to onnx"),
        ("ovms", "with --to onnx"),
    ],
)
def test_a_file_for_other_software_says_how_to_export_it_instead(files, tmp_path, dialect, how):
    other = rewritten(files, tmp_path, lambda values: values.update(dialect=dialect))
    with pytest.raises(WeightsError, match=rf"exported for other software \(dialect '{dialect}'\); export {how} to"):
        multibox.load(other)


def test_openvinos_file_needs_openvino(files, monkeypatch):
    monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"model.xml needs packages .*multibox\[export\]"):
        multibox.load(files / "model.xml")


def test_images_that_are_none(exported):
    for wrong in (np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 3)), np.zeros((5, 5), np.uint8)):
        with pytest.raises(ImageError, match=r"must be uint8 RGB \[H, W, 3\]"):
            exported.predict(wrong)


def test_precisions(files, monkeypatch):
    with pytest.raises(ConfigError, match=r"precision='half': expected float32 or bfloat16"):
        multibox.load(files / "model.onnx", precision="half")
    monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"precision='bfloat16' needs OpenVINO"):
        multibox.load(files / "model.onnx", precision="bfloat16")


def test_mirror_images_are_for_checkpoints(files):
    with pytest.raises(ConfigError, match="averaging over mirror images is for checkpoints"):
        multibox.load(files / "model.onnx", flip=True)
