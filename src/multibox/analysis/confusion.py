"""Which classes are taken for which: a matrix of objects against detections, with background on both sides."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.error_kinds import RIGHT
from multibox.analysis.pairing import match_greedily, overlapping
from multibox.evaluation.table import Columns
from multibox.structures import Flags, Labels

NO_CLASS = "background"
"""Last row and column: detections without an object, and objects without a detection."""


class Confusions(NamedTuple):
    """Each event in the cell that counts it, with its image."""

    gt: Labels
    """[E], class of the object; the number of classes for background."""
    predicted: Labels
    """[E], class of the detection, likewise."""
    image: Labels
    """[E]"""
    detection: Labels
    """[E], row of the detection; -1 for background."""
    object: Labels
    """[E], row of the object; -1 for background."""


def find_confusions(table: Columns, lowest: NDArray[np.float64]) -> Confusions:
    """Match reported detections with objects whatever their classes, the best score first, at IoU .5.

    Crowds are left out, and so are difficult objects with what matches them, and unmatched detections that lie in a
    crowd by half or more of their area. hotcoco's `confusion_matrix` gives the same counts where there are neither.

    Args:
        table: Detections and objects.
        lowest: [C], lowest score reported of each class.
    """
    background = len(table.class_names)
    reported = np.flatnonzero(table.scores >= lowest[table.labels])
    objects = np.flatnonzero(~table.gt_crowd)
    boxes, image = table.boxes_xyxy[reported], table.image[reported]
    pairs = overlapping(boxes, image, table.gt_xyxy[objects], table.gt_image[objects], RIGHT)
    taken = match_greedily(pairs, table.scores[reported], len(objects))
    free = np.ones(len(objects), np.bool_)
    free[taken[taken >= 0]] = False
    gt = np.where(taken >= 0, objects[taken] if len(objects) else -1, -1)
    counts = np.where(gt >= 0, ~table.gt_difficult[gt] if len(table.gt_labels) else False, ~_in_crowd(table, reported))
    rows, gt = reported[counts], gt[counts]
    lost = objects[free & ~table.gt_difficult[objects]]
    gt_labels = np.append(table.gt_labels, background)
    return Confusions(
        gt=np.concatenate([gt_labels[gt], table.gt_labels[lost]]),
        predicted=np.concatenate([table.labels[rows], np.full(len(lost), background)]),
        image=np.concatenate([table.image[rows], table.gt_image[lost]]),
        detection=np.concatenate([rows, np.full(len(lost), -1)]),
        object=np.concatenate([gt, lost]),
    )


def _in_crowd(table: Columns, rows: Labels) -> Flags:
    """Return which detections `rows` lie in a crowd of their image by half or more of their area, [len(rows)]."""
    inside = np.zeros(len(rows), np.bool_)
    crowds = np.flatnonzero(table.gt_crowd)
    if not len(crowds):
        return inside
    boxes, crowd_xyxy = table.boxes_xyxy[rows], table.gt_xyxy[crowds]
    pairs = overlapping(boxes, table.image[rows], crowd_xyxy, table.gt_image[crowds])
    a, b = boxes[pairs.a], crowd_xyxy[pairs.b]
    shared = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).prod(1)
    inside[pairs.a[shared >= 0.5 * (a[:, 2:] - a[:, :2]).prod(1)]] = True
    return inside


def describe_confusions(found: Confusions, names: tuple[str, ...], lowest: NDArray[np.float64]) -> dict[str, Any]:
    """Return the matrix, and the images of each cell off the diagonal and on it, as the report holds them."""
    classes = len(names) + 1
    cell = found.gt * classes + found.predicted
    counts = np.bincount(cell, minlength=classes * classes).reshape(classes, classes)
    # Each image once per cell
    both = np.unique(np.stack([cell, found.image], 1), axis=0)
    cells, starts = np.unique(both[:, 0], return_index=True)
    images = np.split(both[:, 1], starts[1:])
    return {
        "names": [*names, NO_CLASS],
        "counts": counts.tolist(),
        "cells": [
            {"gt": int(one) // classes, "predicted": int(one) % classes, "images": rows.tolist()}
            for one, rows in zip(cells, images, strict=True)
        ],
        "threshold": {name: float(score) for name, score in zip(names, lowest, strict=True)},
    }
