import pytest

from multibox import api
from multibox.models.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """An untrained TinySSD of 64x64 pixels; do not write beside it."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    detector = api.create("tinyssd", ["red", "blue"])
    config = detector.config.updated({"model.input_size": (64, 64)})
    save_checkpoint(path, Checkpoint(detector.model.state_dict(), config, ("red", "blue")))
    return path
