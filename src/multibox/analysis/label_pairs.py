"""Which detections and labels of an image belong together, and how often such a pair agrees."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.table import Columns
from multibox.structures import Boxes, Flags, Labels, iou

Floats = NDArray[np.float64]

SAME_PLACE = 0.5
"""IoU from which a detection and a label are in the same place, as in VOC's metric."""
NEAR = 0.1
"""IoU from which a detection and a label may be of one object, as in TIDE. With less they are two neighbours."""
INSIDE = 0.5
"""Share of a detection that lies in a crowd from which it counts for nothing."""
_OTHER_CLASS, _MOVED = 0.5, 0.5
"""What a pair of other classes or of other places is worth beside one that agrees."""
PAIRS_AT_ONCE = 500_000
"""Pairs compared together; about 100 MB with the temporaries."""
_WINDOW = (5, 20, 250)
"""Pairs of similar score on either side that are counted: a twentieth of those that agree, within these limits."""
_WEIGHT = 1.0
"""Pairs that the detector's own score counts for in a share."""


class Pairs(NamedTuple):
    """Detections with the label that each belongs to, one to one; every array is [P]."""

    detection: Labels
    """Row of the detection in the table."""
    gt: Labels
    """Row of the label in the table."""
    iou: Floats
    same_class: Flags

    @property
    def same_place(self) -> Flags:
        """[P]; True where the boxes overlap as much as the metrics ask for."""
        return self.iou >= SAME_PLACE

    @property
    def agree(self) -> Flags:
        """[P]; True where the detection confirms the label."""
        return self.same_class & self.same_place

    def take(self, rows: "Labels | Flags") -> "Pairs":
        """Return the pairs of these rows."""
        return Pairs(self.detection[rows], self.gt[rows], self.iou[rows], self.same_class[rows])


def pair_up(table: Columns) -> tuple[Pairs, Floats, Flags]:
    """Give each detection at most one label, and each label at most one detection.

    A pair of the same class and place is worth its IoU times the score; a pair of other classes in one place, or of
    one class in places that overlap by `NEAR`, half of that. The best pair is taken first. Crowds take part in no pair.

    Returns:
        The pairs; for each detection [N] the highest IoU with any label; and which detections [N] lie in a crowd.
    """
    kept: list[Pairs] = []
    worth: list[Floats] = []
    covered, in_crowd = np.zeros(len(table.labels)), np.zeros(len(table.labels), np.bool_)
    for detection, gt in within_images(table.image, table.gt_image):
        boxes, labels = table.boxes_xyxy[detection], table.gt_xyxy[gt]
        overlap, crowd = iou(boxes, labels), table.gt_crowd[gt]
        in_crowd[detection[crowd & (_share_inside(boxes, labels) >= INSIDE)]] = True
        np.maximum.at(covered, detection, np.where(crowd, 0.0, overlap))
        same = table.labels[detection] == table.gt_labels[gt]
        place = overlap >= SAME_PLACE
        moved = np.where(same & (overlap >= NEAR), _MOVED, 0.0)
        value = np.where(place, np.where(same, 1.0, _OTHER_CLASS), moved) * overlap
        near = (value > 0) & ~crowd
        kept.append(Pairs(detection, gt, overlap, same).take(near))
        worth.append((value * table.scores[detection])[near])
    if not kept:
        return _no_pairs(), covered, in_crowd
    pairs = Pairs(
        np.concatenate([part.detection for part in kept]),
        np.concatenate([part.gt for part in kept]),
        np.concatenate([part.iou for part in kept]),
        np.concatenate([part.same_class for part in kept]),
    )
    return pairs.take(one_to_one(pairs.detection, pairs.gt, np.concatenate(worth))), covered, in_crowd


def _no_pairs() -> Pairs:
    return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_))


def within_images(image: Labels, other: Labels) -> Iterator[tuple[Labels, Labels]]:
    """Yield rows of all pairs whose images are the same, in parts of about `PAIRS_AT_ONCE`.

    Args:
        image: [N], image of each row.
        other: [M], rising; image of each row of the other side.
    """
    first, last = (np.searchsorted(other, image, side) for side in ("left", "right"))
    many = last - first
    with_some = np.flatnonzero(many)
    part = np.cumsum(many[with_some]) // PAIRS_AT_ONCE
    for rows in np.split(with_some, np.flatnonzero(np.diff(part)) + 1):
        if len(rows):
            starts = np.cumsum(many[rows]) - many[rows]
            right = np.arange(int(many[rows].sum())) + np.repeat(first[rows] - starts, many[rows])
            yield np.repeat(rows, many[rows]), right


def _share_inside(boxes_xyxy: Boxes, regions_xyxy: Boxes) -> Floats:
    """Return the share of each box's area that lies in its region, [N]; 0 for a box without area."""
    low, high = np.maximum(boxes_xyxy[:, :2], regions_xyxy[:, :2]), np.minimum(boxes_xyxy[:, 2:], regions_xyxy[:, 2:])
    shared = np.maximum(high - low, 0).prod(1)
    area = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0).prod(1)
    return np.divide(shared, area, out=np.zeros(len(area)), where=area > 0)


def one_to_one(detection: Labels, gt: Labels, value: Floats) -> Labels:
    """Choose pairs so that each detection and label occurs once, as if the best pair were taken again and again.

    In each round all pairs are taken that are the best of both their detection and their label.

    Args:
        detection: [P], rows of detections.
        gt: [P], rows of labels.
        value: [P]; the higher is taken first, of equals the first.

    Returns:
        Positions of the chosen pairs.
    """
    left = np.argsort(-value, kind="stable")
    chosen = [np.zeros(0, np.int64)]
    while len(left):
        _, of_detection = np.unique(detection[left], return_index=True)
        _, of_gt = np.unique(gt[left], return_index=True)
        taken = left[np.intersect1d(of_detection, of_gt)]
        chosen.append(taken)
        left = left[~(np.isin(detection[left], detection[taken]) | np.isin(gt[left], gt[taken]))]
    return np.concatenate(chosen)


def share_by_class(scores: Floats, hits: Flags, labels: Labels, classes: int) -> Floats:
    """Return `rising_share` within each class, [N]."""
    shares = np.zeros(len(scores))
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        shares[rows] = rising_share(scores[rows], hits[rows])
    return shares


def rising_share(scores: Floats, hits: Flags) -> Floats:
    """Return how often things of such a score are hits, [N]; it rises with the score.

    Counted among the neighbours in the order of the scores, with the score itself as the prior. A running maximum from
    below and a running minimum from above make it rise; their mean is taken.
    """
    order = np.argsort(scores, kind="stable")
    half = int(np.clip(hits.sum() / _WINDOW[1], _WINDOW[0], _WINDOW[2]))
    place = np.arange(len(order))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(order))
    total = np.concatenate([[0.0], np.cumsum(hits[order])])
    share = (total[high] - total[low] + _WEIGHT * scores[order]) / (high - low + _WEIGHT)
    rising = (np.maximum.accumulate(share) + np.minimum.accumulate(share[::-1])[::-1]) / 2
    # Equal scores have equal shares, whatever their order
    _, level = np.unique(scores, return_inverse=True)
    count, together = np.bincount(level), np.bincount(level[order], rising)
    return (together / count)[level]
