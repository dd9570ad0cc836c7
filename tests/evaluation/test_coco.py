"""COCO's metrics: exactly those of pycocotools, published ones, and right where there is nothing to measure."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest

from multibox.errors import MissingExtraError
from multibox.evaluation.coco_metrics import coco_metrics
from multibox.evaluation.table import columns

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def pycocotools(table, limit=100, areas=None):
    """Return pycocotools' precision [IoU, recall, class, area] and recall [IoU, class, area, limit]."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(image, labels, boxes, **more):
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        more = {"area": xywh[:, 2:].prod(1), "iscrowd": np.zeros(len(xywh), int)} | more
        return [
            {"id": i + 1, "image_id": int(image[i]), "category_id": int(labels[i]), "bbox": xywh[i].tolist()}
            | {name: values[i].item() for name, values in more.items()}
            for i in range(len(labels))
        ]

    areas = (table.gt_xyxy[:, 2:] - table.gt_xyxy[:, :2]).prod(1) if areas is None else areas
    areas = np.where(table.gt_difficult, -1, areas)
    objects = rows(table.gt_image, table.gt_labels, table.gt_xyxy, area=areas, iscrowd=table.gt_crowd.astype(int))
    found = rows(table.image, table.labels, table.boxes_xyxy, score=table.scores)
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
        evaluation.params.maxDets = [1, min(10, limit), limit]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 2], evaluation.eval["recall"]


def mean(values):
    return values[values > -1].mean() if (values > -1).any() else None


def twelve(precision, recall):
    everything = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], *np.moveaxis(precision, 3, 0)[1:]]
    return [
        mean(part)
        for part in (*everything, *np.moveaxis(recall[:, :, 0], 2, 0), *np.moveaxis(recall[..., 2], 2, 0)[1:])
    ]


def numbers(metrics):
    return [metrics[key] for key in KEYS]


@pytest.mark.parametrize("limit", [1, 2, 10, 12, 100, 300])
@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools_on_random_sets(build, seed, limit):
    samples, found, names = build.random(seed)
    table = columns(found, samples, names)
    metrics = coco_metrics(table, max_detections=limit)
    precision, recall = pycocotools(table, limit)
    assert numbers(metrics) == twelve(precision, recall)
    for label, name in enumerate(names):
        wanted = [mean(precision[:, :, label, 0]), mean(precision[0, :, label, 0])]
        assert list(metrics["per_class"][name].values()) == [None if v is None else pytest.approx(v) for v in wanted]


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
def test_published_metrics_of_real_detections(build, shared, truth, results, key):
    samples, found, names, areas = build.coco(shared(truth), shared(results))
    published = json.loads(shared("weights/ssd_mobilenet_v1_coco/reference_coco_map.json").read_text())[key]
    table = columns(found, samples, names)
    metrics = numbers(coco_metrics(table, areas=areas))
    np.testing.assert_allclose(metrics, published["stats"], atol=1e-6)
    assert metrics == twelve(*pycocotools(table, areas=areas))


def test_published_metrics_of_the_review_tool(build, shared):
    folder = "golden/map_cases/review/test_coco_eval"
    samples, found, names, areas = build.coco(
        shared(f"{folder}/gts/sampled_gts_bbox_area.json"), shared(f"{folder}/dets/sampled_bbox_results.json")
    )
    published = [0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363]
    published += [0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744]
    table = columns(found, samples, names)
    np.testing.assert_allclose(numbers(coco_metrics(table, areas=areas)), published, atol=1e-6)
    assert numbers(coco_metrics(table, areas=areas)) == twelve(*pycocotools(table, areas=areas))


def test_nothing_found_is_zero_and_nothing_there_is_none(build):
    empty = build.detections([], [], names=("a", "b"))
    one = coco_metrics(columns([empty], [build.sample([[10, 10, 20, 20]])], ("a", "b")))
    assert (one["AP"], one["APs"], one["APl"]) == (0.0, 0.0, None)
    assert one["per_class"] == {"a": {"AP": 0.0, "AP50": 0.0}, "b": {"AP": None, "AP50": None}}
    only_false = build.detections([[0, 0, 9, 9]], [0.5], names=("a", "b"))
    for found, samples in (([empty], [build.sample([])]), ([only_false], [build.sample([])]), ([], [])):
        assert numbers(coco_metrics(columns(found, samples, ("a", "b")))) == [None] * 12


def test_a_difficult_object_counts_for_nothing_once_and_a_crowd_always(build):
    easy, hard, inside = [0, 0, 50, 50], [100, 100, 200, 200], [110, 110, 140, 140]

    def ap50(boxes, **flags):
        sample = build.sample([easy, hard], **{name: [False, True] for name in flags})
        found = build.detections(boxes, [0.9 - 0.1 * i for i in range(len(boxes))])
        return coco_metrics(columns([found], [sample], ["thing"]))["AP50"]

    for boxes, difficult, crowd in (
        ([easy], 1.0, 1.0),
        ([hard, easy], 1.0, 1.0),
        ([hard, hard, easy], 0.5, 1.0),
        ([inside, easy], 0.5, 1.0),
    ):
        assert ap50(boxes, difficult=True) == pytest.approx(difficult)
        assert ap50(boxes, crowd=True) == pytest.approx(crowd)


def test_runs_silently_and_offline():
    """hotcoco warns on standard error of limits that are not COCO's; `unshare -n` leaves no network at all."""
    code = (
        "import numpy as np\n"
        "from multibox.evaluation.report import evaluate\n"
        "from multibox.structures import Detections, Sample\n"
        "no, box = np.zeros(1, bool), np.array([[0.0, 0, 9, 9]])\n"
        "found = Detections(box, np.ones(1), np.zeros(1, int), ('a',))\n"
        "evaluate([found], [Sample('x', 'x', box, np.zeros(1, int), no, no)], ('a',), max_detections=7, bootstrap=2)"
    )
    offline = (
        ["unshare", "-n"]
        if subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode == 0
        else []
    )
    done = subprocess.run([*offline, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(MissingExtraError, match=r"multibox\[train\]"):
        coco_metrics(columns([], [], ("a",)))
