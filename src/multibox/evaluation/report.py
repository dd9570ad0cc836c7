"""All metrics of a detector on a data set, as `multibox eval --json` writes them."""

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from multibox.evaluation.bootstrap import Intervals, intervals
from multibox.evaluation.coco_metrics import CocoMetrics, coco_metrics
from multibox.evaluation.table import columns
from multibox.evaluation.voc_metrics import Curve, VocMetrics, counts_pixels, overlaps, voc07, voc12, voc_curves
from multibox.structures import Dataset, Detections, Sample


class BestThreshold(TypedDict):
    """Precision, recall and F1 of a class's detections with `score >= threshold`, 0 to 1 each."""

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


class Metrics(TypedDict):
    """What `evaluate` returns; every metric runs from 0 to 1 and is None where it does not exist."""

    images: int
    coco: CocoMetrics
    voc07: VocMetrics
    """Eleven-point average precision at IoU .5."""
    voc12: VocMetrics
    """Area below the curve at IoU .5."""
    thresholds: Mapping[str, BestThreshold | None]
    """Where each class's F1 at IoU .5 is best."""
    intervals: NotRequired[Intervals]
    """Where 95 % of resamples of the images lie; only where it was asked for."""


def evaluate(
    detections: Sequence[Detections],
    samples: Sequence[Sample] | Dataset,
    class_names: Sequence[str],
    *,
    max_detections: int = 100,
    plus_one: bool | None = None,
    bootstrap: int = 0,
) -> Metrics:
    """Measure detections against labels.

    Args:
        detections: One per sample, in the same order, in pixels of the original images. Keep low scores, from about
            .01: average precision is about the order of the scores.
        samples: The labelled images.
        class_names: The data set's classes; a detector's other order is matched by name.
        max_detections: COCO's limit per image and class; the VOC metrics have none.
        plus_one: Whether the VOC metrics take x2 - x1 + 1 as a width, as the VOC development kit does. None means so
            for labels in VOC's format and for plain lists of samples.
        bootstrap: Resamples of the images for intervals; 0 leaves them out.

    Raises:
        ValueError: There are not as many detections as samples.
        DataError: Detector and data set share no class.
        MissingExtraError: hotcoco is not installed.
    """
    table = columns(detections, samples, class_names)
    plus_one = counts_pixels(samples) if plus_one is None else plus_one
    curves = voc_curves(table, overlaps(table, plus_one=plus_one))
    metrics: Metrics = {
        "images": table.images,
        "coco": coco_metrics(table, max_detections=max_detections),
        "voc07": voc07(curves),
        "voc12": voc12(curves),
        "thresholds": {name: best_threshold(curve) for name, curve in curves.items()},
    }
    if bootstrap:
        metrics["intervals"] = intervals(table, bootstrap, max_detections=max_detections, plus_one=plus_one)
    return metrics
