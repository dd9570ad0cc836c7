"""How well objects are found by their size, aspect, feature level, crowding, and at the image's border."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.error_kinds import Matches, ap50
from multibox.analysis.pairing import overlapping
from multibox.config import Config
from multibox.evaluation.table import Columns, Outcomes
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.build import measure
from multibox.structures import Boxes, Flags, Labels, Size, iou

COCO_SIDES = (32.0, 96.0)
"""Square roots of the areas, in pixels of the image, between COCO's small, medium and large objects."""
ASPECTS = (1 / 3, 2 / 3, 3 / 2, 3.0)
"""Width over height between the groups of aspect."""
CROWDING = (1, 2, 4)
"""Objects whose boxes overlap one: the least of each group after the first."""
BORDER = 0.01
"""Distance to the image's border, over its side, up to which a box touches it; at least 1.5 pixels."""

Floats = NDArray[np.float64]


class Grouping(NamedTuple):
    """Objects and detections in groups."""

    names: Sequence[str]
    gt: Labels
    """[M], the group of each object."""
    detection: Labels
    """[N], the group that each detection's own box belongs to."""


def describe_slices(
    table: Columns, matches: Matches, found: Flags, sizes: Sequence[Size], config: Config | None
) -> dict[str, list[dict[str, Any]]]:
    """Return for each way to group the objects a row per group, as the report holds them.

    In the AP50 of a group the objects of other groups count for nothing, and neither does what matches them, nor a
    wrong detection whose own box belongs to another group: COCO's rule for sizes, for every grouping.

    Args:
        table: Detections and objects.
        matches: Of the detections.
        found: [M], the objects that a reported detection matches.
        sizes: Of the images.
        config: Of the network, for its feature levels; None leaves them out.
    """
    image_wh = np.array(sizes, np.float64).reshape(-1, 2)[:, ::-1]
    groupings = {
        "size": [_coco_sizes(table), *_quarters(table)],
        "aspect": [_aspects(table)],
        "level": [] if config is None else [_levels(table, image_wh, config)],
        "crowding": [_crowding(table)],
        "border": [_border(table, image_wh)],
    }
    return {
        key: [row for grouping in several for row in _rows(table, matches, found, grouping)]
        for key, several in groupings.items()
    }


def _rows(table: Columns, matches: Matches, found: Flags, grouping: Grouping) -> Iterator[dict[str, Any]]:
    for group, name in enumerate(grouping.names):
        members = table.gt_scored & (grouping.gt == group)
        objects, hits = int(members.sum()), int((members & found).sum())
        yield {
            "name": name,
            "objects": objects,
            "recall": hits / objects if objects else None,
            "ap50": _ap50_of(table, matches, members, grouping.detection == group),
            "found": hits,
            "missed": objects - hits,
        }


def _ap50_of(table: Columns, matches: Matches, members: Flags, detections: Flags) -> float | None:
    """Return AP50 on the objects `members` [M] alone, with the wrong ones of `detections` [N]."""
    right = matches.right & np.append(members, False)[matches.gt]
    rows = right | (matches.wrong & detections)
    part = replace(
        table,
        boxes_xyxy=table.boxes_xyxy[rows],
        scores=table.scores[rows],
        labels=table.labels[rows],
        image=table.image[rows],
        gt_difficult=~members,
    )
    return ap50(part, Outcomes(right[rows][:, None], np.zeros((len(part.labels), 1), np.bool_)))


def _sides(boxes_xyxy: Boxes) -> Floats:
    """Return the square root of each box's area."""
    return np.sqrt(np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0).prod(1))


def _coco_sizes(table: Columns) -> Grouping:
    low, high = (f"{side:g}²" for side in COCO_SIDES)
    names = (f"small (up to {low} px)", f"medium (up to {high} px)", "large")
    gt, detection = (np.searchsorted(COCO_SIDES, _sides(boxes)) for boxes in (table.gt_xyxy, table.boxes_xyxy))
    return Grouping(names, gt, detection)


def _quarters(table: Columns) -> list[Grouping]:
    """Return the objects in four groups of equal number by size; nothing for fewer than eight objects."""
    sides = _sides(table.gt_xyxy)
    if table.gt_scored.sum() < 8:
        return []
    edges: Floats = np.quantile(sides[table.gt_scored], [0.25, 0.5, 0.75])
    words = ("smallest", "second", "third", "largest")
    ends = (*(f"up to {edge:.0f} px" for edge in edges.tolist()), f"from {edges[2]:.0f} px")
    names = [f"{word} quarter ({end})" for word, end in zip(words, ends, strict=True)]
    return [Grouping(names, np.searchsorted(edges, sides), np.searchsorted(edges, _sides(table.boxes_xyxy)))]


def _aspects(table: Columns) -> Grouping:
    def group(boxes_xyxy: Boxes) -> Labels:
        width, height = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1e-9).T
        ratios: Floats = width / height
        return np.searchsorted(ASPECTS, ratios, side="right")

    names = ("narrower than 1:3", "1:3 to 2:3", "2:3 to 3:2", "3:2 to 3:1", "wider than 3:1")
    return Grouping(names, group(table.gt_xyxy), group(table.boxes_xyxy))


def _crowding(table: Columns) -> Grouping:
    """Group by the number of other objects whose boxes overlap; crowds are no objects."""
    objects = np.flatnonzero(~table.gt_crowd)
    others, image = table.gt_xyxy[objects], table.gt_image[objects]
    pairs = overlapping(table.gt_xyxy, table.gt_image, others, image)
    pairs = pairs.keep(pairs.a != objects[pairs.b])
    gt = np.bincount(pairs.a, minlength=len(table.gt_labels))
    wrong = overlapping(table.boxes_xyxy, table.image, others, image)
    # One of them is the object that the detection may have meant
    detection = np.bincount(wrong.a, minlength=len(table.labels)) - 1
    names = ("no neighbour overlaps", "1 overlaps", "2 or 3 overlap", "4 or more overlap")
    return Grouping(names, *(np.searchsorted(CROWDING, many, side="right") for many in (gt, detection)))


def _border(table: Columns, image_wh: Floats) -> Grouping:
    def group(boxes_xyxy: Boxes, image: Labels) -> Labels:
        wh = image_wh[image]
        near = np.maximum(BORDER * wh, 1.5)
        touches = (boxes_xyxy[:, :2] <= near) | (boxes_xyxy[:, 2:] >= wh - near)
        return np.where(touches.any(1), np.int64(0), np.int64(1))

    names = ("touches the border", "inside")
    return Grouping(names, group(table.gt_xyxy, table.gt_image), group(table.boxes_xyxy, table.image))


def _levels(table: Columns, image_wh: Floats, config: Config) -> Grouping:
    shapes = measure(config, len(table.class_names)).feature_shapes
    names = [f"level {number} ({rows} x {columns})" for number, (rows, columns) in enumerate(shapes)]
    gt, detection = (
        best_levels(boxes / np.tile(image_wh, 2)[image], config, shapes)
        for boxes, image in ((table.gt_xyxy, table.gt_image), (table.boxes_xyxy, table.image))
    )
    return Grouping(names, gt, detection)


def best_levels(boxes_xyxy: Boxes, config: Config, shapes: tuple[Size, ...]) -> Labels:
    """Return the feature level of the anchor that each box overlaps most, [N]; the finest of equals.

    Only the nearest anchor of each shape is compared: of equal boxes the one of the nearest centre overlaps most.

    Args:
        boxes_xyxy: [N, 4] as fractions of the image.
        config: Of the network.
        shapes: Of its feature maps.
    """
    anchors = make_anchors(config.anchors, shapes, config.model.input_size).double().numpy()
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    best, level, start = np.full(len(boxes_xyxy), -1.0), np.zeros(len(boxes_xyxy), np.int64), 0
    for number, ((rows, columns), per_cell) in enumerate(zip(shapes, anchors_per_cell(config), strict=True)):
        end = start + rows * columns * per_cell
        grid = anchors[start:end].reshape(rows, columns, per_cell, 4)
        start = end
        for shape in range(per_cell):
            own = grid[:, :, shape]
            column = _nearest(own[0, :, [0, 2]].mean(0), centres[:, 0])
            row = _nearest(own[:, 0, [1, 3]].mean(1), centres[:, 1])
            overlap = iou(boxes_xyxy, own[row, column])
            better = overlap > best
            best[better], level[better] = overlap[better], number
    return level


def _nearest(places: Floats, values: Floats) -> Labels:
    """Return for each value the position of the nearest of `places`, which rise."""
    return np.searchsorted((places[1:] + places[:-1]) / 2, values)
