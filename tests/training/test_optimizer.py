"""Learning rates over a run and of parts, and what decays."""

import pytest
import torch
from torch import nn

from multibox import create
from multibox.config import TrainConfig
from multibox.models.backbones.layers import L2Norm
from multibox.presets import resolve
from multibox.training.norms import freeze, without_norms
from multibox.training.optimizer import decay_penalty, learning_rate, make_optimizer


def test_learning_rate_warms_up_and_follows_the_cosine():
    config = TrainConfig(lr=1.0, schedule="cosine", warmup=0.1, final_lr=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert rates[99] == pytest.approx(0.1, abs=0.01)
    assert {learning_rate(step, 100, TrainConfig(lr=0.2)) for step in range(100)} == {0.2}


def test_a_floor_holds():
    config = TrainConfig(lr=1.0, schedule="steps", boundaries=(0.5,), factors=(1.0, 1e-9), minimum_lr=1e-6, steps=4)
    assert [learning_rate(step, 4, config) for step in range(4)] == [1.0, 1.0, 1e-6, 1e-6]


def test_steps_end_where_the_originals_end_them():
    hikapok = resolve("ssd300-vgg16", "hikapok").train
    rates = {step: learning_rate(step, 120_000, hikapok) for step in (0, 500, 501, 80_000, 80_001, 100_000, 100_001)}
    # Facts 17.12: TensorFlow's boundaries belong to the old rate
    expected = {0: 1e-4, 500: 1e-4, 501: 1e-3, 80_000: 1e-3, 80_001: 1e-4, 100_000: 1e-4, 100_001: 1e-5}
    assert rates == pytest.approx(expected)
    caffe = resolve("ssd300-vgg16", "caffe").train
    found = [learning_rate(step, 120_000, caffe) for step in (0, 79_999, 80_000, 99_999, 100_000)]
    assert found == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    # A run of 100 epochs with 12 steps each has its boundaries in the same places
    short = resolve("ssd300-vgg16", "caffe", {"train.epochs": 100}).train
    assert [learning_rate(step, 1200, short) for step in (799, 800, 999, 1000)] == pytest.approx(
        [1e-3, 1e-4, 1e-4, 1e-5]
    )


@pytest.mark.parametrize(("norms", "biases"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_decay_reaches_norms_and_biases_only_where_asked(norms, biases):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), L2Norm(4))
    config = TrainConfig(weight_decay=0.05, norm_decay=norms, bias_decay=biases, bias_lr=2.0)
    groups = {p: g for g in make_optimizer(model, config).param_groups for p in g["params"]}
    assert groups[model[0].weight]["weight_decay"] == 0.05
    assert groups[model[1].weight]["weight_decay"] == 0.05 * norms
    assert groups[model[1].bias]["weight_decay"] == 0.05 * norms
    assert groups[model[2].scale]["weight_decay"] == 0.05 * norms
    assert groups[model[0].bias]["weight_decay"] == 0.05 * biases
    assert groups[model[0].bias]["scale"] == 2.0


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
