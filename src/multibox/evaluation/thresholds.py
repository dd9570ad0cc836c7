"""The score from which to believe a detection, class by class: where F1 at IoU .5 is best."""

from collections.abc import Mapping
from typing import TypedDict

from multibox.evaluation.voc import Curve


class BestThreshold(TypedDict):
    """A class's detections with `score >= threshold`, 0 to 1 each."""

    threshold: float
    precision: float
    recall: float
    f1: float


def best_threshold(curve: Curve) -> BestThreshold | None:
    """Return the threshold of best F1, the higher of equals; None for a class without objects or right detections."""
    if not curve.objects or not len(curve.scores) or not curve.recall[-1]:
        return None
    f1 = curve.f1
    best = int(f1.argmax())
    return {
        "threshold": float(curve.scores[best]),
        "precision": float(curve.precision[best]),
        "recall": float(curve.recall[best]),
        "f1": float(f1[best]),
    }


def best_thresholds(found: Mapping[str, Curve]) -> dict[str, BestThreshold | None]:
    """Return each class's threshold, or None."""
    return {name: best_threshold(curve) for name, curve in found.items()}
