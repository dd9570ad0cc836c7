"""Exported files as `multibox bench` times them, and the example that needs no multibox."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.benchmarking import clock, subjects
from multibox.benchmarking.clock import WHOLE
from multibox.benchmarking.measurement import bench
from multibox.benchmarking.subjects import PARTS, exported_subject
from multibox.benchmarking.torchvision_peer import EXACT, agree, eager_subject
from multibox.benchmarking.workload import LOADS, synthetic_images, synthetic_outputs
from multibox.exporting import export
from multibox.models.build import measure
from multibox.structures import Size

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model.onnx"
    export(tiny, path)
    return path


@pytest.fixture(params=["OpenVINO", "onnxruntime"])
def subject(request, file, monkeypatch):
    if request.param == "onnxruntime":
        monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)
    found = exported_subject(file, 1, "float32")
    assert request.param in found.name and found.exact
    return found


def test_the_parts_are_the_whole(subject, tiny):
    eager = eager_subject(tiny, "float32")
    assert subject.flops == eager.flops == 2 * measure(tiny.config, 3).multiply_adds
    assert subject.outputs == eager.outputs
    images = synthetic_images(3, Size(64, 64))
    assert agree("both", eager.predict(images), subject.predict(images), EXACT).detections > 100
    times = subject.run(synthetic_images(2, Size(40, 50)))
    assert set(times) == {*PARTS, WHOLE} and all(value > 0 for value in times.values())
    for load in LOADS:
        outputs = synthetic_outputs(load, (2, *eager.outputs), "softmax", eager.threshold)
        wanted, found = (each.post(outputs, Size(40, 50))() for each in (eager, subject))
        assert agree(load, wanted, found, EXACT).detections > 200


def test_without_onnx_only_the_whole_is_timed(file, monkeypatch):
    for module in ("multibox.inference.engines", "multibox.benchmarking.subjects"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    found = exported_subject(file, 1)
    assert found.how == subjects.UNCUT and found.post is None
    assert set(found.run(synthetic_images(1, Size(40, 50)))) == {WHOLE}


@pytest.mark.slow
def test_a_report_of_a_file(file, monkeypatch):
    monkeypatch.setattr(clock, "TURN", 0.0)
    monkeypatch.setattr("multibox.benchmarking.clock.SIDE", 64)
    report = bench(file, rounds=1, threads=1)
    parts = [(row.part, row.batch) for row in report.rows]
    every = [(part, batch) for batch in (1, 8) for part in (*PARTS, WHOLE)]
    assert parts == [("decode", 1), *every, ("post-process, sparse", 1), ("post-process, dense", 1)]
    assert all(len(row.times) == 1 and row.times[0].median > 0 for row in report.rows)
    notes = "\n".join(report.notes)
    for words in ("sparse load: 300 candidates", "dense load:", "the graph cut in three", "ceiling", "MB", "Python"):
        assert words in notes
    assert re.search(r"network, batch 8: \d+\.\d+ TFLOP/s, \d+% of it", notes)


def test_the_example_needs_neither_torch_nor_multibox(file, tiny, noise, tmp_path):
    script = (ROOT / "examples/minimal_runtime.py").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 40
    Image.fromarray(noise(64, 64)).save(tmp_path / "photo.png")
    code = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "multibox", "onnx", "openvino"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""
    example = str(ROOT / "examples/minimal_runtime.py")
    command = [sys.executable, "-c", code, example, str(file), str(tmp_path / "photo.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = tiny.predict(tmp_path / "photo.png")
    assert len(wanted) > 5
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [wanted.names[label] for label in wanted.labels]
    np.testing.assert_allclose([[float(value) for value in line[1:]] for line in lines],
                               np.column_stack([wanted.scores, wanted.boxes]), atol=0.06)  # fmt: skip
