"""Whether a score of 0.8 is right 8 times in 10, and the temperature that mends it where not.

Expected calibration error and temperature are those of C. Guo et al., "On Calibration of Modern Neural Networks", ICML
2017 (arXiv:1706.04599). A detection is right if it matches an object of its class at IoU .5, as in AP50.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.table import Columns
from multibox.structures import Flags

BINS = 10
"""Of equal width, from 0 to 1."""
FEW = 20
"""Detections, right ones and wrong ones each, below which no temperature is fitted."""
HOTTEST = 20.0
"""Temperatures are sought from 1 / HOTTEST to HOTTEST."""
SURE = 1e-6
"""Scores are kept this far from 0 and 1, where logits are infinite."""

Floats = NDArray[np.float64]


class Bin(TypedDict):
    """Detections whose scores lie in one of the intervals."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean score."""
    precision: float | None
    """Share that is right."""


class Scored(NamedTuple):
    """Detections that count: neither ignored nor beyond the limit per image."""

    scores: Floats
    """[N]"""
    right: Flags
    """[N]"""
    labels: NDArray[np.int64]
    """[N]"""
    image: NDArray[np.int64]
    """[N]"""

    def keep(self, mask: Flags) -> "Scored":
        """Return the detections that a mask [N] marks."""
        return Scored(self.scores[mask], self.right[mask], self.labels[mask], self.image[mask])


def scored_detections(table: Columns, right: Flags, wrong: Flags) -> Scored:
    """Return the detections that count."""
    return Scored(table.scores, right, table.labels, table.image).keep(right | wrong)


def reliability(scores: Floats, right: Flags) -> list[Bin]:
    """Return what each bin holds: a score of exactly a limit belongs to the upper bin, 1 to the last."""
    place = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    counts, sums, hits = (np.bincount(place, values, BINS) for values in (None, scores, right.astype(np.float64)))
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "count": int(count),
            "confidence": float(total / count) if count else None,
            "precision": float(hit / count) if count else None,
        }
        for number, (count, total, hit) in enumerate(zip(counts, sums, hits, strict=True))
    ]


def calibration_error(scores: Floats, right: Flags) -> float | None:
    """Return the expected calibration error: the mean gap of score and precision, over bins; None without scores."""
    if not len(scores):
        return None
    place = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    gaps = np.bincount(place, scores - right, BINS)
    return float(np.abs(gaps).sum() / len(scores))


def fit_temperature(scores: Floats, right: Flags) -> float | None:
    """Return the temperature under which the scores explain best which detections are right; None for too few.

    The negative log likelihood has one minimum over the inverse temperature, in which it is convex.
    """
    if min(right.sum(), (~right).sum()) < FEW:
        return None
    # Loaded late, which takes a third of a second
    minimize: Any = importlib.import_module("scipy.optimize").minimize_scalar
    logits, sign = logit(scores), np.where(right, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -sign * logits * np.exp(-log_temperature)).mean())

    best = minimize(loss, bounds=(-np.log(HOTTEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(best.x))


def logit(scores: Floats) -> Floats:
    """Return the logit of each score."""
    inside = np.clip(scores, SURE, 1 - SURE)
    return np.log(inside) - np.log1p(-inside)


def warmed(scores: Floats, temperature: float) -> Floats:
    """Return the scores as a temperature changes them: the sigmoid of their logit over it.

    This is exact for sigmoid scores and for the softmax of one class and background. With more classes softmax scores
    change about so.
    """
    return 1 / (1 + np.exp(-logit(scores) / temperature))


def describe_calibration(found: Scored, names: Sequence[str]) -> dict[str, Any]:
    """Return what the report says about the scores.

    The temperature is that of all images. The error after it is measured on images that its own temperature has not
    seen: those of even and odd places are two halves, and each is measured with the temperature of the other.
    """
    halves = [found.image % 2 == half for half in (0, 1)]
    fitted = [fit_temperature(*found.keep(half)[:2]) for half in halves]
    temperature = None if None in fitted else fit_temperature(found.scores, found.right)
    after = found.scores.copy()
    for half, other in zip(halves, reversed(fitted), strict=True):
        after[half] = warmed(found.scores[half], other) if other is not None else found.scores[half]
    return {
        "ece": calibration_error(found.scores, found.right),
        "bins": reliability(found.scores, found.right),
        "temperature": temperature,
        "ece_after": None if temperature is None else calibration_error(after, found.right),
        "halves": [
            {
                "images": "even" if number == 0 else "odd",
                "temperature": other,
                "ece": calibration_error(found.scores[half], found.right[half]),
                "ece_after": None if other is None else calibration_error(after[half], found.right[half]),
            }
            for number, (half, other) in enumerate(zip(halves, reversed(fitted), strict=True))
        ],
        "per_class": {name: _of_class(found, label) for label, name in enumerate(names)},
    }


def _of_class(found: Scored, label: int) -> dict[str, Any]:
    own = found.keep(found.labels == label)
    return {"detections": len(own.scores), "ece": calibration_error(own.scores, own.right)}
