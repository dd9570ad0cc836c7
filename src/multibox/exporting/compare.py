"""Two results side by side: arrays by their largest difference, detections by pairs."""

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
    """Detections of the second list that the first replaces by others of equal rank: near-equal scores changed places,
    and the box that came first suppressed its neighbour or took the last place."""
    unexplained: int
    """Detections that are neither, in the list that has more of them."""
    score: float
    """Largest difference of a pair's scores."""
    box: float
    """Largest difference of a pair's corners, as a share of the image's longer side."""


class Cuts(NamedTuple):
    """Where post-processing stops counting; among scores that tie there, any choice is right."""

    candidates: NDArray[np.floating]
    """[classes]; the lowest score that enters suppression, minus infinity where all do."""
    per_class: int
    """Most detections per class; 0 for no limit."""
    total: int
    """Most detections."""


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


def match(found: Detections, wanted: Detections, side: float, cuts: Cuts | None = None) -> Pairs:
    """Pair detections of one label whose scores and boxes agree; order does not matter, each takes part once.

    Args:
        found: of the file, for one image.
        wanted: of eager.
        side: the image's longer side in pixels.
        cuts: where both stop counting; None where nothing is cut.
    """
    cuts = cuts or Cuts(np.full(len(wanted.names), -np.inf), 0, 0)
    first, second, score, box = _pairs(found, wanted, side)
    lost, extra = wanted[_others(wanted, first)], found[_others(found, second)]
    swapped = _explained(lost, extra, _floor(found, cuts))
    added = _explained(extra, lost, _floor(wanted, cuts))
    unexplained = max(len(lost) - swapped, len(extra) - added)
    return Pairs(len(first), swapped, unexplained, score, box)


def _pairs(
    found: Detections, wanted: Detections, side: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], float, float]:
    """Return the rows of `wanted` and `found` that pair up, and the largest differences of scores and boxes."""
    if not len(found) or not len(wanted):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0, 0.0
    score = np.abs(wanted.scores[:, None] - found.scores)
    box = np.abs(wanted.boxes[:, None] - found.boxes).max(2) / side
    distance = score / SCORE + box / BOX
    apart = (wanted.labels[:, None] != found.labels) | (score > SCORE) | (box > BOX)
    distance[apart] = np.inf
    first, second = np.arange(len(wanted)), distance.argmin(1)
    # Mutual choice; equal boxes with equal scores are told apart by their order
    both = np.isfinite(distance[first, second]) & (distance.argmin(0)[second] == first)
    first, second = first[both], second[both]
    return first, second, float(score[first, second].max(initial=0)), float(box[first, second].max(initial=0))


def _others(detections: Detections, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    rest = np.ones(len(detections), np.bool_)
    rest[rows] = False
    return rest


def _floor(kept: Detections, cuts: Cuts) -> NDArray[np.float64]:
    """Return for each class the score at which `kept` may have been cut, [classes]; minus infinity where it was not."""
    floor = cuts.candidates.astype(np.float64)
    if cuts.per_class:
        lowest = np.full(len(floor), np.inf)
        np.minimum.at(lowest, kept.labels, kept.scores)
        full = np.bincount(kept.labels, minlength=len(floor)) >= cuts.per_class
        floor = np.maximum(floor, np.where(full, lowest, -np.inf))
    return np.maximum(floor, kept.scores.min()) if 0 < cuts.total <= len(kept) else floor


def _explained(missing: Detections, instead: Detections, floor: NDArray[np.float64]) -> int:
    """Count the missing detections that are cut at `floor`, or suppressed by one that only the other list has."""
    if not len(missing):
        return 0
    cut = missing.scores <= floor[missing.labels] + SCORE
    low = np.maximum(missing.boxes[:, None, :2], instead.boxes[None, :, :2])
    high = np.minimum(missing.boxes[:, None, 2:], instead.boxes[None, :, 2:])
    meet = (missing.labels[:, None] == instead.labels) & (high > low).all(2)
    suppressed = (meet & (instead.scores >= missing.scores[:, None] - SCORE)).any(1)
    return int((cut | suppressed).sum())
