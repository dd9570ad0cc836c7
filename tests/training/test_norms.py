"""Freezing, learning rates of parts, and batch norms that another framework folded away."""

import copy

import pytest
import torch
from torch import nn

from multibox.api import create
from multibox.config import TrainConfig
from multibox.errors import ConfigError
from multibox.training.norms import folded_norms, freeze, train_mode, unfold_norms, without_norms
from multibox.training.optimizer import decay_penalty, make_optimizer
from multibox.training.run import RunOptions, prepare


def test_frozen_parts_keep_weights_and_statistics_while_the_rest_learns(squares, tmp_path):
    changes = {
        "model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.freeze": "backbone.stages.0.*",
    }  # fmt: skip
    trainer = prepare(squares, RunOptions(preset="tinyssd", epochs=1, out=tmp_path / "run", changes=changes))
    model = trainer.stepper.model
    before = copy.deepcopy(model.state_dict())
    trainer.fit()
    same = {name: torch.equal(value, before[name]) for name, value in model.state_dict().items()}
    assert all(kept for name, kept in same.items() if name.startswith("backbone.stages.0."))
    others = [kept for name, kept in same.items() if not name.startswith("backbone.stages.0.")]
    assert sum(others) < 0.1 * len(others)


def test_a_pattern_that_fits_nothing_is_a_mistake():
    model = create("tinyssd", ["cat"]).model
    with pytest.raises(ConfigError, match=r"train.freeze: 'bakcbone\.\*' fits no parameter"):
        freeze(model, ["bakcbone.*"])
    assert all(name.startswith("heads.") for name in freeze(model, ["heads.*"]))


def test_parts_learn_at_their_own_rates():
    model = create("tinyssd", ["cat"]).model
    freeze(model, ["heads.localization.*"])
    config = TrainConfig(
        lr=0.1, backbone_lr=0.1, head_lr=2.0, bias_lr=2.0, weight_decay=5e-4, bias_decay=0.0, norm_decay=0.5
    )
    optimizer = make_optimizer(model, config)
    found = {id(p): (g["scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    rates = {name: found.get(id(p)) for name, p in model.named_parameters()}
    assert rates["backbone.stages.0.0.conv1.weight"] == (0.1, 5e-4)
    assert rates["backbone.stages.0.0.conv1.bias"] == (0.2, 0.0)
    assert rates["backbone.stages.0.0.norm1.weight"] == (0.1, 2.5e-4)
    assert rates["backbone.stages.0.0.norm1.bias"] == (0.2, 2.5e-4)
    assert rates["heads.classification.0.weight"] == (2.0, 5e-4)
    assert rates["heads.classification.0.bias"] == (4.0, 0.0)
    assert rates["heads.localization.0.weight"] is None


def folded_network():
    """Two convolutions whose batch norms only add a bias, as a file of TF Lite brings them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)
    )
    for norm in (net[1], net[4]):
        nn.init.normal_(norm.bias)
        norm.running_var.fill_(1 - norm.eps)
    return net.eval()


def test_unfolding_changes_nothing_in_evaluation_and_saves_training():
    net = folded_network()
    images = [torch.randn(16, 3, 20, 20) * 3 + 2 for _ in range(2)]
    with torch.no_grad():
        before = net(images[0])
        destroyed = copy.deepcopy(net).train()(images[0])
        assert len(folded_norms(net)) == 2
        assert unfold_norms(net, images) == 2
        torch.testing.assert_close(net(images[0]), before, rtol=1e-4, atol=1e-4)
        assert not folded_norms(net)
        trained = net.train()(images[0])
    assert (destroyed - before).abs().mean() > 0.5
    assert (trained - before).abs().mean() < 0.05


def test_fresh_and_trained_norms_are_left_alone():
    net = create("ssdlite320-mobilenetv2", ["cat"]).model
    assert not folded_norms(net)
    assert unfold_norms(net, [torch.zeros(1, 3, 64, 64)]) == 0


def test_frozen_norms_stay_in_evaluation_mode():
    net = folded_network()
    freeze(net, ["1.*"])
    train_mode(net)
    assert not net[1].training
    assert net[4].training


def test_the_penalty_leaves_batch_norms_and_frozen_parts_out():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    model[2].weight.requires_grad_(False)
    assert [name for name, _ in without_norms(model)] == ["0.weight", "0.bias", "2.bias"]


def test_the_decay_shown_is_what_the_groups_decay():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (3.0, 2.0, 5.0, 7.0), strict=True):
            parameter.fill_(value)
    config = TrainConfig(weight_decay=0.1, bias_decay=0.5, norm_decay=0.0)
    # 0.1 * 9 / 2 for the weight, half as much decay for the bias of 2, none for the batch norm
    assert decay_penalty(make_optimizer(model, config)) == pytest.approx(0.45 + 0.1)
