"""Do two sides find the same objects? Asked before a time is printed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.benchmarking.subject import DisagreementError
from multibox.ops.boxes import pairwise_iou
from multibox.structures import Detections

Floats = NDArray[np.floating]


class Tolerance(NamedTuple):
    """What still counts as the same detection."""

    score: float
    """Scores differ by no more than this share of the larger one."""
    overlap: float
    """Boxes have at least this IoU."""
    share: float
    """So many of each side's detections have a partner on the other."""


EXACT = Tolerance(score=1e-3, overlap=0.999, share=0.99)
"""The same arithmetic in another order; an overlap or a score on a threshold may fall to the other side."""
ROUNDED = Tolerance(score=0.5, overlap=0.7, share=0.8)
"""A network in bfloat16, which has 8 bits of precision: logits of 8 are off by 0.03 after each of its layers."""


class Agreement(NamedTuple):
    """How alike two sides are."""

    detections: int
    """Of the first side."""
    share: float
    """Of both sides' detections that have a partner."""
    score: float
    """Largest difference of partners, as a share."""
    overlap: float
    """Smallest IoU of partners."""


def agree(
    what: str, first: Sequence[Detections], second: Sequence[Detections], tolerance: Tolerance, best: int | None = None
) -> Agreement:
    """Pair detections and say how alike the sides are.

    Args:
        what: the sides, for the error.
        first: of each picture.
        second: of the same pictures.
        tolerance: what is close enough.
        best: of each picture and side, only so many need a partner (among all of the other side).

    Raises:
        DisagreementError: too few have a partner, or there is nothing to compare.
    """
    pairs = [_partners(*sides, tolerance, best) for sides in zip(first, second, strict=True)]
    asked = sum(len(pair) for pair in pairs)
    found = np.concatenate([*pairs, np.zeros((0, 2))])
    partners = found[~np.isnan(found[:, 0])]
    share = len(partners) / asked if asked else 0.0
    if share < tolerance.share:
        raise DisagreementError(
            f"{what} differ: {len(partners)} of {asked} detections have a partner of their class with a score within "
            f"a share of {tolerance.score:g} and an IoU of {tolerance.overlap:g}, expected {tolerance.share:.0%}; no "
            "time is printed for sides that find other things"
        )
    total = sum(map(len, first))
    return Agreement(total, share, float(partners[:, 0].max()), float(partners[:, 1].min()))


def _partners(first: Detections, second: Detections, tolerance: Tolerance, best: int | None) -> Floats:
    """Return, for each detection of either side, score difference and IoU of its partner; NaN where it has none."""
    difference = np.abs(first.scores[:, None] - second.scores) / np.maximum(first.scores[:, None], second.scores)
    overlap = pairwise_iou(torch.from_numpy(first.boxes), torch.from_numpy(second.boxes)).numpy()
    alike = (first.labels[:, None] == second.labels) & (difference <= tolerance.score) & (overlap >= tolerance.overlap)
    here, there = _closest(alike, difference, overlap), _closest(alike.T, difference.T, overlap.T)
    return np.concatenate([here[:best], there[:best]])


def _closest(alike: NDArray[np.bool_], difference: Floats, overlap: Floats) -> Floats:
    """Return each row's partner: of those that are alike, the one whose score is nearest."""
    if not alike.size:
        return np.full((len(alike), 2), np.nan)
    column = np.where(alike, difference, np.inf).argmin(1)
    row = np.arange(len(alike))
    values = np.stack([difference[row, column], overlap[row, column]], axis=1)
    values[~alike[row, column]] = np.nan
    return values
