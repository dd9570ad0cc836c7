"""Detections and ground truth of a whole data set as flat arrays, from which every metric is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.errors import DataError
from multibox.structures import Boxes, Dataset, Detections, Flags, Labels, Sample, pack


@dataclass(frozen=True, eq=False)
class Columns:
    """Detections (N) and objects (M) of a data set, one row each, in the order of the images."""

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


class Outcomes(NamedTuple):
    """What became of each detection at each of T IoU thresholds; one that is neither is a false positive."""

    matched: Flags
    """[N, T]; the detection is the first to match an object that counts."""
    ignored: Flags
    """[N, T]; the detection counts for nothing."""


def columns(
    detections: Sequence[Detections], samples: Sequence[Sample] | Dataset, class_names: Sequence[str]
) -> Columns:
    """Join detections with the labels of their images.

    Classes are matched by name, whatever their order. Detections of a class that the data set lacks are dropped.
    A score or coordinate that is not finite becomes 0, so that such a detection counts as false.

    Args:
        detections: One per image, in pixels of the original images.
        samples: The labelled images, in the same order.
        class_names: The data set's classes; `Sample.labels` are positions in it.

    Raises:
        ValueError: The two have different lengths.
        DataError: Detector and data set share no class, or a label lies outside `class_names`.
    """
    if len(detections) != len(samples):
        raise ValueError(f"expected one Detections per image, got {len(detections)} for {len(samples)} images")
    names = tuple(class_names)
    gt = samples if isinstance(samples, Dataset) else _packed(samples, names)
    if len(gt.labels) and not 0 <= gt.labels.min() <= gt.labels.max() < len(names):
        raise DataError(
            f"labels of the data set run from {gt.labels.min()} to {gt.labels.max()}, but it has "
            f"{len(names)} class names; give the list of classes that the labels were made with"
        )
    labels = np.concatenate([np.zeros(0, np.int64), *(_renumbered(one, names) for one in detections)])
    boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes for one in detections)])
    scores = np.concatenate([np.zeros(0), *(one.scores for one in detections)])
    known = labels >= 0
    finite = np.isfinite(boxes).all(1, keepdims=True)
    return Columns(
        images=len(gt),
        class_names=names,
        boxes_xyxy=np.where(finite, boxes, 0.0)[known],
        scores=np.where(np.isfinite(scores), scores, 0.0)[known],
        labels=labels[known],
        image=np.repeat(np.arange(len(gt)), [len(one) for one in detections])[known],
        gt_xyxy=gt.boxes_xyxy.astype(np.float64, copy=False),
        gt_labels=gt.labels,
        gt_image=np.repeat(np.arange(len(gt)), np.diff(gt.starts)),
        gt_difficult=gt.difficult,
        gt_crowd=gt.crowd,
    )


def _packed(samples: Sequence[Sample], names: tuple[str, ...]) -> Dataset:
    return pack(samples, root=Path(), format="", split="", class_names=names)


def _renumbered(detections: Detections, class_names: tuple[str, ...]) -> Labels:
    """Return the labels as positions in `class_names`, -1 for a class that is not there."""
    if detections.names == class_names or not len(detections):
        return detections.labels
    if not set(detections.names) & set(class_names):
        raise DataError(
            f"the detector and the data set share no class name: the detector has {_some(detections.names)}, "
            f"the data set {_some(class_names)}; rename one of them (eval --rename DATA=MODEL)"
        )
    place = {name: number for number, name in reversed(list(enumerate(class_names)))}
    return np.array([place.get(name, -1) for name in detections.names], np.int64)[detections.labels]


def _some(names: Sequence[str]) -> str:
    """Name up to five classes."""
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
