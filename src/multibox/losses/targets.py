"""What every anchor should answer: matching and encoding, on the device, for a whole batch."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multibox.config import MatchingConfig, ModelConfig
from multibox.ops.coding import encode
from multibox.ops.matching import NEGATIVE, Assignment, match_bipartite, match_dual_max

BACKGROUND = 0
IGNORE = -1


class Targets(NamedTuple):
    """Class of every anchor, and the offsets of the positive ones as rows."""

    labels: Int[Tensor, "b a"]
    """0 background, class + 1 for positives, -1 ignored."""
    overlap: Float[Tensor, "b a"]
    """Largest IoU with any object of the picture."""
    image: Int[Tensor, " p"]
    """Picture of each positive."""
    anchor: Int[Tensor, " p"]
    """Anchor of each positive."""
    offsets: Float[Tensor, "p 4"]
    """Encoded box of each positive."""


def make_targets(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_labels: Int[Tensor, "b g"],
    matching: MatchingConfig,
    model: ModelConfig,
) -> Targets:
    """Match anchors to ground truth and encode; a picture without objects is all background.

    Args:
        anchors_xyxy: corners, 0 to 1 of the input.
        gt_xyxy: corners, 0 to 1; -1 rows pad.
        gt_labels: 0-based classes; -1 pads.
        matching: which matcher, with its thresholds.
        model: box coder and variances.
    """
    assignment = _match(anchors_xyxy, gt_xyxy, gt_labels >= 0, matching)
    positive = assignment.gt_index >= 0
    image, anchor = positive.nonzero(as_tuple=True)
    gt = assignment.gt_index[image, anchor]
    labels = torch.where(assignment.gt_index == NEGATIVE, BACKGROUND, IGNORE)
    labels[image, anchor] = gt_labels[image, gt] + 1
    offsets = encode(gt_xyxy[image, gt], anchors_xyxy[anchor], model.variances, model.coder)
    return Targets(labels, assignment.overlap, image, anchor, offsets)


def _match(anchors_xyxy: Tensor, gt_xyxy: Tensor, valid: Tensor, matching: MatchingConfig) -> Assignment:
    if matching.matcher == "dual_max":
        return match_dual_max(anchors_xyxy, gt_xyxy, valid, low=matching.low, high=matching.threshold)
    return match_bipartite(anchors_xyxy, gt_xyxy, valid, threshold=matching.threshold, inclusive=matching.inclusive)
