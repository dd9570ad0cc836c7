"""Every detection of a data set against the objects of its image and class, as flat arrays.

Source: the development kit of PASCAL VOC (`VOCevaldet.m`). There a detection is compared with the object it overlaps
most, whoever else claims that object, so the comparison needs no loop: one maximum over all pairs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.errors import DataError
from multibox.structures import Boxes, Dataset, Detections, Flags, Labels, Sample, pack

PAIRS_AT_ONCE = 200_000
"""Overlaps held in memory together; about 20 MB with the temporaries."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Detections (N) and objects (M) of a whole data set, one row each, in the order of the images."""

    images: int
    class_names: tuple[str, ...]
    boxes_xyxy: Boxes
    """[N, 4] in pixels of the original image."""
    scores: NDArray[np.float64]
    """[N]"""
    labels: Labels
    """[N], positions in `class_names`."""
    image: Labels
    """[N], 0 to images - 1."""
    gt_xyxy: Boxes
    """[M, 4]"""
    gt_labels: Labels
    """[M]"""
    gt_image: Labels
    """[M]"""
    gt_difficult: Flags
    """[M]"""
    gt_crowd: Flags
    """[M]"""

    @property
    def gt_scored(self) -> Flags:
        """[M]; True for the objects that count: neither difficult nor a crowd."""
        return ~(self.gt_difficult | self.gt_crowd)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """For each detection the object of its image and class that it overlaps most."""

    gt: Labels
    """[N], a row of the objects, the first of equals; -1 where the image has none of that class."""
    iou: NDArray[np.float64]
    """[N], 0 where there is none."""


def columns(
    detections: Sequence[Detections], samples: Sequence[Sample] | Dataset, class_names: Sequence[str]
) -> Columns:
    """Join detections and labelled images, one `Detections` an image in the same order.

    The detector's classes are matched by name to those of the data set, whatever their order; detections of a class
    that the data set does not have are left out. A score or coordinate that is not finite becomes 0, so that such a
    detection stays in the list and counts as false.

    Args:
        detections: What was found, in pixels of the original images.
        samples: What is there.
        class_names: The data set's classes: `Sample.labels` are positions in it.

    Raises:
        ValueError: If the two have different lengths.
        DataError: If the detector and the data set share no class, or a label lies outside `class_names`.
    """
    if len(detections) != len(samples):
        raise ValueError(f"expected one Detections an image, got {len(detections)} for {len(samples)} images")
    names = tuple(class_names)
    held = samples if isinstance(samples, Dataset) else _packed(samples, names)
    if len(held.labels) and not 0 <= held.labels.min() <= held.labels.max() < len(names):
        raise DataError(
            f"labels of the data set run from {held.labels.min()} to {held.labels.max()}, but it has "
            f"{len(names)} class names; give the list of classes that the labels were made with"
        )
    counts = [len(found) for found in detections]
    labels = np.concatenate([np.zeros(0, np.int64), *(_renumbered(found, names) for found in detections)])
    known = labels >= 0
    boxes = np.concatenate([np.zeros((0, 4)), *(found.boxes for found in detections)])[known]
    scores = np.concatenate([np.zeros(0), *(found.scores for found in detections)])[known]
    return Columns(
        images=len(held),
        class_names=names,
        boxes_xyxy=np.where(np.isfinite(boxes).all(1, keepdims=True), boxes, 0.0),
        scores=np.where(np.isfinite(scores), scores, 0.0),
        labels=labels[known],
        image=np.repeat(np.arange(len(held)), counts)[known],
        gt_xyxy=held.boxes_xyxy.astype(np.float64, copy=False),
        gt_labels=held.labels,
        gt_image=np.repeat(np.arange(len(held)), np.diff(held.starts)),
        gt_difficult=held.difficult,
        gt_crowd=held.crowd,
    )


def overlaps(table: Columns, *, plus_one: bool = True) -> Overlaps:
    """Return each detection's best object.

    Args:
        table: Detections and objects.
        plus_one: Widths are x2 - x1 + 1, as the VOC development kit has them.
    """
    best_gt = np.full(len(table.labels), -1, np.int64)
    best_iou = np.zeros(len(table.labels))
    for rows, many, gt in pairs_in_parts(table):
        starts = np.cumsum(many) - many
        iou = _iou(np.repeat(table.boxes_xyxy[rows], many, axis=0), table.gt_xyxy[gt], 1.0 if plus_one else 0.0)
        best = np.maximum.reduceat(iou, starts)
        place = np.where(iou == np.repeat(best, many), np.arange(len(iou)), len(iou))
        best_iou[rows] = best
        best_gt[rows] = gt[np.minimum.reduceat(place, starts)]
    return Overlaps(gt=best_gt, iou=best_iou)


def pairs_in_parts(table: Columns) -> Iterator[tuple[Labels, Labels, Labels]]:
    """Yield every detection with each object of its image and class, about PAIRS_AT_ONCE pairs at a time.

    Yields:
        Detections [R] that have such objects, how many each has [R], and those objects, one after the other [sum].
    """
    classes = max(1, len(table.class_names))
    det_key = table.image * classes + table.labels
    gt_key = table.gt_image * classes + table.gt_labels
    order = np.argsort(gt_key, kind="stable")
    first = np.searchsorted(gt_key[order], det_key, side="left")
    counts = np.searchsorted(gt_key[order], det_key, side="right") - first
    for rows in _chunks(np.flatnonzero(counts), counts):
        many = counts[rows]
        within = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
        yield rows, many, order[np.repeat(first[rows], many) + within]


def ranks(table: Columns) -> Labels:
    """Return each detection's place, [N], among those of its image and class: 0 is the best, equal ones in order."""
    order = np.lexsort((-table.scores, table.labels, table.image))
    group = (table.image * len(table.class_names) + table.labels)[order]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(group, group, side="left")
    return rank


def _chunks(rows: Labels, counts: Labels) -> Iterator[Labels]:
    """Cut `rows` so that each part has about PAIRS_AT_ONCE pairs."""
    part = np.cumsum(counts[rows]) // PAIRS_AT_ONCE
    return iter(np.split(rows, np.flatnonzero(np.diff(part)) + 1)) if len(rows) else iter(())


def _iou(a_xyxy: Boxes, b_xyxy: Boxes, extra: float) -> NDArray[np.float64]:
    """Return the overlap of row i with row i; 0 for boxes without area."""
    ax1, ay1, ax2, ay2 = a_xyxy.T
    bx1, by1, bx2, by2 = b_xyxy.T
    intersection = _length(np.maximum(ax1, bx1), np.minimum(ax2, bx2), extra)
    intersection *= _length(np.maximum(ay1, by1), np.minimum(ay2, by2), extra)
    union = _length(ax1, ax2, extra) * _length(ay1, ay2, extra)
    union += _length(bx1, bx2, extra) * _length(by1, by2, extra)
    union -= intersection
    return np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)


def _length(start: NDArray[np.float64], end: NDArray[np.float64], extra: float) -> NDArray[np.float64]:
    """Return end - start + extra, at least 0."""
    return np.maximum(end - start + extra, 0)


def _renumbered(found: Detections, class_names: tuple[str, ...]) -> Labels:
    """Return the labels as positions in `class_names`, -1 for a class that is not there."""
    if found.names == class_names or not len(found):
        return found.labels
    if not set(found.names) & set(class_names):
        raise DataError(
            f"the detector and the data set share no class name: the detector has {_some(found.names)}, "
            f"the data set {_some(class_names)}; rename one of them (eval --rename DATA=MODEL)"
        )
    place = {name: number for number, name in reversed(list(enumerate(class_names)))}
    return np.array([place.get(name, -1) for name in found.names], np.int64)[found.labels]


def _some(names: Sequence[str]) -> str:
    """Name up to five classes."""
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _packed(samples: Sequence[Sample], class_names: Sequence[str]) -> Dataset:
    """Return the samples as columns; folder, format and split play no part here."""
    return pack(samples, root=Path(), format="", split="", class_names=class_names)


ELEVEN = np.arange(11) / 10


class VocFigures(TypedDict):
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


def voc_figures(
    table: Columns, *, iou: float = 0.5, inclusive: bool = False, plus_one: bool = True
) -> dict[str, VocFigures]:
    """Return the figures of both protocols under `voc07` and `voc12`.

    Args:
        table: Detections and objects.
        iou: A detection is right when it overlaps an object by more than this.
        inclusive: Or by exactly this, as Caffe's evaluation has it.
        plus_one: Widths as the VOC development kit has them; see the module.
    """
    found = curves(table, overlaps(table, plus_one=plus_one), iou=iou, inclusive=inclusive)
    return {"voc07": voc07(found), "voc12": voc12(found)}


def voc07(found: Mapping[str, Curve]) -> VocFigures:
    """Return the eleven-point figures of these curves."""
    return _figures({name: curve.ap07 for name, curve in found.items()})


def voc12(found: Mapping[str, Curve]) -> VocFigures:
    """Return the areas below these curves."""
    return _figures({name: curve.ap12 for name, curve in found.items()})


def counts_pixels(samples: Sequence[Sample] | Dataset) -> bool:
    """Say whether box corners are numbers of pixels, both inside: in VOC's labels, and where no format is known."""
    return not isinstance(samples, Dataset) or samples.format in ("voc", "")


def precision_recall(
    detections: Sequence[Detections],
    samples: Sequence[Sample] | Dataset,
    class_names: Sequence[str],
    *,
    iou: float = 0.5,
    inclusive: bool = False,
    plus_one: bool | None = None,
) -> dict[str, Curve]:
    """Return each class's precision and recall; the arguments are those of `evaluate` and `voc_figures`."""
    table = columns(detections, samples, class_names)
    plus_one = counts_pixels(samples) if plus_one is None else plus_one
    return curves(table, overlaps(table, plus_one=plus_one), iou=iou, inclusive=inclusive)


def curves(table: Columns, pairs: Overlaps, *, iou: float = 0.5, inclusive: bool = False) -> dict[str, Curve]:
    """Return each class's curve.

    Detections of a class stand in falling order of score, equal ones in the order in which they came. The first that
    overlaps an object enough finds it, later ones are false; one on a difficult object or a crowd counts for nothing.
    """
    order = np.lexsort((-table.scores, table.labels))
    hit, ignored = outcomes(table, pairs, order, iou=iou, inclusive=inclusive)
    order = order[~ignored[order]]
    objects = np.bincount(table.gt_labels[table.gt_scored], minlength=len(table.class_names))
    ends = np.cumsum(np.bincount(table.labels[order], minlength=len(table.class_names)))
    found = {}
    for number, name in enumerate(table.class_names):
        rows = order[ends[number - 1] if number else 0 : ends[number]]
        true = np.cumsum(hit[rows])
        found[name] = Curve(
            recall=true / max(1, objects[number]),
            precision=true / np.arange(1, len(rows) + 1),
            scores=table.scores[rows],
            objects=int(objects[number]),
        )
    return found


def outcomes(
    table: Columns, pairs: Overlaps, order: NDArray[np.int64], *, iou: float = 0.5, inclusive: bool = False
) -> tuple[Flags, Flags]:
    """Return which detections find an object and which count for nothing, [N] each; the rest are false.

    Args:
        table: Detections and objects.
        pairs: Each detection's best object.
        order: [N], the detections in falling order of score within each class.
        iou: Overlap from which a detection is right.
        inclusive: Whether exactly `iou` is enough.
    """
    close = (pairs.gt >= 0) & ((pairs.iou >= iou) if inclusive else (pairs.iou > iou))
    scored = np.append(table.gt_scored, False)[pairs.gt]
    claims = order[(close & scored)[order]]
    _, first = np.unique(pairs.gt[claims], return_index=True)
    hit = np.zeros(len(close), np.bool_)
    hit[claims[first]] = True
    return hit, close & ~scored


def mean(figures: Iterable[float | None]) -> float | None:
    """Return the mean of the figures that exist."""
    real = [figure for figure in figures if figure is not None]
    return float(np.mean(real)) if real else None


def _figures(per_class: dict[str, float | None]) -> VocFigures:
    """Add the mean."""
    return {"mAP": mean(per_class.values()), "per_class": per_class}


def _envelope(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best precision at each recall or above."""
    return np.maximum.accumulate(precision[::-1])[::-1]
