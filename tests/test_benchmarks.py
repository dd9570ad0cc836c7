"""The benchmarks run, small and without peers: what they assert before they print a time holds here, too."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> str:
    """Return what a benchmark prints; its own warnings are errors."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    # One thread: tests run beside each other, and nothing is measured here
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_gpu_on_a_cpu():
    report = run("gpu.py", "--small", "--device", "cpu")
    assert "WRONG" not in report
    assert report.count(" ok\n") >= 30
    assert re.search(r"training +bfloat16 +2 +\d", report)
    assert re.search(r"inference +float32 +2 +\d", report)
    assert "the host waits for the device" in report


def test_our_side_of_the_training_step():
    report = run("train_step.py", "--no-peers", "--batch", "2", "--size", "64", "--rounds", "1")
    assert "DIFFERENT" not in report
    assert re.search(r"ours, d2l \(float32\) +\d", report)
    assert "backward" in report


def test_a_different_result_is_seen(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("train_step")
    right = script.Facts(torch.tensor([[0, 1]]), torch.tensor([2.0]), {"w": 3.0}, {"w": torch.zeros(2)})
    tolerance = script.Tolerance(losses=1e-3, gradients=1e-3, weights=1e-3)
    assert script.compare("same", right, right, tolerance)
    wrong = [
        right._replace(labels=torch.tensor([[1, 1]])),
        right._replace(losses=torch.tensor([2.01])),
        right._replace(losses=torch.tensor([float("nan")])),
        right._replace(gradient_norms={"w": 3.01}),
        right._replace(weights={"w": torch.full((2,), 0.01)}),
    ]
    assert not any(script.compare("other", right, other, tolerance) for other in wrong)
    assert capsys.readouterr().out.count("DIFFERENT") == len(wrong)


def test_names_of_the_chapter(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("train_step")
    names = {
        "backbone.stages.0.2.conv2.bias": "blk_0.2.3.bias",
        "backbone.stages.3.0.norm2.running_var": "blk_3.4.running_var",
        "heads.localization.4.weight": "bbox_4.weight",
    }
    for ours, theirs in names.items():
        assert script.chapter_name(ours) == theirs
        assert script.our_name(theirs) == ours


@pytest.mark.slow
def test_latency_where_the_sides_agree():
    report = run("latency.py", "--small", "--rounds", "1", "--only", "ssdlite")
    assert "DIFFERENT" not in report
    assert report.count(" matched (scores within ") == 4
    assert re.search(r"^ours, exported, OpenVINO +\d", report, re.MULTILINE)
    assert len(re.findall(r"(reached|MISSED): ours, exported, OpenVINO takes", report)) == 2


@pytest.mark.slow
def test_throughput_of_predict(tmp_path):
    pytest.importorskip("onnxscript", reason="needs multibox[export]")
    from multibox import api

    detector = api.create("tinyssd", ["a", "b"])
    detector.config = detector.config.updated({"model.input_size": (64, 64)})
    api.export(detector, tmp_path / "m.onnx")
    report = run("predict_throughput.py", str(tmp_path / "m.onnx"), "--images", "6", "--rounds", "1")
    assert re.search(r"^6 images: \d+ of \d+ boxes are the same on both sides", report, re.MULTILINE)
    assert re.search(r"^(reached|MISSED): \d", report, re.MULTILINE)


def test_bars_of_latency(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("latency")
    times = {"one": script.Spread(2.0, 1.0, 3.0), "other": script.Spread(4.0, 4.0, 4.0)}
    assert script.judge(script.Bar("one", "other", 0.5), times)["reached"]
    assert not script.judge(script.Bar("one", "other", 0.49), times)["reached"]
    assert set(script.BARS) == {"ssd300", "ssd300x8", "ssdlite", "post, sparse", "post, dense"}
