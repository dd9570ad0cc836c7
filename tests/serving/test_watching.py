import logging

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from multibox.analysis.drift import KINDS, measure_image, summarize
from multibox.serving.watching import EVERY, Watch
from multibox.structures import Detections

OWN = np.array([0.5], np.float32)


def image(level, seed, height=120, width=160):
    return np.clip(np.random.default_rng(seed).normal(level, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def detections(*scores):
    count = len(scores)
    boxes = np.tile(np.array([0, 0, 40, 30], np.float32), (count, 1))
    return Detections(boxes, np.array(scores, np.float32), np.zeros(count, np.int64), ("cat",))


@pytest.fixture
def statistics():
    measured = [measure_image(Image.fromarray(image(120, seed))) for seed in range(100)]
    rows = {name: summarize([one[name] for one in measured]) for name in measured[0]}
    return {**rows, "detections": summarize([1.0, 2.0] * 50)}


def test_images_like_those_of_training_are_no_drift(statistics):
    watch = Watch("cats", statistics, OWN)
    for seed in range(EVERY):
        watch.add(image(120, 1000 + seed), detections(0.9, 0.2), OWN)
    assert watch.drift() == []


def test_dark_images_are_told_once_per_statistic(statistics, caplog):
    watch = Watch("cats", statistics, OWN)
    with caplog.at_level(logging.WARNING, logger="multibox.serving"):
        for seed in range(3 * EVERY):
            watch.add(image(20, seed), detections(0.9), OWN)
    assert "brightness" in {drift.name for drift in watch.drift()}
    told = [record.statistic for record in caplog.records if record.event == "drift"]
    assert told.count("brightness") == 1
    assert len(told) == len(set(told))


def test_detections_count_at_the_model_s_own_thresholds_and_only_where_all_are_known(statistics):
    watch = Watch("cats", statistics, OWN)
    watch.add(image(120, 0), detections(0.9, 0.6, 0.2), np.array([0.1], np.float32))
    watch.add(image(120, 1), detections(0.9), np.array([0.8], np.float32))
    assert (watch._seen.counts["detections"], watch._seen.sums["detections"]) == (1, 2.0)
    assert watch._seen.counts["width"] == 2


def test_the_few_pixels_looked_at_are_those_that_are_measured_for_training():
    pixels = image(120, 3, 97, 211)
    watch = Watch("cats", {name: summarize([0.0, 1.0]) for name in KINDS}, OWN)
    watch.add(pixels, detections(), OWN)
    expected = measure_image(Image.fromarray(pixels))
    assert {name: watch._seen.sums[name] for name in expected} == pytest.approx(expected, rel=0.02, abs=0.5)
