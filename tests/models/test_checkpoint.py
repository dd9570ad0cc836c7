"""A checkpoint holds a detector whole: what is written is read back, older files too, and others are refused."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multibox.config import Config
from multibox.errors import WeightsError
from multibox.models.anchor_layout import anchors_hash
from multibox.models.build import build_model
from multibox.models.checkpoint import Checkpoint, load_checkpoint, read_metadata, save_checkpoint
from multibox.presets import resolve


def save(path, names):
    config = resolve("tinyssd", "d2l")
    model = build_model(config, len(names))
    save_checkpoint(path, Checkpoint(model.state_dict(), config, names, {"mAP": 0.5}, "a test", "CC0"))
    return model


def test_checkpoint_round_trip(tmp_path):
    model = save(tmp_path / "a.safetensors", ("cat", "dog"))
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.class_names == ("cat", "dog")
    assert (loaded.metrics, loaded.source, loaded.license) == ({"mAP": 0.5}, "a test", "CC0")
    assert loaded.config == resolve("tinyssd", "d2l")
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_checkpoint_of_version_1_is_migrated(tmp_path):
    text = (Path(__file__).parents[1] / "golden" / "config_format_2.toml").read_text()
    config = Config.from_toml(text)
    state = {"weight": torch.zeros(1)}
    values = {
        "format_version": 1,
        "config": tomllib.loads(text),
        "names": ["cat"],
        "anchors_hash": anchors_hash(config),
    }
    train = values["config"]["train"]
    del train["bias_decay"], train["norm_decay"]
    train["decay_norms_and_biases"] = False
    values |= {"metrics": {}, "source": "", "license": ""}
    save_file(state, tmp_path / "old.safetensors", {"multibox": json.dumps(values)})
    old = load_checkpoint(tmp_path / "old.safetensors").config.train
    assert (old.bias_decay, old.norm_decay) == (0.0, 0.0)
    assert old.lr == config.train.lr


def test_broken_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        load_checkpoint(tmp_path / "no.safetensors")
    save(tmp_path / "a.safetensors", ("cat",))
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        load_checkpoint(tmp_path / "cut.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match=r"no multibox config; bring it over with `multibox import`"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 pixels")
    with pytest.raises(
        WeightsError, match=r"photo\.jpg is no model; expected a \.safetensors, \.onnx or \.xml file, or"
    ):
        load_checkpoint(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 9}, "format version 9, this multibox reads 3"),
        ({"aura": "pink"}, r"unknown entries \(aura\)"),
        ({"anchors_hash": "0"}, "this version makes other anchors from its config"),
    ],
)
def test_what_another_version_wrote_is_refused(changes, message, tmp_path):
    save(tmp_path / "a.safetensors", ("cat",))
    values = read_metadata(tmp_path / "a.safetensors") | changes
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors", {"multibox": json.dumps(values)})
    with pytest.raises(WeightsError, match=rf"other\.safetensors.* {message}"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_checkpoint_from_before_a_setting_still_loads(tmp_path):
    save(tmp_path / "a.safetensors", ("cat",))
    values = read_metadata(tmp_path / "a.safetensors")
    assert values["format_version"] == 3
    del values["config"]["post"]["thresholds"]
    state = load_checkpoint(tmp_path / "a.safetensors").state
    save_file(state, tmp_path / "old.safetensors", {"multibox": json.dumps(values)})
    assert load_checkpoint(tmp_path / "old.safetensors").config == resolve("tinyssd", "d2l")
