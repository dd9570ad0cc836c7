"""Slices: COCO's own sizes, groups by hand, and the level of the best of all anchors."""

import numpy as np
import pytest
import torch

from multibox.analysis.error_kinds import match
from multibox.analysis.image_scores import found_objects
from multibox.analysis.slices import best_levels, describe_slices
from multibox.evaluation.coco_metrics import _evaluation
from multibox.evaluation.table import Columns
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.build import measure
from multibox.ops.boxes import pairwise_iou
from multibox.presets import resolve
from multibox.structures import Size


def table_of(detections, objects, images=1):
    """Detections as (score, box) and objects as boxes, of one class in one image."""
    gt, none = np.array(objects, np.float64).reshape(-1, 4), np.zeros(len(objects), np.bool_)
    boxes, scores = np.array([box for _, box in detections], np.float64), np.array([score for score, _ in detections])
    zero, gt_zero = np.zeros(len(detections), np.int64), np.zeros(len(objects), np.int64)
    return Columns(images, ("thing",), boxes.reshape(-1, 4), scores, zero, zero, gt, gt_zero, gt_zero, none, none)


def describe(table, sizes, config=None, lowest=0.5):
    matches = match(table)
    found = found_objects(table, matches, np.full(len(table.class_names), lowest))
    return describe_slices(table, matches, found, sizes, config)


def test_groups_by_hand():
    objects = [(0, 0, 20, 20), (100, 100, 200, 200), (150, 100, 250, 200), (300, 300, 320, 400)]
    detections = [
        (0.9, (0, 0, 20, 20)),  # finds the small one, at the border
        (0.8, (100, 100, 200, 200)),  # finds one of the two that overlap
        (0.7, (120, 310, 220, 410)),  # wrong: large, inside, alone
        (0.3, (300, 300, 320, 400)),  # finds the narrow one, below the threshold
    ]
    slices = describe(table_of(detections, objects), [Size(480, 640)])
    rows = {(key, row["name"]): row for key, group in slices.items() for row in group}
    small, large = rows["size", "small (up to 32² px)"], rows["size", "large"]
    assert (small["objects"], small["found"], small["missed"], small["recall"]) == (1, 1, 0, 1.0)
    assert small["ap50"] == 1.0
    # Two objects, one found before the wrong box: precision 1 up to recall 1/2
    assert (large["objects"], large["found"]) == (2, 1) and large["ap50"] == pytest.approx(51 / 101)
    narrow = rows["aspect", "narrower than 1:3"]
    assert (narrow["objects"], narrow["found"], narrow["ap50"]) == (1, 0, 1.0)
    alone, crowded = rows["crowding", "no neighbour overlaps"], rows["crowding", "1 overlaps"]
    assert (alone["objects"], crowded["objects"], crowded["found"]) == (2, 2, 1)
    assert rows["border", "touches the border"]["objects"] == 1
    assert rows["border", "inside"]["missed"] == 2
    assert rows["crowding", "4 or more overlap"]["recall"] is rows["crowding", "4 or more overlap"]["ap50"] is None
    assert slices["level"] == []
    assert len(slices["size"]) == 3  # too few objects for quarters


def test_groups_hold_every_object_once_and_sizes_are_cocos():
    random = np.random.default_rng(0)
    corner, sides = random.uniform(0, 300, (300, 2)), random.uniform(5, 250, (300, 2))
    gt, image = np.concatenate([corner, corner + sides], 1), np.repeat(np.arange(60), 5)
    boxes = np.concatenate([gt + random.normal(0, 6, gt.shape), gt + random.normal(0, 30, gt.shape)])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    order = np.argsort(np.tile(image, 2), kind="stable")
    none, labels = np.zeros(300, np.bool_), random.integers(0, 2, 300)
    table = Columns(
        60, ("a", "b"), boxes[order], random.random(600), np.tile(labels, 2)[order], np.tile(image, 2)[order],
        gt, labels, image, none, none,
    )  # fmt: skip
    slices = describe(table, [Size(600, 600)] * 60, resolve("tinyssd"))
    for key, rows in slices.items():
        assert sum(row["objects"] for row in rows) == (600 if key == "size" else 300)
    assert [row["objects"] for row in slices["size"][3:]] == [75, 75, 75, 75]
    evaluation = _evaluation(table, 100)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[0, :, :, 1:4, 2]
    for area, row in enumerate(slices["size"][:3]):
        own = precision[:, :, area]
        # COCO matches anew within a size, where a box may take another object
        assert row["ap50"] == pytest.approx(own[own > -1].mean(), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tinyssd", "ssd300-vgg16", "rfb320-face"])
def test_the_level_is_that_of_the_best_of_all_anchors(preset):
    config = resolve(preset)
    random = np.random.default_rng(0)
    sides, centre = random.uniform(0.02, 0.9, (500, 2)), random.uniform(0, 1, (500, 2))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], 1).clip(0, 1)
    shapes = measure(config, 1).feature_shapes
    anchors = make_anchors(config.anchors, shapes, config.model.input_size)
    place = pairwise_iou(torch.from_numpy(boxes).float(), anchors).argmax(1).numpy()
    counts = [rows * columns * many for (rows, columns), many in zip(shapes, anchors_per_cell(config), strict=True)]
    level = np.searchsorted(np.cumsum(counts), place, side="right")
    assert (best_levels(boxes, config, shapes) == level).mean() >= 0.99
    slices = describe(table_of([], [(0, 0, 20, 20)]), [Size(480, 640)], config)
    # Numbered as the inspection numbers them
    assert [row["name"].split(" (")[0] for row in slices["level"]] == [f"level {n}" for n in range(len(shapes))]
