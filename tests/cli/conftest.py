import sys

import pytest

from multibox import api
from multibox.cli.main import main
from multibox.models.checkpoint import Checkpoint, save_checkpoint


def call(*arguments):
    """Run `multibox ARGUMENTS` in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["multibox", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture
def run(capsys):
    """Run `multibox ARGUMENTS` and return exit code, stdout, stderr."""
    return lambda *arguments: (call(*arguments), *capsys.readouterr())


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """An untrained TinySSD of 64x64 pixels; do not write beside it."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    detector = api.create("tinyssd", ["red", "blue"])
    config = detector.config.updated({"model.input_size": (64, 64)})
    save_checkpoint(path, Checkpoint(detector.model.state_dict(), config, ("red", "blue")))
    return path
