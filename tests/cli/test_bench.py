"""`multibox bench` on the command line."""

import re

import pytest

from multibox.benchmarking import clock


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(clock, "PAUSE", 0.0)
    monkeypatch.setattr(clock, "TURN", 0.0)
    monkeypatch.setattr("multibox.benchmarking.clock.SIDE", 64)


def test_a_checkpoint_is_measured_part_by_part(run, tiny_file, squares):
    folder = squares / "JPEGImages"
    code, out, err = run("bench", tiny_file, "--rounds", 1, "--precision", "float32", "--pictures", folder)
    assert code == 0, err
    for part in ("preprocess", "network", "post-process", "whole"):
        for batch in (1, 8):
            assert re.search(rf"^{part} +{batch} +\d+\.\d\d \(\d", out, re.MULTILINE)
    assert re.search(r"^decode +1 +\d", out, re.MULTILINE)
    assert "ours, PyTorch float32: ceiling" in out and f"images: {folder}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "mmdet"), "--against mmdet: expected torchvision"),
        (("--against", "torchvision"), "torchvision has no tinyssd"),
        (("--precision", "half"), "precision='half': expected float32 or bfloat16"),
    ],
)
def test_refusals(run, tiny_file, arguments, message):
    code, _, err = run("bench", tiny_file, *arguments)
    assert code == 2 and message in err


def test_an_exported_file_has_no_weights_for_torchvision(run, tmp_path):
    (tmp_path / "model.onnx").touch()
    code, _, err = run("bench", tmp_path / "model.onnx", "--against", "torchvision")
    assert code == 2 and "--against needs the checkpoint" in err
