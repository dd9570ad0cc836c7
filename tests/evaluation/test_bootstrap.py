"""Intervals: weighted precision against the metrics themselves, copies of images against weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.evaluation.bootstrap import _mean_at_101_recalls, intervals, weighted_metrics
from multibox.evaluation.coco_metrics import coco_metrics
from multibox.evaluation.report import evaluate
from multibox.evaluation.table import columns
from multibox.evaluation.voc_metrics import overlaps, voc12, voc_curves

KEYS = ("AP", "AP50", "AP75")


def direct(table, max_detections=100, plus_one=True):
    coco = coco_metrics(table, max_detections=max_detections)
    voc = voc12(voc_curves(table, overlaps(table, plus_one=plus_one)))["mAP"]
    return [np.nan if value is None else value for value in (*(coco[key] for key in KEYS), voc)]


def weighted(table, weights, **options):
    found = weighted_metrics(table, np.atleast_2d(weights), **options)
    return np.stack([found[key] for key in (*KEYS, "mAP")], 1)


def boxes(count, grid):
    """A few corners on a coarse grid, so that overlaps and ties of overlap are common."""
    corner = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))
    return st.lists(corner, min_size=0, max_size=count).map(
        lambda rows: np.array([[x, y, x + w, y + h] for x, y, w, h in rows], float).reshape(-1, 4) * grid
    )


@st.composite
def tables(draw, build):
    names = ("a", "b", "c")
    samples, found = [], []
    for _ in range(draw(st.integers(1, 4))):
        gt, det = draw(boxes(5, 10.0)), draw(boxes(8, 10.0))
        flag = draw(st.lists(st.sampled_from("..dc"), min_size=len(gt), max_size=len(gt)))
        labels = draw(st.lists(st.integers(0, 1), min_size=len(gt), max_size=len(gt)))
        samples.append(build.sample(gt, labels, [f == "d" for f in flag], [f == "c" for f in flag]))
        scores = draw(st.lists(st.integers(1, 4), min_size=len(det), max_size=len(det)))
        guess = draw(st.lists(st.integers(0, 2), min_size=len(det), max_size=len(det)))
        found.append(build.detections(det + draw(st.sampled_from([0.0, 0.37])), np.array(scores) / 5, guess, names))
    return columns(found, samples, names)


@given(data=st.data(), limit=st.sampled_from([1, 3, 100]), plus_one=st.booleans())
def test_weights_of_one_give_the_metrics_themselves(build, data, limit, plus_one):
    table = data.draw(tables(build))
    ones = weighted(table, np.ones(table.images, int), max_detections=limit, plus_one=plus_one)[0]
    np.testing.assert_allclose(ones, direct(table, limit, plus_one), atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [2, 100])
def test_weights_of_one_on_random_sets(build, seed, limit):
    samples, found, names = build.random(seed)
    table = columns(found, samples, names)
    ones = weighted(table, np.ones(table.images, int), max_detections=limit)[0]
    np.testing.assert_allclose(ones, direct(table, limit), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_weights_give_what_copies_of_the_images_give(build, seed):
    samples, found, names = build.random(seed)
    random = np.random.default_rng(seed)
    # Equal scores of different detections are ordered by image, which copies would change
    for one in found:
        one.scores[:] = random.permutation(np.linspace(0.1, 0.9, 100_000))[: len(one)]
    weights = random.multinomial(len(samples), np.full(len(samples), 1 / len(samples)), 5)
    rows = weighted(columns(found, samples, names), weights, max_detections=5)
    for row, drawn in zip(rows, weights, strict=True):
        copies = np.repeat(np.arange(len(samples)), drawn)
        table = columns([found[i] for i in copies], [samples[i] for i in copies], names)
        np.testing.assert_allclose(row, direct(table, 5), atol=1e-9)


def test_blocks_of_resamples_change_nothing(build, monkeypatch):
    samples, found, names = build.random(0)
    table = columns(found, samples, names)
    whole = intervals(table, 40)
    monkeypatch.setattr("multibox.evaluation.bootstrap.CELLS", 500)
    assert intervals(table, 40) == whole
    assert intervals(table, 40, seed=1) != whole


def test_an_interval_by_hand(build):
    """Ten images of one object each, seven found: the resampled AP is the binomial share that was found."""
    samples = [build.sample([[0, 0, 20, 20]]) for _ in range(10)]
    hit, nothing = build.detections([[0, 0, 20, 20]], [0.9]), build.detections([], [])
    ends = intervals(columns([hit] * 7 + [nothing] * 3, samples, ["thing"]), 4000)
    # 95 % of binomial(10, 0.7) lie from 4 to 9 or 10
    assert ends["voc12"]["mAP"] == (pytest.approx(0.4), pytest.approx(1.0))
    assert ends["coco"]["AP"] == pytest.approx(ends["coco"]["AP75"])
    assert ends["coco"]["AP"][0] == pytest.approx(41 / 101)


@pytest.mark.slow
def test_coverage_of_the_true_share(build):
    """Of 60 data sets of 40 images, about 95 % have an interval that holds the share they were drawn with."""
    random = np.random.default_rng(0)
    hit, nothing = build.detections([[0, 0, 20, 20]], [0.9]), build.detections([], [])
    samples, inside = [build.sample([[0, 0, 20, 20]]) for _ in range(40)], 0
    for _ in range(60):
        found = [hit if lucky else nothing for lucky in random.random(40) < 0.6]
        low, high = intervals(columns(found, samples, ["thing"]), 200)["voc12"]["mAP"]
        inside += low <= 0.6 <= high
    assert 52 <= inside <= 60


def test_where_nothing_is_to_be_found_there_is_no_interval(build):
    empty = build.detections([], [])
    assert intervals(columns([empty], [build.sample([])], ["thing"]), 5)["coco"]["AP"] is None
    assert intervals(columns([], [], ["thing"]), 5)["voc12"]["mAP"] is None


def test_the_dictionary_has_intervals_only_when_asked(build):
    samples, found, names = build.random(0)
    assert "intervals" not in evaluate(found, samples, names)
    metrics = evaluate(found, samples, names, bootstrap=100)
    for part, keys in (("coco", KEYS), ("voc12", ("mAP",))):
        assert tuple(metrics["intervals"][part]) == keys
        for key in keys:
            low, high = metrics["intervals"][part][key]
            assert low < metrics[part][key] < high


def test_the_recall_points_are_reached_as_rounded_quotients_reach_them():
    """For every number of objects up to 600, all found, the k-th with precision k: the first one from each point on."""
    for objects in range(1, 601):
        true = np.arange(1.0, objects + 1)
        place = np.searchsorted(true / objects, np.linspace(0, 1, 101))
        found = _mean_at_101_recalls(true[None], true[None], np.array([float(objects)]))
        assert found[0] == pytest.approx(true[place].mean(), rel=1e-12), objects


def test_intervals_of_classes_hold_the_class_itself(build):
    samples, found, names = build.random(5, images=60)
    table = columns(found, samples, names)
    per_class, metrics = intervals(table, 100)["per_class"], coco_metrics(table)["per_class"]
    assert set(per_class) == set(names)
    for name, ends in per_class.items():
        for key, value in metrics[name].items():
            assert (ends[key] is None) == (value is None)
            assert value is None or ends[key][0] <= value <= ends[key][1]
