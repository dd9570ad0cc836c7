"""Two answers side by side: arrays by their largest difference, detections by pairs."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MultiboxError
from multibox.structures import Detections

SCORE = 1e-4
"""Scores of a pair differ by no more."""
BOX = 1e-3
"""Corners of a pair differ by no more, as a share of the picture's longer side."""


class VerificationError(MultiboxError):
    """The exported file does not compute what the detector computes."""


class Pairs(NamedTuple):
    """How the detections of two lists pair up."""

    matched: int
    swapped: int
    """Further pairs of which each list has the other's choice: near-equal scores changed places, and the box that
    came first suppressed its neighbour or took the last place."""
    score: float
    """Largest difference of a pair's scores."""
    box: float
    """Largest difference of a pair's corners, as a share of the picture's longer side."""


def largest_difference(stage: str, got: NDArray[np.floating], want: NDArray[np.floating], limit: float,
                       relative: bool = True) -> float:  # fmt: skip
    """Return the largest difference, as a share of max(1, |want|) if `relative`.

    Raises:
        VerificationError: it is above `limit`, not a number, or the shapes differ; the sentence names `stage`.
    """
    if got.shape != want.shape:
        raise VerificationError(f"{stage} differs: shape {list(got.shape)}, expected {list(want.shape)}")
    difference = np.abs(got.astype(np.float64) - want) / (np.maximum(1, np.abs(want)) if relative else 1)
    largest = float(difference.max(initial=0))
    if not largest <= limit:
        raise VerificationError(f"{stage} differs by up to {largest:.3g}, expected at most {limit:g}")
    return largest


def match(found: Detections, wanted: Detections, side: float) -> Pairs:
    """Pair detections of one label whose scores and boxes agree; order does not matter, each takes part once."""
    if not len(found) or not len(wanted):
        return Pairs(0, 0, 0.0, 0.0)
    score = np.abs(wanted.scores[:, None] - found.scores)
    box = np.abs(wanted.boxes[:, None] - found.boxes).max(2) / side
    distance = score / SCORE + box / BOX
    apart = (wanted.labels[:, None] != found.labels) | (score > SCORE) | (box > BOX)
    distance[apart] = np.inf
    first, second = np.arange(len(wanted)), distance.argmin(1)
    # Mutual choice; equal boxes with equal scores are told apart by their order
    both = np.isfinite(distance[first, second]) & (distance.argmin(0)[second] == first)
    first, second = first[both], second[both]
    swapped = _swapped(found[_others(found, second)], wanted[_others(wanted, first)], wanted.scores.min())
    return Pairs(
        len(first), swapped, float(score[first, second].max(initial=0)), float(box[first, second].max(initial=0))
    )


def _others(detections: Detections, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    rest = np.ones(len(detections), np.bool_)
    rest[rows] = False
    return rest


def _swapped(found: Detections, wanted: Detections, last: float) -> int:
    """Count detections without a partner that one of near-equal score stands for: a neighbour, or the last of all."""
    if not len(found) or not len(wanted):
        return 0
    near = np.abs(wanted.scores[:, None] - found.scores) <= SCORE
    low = np.maximum(wanted.boxes[:, None, :2], found.boxes[None, :, :2])
    high = np.minimum(wanted.boxes[:, None, 2:], found.boxes[None, :, 2:])
    meet = (wanted.labels[:, None] == found.labels) & (high > low).all(2)
    near &= meet | (wanted.scores[:, None] <= last + SCORE)
    return int(min(near.any(1).sum(), near.any(0).sum()))
