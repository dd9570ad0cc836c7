"""Lowest scores that are reported, per class."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ConfigError
from multibox.structures import Detections

DEFAULT_THRESHOLD = 0.3
"""Lowest score reported of a class without a threshold of its own; that of d2l's TinySSD chapter."""


def lowest_scores(threshold: float | None, own: Sequence[float], class_names: Sequence[str]) -> NDArray[np.float32]:
    """Return the lowest score reported of each class [C], in float32 as scores are.

    Args:
        threshold: One for all classes; None takes the model's own of each class, and 0.3 where it has none.
        own: The model's thresholds, one per class; may be empty.
        class_names: Names of the classes.

    Raises:
        ConfigError: `threshold` is not a number from 0 to 1, or the model has thresholds for another number of classes.
    """
    if threshold is None:
        return np.array(class_thresholds(own, class_names), np.float32)
    # Callers of `predict` may give anything, whatever the annotation says.
    is_number = isinstance(threshold, Real) and not isinstance(threshold, bool | np.bool_) and math.isfinite(threshold)
    if not is_number or not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold!r}: expected a number from 0 to 1, the lowest score to report")
    return np.full(len(class_names), float(threshold), np.float32)


def drop_low_scores(detections: Detections, lowest: NDArray[np.float32]) -> Detections:
    """Return the detections that reach the lowest score [C] of their class."""
    wanted = detections.scores >= lowest[detections.labels]
    return detections if wanted.all() else detections[wanted]


def class_thresholds(own: Sequence[float], class_names: Sequence[str]) -> tuple[float, ...]:
    """Return the lowest score reported of each class by default: the model's own, or 0.3 if it has none.

    Raises:
        ConfigError: The model has thresholds for another number of classes.
    """
    thresholds = tuple(own) or (DEFAULT_THRESHOLD,) * len(class_names)
    if len(thresholds) != len(class_names):
        raise ConfigError(
            f"post.thresholds has {len(thresholds)} values for {len(class_names)} classes "
            f"({', '.join(class_names)}); give one for each class, or none"
        )
    return thresholds


def just_below(score: float) -> float:
    """Return a threshold above which exactly the float32 scores from `score` on lie."""
    return float(np.nextafter(np.float32(score), np.float32(0)))
