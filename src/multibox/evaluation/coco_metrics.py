"""Which detections find an object under COCO's rules, at all ten IoU thresholds at once.

Source: `COCOeval.evaluateImg` of pycocotools. `evaluation.coco` leaves this to faster-coco-eval, which keeps its
matches to itself; resampling needs them, once. Tests hold the two equal.
"""

import importlib
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MissingExtraError
from multibox.evaluation.voc_metrics import Columns, pairs_in_parts, ranks
from multibox.structures import Boxes, Flags, Labels

IOUS = np.linspace(0.5, 0.95, 10)
LARGEST = 1e10
"""COCO's bound of the areas it looks at; objects and unmatched detections beyond it count for nothing."""


class Outcomes(NamedTuple):
    """What became of each detection at each threshold; what is neither is false."""

    hit: Flags
    """[N, 10]; finds an object that counts."""
    ignored: Flags
    """[N, 10]; counts for nothing: on a crowd or a difficult object, or below the best of its image and class."""


class _Close(NamedTuple):
    """Detections with objects that they overlap enough for the lowest threshold, the least wanted object first."""

    det: Labels
    gt: Labels
    iou: NDArray[np.float64]
    rank: Labels


def counted_objects(table: Columns, areas: NDArray[np.float64] | None = None) -> Flags:
    """Return which objects count, [M]; `areas` as in `coco_figures`."""
    sizes = _xywh(table.gt_xyxy)[:, 2:].prod(1) if areas is None else areas
    return table.gt_scored & (sizes >= 0) & (sizes <= LARGEST)


def coco_outcomes(table: Columns, *, max_detections: int = 100, areas: NDArray[np.float64] | None = None) -> Outcomes:
    """Match every detection, the best of each image and class first.

    A detection takes the object it overlaps most among those that are free, of equals the last; one that counts goes
    before one that does not, and a crowd is always free. Detections of equal rank of different images or classes do
    not meet, so they are matched together.

    Args:
        table: Detections and objects.
        max_detections: Best detections an image and class that count.
        areas: [M] of the objects, where more than their boxes is known.
    """
    scored, rank = counted_objects(table, areas), ranks(table)
    close = _close(table, scored, rank, max_detections)
    hit = np.zeros((len(rank), len(IOUS)), np.bool_)
    on_ignored = np.zeros_like(hit)
    taken = np.zeros((len(scored), len(IOUS)), np.bool_)
    for part in np.split(np.arange(len(close.det)), np.flatnonzero(np.diff(close.rank)) + 1):
        if not len(part):
            continue
        det, gt = close.det[part], close.gt[part]
        free = ~taken[gt] | table.gt_crowd[gt, None]
        able = free & (close.iou[part, None] >= IOUS)
        starts = np.flatnonzero(np.diff(det, prepend=-1))
        best = np.maximum.reduceat(np.where(able, np.arange(len(part))[:, None], -1), starts, axis=0)
        row, threshold = np.nonzero(best >= 0)
        chosen = gt[best[row, threshold]]
        taken[chosen, threshold] = True
        hit[det[starts][row], threshold] = scored[chosen]
        on_ignored[det[starts][row], threshold] = ~scored[chosen]
    area = _xywh(table.boxes_xyxy)[:, 2:].prod(1)
    unseen = (rank >= max_detections)[:, None] | (((area < 0) | (area > LARGEST))[:, None] & ~hit)
    return Outcomes(hit, on_ignored | unseen)


def _close(table: Columns, scored: Flags, rank: Labels, max_detections: int) -> _Close:
    """Return the pairs that may match, in the order of rank, detection and liking."""
    det_xywh, gt_xywh = _xywh(table.boxes_xyxy), _xywh(table.gt_xyxy)
    dets, gts, ious = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for rows, many, gt in pairs_in_parts(table):
        det = np.repeat(rows, many)
        iou = _iou(det_xywh[det], gt_xywh[gt], table.gt_crowd[gt])
        near = (iou >= IOUS[0]) & (rank[det] < max_detections)
        dets.append(det[near])
        gts.append(gt[near])
        ious.append(iou[near])
    det, gt, iou = np.concatenate(dets), np.concatenate(gts), np.concatenate(ious)
    order = np.lexsort((gt, iou, scored[gt], det, rank[det]))
    return _Close(det[order], gt[order], iou[order], rank[det[order]])


def _xywh(boxes_xyxy: Boxes) -> Boxes:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def _iou(det_xywh: Boxes, gt_xywh: Boxes, crowd: Flags) -> NDArray[np.float64]:
    """Return COCO's overlap of row i with row i, in its order of operations: a crowd is measured by the detection."""
    start = np.maximum(det_xywh[:, :2], gt_xywh[:, :2])
    sides = np.minimum(det_xywh[:, :2] + det_xywh[:, 2:], gt_xywh[:, :2] + gt_xywh[:, 2:]) - start
    shared = np.where((sides > 0).all(1), sides.prod(1), 0.0)
    det, gt = det_xywh[:, 2:].prod(1), gt_xywh[:, 2:].prod(1)
    whole = np.where(crowd, det, det + gt - shared)
    return np.divide(shared, whole, out=np.zeros(len(whole)), where=shared > 0)


class ClassFigures(TypedDict):
    """Average precision of one class: over the ten IoU thresholds, and at .5."""

    AP: float | None
    AP50: float | None


class CocoFigures(TypedDict):
    """COCO's figures, 0 to 1; None where there is no object to find. AP and AR are means over IoU .50, .55 ... .95."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    """Recall with `max_detections` an image and class, 100 unless told."""
    ARs: float | None
    ARm: float | None
    ARl: float | None
    per_class: dict[str, ClassFigures]


def coco_figures(table: Columns, *, max_detections: int = 100, areas: NDArray[np.float64] | None = None) -> CocoFigures:
    """Return COCO's figures.

    Crowds are COCO's crowds: what lies in one counts for nothing, as often as it happens. A difficult object is left
    out the way an object of another size is left out of APs: found by ordinary overlap, it counts for nothing; a second
    detection of it is false. (To call it a crowd would forgive every detection inside it, however small.)

    Args:
        table: Detections and objects.
        max_detections: Best detections an image and class that count; 100 in published figures.
        areas: [M] of the objects, where more than their boxes is known.

    Raises:
        MissingExtraError: If faster-coco-eval is not installed.
    """
    precision, recall = _accumulate(table, max_detections, box_areas(table.gt_xyxy) if areas is None else areas)
    return {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[5, :, :, 0]),
        "APs": _mean(precision[:, :, :, 1]),
        "APm": _mean(precision[:, :, :, 2]),
        "APl": _mean(precision[:, :, :, 3]),
        "AR1": _mean(recall[:, :, 0, 0]),
        "AR10": _mean(recall[:, :, 0, 1]),
        "AR100": _mean(recall[:, :, 0, 2]),
        "ARs": _mean(recall[:, :, 1, 2]),
        "ARm": _mean(recall[:, :, 2, 2]),
        "ARl": _mean(recall[:, :, 3, 2]),
        "per_class": {
            name: {"AP": _mean(precision[:, :, number, 0]), "AP50": _mean(precision[0, :, number, 0])}
            for number, name in enumerate(table.class_names)
        },
    }


def _accumulate(
    table: Columns, max_detections: int, areas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run the library; return precision [10 IoU, 101 recalls, classes, 4 areas] and recall [10, classes, 4, 3 limits].

    -1 stands where there is no object. The library warns of and logs nothing on this path: its indices start at 1.
    """
    try:
        library = importlib.import_module("faster_coco_eval")
    except ImportError as missing:
        raise MissingExtraError("Computing COCO figures", "train") from missing
    images = [{"id": number} for number in range(1, table.images + 1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(table.class_names, start=1)]
    keep = ranks(table) < max_detections
    objects = _annotations(table.gt_image, table.gt_labels, table.gt_xyxy, np.where(table.gt_difficult, -1.0, areas))
    for annotation, crowd in zip(objects, table.gt_crowd.tolist(), strict=True):
        annotation["iscrowd"] = int(crowd)
    boxes = table.boxes_xyxy[keep]
    found = _annotations(table.image[keep], table.labels[keep], boxes, box_areas(boxes))
    for annotation, score in zip(found, table.scores[keep].tolist(), strict=True):
        annotation["score"] = score
    evaluation = library.COCOeval_faster(
        library.COCO({"images": images, "categories": categories, "annotations": objects}),
        library.COCO({"images": images, "categories": categories, "annotations": found}),
        "bbox",
        print_function=_silent,
    )
    evaluation.params.maxDets = [1, 10, max(10, max_detections)]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1], np.asarray(evaluation.eval["recall"])


def _annotations(
    image_index: NDArray[np.int64], labels: NDArray[np.int64], boxes_xyxy: Boxes, areas: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Return boxes as the library wants them: dictionaries, xywh, numbered from 1 (0 means unmatched there)."""
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
    rows = zip((image_index + 1).tolist(), (labels + 1).tolist(), boxes_xywh.tolist(), areas.tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}
        for number, (image, label, box, area) in enumerate(rows, start=1)
    ]


def box_areas(boxes_xyxy: Boxes) -> NDArray[np.float64]:
    """Return width times height."""
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)


def _mean(figures: NDArray[np.float64]) -> float | None:
    """Return the mean of the figures that exist: -1 stands for those that do not."""
    real = figures[figures > -1]
    return float(real.mean()) if real.size else None


def _silent(*_: object) -> None:
    """Take what the library would print."""
