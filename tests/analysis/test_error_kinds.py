"""Kinds of errors: TIDE's definitions by hand, hotcoco's counts, greedy matching one after the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.analysis.confusion import describe_confusions, find_confusions
from multibox.analysis.error_kinds import (
    KINDS,
    WRONG,
    ap50,
    count_errors,
    error_costs,
    find_errors,
    match,
)
from multibox.analysis.pairing import match_greedily, overlapping
from multibox.evaluation.coco_metrics import _evaluation, coco_metrics
from multibox.evaluation.table import Columns
from multibox.structures import iou

HOTCOCO = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN")
"""The names of `KINDS` there."""


def table_of(detections, objects, classes=2, images=1) -> Columns:
    """Detections as (image, label, score, box), objects as (image, label, box)."""
    return Columns(
        images=images,
        class_names=tuple(f"class {number}" for number in range(classes)),
        boxes_xyxy=np.array([one[3] for one in detections], np.float64).reshape(-1, 4),
        scores=np.array([one[2] for one in detections], np.float64),
        labels=np.array([one[1] for one in detections], np.int64),
        image=np.array([one[0] for one in detections], np.int64),
        gt_xyxy=np.array([one[2] for one in objects], np.float64).reshape(-1, 4),
        gt_labels=np.array([one[1] for one in objects], np.int64),
        gt_image=np.array([one[0] for one in objects], np.int64),
        gt_difficult=np.zeros(len(objects), np.bool_),
        gt_crowd=np.zeros(len(objects), np.bool_),
    )


def random_table(seed, images=40, classes=3, detections=12, objects=5) -> Columns:
    random = np.random.default_rng(seed)
    gt_image = np.repeat(np.arange(images), random.integers(0, objects, images))
    corner, sides = random.uniform(0, 200, (len(gt_image), 2)), random.uniform(10, 100, (len(gt_image), 2))
    gt, labels = np.concatenate([corner, corner + sides], 1), random.integers(0, classes, len(gt_image))
    image = np.repeat(np.arange(images), random.integers(0, detections, images))
    # Beside an object of any image, so that some lie on background
    near = random.integers(0, len(gt), len(image)) if len(gt) else np.zeros(0, int)
    own = np.searchsorted(gt_image, image) + random.integers(0, 2, len(image))
    near = np.where(random.random(len(image)) < 0.8, np.minimum(own, len(gt) - 1), near)
    boxes = gt[near] + random.normal(0, 10, (len(image), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    guess = np.where(random.random(len(image)) < 0.7, labels[near], random.integers(0, classes, len(image)))
    none = np.zeros(len(gt), np.bool_)
    names = tuple(f"class {number}" for number in range(classes))
    return Columns(images, names, boxes, random.random(len(image)), guess, image, gt, labels, gt_image, none, none)


A, B = 0, 1
ONE_OF_EACH = [
    (0, A, 0.9, (0, 0, 10, 10)),  # right
    (0, A, 0.8, (0, 0, 10, 9)),  # duplicate
    (0, A, 0.7, (20, 0, 30, 10)),  # classification
    (0, A, 0.6, (40, 0, 50, 4)),  # localization, IoU 0.4
    (0, A, 0.5, (60, 0, 70, 4)),  # both, IoU 0.4
    (0, A, 0.4, (100, 100, 110, 110)),  # background
    (0, A, 0.3, (200, 0, 210, 10)),  # right
]
OBJECTS = [
    (0, A, (0, 0, 10, 10)),
    (0, B, (20, 0, 30, 10)),
    (0, A, (40, 0, 50, 10)),
    (0, B, (60, 0, 70, 10)),  # missed, since a box of the kind `both` finds nothing
    (0, A, (80, 0, 90, 10)),  # missed
    (0, A, (200, 0, 210, 10)),
]


def test_one_error_of_every_kind_by_hand():
    table = table_of(ONE_OF_EACH, OBJECTS)
    matches = match(table)
    errors = find_errors(table, matches)
    assert errors.kind.tolist() == [-1, 3, 0, 1, 2, 4, -1]
    assert errors.gt.tolist() == [-1, 0, 1, 2, 3, -1, -1]
    np.testing.assert_allclose(errors.iou, [0, 0.9, 1, 0.4, 0.4, 0, 0])
    assert np.flatnonzero(errors.missed).tolist() == [3, 4]
    assert np.flatnonzero(errors.unmatched).tolist() == [1, 2, 3, 4]
    assert count_errors(errors) == dict(zip(KINDS, (1, 1, 1, 1, 1, 2, 5, 4), strict=True))

    # Class A has 4 objects: its 101 points are 26 of precision 1 up to recall 1/4 and 25 of 2/7 up to 1/2. B has none.
    base = 26 + 25 * 2 / 7
    assert ap50(table, matches.outcomes) == pytest.approx(base / 202)
    mended = {
        "classification": 26 + 25 * 2 / 6 + 51,  # it leaves A, and finds one of B's two
        "localization": 26 + 25 * 2 / 4 + 25 * 3 / 7,
        "both": 26 + 25 * 2 / 6,
        "duplicate": 26 + 25 * 2 / 6,
        "background": 26 + 25 * 2 / 6,
        "missed": 34 + 33 * 2 / 7,  # 3 objects of A are left, 1 of B
        "false-positives": 26 + 25,
        "false-negatives": 51 + 50 * 2 / 7 + 101,  # 2 objects of A; B has neither objects nor detections
    }
    costs = error_costs(table, matches, errors)
    assert costs == pytest.approx({name: (points - base) / 202 for name, points in mended.items()})


def test_one_object_is_mended_once_by_the_best_score():
    """The paper: if a duplicate detection would be made this way, the lower scoring detection is suppressed."""
    objects = [(0, A, (0, 0, 10, 10)), (0, B, (50, 0, 60, 10))]
    poor = [(0, A, score, (0, 0, 10, 4)) for score in (0.9, 0.7)]
    found = [(0, A, 0.8, (0, 0, 10, 10))]
    table = table_of(poor + found, objects)
    matches = match(table)
    errors = find_errors(table, matches)
    assert [WRONG[kind] for kind in errors.kind[:2]] == ["localization", "localization"]
    # Before: precision 1/2 at recall 1. After: the box of 0.9 alone is left
    assert error_costs(table, matches, errors)["localization"] == pytest.approx((1 - 0.5) / 2)


def test_a_class_that_is_missed_whole_costs_its_average_precision():
    table = table_of([(0, A, 0.9, (0, 0, 10, 10))], [(0, A, (0, 0, 10, 10)), (0, B, (50, 0, 60, 10))])
    matches = match(table)
    assert error_costs(table, matches, find_errors(table, matches))["missed"] == pytest.approx(0.5)


def test_no_detections_and_no_objects():
    for table in (table_of([], OBJECTS), table_of(ONE_OF_EACH, []), table_of([], [])):
        matches = match(table)
        errors = find_errors(table, matches)
        counts = count_errors(errors)
        assert counts["false-positives"] == counts["background"] == len(table.labels)
        assert counts["missed"] == counts["false-negatives"] == len(table.gt_labels)
        error_costs(table, matches, errors)


@pytest.mark.parametrize("seed", range(12))
def test_hotcoco_counts_the_same_and_agrees_on_costs_but_for_mended_boxes(seed):
    table = random_table(seed, classes=1 + seed % 4)
    matches = match(table)
    errors = find_errors(table, matches)
    evaluation = _evaluation(table, 100)
    evaluation.evaluate()
    theirs = evaluation.tide_errors(0.5, 0.1)
    counts, costs = count_errors(errors), error_costs(table, matches, errors)
    assert {name: counts[kind] for kind, name in zip(KINDS, HOTCOCO[:6], strict=False)} == theirs["counts"]
    assert ap50(table, matches.outcomes) == pytest.approx(theirs["ap_base"])
    for kind, name in zip(KINDS, HOTCOCO, strict=True):
        # hotcoco leaves a mended box in its old class, and counts several on one object
        if kind not in ("classification", "localization"):
            assert costs[kind] == pytest.approx(theirs["delta_ap"][name], abs=1e-9), kind


def test_ap50_is_that_of_the_metrics():
    table = random_table(3, images=80)
    assert ap50(table, match(table).outcomes) == pytest.approx(coco_metrics(table)["AP50"], abs=1e-12)


def test_crowds_and_difficult_objects_take_no_part():
    table = table_of(
        [(0, A, 0.9, (0, 0, 10, 10)), (0, A, 0.8, (50, 0, 60, 10))],
        [(0, A, (0, 0, 10, 10)), (0, A, (50, 0, 60, 10))],
    )
    table.gt_difficult[0], table.gt_crowd[1] = True, True
    matches = match(table)
    assert count_errors(find_errors(table, matches)) == dict.fromkeys(KINDS, 0)
    confusions = find_confusions(table, np.zeros(2))
    assert not len(confusions.gt)


def one_after_the_other(pairs, scores, count):
    """The definition: in falling order of score each box takes the free partner that it overlaps most."""
    taken, free = np.full(len(scores), -1), np.ones(count, bool)
    for row in np.argsort(-scores, kind="stable"):
        own = np.flatnonzero((pairs.a == row) & free[pairs.b])
        if len(own):
            partner = pairs.b[own[pairs.iou[own].argmax()]]
            taken[row], free[partner] = partner, False
    return taken


corners = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6))


@given(
    boxes=st.lists(st.tuples(corners, st.integers(0, 2), st.integers(1, 4)), max_size=14),
    others=st.lists(st.tuples(corners, st.integers(0, 2)), max_size=10),
    least=st.sampled_from([0.0, 0.3, 0.5]),
)
def test_greedy_matching_in_rounds_is_one_after_the_other(boxes, others, least):
    def as_boxes(given):
        rows = np.array(given, np.float64).reshape(-1, 4)
        return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], 1)

    others = sorted(others, key=lambda one: one[1])
    a, b = as_boxes([one[0] for one in boxes]), as_boxes([one[0] for one in others])
    a_image, b_image = (np.array([one[1] for one in given], np.int64) for given in (boxes, others))
    scores = np.array([one[2] for one in boxes], np.float64)
    pairs = overlapping(a, a_image, b, b_image, least)
    table = iou(a[:, None], b[None]) * (a_image[:, None] == b_image[None])
    assert set(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)) == {
        (i, j) for i, j in np.argwhere((table > 0) & (table >= least)).tolist()
    }
    np.testing.assert_array_equal(match_greedily(pairs, scores, len(b)), one_after_the_other(pairs, scores, len(b)))


@pytest.mark.parametrize("seed", range(8))
def test_hotcoco_counts_the_same_confusions(seed):
    table = random_table(seed, classes=1 + seed % 4)
    lowest = np.full(len(table.class_names), 0.3)
    described = describe_confusions(find_confusions(table, lowest), table.class_names, lowest)
    theirs = _evaluation(table, 100).confusion_matrix(iou_thr=0.5, max_det=100, min_score=0.3)
    np.testing.assert_array_equal(described["counts"], theirs["matrix"])


def test_confusions_name_their_images_and_keep_thresholds_of_each_class():
    table = table_of([*ONE_OF_EACH, (1, B, 0.2, (0, 0, 10, 10))], [*OBJECTS, (1, B, (0, 0, 10, 10))], images=2)
    described = describe_confusions(
        find_confusions(table, np.array([0.6, 0.1])), table.class_names, np.array([0.6, 0.1])
    )
    assert described["names"] == ["class 0", "class 1", "background"]
    assert described["counts"] == [[1, 0, 3], [1, 1, 1], [2, 0, 0]]
    assert {(one["gt"], one["predicted"]): one["images"] for one in described["cells"]} == {
        (0, 0): [0], (0, 2): [0], (1, 0): [0], (1, 1): [1], (1, 2): [0], (2, 0): [0],
    }  # fmt: skip
    assert described["threshold"] == {"class 0": 0.6, "class 1": 0.1}
