"""Which detections find an object under COCO's rules, at all ten IoU thresholds at once.

Source: `COCOeval.evaluateImg` of pycocotools. `evaluation.coco` leaves this to faster-coco-eval, which keeps its
matches to itself; resampling needs them, once. Tests hold the two equal.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.pairing import Columns, pairs_in_parts, ranks
from multibox.structures import Boxes, Flags, Labels

IOUS = np.linspace(0.5, 0.95, 10)
LARGEST = 1e10
"""COCO's bound of the areas it looks at; objects and unmatched detections beyond it count for nothing."""


class Outcomes(NamedTuple):
    """What became of each detection at each threshold; what is neither is false."""

    hit: Flags
    """[N, 10]; finds an object that counts."""
    ignored: Flags
    """[N, 10]; counts for nothing: on a crowd or a difficult object, or below the best of its picture and class."""


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
    """Match every detection, the best of each picture and class first.

    A detection takes the object it overlaps most among those that are free, of equals the last; one that counts goes
    before one that does not, and a crowd is always free. Detections of equal rank of different pictures or classes do
    not meet, so they are matched together.

    Args:
        table: Detections and objects.
        max_detections: Best detections a picture and class that count.
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
