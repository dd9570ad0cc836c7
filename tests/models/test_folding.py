"""Batch norms are folded into the convolutions before them, in every preset, and outputs stay what they were."""

import copy

import pytest
import torch
from torch import nn

from multibox.models.backbones import make_backbone
from multibox.models.build import build_model
from multibox.models.prediction import convolutions_before_norms, fold_norms, gains, quick_copy
from multibox.models.ssd import SSD, Heads
from multibox.presets import PRESETS, resolve


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def trained(model):
    """Give the batch norms statistics and weights that folding must not lose; gentle ones, or rounding would grow."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms_of(model):
        norm.running_mean.normal_(0, 0.2, generator=generator)
        norm.running_var.uniform_(0.8, 1.5, generator=generator)
        norm.weight.uniform_(0.7, 1.2, generator=generator)
        norm.bias.normal_(0, 0.2, generator=generator)
    return model.eval()


@torch.inference_mode()
def assert_same_outputs(model, folded, size=96):
    images = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(1))
    found, expected = folded(images), model(images)
    for ours, wanted in ((found.logits, expected.logits), (found.offsets, expected.offsets)):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3 * wanted.std().item())


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_no_batch_norm_of_a_preset_is_left(preset):
    model = trained(build_model(resolve(preset, changes={"anchors.fit": "none"}), 3))
    before = len(norms_of(model))
    assert (before > 0) == gains(model, "float32") == ("vgg" not in preset)
    assert len(convolutions_before_norms(model)) == before
    quick = quick_copy(model, "float32")
    assert (len(norms_of(quick)), len(norms_of(model))) == (0, before)
    assert_same_outputs(model, quick)


class Awkward(nn.Module):
    """Batch norms that may not be folded (at the input, after a ReLU, beside another reader, called twice), and one."""

    channels = (8,)

    def __init__(self):
        super().__init__()
        self.input, self.read_twice, self.folded, self.called_twice = (nn.BatchNorm2d(n) for n in (3, 8, 8, 8))
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8, 8))
        self.after_relu = nn.BatchNorm2d(8)

    def forward(self, images):
        raw = self.first(self.input(images))
        both = self.read_twice(raw) + raw
        once = self.after_relu(torch.relu(self.folded(self.second(both))))
        return [self.called_twice(self.third(once)) + self.called_twice(self.fourth(once))]


class Branching(nn.Module):
    """A forward pass that depends on values, as in some models of timm; it cannot be traced."""

    channels = (8,)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    def forward(self, images):
        features = self.layers(images)
        return [features if features.sum() > 0 else -features]


@pytest.mark.parametrize(
    ("backbone", "left"),
    [(Awkward, ["input", "read_twice", "called_twice", "after_relu"]), (Branching, ["layers.1"])],
)
def test_norms_that_cannot_be_folded_stay_and_are_named(backbone, left):
    model = trained(SSD(backbone(), Heads("conv1x1", (8,), [2], 3), (128,) * 3, (64,) * 3))
    folded = copy.deepcopy(model)
    assert fold_norms(folded) == [f"backbone.{name}" for name in left]
    assert_same_outputs(model, folded)


@pytest.mark.slow
def test_the_activation_inside_a_norm_of_timm_stays():
    backbone = make_backbone("timm:mobilenetv3_small_050", 1.0, 2)
    model = trained(SSD(backbone, Heads("ssdlite", backbone.channels, [2, 2], 3), (128,) * 3, (64,) * 3))
    folded = copy.deepcopy(model)
    assert norms_of(model)
    assert fold_norms(folded) == []
    assert_same_outputs(model, folded)
