"""`multibox export`."""

import pytest
from typer.testing import CliRunner

from multibox.cli.main import app
from multibox.errors import ConfigError
from multibox.models.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture
def model(tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, Checkpoint(tiny.model.state_dict(), tiny.config, tiny.names, license="MIT", source="a test"))
    return path


@pytest.mark.slow
def test_it_writes_beside_the_model_and_reports(model):
    result = CliRunner().invoke(app, ["export", str(model)])
    assert result.exit_code == 0, result.output
    assert "grey levels" in result.output
    import onnx

    properties = {p.key: p.value for p in onnx.load(model.with_suffix(".onnx")).metadata_props}
    assert '"license": "MIT"' in properties["multibox"]


@pytest.mark.slow
def test_a_difference_is_exit_code_1(model, monkeypatch):
    monkeypatch.setattr("multibox.exporting.verify.GREY_LEVELS", 0.1)
    result = CliRunner().invoke(app, ["export", str(model), "--raw"])
    assert result.exit_code == 1
    assert "resize differs" in result.output
    assert not model.with_suffix(".onnx").exists()


def test_options_that_exclude_each_other(model):
    for arguments in (["--raw", "--dialect", "jetson"], ["--to", "openvino", "--out", "a.onnx"]):
        result = CliRunner().invoke(app, ["export", str(model), *arguments])
        assert isinstance(result.exception, ConfigError)
