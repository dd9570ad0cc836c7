"""`multibox bench` on the command line."""

import re

import pytest
from typer.testing import CliRunner

from multibox import api
from multibox.benchmarking import clock
from multibox.cli.main import app
from multibox.errors import ConfigError
from multibox.models.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture
def model(tmp_path):
    detector = api.create("tinyssd", ["a"])
    config = detector.config.updated({"model.input_size": (64, 64)})
    save_checkpoint(tmp_path / "tiny.safetensors", Checkpoint(detector.model.state_dict(), config, ("a",)))
    return tmp_path / "tiny.safetensors"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(clock, "PAUSE", 0.0)
    monkeypatch.setattr(clock, "TURN", 0.0)
    monkeypatch.setattr("multibox.benchmarking.clock.SIDE", 64)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_checkpoint_is_measured_part_by_part(model):
    done = run(model, "--rounds", 1, "--precision", "float32")
    assert done.exit_code == 0, done.output
    for part in ("preprocess", "network", "post-process", "whole"):
        for batch in (1, 8):
            assert re.search(rf"^{part} +{batch} +\d+\.\d\d \(\d", done.output, re.MULTILINE)
    assert re.search(r"^decode +1 +\d", done.output, re.MULTILINE)
    assert "ours, PyTorch float32: ceiling" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "mmdet"), "--against mmdet: expected torchvision"),
        (("--against", "torchvision"), "torchvision has no tinyssd"),
        (("--precision", "half"), "precision='half': expected float32 or bfloat16"),
    ],
)
def test_refusals(model, arguments, message):
    done = run(model, *arguments)
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)


def test_an_exported_file_has_no_weights_for_torchvision(tmp_path):
    (tmp_path / "model.onnx").touch()
    done = run(tmp_path / "model.onnx", "--against", "torchvision")
    assert "--against needs the checkpoint" in str(done.exception)
