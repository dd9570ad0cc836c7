"""Every classification loss with every localisation loss and every matcher: one head, one step, finite and falling."""

import copy
import itertools
import typing

import pytest
import torch

from multibox.config import LossConfig, MatchingConfig
from multibox.errors import ConfigError
from multibox.experiments.ablation import loss_settings, matcher_settings
from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import HeadOutputs


def choices(section, field):
    return typing.get_args(typing.get_type_hints(section)[field])


CLASSIFICATION = choices(LossConfig, "classification")
LOCALIZATION = choices(LossConfig, "localization")
MATCHERS = choices(MatchingConfig, "matcher")


PAIRS = [
    pytest.param(first, second, marks=() if first == "cross_entropy" or second == "smooth_l1" else pytest.mark.slow)
    for first, second in itertools.product(CLASSIFICATION, LOCALIZATION)
]
"""Every loss of one kind with the usual one of the other kind; all other pairs are slow."""


def settings(classification, **more):
    return {"anchors.fit": "none", "model.input_size": [64, 64], **loss_settings(classification), **more}


@pytest.fixture(scope="module")
def features():
    """Feature maps of two images of noise: of the losses' making is only what the heads do with them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator) / 128 - 1
    backbone = build_model(resolve("tinyssd", changes=settings("cross_entropy")), 2).backbone.train()
    with torch.no_grad():
        return backbone(images)


def objects():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 3, 2, generator=generator) * 0.5
    gt = torch.cat([corner, corner + 0.2 + 0.2 * torch.rand(2, 3, 2, generator=generator)], 2)
    labels = torch.randint(0, 2, (2, 3), generator=generator)
    labels[1], gt[1] = -1, -1  # an image without objects
    return gt, labels


@pytest.mark.slow
@pytest.mark.parametrize(("classification", "localization"), PAIRS)
def test_every_combination_learns(classification, localization, features):
    gt, labels = objects()
    shapes = tuple(Size(*f.shape[2:]) for f in features)
    base = resolve("tinyssd", changes=settings(classification, **{"loss.localization": localization}))
    anchors = make_anchors(base.anchors, shapes, (64, 64))
    start = build_model(base, 2).heads
    for matcher in MATCHERS:
        config = base.updated(matcher_settings(matcher))
        heads = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
        losses = []
        for _ in range(8):
            outputs = HeadOutputs(*heads(features), shapes)
            targets = make_targets(
                anchors, gt, labels, config.matching, config.model, outputs, anchors_per_cell(config)
            )
            parts = multibox_loss(outputs, targets, config.loss, config.model)
            optimizer.zero_grad()
            parts.total.backward()
            assert all(p.grad.isfinite().all() for p in heads.parameters()), matcher
            optimizer.step()
            losses.append(parts.total.item())
            assert parts.positives > 0, matcher
        # Losses whose targets follow the network's own boxes rise at first, as the boxes get better
        assert losses[-1] < max(losses), (matcher, losses)


@pytest.mark.parametrize("classification", ["cross_entropy", "sigmoid_cross_entropy"])
def test_hard_examples_demote_easy_positives(classification):
    config = resolve("tinyssd", changes=settings(classification, **{"loss.hard_examples": 2}))
    model = build_model(config, 2).eval()
    outputs = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    anchors = make_anchors(config.anchors, outputs.feature_shapes, (64, 64))
    gt = torch.tensor([[[0.2, 0.2, 0.6, 0.7]]])
    targets = make_targets(anchors, gt, torch.tensor([[1]]), config.matching, config.model)
    assert len(targets.anchor) > 2
    parts = multibox_loss(outputs, targets, config.loss, config.model)
    assert parts.selected.sum() == 2
    assert parts.positives <= 2


def test_a_loss_that_does_not_fit_the_scores_is_refused():
    with pytest.raises(ConfigError, match=r"loss.classification=varifocal needs model.score=sigmoid, got softmax"):
        resolve("tinyssd", changes={"loss.classification": "varifocal"})
    with pytest.raises(ConfigError, match=r"needs model.score=softmax"):
        resolve("ssd300-mobilenetv1", changes={"loss.classification": "cross_entropy"})
