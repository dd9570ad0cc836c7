"""How well a preset's anchors cover the boxes of a data set, measured with all anchors at their places."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.config import Config, MatchingConfig
from multibox.data.images import shown_size
from multibox.limits import available_cores
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import FeatureShapes, anchors_per_cell, make_anchors
from multibox.models.build import measure
from multibox.ops.boxes import pairwise_iou
from multibox.structures import Boxes, Dataset, Flags, Labels, Size
from multibox.tensors import HeadOutputs

Floats = NDArray[np.float64]

IOU50 = 0.5
"""The overlap at which the share of reached boxes is always told, whatever the matching threshold is."""
EDGES = (0, 8, 16, 32, 64, 128, 256)
"""Borders between sizes, in pixels of the network's input (square root of the area)."""
PAIRS = 1_000_000
"""Pairs of a box and an anchor that are compared together: 4 MB per table of them."""
COUNTED = 3000
"""Boxes, of evenly spaced images, whose positives are counted: a matcher takes far longer than one table of IoUs."""


class Objects(NamedTuple):
    """Boxes to learn from, without crowds."""

    boxes_xyxy: Boxes
    """[N, 4] as fractions of their images, cut at the images' edges."""
    image_wh: Floats
    """[N, 2] width and height in pixels of the image of each box."""
    labels: Labels
    """[N]"""
    image: Labels
    """[N] position of each box's image; ascending."""

    @property
    def wh(self) -> Floats:
        """[N, 2] width and height of each box as fractions of its image."""
        return self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]

    def sides(self, size: Size) -> Floats:
        """Return the square root of each box's area in pixels of an input of (height, width), [N]."""
        return np.sqrt((self.wh * (size.width, size.height)).prod(1))

    def take(self, rows: Labels | Flags) -> "Objects":
        """Return some of the boxes, in their order."""
        return Objects(self.boxes_xyxy[rows], self.image_wh[rows], self.labels[rows], self.image[rows])


class Cover(NamedTuple):
    """What anchors make of N boxes."""

    best_iou: Floats
    """[N] largest IoU with any anchor."""
    level: Labels
    """[N] feature map of that anchor."""
    reached: Flags
    """[N] whether it is enough for the matching threshold."""


class Group(TypedDict):
    """What anchors make of some boxes; None where there is no box."""

    boxes: int
    best_iou: float | None
    """Mean of the boxes' largest IoU."""
    reached: float | None
    """Share of the boxes that an anchor reaches: IoU from the matching threshold on."""
    reached50: float | None
    """Share of the boxes with an anchor from IoU 0.5 on."""
    positives: float | None
    """Anchors that learn such a box, on average; counted on some 3,000 boxes at most."""


def gather_objects(dataset: Dataset) -> Objects:
    """Return the boxes of a training split, over the real sizes of their images.

    Boxes without area inside their image are left out, as are crowds. Only the images' headers are read.

    Raises:
        ImageError: An image is missing or broken.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        sizes = list(pool.map(shown_size, dataset))
    # Size is (height, width)
    wh = np.array(sizes, np.float64).reshape(-1, 2)[:, ::-1]
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    boxes: Boxes = np.clip(dataset.boxes_xyxy / np.tile(wh, 2)[image], 0, 1)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1) & ~dataset.crowd
    return Objects(boxes, wh[image], dataset.labels, image).take(kept)


def some_objects(objects: Objects, most: int) -> Objects:
    """Return at most `most` boxes, evenly spaced."""
    count = len(objects.labels)
    if count <= most:
        return objects
    return objects.take(np.unique(np.linspace(0, count - 1, most).astype(np.int64)))


def best_overlaps(boxes_xyxy: Boxes, anchors_xyxy: torch.Tensor) -> tuple[Floats, Labels]:
    """Return the largest IoU of each box [N] with any anchor, and the position of that anchor [N].

    Memory does not grow with the number of boxes.

    Args:
        boxes_xyxy: [N, 4] as fractions of the image.
        anchors_xyxy: [A, 4] as fractions of the input.
    """
    boxes = torch.from_numpy(np.ascontiguousarray(boxes_xyxy)).to(anchors_xyxy.dtype)
    parts = [pairwise_iou(part, anchors_xyxy).max(dim=1) for part in boxes.split(_rows(len(anchors_xyxy)))]
    best = torch.cat([values for values, _ in parts]) if parts else torch.zeros(0)
    place = torch.cat([indices for _, indices in parts]) if parts else torch.zeros(0, dtype=torch.long)
    return best.double().numpy(), place.numpy()


def is_reached(best_iou: Floats, matching: MatchingConfig) -> Flags:
    """Return which IoUs are enough for the matching threshold."""
    # Training compares in float32
    limit = np.float32(matching.threshold)
    values = best_iou.astype(np.float32)
    return np.asarray(values >= limit if matching.inclusive else values > limit)


def cover(objects: Objects, config: Config) -> Cover:
    """Compare every box with every anchor of the network."""
    shapes = measure(config, 1).feature_shapes
    best, place = best_overlaps(objects.boxes_xyxy, make_anchors(config.anchors, shapes, config.model.input_size))
    ends = np.cumsum(_level_sizes(config, shapes))
    return Cover(best, np.searchsorted(ends, place, side="right"), is_reached(best, config.matching))


def of_some_images(objects: Objects, most: int) -> Flags:
    """Return which boxes belong to evenly spaced images that have at most some `most` boxes together."""
    images = np.unique(objects.image)
    every = max(1, -(-len(objects.image) // most))
    return np.isin(objects.image, images[::every])


def count_positives(objects: Objects, config: Config) -> tuple[Labels, Labels]:
    """Return how many anchors learn each box [N], and how many positives each feature map has [L].

    The run's own matcher decides. Matchers that ask the network see one that knows nothing: every score is equal, and
    every predicted box is its anchor.
    """
    shapes = measure(config, 1).feature_shapes
    anchors = make_anchors(config.anchors, shapes, config.model.input_size)
    sizes, per_cell = _level_sizes(config, shapes), anchors_per_cell(config)
    ends = torch.tensor(sizes).cumsum(0)
    counts, levels = torch.zeros(len(objects.labels), dtype=torch.long), torch.zeros(len(sizes), dtype=torch.long)
    softmax = int(config.model.score == "softmax")
    for rows, image, place in _batches(objects, len(anchors)):
        images, most = int(image.max()) + 1, int(place.max()) + 1
        gt_xyxy, gt_labels = torch.full((images, most, 4), -1.0), torch.full((images, most), -1)
        gt_xyxy[image, place] = torch.from_numpy(objects.boxes_xyxy[rows]).float()
        gt_labels[image, place] = 0
        blank = HeadOutputs(
            torch.zeros(images, len(anchors), 1 + softmax), torch.zeros(images, len(anchors), 4), shapes
        )
        targets = make_targets(anchors, gt_xyxy, gt_labels, config.matching, config.model, blank, per_cell)
        row_of = torch.full((images, most), -1)
        row_of[image, place] = torch.from_numpy(rows)
        counts += torch.bincount(row_of[targets.image, targets.gt], minlength=len(counts))
        levels += torch.bincount(torch.bucketize(targets.anchor, ends, right=True), minlength=len(levels))
    return counts.numpy(), levels.numpy()


def _batches(objects: Objects, anchors: int) -> Iterator[tuple[Labels, torch.Tensor, torch.Tensor]]:
    """Yield rows of boxes with the position of their image in the batch and of the box in its image.

    Images with about as many boxes go together, so that little is padded.
    """
    _, image, many = np.unique(objects.image, return_inverse=True, return_counts=True)
    place = np.arange(len(image)) - (np.cumsum(many) - many)[image]
    order = np.argsort(many, kind="stable")
    most = _rows(anchors)
    start = 0
    while start < len(order):
        # Ascending, so the last image of a batch has the most boxes
        slots = many[order[start:]] * np.arange(1, len(order) - start + 1)
        taken = order[start : start + max(1, int(np.searchsorted(slots, most, side="right")))]
        start += len(taken)
        position = np.full(len(many), -1)
        position[taken] = np.arange(len(taken))
        rows = np.flatnonzero(position[image] >= 0)
        yield rows, torch.from_numpy(position[image[rows]]), torch.from_numpy(place[rows])


def describe_cover(objects: Objects, config: Config, class_names: Sequence[str], found: Cover) -> dict[str, Any]:
    """Return the coverage as plain data: of all boxes, by class, by size at the network's input, by feature map.

    Args:
        objects: The boxes.
        config: The run's settings.
        class_names: Of the labels.
        found: What `cover` returned for both.
    """
    shapes, size = measure(config, 1).feature_shapes, config.model.input_size
    counted = of_some_images(objects, COUNTED)
    positives = np.full(len(counted), np.nan)
    positives[counted], per_level = count_positives(objects.take(counted), config)
    sides, images = objects.sides(size), max(1, len(np.unique(objects.image[counted])))

    def group(chosen: Flags) -> Group:
        return _group(found, positives, chosen)

    of_all = group(np.ones(len(positives), np.bool_))
    levels = zip(shapes, anchors_per_cell(config), _level_sizes(config, shapes), per_level.tolist(), strict=True)
    return {
        "preset": config.preset,
        "input": [size.height, size.width],
        "anchors": int(sum(_level_sizes(config, shapes))),
        "matcher": config.matching.matcher,
        "threshold": config.matching.threshold,
        **of_all,
        "unreached": None if of_all["reached"] is None else 1 - of_all["reached"],
        "unreached50": None if of_all["reached50"] is None else 1 - of_all["reached50"],
        "without_positive": _share(positives[counted] == 0),
        "by_class": {name: group(objects.labels == label) for label, name in enumerate(class_names)},
        "by_size": [
            {"from": low, "to": high if np.isfinite(high) else None, **group((sides >= low) & (sides < high))}
            for low, high in zip(EDGES, (*EDGES[1:], np.inf), strict=True)
        ],
        "by_level": [
            {
                "rows": shape.height,
                "columns": shape.width,
                "stride": [size.width / shape.width, size.height / shape.height],
                "anchors_per_cell": per_cell,
                "anchors": count,
                "best_of": _share(found.level == level),
                "positives": positive / images,
            }
            for level, (shape, per_cell, count, positive) in enumerate(levels)
        ],
    }


def _group(found: Cover, positives: Floats, chosen: Flags) -> Group:
    return {
        "boxes": int(chosen.sum()),
        "best_iou": _share(found.best_iou[chosen]),
        "reached": _share(found.reached[chosen]),
        "reached50": _share(found.best_iou[chosen] >= IOU50),
        "positives": _share(positives[chosen & ~np.isnan(positives)]),
    }


def _share(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _level_sizes(config: Config, shapes: FeatureShapes) -> list[int]:
    return [rows * columns * count for (rows, columns), count in zip(shapes, anchors_per_cell(config), strict=True)]


def _rows(anchors: int) -> int:
    return max(1, PAIRS // max(1, anchors))
