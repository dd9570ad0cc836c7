"""The dictionary of `multibox eval --json`, and how detections and labels are joined."""

import json
from pathlib import Path

import numpy as np
import pytest

from multibox.errors import DataError
from multibox.evaluation.report import evaluate
from multibox.evaluation.table import columns
from multibox.structures import pack


def test_the_dictionary_is_what_the_design_says(build):
    samples, found, names = build.random(0)
    metrics = json.loads(json.dumps(evaluate(found, samples, names), allow_nan=False))
    assert list(metrics) == ["images", "coco", "voc07", "voc12", "thresholds"]
    assert metrics["images"] == len(samples)
    precisions, recalls = ["AP", "AP50", "AP75", "APs", "APm", "APl"], ["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(metrics["coco"]) == [*precisions, *recalls, "per_class"]
    for key in ("voc07", "voc12"):
        assert list(metrics[key]) == ["mAP", "per_class"]
        assert list(metrics[key]["per_class"]) == list(names)
    assert set(metrics["coco"]["per_class"][names[0]]) == {"AP", "AP50"}
    assert metrics["coco"]["per_class"][names[-1]] == {"AP": None, "AP50": None}


def test_perfect_detections_are_one_everywhere(build):
    samples, _, names = build.random(1, flags=False)
    found = [build.detections(s.boxes_xyxy, np.full(len(s.labels), 0.9), s.labels, names) for s in samples]
    metrics = evaluate(found, samples, names)
    assert metrics["coco"]["AP"] == pytest.approx(1.0)
    assert metrics["voc07"]["mAP"] == metrics["voc12"]["mAP"] == 1.0


def test_a_data_set_is_read_by_its_columns(build):
    samples, found, names = build.random(2)
    held = pack(samples, root=Path(), format="voc", split="val", class_names=names)
    assert evaluate(found, held, names) == evaluate(found, samples, names)


def test_the_order_of_the_detectors_classes_does_not_matter(build):
    samples, found, names = build.random(3)
    turned = (*reversed(names), "another")
    renamed = [build.detections(d.boxes, d.scores, len(names) - 1 - d.labels, turned) for d in found]
    extra = [build.detections([[0, 0, 9, 9]], [0.99], [len(names)], turned), *renamed[1:]]
    assert evaluate(renamed, samples, names) == evaluate(found, samples, names)
    assert (
        evaluate(extra, samples, names)["coco"]["AP"]
        == evaluate([extra[0][:0], *found[1:]], samples, names)["coco"]["AP"]
    )


def test_foreign_classes_are_refused_by_name(build):
    found = build.detections([[0, 0, 9, 9]], [0.5], names=("tiger",))
    with pytest.raises(DataError, match=r"'tiger'.*'cat'.*rename"):
        evaluate([found], [build.sample([[0, 0, 9, 9]])], ["cat"])


def test_labels_without_a_name_are_refused(build):
    with pytest.raises(DataError, match=r"run from 3 to 3.* 1 class names"):
        evaluate([build.detections([], [])], [build.sample([[0, 0, 9, 9]], [3])], ["thing"])


def test_every_image_needs_its_detections(build):
    with pytest.raises(ValueError, match="0 for 1 images"):
        columns([], [build.sample([])], ["thing"])
