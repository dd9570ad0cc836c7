"""COCO's figures: equal to pycocotools', to published ones, and right where there is nothing to measure."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest

from multibox.errors import MissingExtraError
from multibox.evaluation.coco_metrics import coco_figures
from multibox.evaluation.voc_metrics import columns

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def oracle(table, areas, max_detections=100):
    """Return pycocotools' twelve numbers and AP per class, -1 where there is none."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(image, labels, boxes, area):
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        return [
            {"id": i + 1, "image_id": int(image[i]), "category_id": int(labels[i]), "bbox": xywh[i].tolist()}
            | {"area": float(area[i]), "iscrowd": 0}
            for i in range(len(labels))
        ]

    objects = rows(table.gt_image, table.gt_labels, table.gt_xyxy, np.where(table.gt_difficult, -1, areas))
    for row, crowd in zip(objects, table.gt_crowd, strict=True):
        row["iscrowd"] = int(crowd)
    width, height = (table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]).T
    found = rows(table.image, table.labels, table.boxes_xyxy, width * height)
    for row, score in zip(found, table.scores, strict=True):
        row["score"] = float(score)
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (objects, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": number} for number in range(table.images)],
                "categories": [{"id": number} for number in range(len(table.class_names))],
                "annotations": annotations,
            }
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:
            evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, 2]
    classes = [values[values > -1].mean() if (values > -1).any() else -1 for values in np.moveaxis(precision, 2, 0)]
    return evaluation.stats, classes, precision


def numbers(figures):
    return [-1 if figures[key] is None else figures[key] for key in KEYS]


def per_class(figures):
    return [-1 if row["AP"] is None else row["AP"] for row in figures["per_class"].values()]


def box_areas(table):
    return (table.gt_xyxy[:, 2:] - table.gt_xyxy[:, :2]).prod(1)


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools_on_random_sets(build, seed):
    samples, found, names = build.random(seed)
    table = columns(found, samples, names)
    figures = coco_figures(table)
    stats, classes, _ = oracle(table, box_areas(table))
    np.testing.assert_allclose(numbers(figures), stats, atol=1e-9)
    np.testing.assert_allclose(per_class(figures), classes, atol=1e-9)
    assert figures["per_class"][names[-1]] == {"AP": None, "AP50": None}


@pytest.mark.parametrize("limit", [2, 10, 12])
def test_the_limit_is_per_image_and_class(build, limit):
    samples, found, names = build.random(3, images=10)
    table = columns(found, samples, names)
    precision = oracle(table, box_areas(table), limit)[2] if limit >= 10 else None
    figures = coco_figures(table, max_detections=limit)
    if precision is not None:
        assert figures["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    assert figures["AR10"] <= figures["AR100"]
    assert figures["AR100"] <= coco_figures(table)["AR100"]
    assert limit > 2 or figures["AR10"] == figures["AR100"]


@pytest.mark.parametrize(
    ("truth", "results", "key"),
    [
        (
            "data/tiny_coco/annotations/instances_val2017.json",
            "weights/ssd_mobilenet_v1_coco/coco_results_tiny_coco_val50.json",
            "tiny_coco_val50",
        ),
        (
            "data/voc100/gts/coco_format_v1/instances_default.json",
            "weights/ssd_mobilenet_v1_coco/coco_results_voc100.json",
            "padilla_voc100 (coco_format_v1)",
        ),
    ],
)
def test_published_figures_of_real_detections(build, shared, truth, results, key):
    samples, found, names, areas = build.coco(shared(truth), shared(results))
    published = json.loads(shared("weights/ssd_mobilenet_v1_coco/reference_coco_map.json").read_text())[key]
    table = columns(found, samples, names)
    figures = coco_figures(table, areas=areas)
    np.testing.assert_allclose(numbers(figures), published["stats"], atol=1e-6)
    np.testing.assert_allclose(numbers(figures), oracle(table, areas)[0], atol=1e-9)


def test_published_figures_of_the_review_tool(build, shared):
    folder = "golden/map_cases/review/test_coco_eval"
    samples, found, names, areas = build.coco(
        shared(f"{folder}/gts/sampled_gts_bbox_area.json"), shared(f"{folder}/dets/sampled_bbox_results.json")
    )
    published = [0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363]
    published += [0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744]
    np.testing.assert_allclose(numbers(coco_figures(columns(found, samples, names), areas=areas)), published, atol=1e-6)


def test_nothing_found_is_zero_and_nothing_there_is_none(build):
    empty = build.detections([], [], names=("a", "b"))
    one = coco_figures(columns([empty], [build.sample([[10, 10, 20, 20]])], ("a", "b")))
    assert (one["AP"], one["APs"], one["APl"]) == (0.0, 0.0, None)
    assert one["per_class"] == {"a": {"AP": 0.0, "AP50": 0.0}, "b": {"AP": None, "AP50": None}}
    none = coco_figures(columns([empty], [build.sample([])], ("a", "b")))
    assert [none[key] for key in KEYS] == [None] * 12
    nothing = coco_figures(columns([], [], ("a", "b")))
    assert nothing["AP"] is None


def test_a_difficult_object_counts_for_nothing_once(build):
    sample = build.sample([[0, 0, 50, 50], [100, 100, 200, 200]], difficult=[False, True])
    easy, hard, inside = [0, 0, 50, 50], [100, 100, 200, 200], [110, 110, 140, 140]

    def ap50(boxes):
        found = build.detections(boxes, [0.9 - 0.1 * i for i in range(len(boxes))])
        return coco_figures(columns([found], [sample], ["thing"]))["AP50"]

    assert ap50([easy]) == 1.0
    assert ap50([hard, easy]) == 1.0
    assert ap50([hard, hard, easy]) == pytest.approx(0.5)
    assert ap50([inside, easy]) == pytest.approx(0.5)


def test_runs_silently(build, capsys):
    samples, found, names = build.random(0, images=5)
    coco_figures(columns(found, samples, names))
    assert capsys.readouterr() == ("", "")


def test_a_missing_library_is_named(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"multibox\[train\]"):
        coco_figures(columns([], [], ("a",)))
