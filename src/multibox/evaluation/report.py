"""All figures of a detector on a data set, as `multibox eval --json` writes them."""

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from multibox.evaluation.bootstrap import Intervals, intervals
from multibox.evaluation.coco_metrics import CocoFigures, coco_figures
from multibox.evaluation.voc_metrics import Curve, VocFigures, columns, counts_pixels, curves, overlaps, voc07, voc12
from multibox.structures import Dataset, Detections, Sample


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


class Figures(TypedDict):
    """What `evaluate` returns; every figure runs from 0 to 1 and is None where it does not exist."""

    images: int
    coco: CocoFigures
    voc07: VocFigures
    """Eleven-point average precision at IoU .5."""
    voc12: VocFigures
    """Area below the curve at IoU .5."""
    thresholds: dict[str, BestThreshold | None]
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
) -> Figures:
    """Measure detections against labels.

    Args:
        detections: One for each sample, in the same order, in pixels of the original images. Low scores belong in
            them: a threshold of .01 or so, for average precision is about the order and not about one threshold.
        samples: The labelled images.
        class_names: The data set's classes; a detector's other order is matched by name.
        max_detections: COCO's limit an image and class; the VOC figures have none.
        plus_one: Widths of the VOC metrics as the VOC development kit has them; None takes them so for labels in VOC's
            format and for plain lists of samples; see `multibox.evaluation.voc_metrics`.
        bootstrap: Resamples of the images for intervals; 0 leaves them out.

    Raises:
        ValueError: If there are not as many detections as samples.
        DataError: If detector and data set share no class.
        MissingExtraError: If faster-coco-eval is not installed.
    """
    table = columns(detections, samples, class_names)
    plus_one = counts_pixels(samples) if plus_one is None else plus_one
    found = curves(table, overlaps(table, plus_one=plus_one))
    figures: Figures = {
        "images": table.images,
        "coco": coco_figures(table, max_detections=max_detections),
        "voc07": voc07(found),
        "voc12": voc12(found),
        "thresholds": best_thresholds(found),
    }
    if bootstrap:
        figures["intervals"] = intervals(table, bootstrap, max_detections=max_detections, plus_one=plus_one)
    return figures
