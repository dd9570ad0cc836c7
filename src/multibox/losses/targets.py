"""Training targets of every anchor: matching and encoding, on the device, for a whole batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.config import MatchingConfig, ModelConfig
from multibox.errors import ConfigError
from multibox.ops.boxes import at_least_float32, paired_iou
from multibox.ops.coding import decode, encode
from multibox.ops.matching import NEGATIVE, Assignment, MatchInputs, in_chunks, match_bipartite, match_dual_max
from multibox.ops.matching_dynamic import match_atss, match_simota, match_task_aligned
from multibox.ops.rows import Rows, rows_of
from multibox.tensors import HeadOutputs

BACKGROUND = 0
IGNORE = -1
SOFT = ("simota", "task_aligned")
"""Matchers whose soft score says how well a positive is placed."""


class Targets(NamedTuple):
    """Class of every anchor, and what positives learn: one row per positive, or one per anchor with a mark."""

    labels: Int[Tensor, "b a"]
    """0 background, class + 1 for positives, -1 ignored."""
    overlap: Float[Tensor, "b a"]
    """Largest IoU with any object of the image."""
    image: Int[Tensor, " p"]
    """Image of each row."""
    anchor: Int[Tensor, " p"]
    """Anchor of each row."""
    valid: Bool[Tensor, " p"]
    """Whether the row is a positive. On a CPU all are; elsewhere every anchor of every image has a row."""
    offsets: Float[Tensor, "p 4"]
    """Encoded box of each positive; 0 in other rows."""
    anchors_xyxy: Float[Tensor, "p 4"]
    """Anchor box of each row."""
    weight: Float[Tensor, " p"]
    """Weight of each positive in the localisation loss, 1 except in task-aligned matching; 0 in other rows."""
    quality: Float[Tensor, " p"]
    """How well each positive is placed, 0 to 1: the matcher's soft score, or the IoU of the predicted box; 1 where no
    outputs were given; 0 in other rows."""
    gt: Int[Tensor, " p"]
    """Object of each positive: its row in the image's ground truth; 0 in other rows."""

    @property
    def rows(self) -> Rows:
        """The rows, by which to take from tables [b, a, ...] and to put into them."""
        return Rows(self.image, self.anchor, self.valid, len(self.anchor) == self.labels.numel())

    def positives(self) -> "Targets":
        """Return the targets with rows of positives alone; the host waits for the device."""
        rows = (part[self.valid] for part in self[2:])
        return Targets(self.labels, self.overlap, *rows)


def make_targets(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_labels: Int[Tensor, "b g"],
    matching: MatchingConfig,
    model: ModelConfig,
    outputs: HeadOutputs | None = None,
    per_cell: Sequence[int] = (),
    fixed: bool = False,
) -> Targets:
    """Match anchors to ground truth and encode it; an image without objects is all background.

    Args:
        anchors_xyxy: xyxy, 0 to 1 of the input.
        gt_xyxy: xyxy, 0 to 1; rows of -1 pad.
        gt_labels: 0-based classes; -1 pads.
        matching: The matcher and its thresholds.
        model: Box coder, variances and score.
        outputs: The network's outputs; simota and task_aligned match by them, atss reads the maps' shapes from them.
        per_cell: Anchors per cell of each map; the same three need it.
        fixed: Make every anchor a row on a CPU too, so that all shapes are known beforehand, as a compiler wants them.

    Raises:
        ConfigError: One of these three matchers without outputs.
    """
    outputs = None if outputs is None else outputs.detach()
    assignment = _match(anchors_xyxy, gt_xyxy, gt_labels, matching, model, outputs, per_cell)
    rows = rows_of(assignment.gt_index >= 0, fixed)
    gt = rows.take(assignment.gt_index).clamp(min=0)
    labels = torch.where(assignment.gt_index == NEGATIVE, BACKGROUND, IGNORE)
    labels = rows.put(labels, gt_labels[rows.image, gt] + 1)
    # In rows that are no positive the anchor stands for the object, so that every number stays finite
    anchors = anchors_xyxy[rows.anchor]
    boxes = torch.where(rows.valid[:, None], gt_xyxy[rows.image, gt], anchors)
    offsets = encode(boxes, anchors, model.variances, model.coder)
    quality = rows.take(assignment.soft_scores)
    if outputs is not None and matching.matcher not in SOFT:
        predicted = decode(rows.take(outputs.offsets), anchors, model.variances, model.coder)
        quality = paired_iou(predicted, boxes)
    weight, quality = (torch.where(rows.valid, part, 0) for part in (rows.take(assignment.weights), quality))
    return Targets(labels, assignment.overlap, *rows[:3], offsets, anchors, weight, quality, gt)


def _match(
    anchors_xyxy: Tensor,
    gt_xyxy: Tensor,
    gt_labels: Tensor,
    matching: MatchingConfig,
    model: ModelConfig,
    outputs: HeadOutputs | None,
    per_cell: Sequence[int],
) -> Assignment:
    valid = gt_labels >= 0
    if matching.matcher == "bipartite":
        return match_bipartite(anchors_xyxy, gt_xyxy, valid, threshold=matching.threshold, inclusive=matching.inclusive)
    if matching.matcher == "dual_max":
        return match_dual_max(
            anchors_xyxy, gt_xyxy, valid, low=matching.low, high=matching.threshold, inclusive=matching.inclusive
        )
    if outputs is None:
        raise ConfigError(f"matching.matcher={matching.matcher} needs the network's outputs")
    shapes = outputs.feature_shapes
    level_sizes = [rows * columns * count for (rows, columns), count in zip(shapes, per_cell, strict=True)]
    if matching.matcher == "atss":

        def weigh(gt: Tensor, valid: Tensor) -> Assignment:
            return match_atss(anchors_xyxy, gt, valid, level_sizes=level_sizes, per_cell=per_cell)

        return Assignment(*in_chunks(weigh, len(anchors_xyxy), gt_xyxy, valid))
    cells = [(1 / columns, 1 / rows) for rows, columns in shapes]

    def weigh_outputs(gt: Tensor, valid: Tensor, labels: Tensor, logits: Tensor, offsets: Tensor) -> Assignment:
        logits = at_least_float32(logits)
        scores = logits.softmax(-1)[..., 1:] if model.score == "softmax" else logits.sigmoid()
        inputs = MatchInputs(decode(offsets, anchors_xyxy, model.variances, model.coder), scores, labels)
        if matching.matcher == "task_aligned":
            return match_task_aligned(anchors_xyxy, gt, valid, inputs)
        return match_simota(anchors_xyxy, gt, valid, inputs, level_sizes=level_sizes, cell_sizes=cells)

    parts = gt_xyxy, valid, gt_labels, outputs.logits, outputs.offsets
    return Assignment(*in_chunks(weigh_outputs, len(anchors_xyxy), *parts))
