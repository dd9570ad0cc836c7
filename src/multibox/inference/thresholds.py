"""Which scores are reported, class by class."""

from collections.abc import Sequence

import numpy as np

from multibox.errors import ConfigError

DEFAULT_THRESHOLD = 0.3
"""Lowest score reported where nobody knows better: post B's."""


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


def just_below(score: float) -> float:
    """Return a threshold above which exactly the float32 scores from `score` on lie."""
    return float(np.nextafter(np.float32(score), np.float32(0)))
