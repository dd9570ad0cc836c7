"""Which scores are reported, class by class."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ConfigError
from multibox.structures import Detections

DEFAULT_THRESHOLD = 0.3
"""Lowest score reported where nobody knows better: post B's."""


def lowest_scores(threshold: float | None, own: Sequence[float], names: Sequence[str]) -> NDArray[np.float32]:
    """Return the lowest score reported of each class [C], in float32 as scores are.

    Args:
        threshold: one for all classes; None takes the model's own of each class, and 0.3 where it has none.
        own: the model's thresholds, one per class; may be empty.
        names: of the classes.

    Raises:
        ConfigError: `threshold` is no number from 0 to 1, or the model has thresholds for another number of classes.
    """
    if threshold is None:
        return np.array(class_thresholds(own, names), np.float32)
    return np.full(len(names), checked_threshold(threshold), np.float32)


def reaching(found: Detections, lowest: NDArray[np.float32]) -> Detections:
    """Return the detections that reach the lowest score [C] of their class."""
    wanted = found.scores >= lowest[found.labels]
    return found if wanted.all() else found[wanted]


def class_thresholds(thresholds: Sequence[float], names: Sequence[str]) -> tuple[float, ...]:
    """Return for each class the lowest score that is reported unless told otherwise: the model's own, or 0.3.

    Raises:
        ConfigError: the model has thresholds for another number of classes.
    """
    found = tuple(thresholds) or (DEFAULT_THRESHOLD,) * len(names)
    if len(found) != len(names):
        raise ConfigError(
            f"post.thresholds has {len(found)} values for {len(names)} classes ({', '.join(names)}); "
            "give one for each class, or none"
        )
    return found


def checked_threshold(threshold: float) -> float:
    """Return the threshold as a float.

    Raises:
        ConfigError: it is no number from 0 to 1.
    """
    # A caller may give anything, whatever the annotation says
    fine = isinstance(threshold, Real) and not isinstance(threshold, bool | np.bool_) and math.isfinite(threshold)
    if not fine or not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold!r}: expected a number from 0 to 1, the lowest score to report")
    return float(threshold)


def just_below(score: float) -> float:
    """Return a threshold above which exactly the float32 scores from `score` on lie."""
    return float(np.nextafter(np.float32(score), np.float32(0)))
