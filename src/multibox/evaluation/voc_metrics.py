"""VOC's precision, recall and average precision, as its development kit computes them (`VOCevaldet.m`).

The kit compares a detection with the object it overlaps most, whether or not another detection matches that object. So
the comparison needs no loop: one maximum over all pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.table import Columns, Outcomes, columns
from multibox.structures import Dataset, Detections, Labels, Sample, iou

PAIRS_AT_ONCE = 200_000
"""Overlaps held in memory together; about 20 MB with the temporaries."""
ELEVEN = np.arange(11) / 10


class VocMetrics(TypedDict):
    """Mean and per-class average precision, 0 to 1; None for a class without objects, which the mean leaves out."""

    mAP: float | None
    per_class: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of one class as the score threshold falls from one detection to the next."""

    recall: NDArray[np.float64]
    """[N], rising."""
    precision: NDArray[np.float64]
    """[N]"""
    scores: NDArray[np.float64]
    """[N], falling."""
    objects: int
    """Objects that count; without any there is no recall and no average precision."""

    @property
    def ap07(self) -> float | None:
        """Return the mean over recalls 0, 0.1 ... 1 of the best precision at that recall or above."""
        if not self.objects:
            return None
        envelope = np.append(_envelope(self.precision), 0.0)
        return float(envelope[np.searchsorted(self.recall, ELEVEN)].mean())

    @property
    def ap12(self) -> float | None:
        """Return the area below the curve, its precision raised to the best at that recall or above."""
        if not self.objects:
            return None
        return float(np.diff(self.recall, prepend=0.0) @ _envelope(self.precision))

    @property
    def f1(self) -> NDArray[np.float64]:
        """Return F1 of the detections down to each score, [N]; -1 where the next one has the same score."""
        # 2 tp / (detections + objects): equal fractions give equal numbers, products of rounded ones would not
        true = np.rint(self.recall * self.objects)
        f1 = 2 * true / (np.arange(1, len(true) + 1) + self.objects)
        f1[:-1][self.scores[:-1] == self.scores[1:]] = -1.0
        return f1


def voc07(curves: Mapping[str, Curve]) -> VocMetrics:
    """Return the eleven-point average precision of each class."""
    return _with_mean({name: curve.ap07 for name, curve in curves.items()})


def voc12(curves: Mapping[str, Curve]) -> VocMetrics:
    """Return the area below each class's curve."""
    return _with_mean({name: curve.ap12 for name, curve in curves.items()})


def precision_recall(
    detections: Sequence[Detections],
    samples: Sequence[Sample] | Dataset,
    class_names: Sequence[str],
    *,
    plus_one: bool | None = None,
) -> dict[str, Curve]:
    """Return each class's curve at IoU .5; the arguments are those of `evaluate`."""
    table = columns(detections, samples, class_names)
    return voc_curves(table, overlaps(table, plus_one=counts_pixels(samples) if plus_one is None else plus_one))


def counts_pixels(samples: Sequence[Sample] | Dataset) -> bool:
    """Return whether box corners are pixel indices, both inside: in VOC's labels, and where no format is known."""
    return not isinstance(samples, Dataset) or samples.format in ("voc", "")


@dataclass(frozen=True, eq=False)
class Overlaps:
    """For each detection the object of its image and class that it overlaps most."""

    gt: Labels
    """[N], a row of the objects, the first of equals; -1 where the image has none of that class."""
    iou: NDArray[np.float64]
    """[N], 0 where there is none."""


def overlaps(table: Columns, *, plus_one: bool = True) -> Overlaps:
    """Return each detection's best object.

    Args:
        table: Detections and objects.
        plus_one: Widths are x2 - x1 + 1, as in the VOC development kit.
    """
    classes = max(1, len(table.class_names))
    group, gt_group = table.image * classes + table.labels, table.gt_image * classes + table.gt_labels
    order = np.argsort(gt_group, kind="stable")
    first, last = (np.searchsorted(gt_group[order], group, side) for side in ("left", "right"))
    best = Overlaps(gt=np.full(len(group), -1), iou=np.zeros(len(group)))
    candidates = np.flatnonzero(last > first)
    part = np.cumsum((last - first)[candidates]) // PAIRS_AT_ONCE
    for rows in np.split(candidates, np.flatnonzero(np.diff(part)) + 1):
        if not len(rows):
            continue
        many = (last - first)[rows]
        starts = np.cumsum(many) - many
        gt = order[np.arange(many.sum()) + np.repeat(first[rows] - starts, many)]
        ious = iou(np.repeat(table.boxes_xyxy[rows], many, axis=0), table.gt_xyxy[gt], 1.0 if plus_one else 0.0)
        best.iou[rows] = np.maximum.reduceat(ious, starts)
        place = np.where(ious == np.repeat(best.iou[rows], many), np.arange(len(ious)), len(ious))
        best.gt[rows] = gt[np.minimum.reduceat(place, starts)]
    return best


def voc_curves(table: Columns, pairs: Overlaps, *, threshold: float = 0.5, inclusive: bool = False) -> dict[str, Curve]:
    """Return each class's curve; the arguments are those of `voc_outcomes`.

    Detections stand in falling order of score, those of equal score in the order given.
    """
    outcomes = voc_outcomes(table, pairs, threshold=threshold, inclusive=inclusive)
    matched, ignored = outcomes.matched[:, 0], outcomes.ignored[:, 0]
    order = np.lexsort((-table.scores, table.labels))
    order = order[~ignored[order]]
    objects = np.bincount(table.gt_labels[table.gt_scored], minlength=len(table.class_names))
    ends = np.cumsum(np.bincount(table.labels[order], minlength=len(table.class_names)))
    curves: dict[str, Curve] = {}
    for label, name in enumerate(table.class_names):
        rows = order[ends[label - 1] if label else 0 : ends[label]]
        true = np.cumsum(matched[rows])
        curves[name] = Curve(
            recall=true / max(1, objects[label]),
            precision=true / np.arange(1, len(rows) + 1),
            scores=table.scores[rows],
            objects=int(objects[label]),
        )
    return curves


def voc_outcomes(table: Columns, pairs: Overlaps, *, threshold: float = 0.5, inclusive: bool = False) -> Outcomes:
    """Return what became of each detection, [N, 1].

    Of all detections on an object the one of highest score matches it, and the others are false. A detection on a
    difficult object or a crowd is ignored.

    Args:
        table: Detections and objects.
        pairs: Each detection's best object.
        threshold: IoU above which a detection is right.
        inclusive: Whether exactly `threshold` is enough, as in Caffe's evaluation.
    """
    close = (pairs.gt >= 0) & ((pairs.iou >= threshold) if inclusive else (pairs.iou > threshold))
    scored = close & np.append(table.gt_scored, False)[pairs.gt]
    order = np.lexsort((-table.scores, table.labels))
    right = order[scored[order]]
    _, first = np.unique(pairs.gt[right], return_index=True)
    matched = np.zeros((len(close), 1), np.bool_)
    matched[right[first]] = True
    return Outcomes(matched, (close & ~scored)[:, None])


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that exist."""
    real = [value for value in values if value is not None]
    return float(np.mean(real)) if real else None


def _with_mean(per_class: dict[str, float | None]) -> VocMetrics:
    return {"mAP": mean(per_class.values()), "per_class": per_class}


def _envelope(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best precision at each recall or above."""
    return np.maximum.accumulate(precision[::-1])[::-1]
