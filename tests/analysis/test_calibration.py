"""Calibration: hotcoco's error, bins by hand, and a temperature that is found again."""

import numpy as np
import pytest

from multibox.analysis.calibration import (
    Scored,
    calibration_error,
    describe_calibration,
    fit_temperature,
    logit,
    reliability,
    warmed,
)


def drawn(seed, temperature, count=40_000, images=50):
    """Scores that are too certain by a temperature: right ones are drawn with the probability that it would mend."""
    random = np.random.default_rng(seed)
    honest = random.beta(0.5, 1.5, count).clip(1e-4, 1 - 1e-4)
    right = random.random(count) < honest
    scores = 1 / (1 + np.exp(-logit(honest) * temperature))
    labels = random.integers(0, 2, count)
    return Scored(scores, right, labels, random.integers(0, images, count))


def test_bins_and_error_by_hand():
    scores, right = np.array([0.05, 0.1, 0.95, 1.0, 0.95]), np.array([False, True, True, True, False])
    bins = reliability(scores, right)
    assert [one["count"] for one in bins] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert (bins[9]["low"], bins[9]["high"]) == (0.9, 1.0)
    assert bins[9]["confidence"] == pytest.approx(2.9 / 3)
    assert bins[9]["precision"] == pytest.approx(2 / 3)
    assert bins[5]["confidence"] is bins[5]["precision"] is None
    assert calibration_error(scores, right) == pytest.approx((0.05 + 0.9 + 0.9) / 5)
    assert calibration_error(scores[:0], right[:0]) is None


def test_hotcoco_finds_the_same_error():
    from hotcoco import metrics

    found = drawn(0, 2.0, count=3000)
    theirs, _ = metrics.calibration_error(found.scores, found.right, 10)
    assert calibration_error(found.scores, found.right) == pytest.approx(theirs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_drawn_scores_is_found(temperature):
    found = drawn(1, temperature)
    assert fit_temperature(found.scores, found.right) == pytest.approx(temperature, rel=0.05)
    np.testing.assert_allclose(warmed(warmed(found.scores, 2.0), 0.5), found.scores, atol=1e-5)


def test_each_half_is_measured_with_the_temperature_of_the_other():
    found = drawn(2, 2.5)
    described = describe_calibration(found, ("a", "b"))
    assert described["ece"] > 0.05
    assert described["ece_after"] < 0.02
    even, odd = described["halves"]
    half = found.keep(found.image % 2 == 1)
    assert even["temperature"] == pytest.approx(fit_temperature(half.scores, half.right))
    assert even["ece_after"] < even["ece"] and odd["ece_after"] < odd["ece"]
    assert described["per_class"]["a"]["detections"] == int((found.labels == 0).sum())


def test_too_few_detections_have_no_temperature():
    found = drawn(3, 2.0, count=30)
    described = describe_calibration(found, ("a", "b"))
    assert described["temperature"] is None and described["ece_after"] is None
    assert describe_calibration(found.keep(found.right & ~found.right), ("a", "b"))["ece"] is None
