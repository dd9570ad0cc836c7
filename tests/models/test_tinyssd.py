import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multibox.config import Config
from multibox.errors import ConfigError, WeightsError
from multibox.models.anchor_layout import anchors_hash, make_anchors
from multibox.models.build import build_model
from multibox.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from multibox.models.weights import load_weights
from multibox.presets import resolve


def blank(height=256, width=256, batch=1):
    return torch.zeros(batch, 3, height, width, dtype=torch.uint8)


def test_one_class_has_the_originals_size():
    config = resolve("tinyssd", "d2l")
    model = build_model(config, 1)
    assert sum(p.numel() for p in model.parameters()) == 1_010_376
    outputs = model(blank(batch=2))
    assert outputs.logits.shape == (2, 5444, 2)
    assert outputs.offsets.shape == (2, 5444, 4)
    assert outputs.feature_shapes == ((32, 32), (16, 16), (8, 8), (4, 4), (1, 1))


@pytest.mark.parametrize("size", [(256, 256), (320, 192), (480, 272)])
def test_outputs_and_anchors_agree_at_any_size(size):
    config = resolve("tinyssd", "d2l")
    outputs = build_model(config, 3).eval()(blank(*size))
    anchors = make_anchors(config.anchors, outputs.feature_shapes, size)
    assert outputs.logits.shape[1] == len(anchors)


def test_same_seed_same_weights_and_global_generator_untouched():
    before = torch.random.get_rng_state()
    first, second = (build_model(resolve("tinyssd"), 2, seed=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = build_model(resolve("tinyssd"), 2, seed=6).state_dict()
    assert not torch.equal(first["backbone.stages.0.0.conv1.weight"], other["backbone.stages.0.0.conv1.weight"])


def test_prior_sets_the_first_probability_of_background():
    config = resolve("tinyssd").updated({"model.prior": 0.02})
    model = build_model(config, 3).eval()
    for head in model.heads.classification:
        torch.nn.init.zeros_(head.weight)
    scores = model(blank()).logits.softmax(-1)
    assert torch.allclose(scores[..., 0], torch.tensor(0.98), atol=1e-5)


def test_anchor_lists_of_the_wrong_length_are_refused():
    with pytest.raises(ConfigError, match=r"2 feature maps but tinyssd has 5"):
        build_model(Config().updated({"anchors.sizes": [[0.2], [0.3]], "anchors.ratios": [[1], [1]]}), 1)


def save(path, names, seed=0):
    config = resolve("tinyssd", "d2l")
    model = build_model(config, len(names), seed)
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
    (tmp_path / "newer.safetensors").write_bytes(data.replace(b'format_version\\": 3', b'format_version\\": 9'))
    with pytest.raises(WeightsError, match="format version 9"):
        load_checkpoint(tmp_path / "newer.safetensors")


def test_class_rows_are_kept_by_name(tmp_path):
    old = save(tmp_path / "a.safetensors", ("cat", "dog"), seed=1)
    new = build_model(resolve("tinyssd", "d2l"), 3, seed=2)
    fresh = new.heads.classification[0].weight.detach().clone().view(4, 4, 64, 3, 3)
    sentence = load_weights(new, tmp_path / "a.safetensors", ("bird", "dog", "cat")).note
    theirs = old.heads.classification[0].weight.view(4, 3, 64, 3, 3)
    mine = new.heads.classification[0].weight.view(4, 4, 64, 3, 3)
    assert torch.equal(mine[:, 0], theirs[:, 0])
    assert torch.equal(mine[:, 2], theirs[:, 2])
    assert torch.equal(mine[:, 3], theirs[:, 1])
    assert torch.equal(mine[:, 1], fresh[:, 1])
    assert torch.equal(new.heads.localization[2].weight, old.heads.localization[2].weight)
    assert "kept: cat, dog" in sentence
    assert "fresh: bird" in sentence
