"""A fresh network's first outputs: probabilities near the prior, and so a first loss near its theoretical value."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from multibox.data.sprites import render
from multibox.models.build import build_model
from multibox.presets import RECIPES, fitting, resolve

CLASSES = 20
SIDE = 160
QUICK = [
    ("tinyssd", "default"),
    ("tinyssd", "d2l"),
    ("multibox-fine", "default"),
    ("ssdlite320-mobilenetv3", "torchvision-ssdlite"),
    ("rfb320-face", "default"),
]
CASES = [
    pytest.param((preset, recipe), marks=() if (preset, recipe) in QUICK else pytest.mark.slow, id=f"{preset} {recipe}")
    for recipe in RECIPES
    for preset in fitting(recipe)
]


def noise():
    return torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))


def drawn():
    pixels = [render(index, seed=3, classes=3, objects=(2, 4), size=SIDE)[0] for index in range(4)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module", params=CASES)
def fresh(request):
    config = resolve(*request.param, {"anchors.fit": "none"})
    return config, build_model(config, CLASSES)


@torch.no_grad()
def first_logits(model, images, training):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model.train(training)(images).logits
    model.load_state_dict(state)  # batch norms have measured
    return logits


def losses(logits, score):
    """Return the mean loss of an anchor of each class, and of a background anchor."""
    if score == "softmax":
        log = logits.log_softmax(-1)
        return -log[..., 1:].mean().item(), -log[..., 0].mean().item()
    return functional.softplus(-logits).mean().item(), functional.softplus(logits).sum(-1).mean().item()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("images", [noise, drawn])
def test_the_first_loss_is_what_the_prior_says(fresh, images, training):
    config, model = fresh
    prior, score = config.model.prior, config.model.score
    logits = first_logits(model, images(), training)
    positive, background = losses(logits, score)
    if prior == "none":
        # These start as their originals do, with Glorot's rule in the heads; in evaluation batch norms know nothing yet
        if training:
            assert logits.std() < 2
            assert positive == pytest.approx(math.log(CLASSES + 1), rel=0.3)
        return
    # Softmax shares the prior among the classes, each sigmoid has it to itself
    each = prior / CLASSES if score == "softmax" else prior
    spread = logits[..., 1:] if score == "softmax" else logits
    assert spread.std() < 0.6
    assert positive == pytest.approx(-math.log(each), rel=0.05)
    expected = -math.log(1 - prior) if score == "softmax" else -CLASSES * math.log(1 - prior)
    assert background == pytest.approx(expected, rel=0.5)


@pytest.mark.slow
def test_loaded_weights_do_not_feel_the_scale_of_the_first_convolution():
    config = resolve("ssd300-vgg16", changes={"anchors.fit": "none"})
    fresh, other = build_model(config, 2), build_model(config, 2, seed=1)
    other.load_state_dict(fresh.state_dict())
    images = noise()[:1]
    assert torch.equal(fresh.eval()(images).logits, other.eval()(images).logits)
