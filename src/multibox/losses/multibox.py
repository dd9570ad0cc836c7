"""The multibox loss: classification of all anchors, localisation of the positive ones (SSD paper, section 2.2)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from multibox.config import LossConfig
from multibox.losses.elementwise import cross_entropy, focal_loss, l1, l2, sigmoid_focal, smooth_l1
from multibox.losses.targets import BACKGROUND, IGNORE, Targets
from multibox.ops.boxes import at_least_float32
from multibox.ops.mining import mine_hard_negatives, negative_candidates
from multibox.tensors import HeadOutputs, LossParts

SIGMOID = ("sigmoid_cross_entropy", "sigmoid_focal")
"""Losses of heads without a background logit."""


def multibox_loss(outputs: HeadOutputs, targets: Targets, config: LossConfig) -> LossParts:
    """Sum the two losses under the lineage's normaliser; finite, with zero gradient of the offsets, without positives.

    Normalisers (facts 5.2 to 5.4): `positives` divides both sums by the positives of the batch (Caffe); `pictures` does
    so picture by picture and averages (NVIDIA); `selected` averages the classification over positives and mined
    negatives, times ratio + 1 (HiKapok); `anchors` averages over all anchors, and over their four coordinates (MXNet,
    d2l). Every divisor is at least 1.
    """
    logits = at_least_float32(outputs.logits)
    selected = select_anchors(logits, targets, config)
    per_anchor = _classification(logits, targets, config)
    predicted = outputs.offsets[targets.image, targets.anchor]
    distances = _localization(at_least_float32(predicted), targets.offsets, config)
    localization = distances.sum()
    positives = (targets.labels > BACKGROUND).sum()
    several = positives.clamp(min=1)
    chosen = torch.where(selected, per_anchor, 0.0).sum()
    if config.normalizer == "positives":
        classification, localization = chosen / several, localization / several
    elif config.normalizer == "pictures":
        shares = _picture_shares(targets)
        classification = (torch.where(selected, per_anchor, 0.0).sum(1) * shares).sum()
        localization = (distances.sum(1) * shares[targets.image]).sum()
    elif config.normalizer == "selected":
        classification = chosen / selected.sum().clamp(min=1) * (config.negative_ratio + 1)
        localization = localization / several
    else:
        classification = chosen / selected.numel()
        localization = localization / outputs.offsets.numel()
    classification = classification * config.classification_weight
    localization = localization * config.localization_weight
    total = classification + localization
    return LossParts(total, classification, localization, total.new_zeros(()), positives, selected)


def _picture_shares(targets: Targets) -> Float[Tensor, " b"]:
    """Return 1 / (positives x pictures) of each picture; one without objects takes no part."""
    positives = (targets.labels > BACKGROUND).sum(1)
    return (positives > 0) / (positives.clamp(min=1) * len(positives))


def select_anchors(logits: Float[Tensor, "b a k"], targets: Targets, config: LossConfig) -> Bool[Tensor, "b a"]:
    """Return the anchors whose class is learnt: positives, and mined negatives or all of them."""
    if config.negative_ratio <= 0:
        return targets.labels != IGNORE
    positive = targets.labels > BACKGROUND
    candidate = (targets.labels == BACKGROUND) & negative_candidates(positive, targets.overlap, config.negative_overlap)
    loss = background_loss(logits.detach(), config)
    return positive | mine_hard_negatives(loss, positive, candidate, config.negative_ratio, config.minimum_negatives)


def background_loss(logits: Float[Tensor, "b a k"], config: LossConfig) -> Float[Tensor, "b a"]:
    """Return -ln of the probability that each anchor is background: how wrong it is if it is a negative."""
    if config.classification in SIGMOID:
        return functional.softplus(logits).sum(-1)
    return torch.logsumexp(logits, -1) - logits[..., BACKGROUND]


def _classification(logits: Float[Tensor, "b a k"], targets: Targets, config: LossConfig) -> Float[Tensor, "b a"]:
    if config.classification == "cross_entropy":
        return cross_entropy(logits, targets.labels)
    if config.classification == "focal":
        return focal_loss(logits, targets.labels, config.alpha, config.gamma)
    # Without a background logit class c is column c; background and ignored anchors are all zeros
    one_hot = torch.zeros_like(logits)
    one_hot[targets.image, targets.anchor, targets.labels[targets.image, targets.anchor] - 1] = 1
    if config.classification == "sigmoid_cross_entropy":
        return functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(-1)
    return sigmoid_focal(logits, one_hot, config.alpha, config.gamma).sum(-1)


def _localization(
    predicted: Float[Tensor, "p 4"], target: Float[Tensor, "p 4"], config: LossConfig
) -> Float[Tensor, "p 4"]:
    if config.localization == "smooth_l1":
        return smooth_l1(predicted, target, config.sigma)
    return l1(predicted, target) if config.localization == "l1" else l2(predicted, target)
