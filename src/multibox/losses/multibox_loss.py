"""The L2 penalty as a term of the loss, weighted by parameter name (SSD.TensorFlow)."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from multibox.config import SIGMOID_LOSSES, LossConfig, ModelConfig
from multibox.losses.elementwise import (
    ciou_loss,
    cross_entropy,
    diou_loss,
    focal_loss,
    giou_loss,
    l1,
    l2,
    quality_focal,
    sigmoid_focal,
    smooth_l1,
    varifocal,
)
from multibox.losses.targets import BACKGROUND, IGNORE, Targets
from multibox.ops.boxes import Number, at_least_float32
from multibox.ops.coding import decode
from multibox.ops.mining import mine_hard_negatives, mine_ohem, negative_candidates
from multibox.tensors import HeadOutputs, LossParts

PenaltyRules = tuple[tuple[str, Number], ...]

HIKAPOK_RULES: PenaltyRules = (("_bn", 0.0), ("conv4_3_scale", 0.1), ("backbone.norm.scale", 0.1))
"""Batch norm is left out, the scale of conv4_3 counts a tenth (under the original's name and ours), everything else
(biases too) in full. The post's comment says that the scale is left out as well; its code weights it, and the code made
the weights."""


def l2_penalty(
    named_parameters: Iterable[tuple[str, Tensor]], weight_decay: Number, rules: PenaltyRules = HIKAPOK_RULES
) -> Float[Tensor, ""]:
    """Return weight_decay * sum over parameters of c * 0.5 * sum of squares, as part of the loss.

    A parameter's c is that of the first rule whose text its name contains, otherwise 1; parameters of c = 0 cost
    nothing. As a gradient this equals a decay of c * weight_decay in the optimiser, so use one of the two; what differs
    is that the loss shown contains it. For a fresh SSD300 the scale of conv4_3 (512 numbers of 20) alone adds 5.12.
    The original counts trainable parameters only: hand over those that the optimiser has.
    """
    terms = [
        parameter.float().square().sum() * (coefficient * 0.5 * weight_decay)
        for name, parameter in named_parameters
        if (coefficient := _coefficient(name, rules)) != 0
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _coefficient(name: str, rules: PenaltyRules) -> Number:
    return next((coefficient for text, coefficient in rules if text in name), 1.0)


DEFAULT_MODEL = ModelConfig()
BOX_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def multibox_loss(
    outputs: HeadOutputs, targets: Targets, config: LossConfig, model: ModelConfig = DEFAULT_MODEL
) -> LossParts:
    """Sum the two losses under the lineage's normaliser; finite, with zero gradient of the offsets, without positives.

    Normalisers (facts 5.2 to 5.4): `positives` divides both sums by the positives of the batch (Caffe); `images` does
    so image by image and averages (NVIDIA); `selected` averages the classification over positives and mined
    negatives, times ratio + 1 (HiKapok); `anchors` averages over all anchors, and over their four coordinates (MXNet,
    d2l). Every divisor is at least 1.
    """
    logits = at_least_float32(outputs.logits)
    per_anchor = _classification(logits, targets, config)
    predicted = at_least_float32(outputs.offsets[targets.image, targets.anchor])
    distances = _localization(predicted, targets, config, model) * targets.weight[:, None]
    if config.hard_examples != "none":
        selected = _hard_examples(per_anchor, distances, targets, config.hard_examples)
        # A positive that is not among them counts in neither loss
        distances = distances * selected[targets.image, targets.anchor, None]
    else:
        selected = select_anchors(logits, targets, config)
    per_image = (selected & (targets.labels > BACKGROUND)).sum(1)
    positives = per_image.sum()
    several = positives.clamp(min=1)
    localization = distances.sum()
    chosen = torch.where(selected, per_anchor, 0.0)
    if config.normalizer == "positives":
        classification, localization = chosen.sum() / several, localization / several
    elif config.normalizer == "images":
        # An image without objects takes no part, but counts among the images
        shares = (per_image > 0) / (per_image.clamp(min=1) * len(per_image))
        classification = (chosen.sum(1) * shares).sum()
        localization = (distances.sum(1) * shares[targets.image]).sum()
    elif config.normalizer == "selected":
        # HiKapok's factor; without mining there is no ratio
        more = 0.0 if config.negative_ratio == "all" else config.negative_ratio
        classification = chosen.sum() / selected.sum().clamp(min=1) * (more + 1)
        localization = localization / several
    else:
        classification = chosen.sum() / selected.numel()
        localization = localization / outputs.offsets.numel()
    classification = classification * config.classification_weight
    localization = localization * config.localization_weight
    total = classification + localization
    return LossParts(total, classification, localization, total.new_zeros(()), positives, selected)


def _hard_examples(
    per_anchor: Float[Tensor, "b a"], distances: Float[Tensor, "p n"], targets: Targets, keep: int
) -> Bool[Tensor, "b a"]:
    loss = per_anchor.detach().clone()
    loss[targets.image, targets.anchor] += distances.detach().sum(1)
    return mine_ohem(loss, targets.labels > BACKGROUND, targets.labels == BACKGROUND, keep)


def select_anchors(logits: Float[Tensor, "b a k"], targets: Targets, config: LossConfig) -> Bool[Tensor, "b a"]:
    """Return the anchors whose class is learnt: positives, and mined negatives or all of them."""
    if config.negative_ratio == "all":
        return targets.labels != IGNORE
    positive = targets.labels > BACKGROUND
    candidate = targets.labels == BACKGROUND
    if config.negative_overlap != "any":
        candidate &= negative_candidates(positive, targets.overlap, config.negative_overlap)
    loss = background_loss(logits.detach(), config)
    return positive | mine_hard_negatives(loss, positive, candidate, config.negative_ratio, config.minimum_negatives)


def background_loss(logits: Float[Tensor, "b a k"], config: LossConfig) -> Float[Tensor, "b a"]:
    """Return -ln of the probability that each anchor is background: how wrong it is if it is a negative."""
    if config.classification in SIGMOID_LOSSES:
        return functional.softplus(logits).sum(-1)
    return torch.logsumexp(logits, -1) - logits[..., BACKGROUND]


def _classification(logits: Float[Tensor, "b a k"], targets: Targets, config: LossConfig) -> Float[Tensor, "b a"]:
    if config.classification == "cross_entropy":
        return cross_entropy(logits, targets.labels)
    if config.classification == "focal":
        return focal_loss(logits, targets.labels, config.alpha, config.gamma)
    # Without a background logit class c is column c; background and ignored anchors are all zeros
    wanted = torch.zeros_like(logits)
    soft = config.classification in ("quality_focal", "varifocal")
    column = targets.labels[targets.image, targets.anchor] - 1
    wanted[targets.image, targets.anchor, column] = targets.quality.to(wanted) if soft else 1.0
    if config.classification == "sigmoid_cross_entropy":
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1)
    if config.classification == "quality_focal":
        return quality_focal(logits, wanted, config.gamma).sum(-1)
    if config.classification == "varifocal":
        return varifocal(logits, wanted, gamma=config.gamma).sum(-1)
    return sigmoid_focal(logits, wanted, config.alpha, config.gamma).sum(-1)


def _localization(
    predicted: Float[Tensor, "p 4"], targets: Targets, config: LossConfig, model: ModelConfig
) -> Float[Tensor, "p n"]:
    """Return the distance of each coordinate, or of each box."""
    if config.localization in BOX_LOSSES:
        boxes, gt = (
            decode(offsets, targets.anchors_xyxy, model.variances, model.coder)
            for offsets in (predicted, targets.offsets)
        )
        return BOX_LOSSES[config.localization](boxes, gt)[:, None]
    if config.localization == "smooth_l1":
        return smooth_l1(predicted, targets.offsets, config.sigma)
    return (l1 if config.localization == "l1" else l2)(predicted, targets.offsets)
