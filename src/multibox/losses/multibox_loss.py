"""The multibox loss of a batch (SSD paper, section 2.2), and the L2 penalty as a term of it."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from multibox.config import SIGMOID_LOSSES, LossConfig, ModelConfig
from multibox.losses.elementwise import (
    cross_entropy,
    focal_loss,
    l1,
    l2,
    quality_focal,
    sigmoid_focal,
    smooth_l1,
    varifocal,
)
from multibox.losses.targets import BACKGROUND, IGNORE, Targets
from multibox.ops.boxes import Number, at_least_float32, paired_iou
from multibox.ops.coding import decode
from multibox.ops.mining import mine_hard_negatives, mine_ohem
from multibox.tensors import HeadOutputs, LossParts

PenaltyRules = tuple[tuple[str, Number], ...]

HIKAPOK_RULES: PenaltyRules = (("_bn", 0.0), ("conv4_3_scale", 0.1), ("backbone.norm.scale", 0.1))
"""Coefficient by text in a parameter's name (SSD.TensorFlow, train_ssd.py): no batch norms, a tenth of the scale of
conv4_3 under its name and ours, everything else in full, biases too. A comment there says that the scale is left out;
its code weights it, and the code made the weights."""

DEFAULT_MODEL = ModelConfig()


def alone(counts: Tensor) -> Tensor:
    """Return the mean of counts over the processes that share a batch where there is one: the counts."""
    return counts


def multibox_loss(
    outputs: HeadOutputs,
    targets: Targets,
    config: LossConfig,
    model: ModelConfig = DEFAULT_MODEL,
    across: Callable[[Tensor], Tensor] = alone,
    processes: int = 1,
) -> LossParts:
    """Return the classification and localisation loss, divided by `config.normalizer`.

    `positives` divides both sums by the positives of the batch (Caffe's `MultiBoxLoss`). `images` does so per image
    and averages over images (NVIDIA's DeepLearningExamples, ssd/model.py). `selected` averages the classification over
    positives and mined negatives, times ratio + 1 (SSD.TensorFlow, train_ssd.py). `anchors` averages over all anchors,
    and over their four coordinates (MXNet, d2l). Every divisor is at least 1, so the loss is finite without positives.

    Where several processes compute parts of one batch, of any size, each gets its share: the mean of the shares over
    the processes is the loss of the whole batch, and so is the mean of their gradients.

    Args:
        outputs: The network's outputs.
        targets: What it should have said.
        config: The losses, mining and normaliser.
        model: Box coder and variances, for losses of decoded boxes.
        across: Returns the mean of counts over the processes; every count that divides goes through it.
        processes: How many they are.
    """
    logits = at_least_float32(outputs.logits)
    per_anchor = _classification(logits, targets, config)
    rows = targets.rows
    # Whatever the network says of other anchors, not even NaN gets into the loss of the boxes
    predicted = torch.where(targets.valid[:, None], at_least_float32(rows.take(outputs.offsets)), 0)
    distances = _localization(predicted, targets, config, model) * targets.weight[:, None]
    if config.hard_examples != "none":
        selected = _hard_examples(per_anchor, distances, targets, config.hard_examples)
        # A positive that is not selected counts in neither loss.
        distances = distances * rows.take(selected)[:, None]
    else:
        selected = select_anchors(logits, targets, config)
    per_image = (selected & (targets.labels > BACKGROUND)).sum(1)
    positives = per_image.sum()

    def over_all(*counts: Tensor) -> tuple[Tensor, ...]:
        return across(torch.stack(counts).to(logits.dtype)).clamp(min=1 / processes).unbind()

    classification = torch.where(selected, per_anchor, 0.0)
    if config.normalizer == "positives":
        (divisor,) = over_all(positives)
        classification, localization = classification.sum() / divisor, distances.sum() / divisor
    elif config.normalizer == "selected":
        ratio = 0.0 if config.negative_ratio == "all" else config.negative_ratio
        divisor, learnt = over_all(positives, selected.sum())
        classification = classification.sum() / learnt * (ratio + 1)
        localization = distances.sum() / divisor
    elif config.normalizer == "anchors":
        (anchors,) = over_all(positives.new_full((), selected.numel()))
        classification = classification.sum() / anchors
        localization = distances.sum() / (4 * anchors)
    else:
        # Images without positives count in the divisor, and add only negatives taken for `minimum_negatives`
        mined = config.hard_examples == "none" and config.negative_ratio != "all" and config.minimum_negatives > 0
        (images,) = over_all(positives.new_full((), len(per_image)))
        shares = ((per_image > 0) | mined) / (per_image.clamp(min=1) * images)
        classification = (classification.sum(1) * shares).sum()
        localization = (distances.sum(1) * shares[targets.image]).sum()
    classification = classification * config.classification_weight
    localization = localization * config.localization_weight
    total = classification + localization
    # What `per_anchor` and `distances` hold was computed anyway
    return LossParts(
        total, classification, localization, total.new_zeros(()), positives, selected,
        per_anchor.detach(), distances.detach().sum(1),
    )  # fmt: skip


def _hard_examples(
    per_anchor: Float[Tensor, "b a"], distances: Float[Tensor, "p n"], targets: Targets, keep: int
) -> Bool[Tensor, "b a"]:
    loss = per_anchor.detach() + targets.rows.put(torch.zeros_like(per_anchor), distances.detach().sum(1))
    return mine_ohem(loss, targets.labels > BACKGROUND, targets.labels == BACKGROUND, keep)


def select_anchors(logits: Float[Tensor, "b a k"], targets: Targets, config: LossConfig) -> Bool[Tensor, "b a"]:
    """Return the anchors whose class is learnt: positives, and mined negatives or all of them."""
    if config.negative_ratio == "all":
        return targets.labels != IGNORE
    positive = targets.labels > BACKGROUND
    candidate = targets.labels == BACKGROUND
    if config.negative_overlap != "any":
        candidate &= targets.overlap < config.negative_overlap
    loss = _background_loss(logits.detach(), config)
    return positive | mine_hard_negatives(loss, positive, candidate, config.negative_ratio, config.minimum_negatives)


def _background_loss(logits: Float[Tensor, "b a k"], config: LossConfig) -> Float[Tensor, "b a"]:
    """Return -ln of the probability that each anchor is background."""
    if config.classification in SIGMOID_LOSSES:
        return functional.softplus(logits).sum(-1)
    return torch.logsumexp(logits, -1) - logits[..., BACKGROUND]


def _classification(logits: Float[Tensor, "b a k"], targets: Targets, config: LossConfig) -> Float[Tensor, "b a"]:
    if config.classification == "cross_entropy":
        return cross_entropy(logits, targets.labels)
    if config.classification == "focal":
        return focal_loss(logits, targets.labels, config.alpha, config.gamma)
    # Without a background logit, class c is column c; background and ignored anchors are all zeros.
    wanted = torch.zeros_like(logits)
    soft = config.classification in ("quality_focal", "varifocal")
    value = (targets.labels > BACKGROUND).to(wanted)
    if soft:
        value = targets.rows.put(value, targets.quality)
    wanted.scatter_(2, (targets.labels - 1).clamp(min=0)[..., None], value[..., None])
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
    """Return the loss of each coordinate, or of each box."""
    if config.localization == "smooth_l1":
        return smooth_l1(predicted, targets.offsets, config.sigma)
    if config.localization == "l1":
        return l1(predicted, targets.offsets)
    if config.localization == "l2":
        return l2(predicted, targets.offsets)
    boxes, gt = (
        decode(offsets, targets.anchors_xyxy, model.variances, model.coder) for offsets in (predicted, targets.offsets)
    )
    return 1 - paired_iou(boxes, gt, config.localization)[:, None]


def l2_penalty(
    named_parameters: Iterable[tuple[str, Tensor]], weight_decay: Number, rules: PenaltyRules = HIKAPOK_RULES
) -> Float[Tensor, ""]:
    """Return weight_decay * sum over parameters of c * 0.5 * sum of squares (SSD.TensorFlow).

    A parameter's c is that of the first rule whose text its name contains, otherwise 1. As a gradient this equals a
    decay of c * weight_decay in the optimiser, so use one of the two; only here does the loss shown contain it. Give
    the trainable parameters, as the original does.
    """
    terms = [
        parameter.float().square().sum() * (coefficient * 0.5 * weight_decay)
        for name, parameter in named_parameters
        if (coefficient := next((c for text, c in rules if text in name), 1.0)) != 0
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())
