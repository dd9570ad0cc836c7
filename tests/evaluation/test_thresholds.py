"""Thresholds of best F1: worked by hand, and against every threshold tried."""

import numpy as np
import pytest

from multibox.evaluation.report import best_threshold
from multibox.evaluation.voc_metrics import Curve, precision_recall

FAR = [500, 500, 510, 510]


def test_by_hand(build):
    boxes = [[0, 0, 20, 20], [50, 0, 70, 20], [0, 50, 20, 70], [50, 50, 70, 70]]
    found = build.detections([boxes[0], FAR, boxes[1], boxes[2], FAR], [0.9, 0.8, 0.7, 0.6, 0.5])
    best = best_threshold(precision_recall([found], [build.sample(boxes)], ["thing"])["thing"])
    # F1: 2/5, 2/6, 4/7, 6/8, 6/9
    assert best == {
        "threshold": pytest.approx(0.6),
        "precision": pytest.approx(0.75),
        "recall": pytest.approx(0.75),
        "f1": pytest.approx(0.75),
    }


def test_of_equal_f1_the_higher_threshold(build):
    # 2 * 1 / (1 + 3) = 2 * 2 / (5 + 3), whose quotients of rounded precision and recall differ
    recall, precision = np.array([1, 1, 1, 1, 2]) / 3, np.array([1, 1, 1, 1, 2]) / np.arange(1, 6)
    best = best_threshold(Curve(recall, precision, np.array([0.9, 0.8, 0.7, 0.6, 0.5]), 3))
    assert best is not None
    assert (best["threshold"], best["f1"]) == (0.9, 0.5)


def test_equal_scores_go_together():
    curve = Curve(np.array([1.0, 1.0]), np.array([1.0, 0.5]), np.array([0.5, 0.5]), 1)
    best = best_threshold(curve)
    assert best is not None
    assert (best["threshold"], best["precision"]) == (0.5, 0.5)


def test_no_objects_no_detections_or_none_right_give_none():
    nothing = np.zeros(0)
    one = np.ones(1)
    assert best_threshold(Curve(nothing, nothing, nothing, 3)) is None
    assert best_threshold(Curve(0 * one, 0 * one, one, 0)) is None
    assert best_threshold(Curve(0 * one, 0 * one, one, 3)) is None


@pytest.mark.parametrize("seed", range(6))
def test_no_other_threshold_is_better(build, seed):
    samples, found, names = build.random(seed)
    curves = precision_recall(found, samples, names)
    for curve in curves.values():
        best = best_threshold(curve)
        if best is None:
            assert not curve.objects
            continue
        tried = {}
        for threshold in np.unique(curve.scores):
            last = int((curve.scores >= threshold).sum()) - 1
            p, r = curve.precision[last], curve.recall[last]
            tried[threshold] = 2 * p * r / (p + r) if p + r else 0.0
        assert best["f1"] == pytest.approx(max(tried.values()))
        assert best["threshold"] == max(t for t, f1 in tried.items() if f1 > max(tried.values()) - 1e-12)
