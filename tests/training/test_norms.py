"""Frozen parts, and batch norms that another framework folded away."""

import copy

import pytest
import torch
from torch import nn

from multibox import create
from multibox.errors import ConfigError
from multibox.training.norms import freeze, measure_norms, norms_without_statistics, train_mode
from multibox.training.run import RunOptions, prepare


@pytest.mark.slow
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
        assert len(norms_without_statistics(net)) == 2
        assert measure_norms(net, images) == 2
        torch.testing.assert_close(net(images[0]), before, rtol=1e-4, atol=1e-4)
        assert not norms_without_statistics(net)
        trained = net.train()(images[0])
    assert (destroyed - before).abs().mean() > 0.5
    assert (trained - before).abs().mean() < 0.05


def test_fresh_and_trained_norms_are_left_alone():
    net = create("ssdlite320-mobilenetv2", ["cat"]).model
    assert not norms_without_statistics(net)
    assert measure_norms(net, [torch.zeros(1, 3, 64, 64)]) == 0


def test_frozen_norms_stay_in_evaluation_mode():
    net = folded_network()
    freeze(net, ["1.*"])
    train_mode(net)
    assert not net[1].training
    assert net[4].training
