"""VOC's average precision: worked by hand, equal to a plain recomputation, equal to other tools' published metrics."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from multibox.evaluation import voc_metrics
from multibox.evaluation.table import columns
from multibox.evaluation.voc_metrics import Curve, overlaps, precision_recall, voc07, voc12, voc_curves

FAR = [500, 500, 510, 510]


def plain_ap(samples, found, label, *, threshold=0.5, inclusive=False, extra=1.0):
    """Return (07, area) average precision with loops, straight from the description of the protocol."""
    rows = [
        (-float(score), image, box)
        for image, detections in enumerate(found)
        for box, score, mine in zip(detections.boxes, detections.scores, detections.labels, strict=True)
        if mine == label
    ]
    rows.sort(key=lambda row: row[0])
    used, true, false, points = set(), 0, 0, []
    total = sum(
        int(mine == label and not hard and not crowd)
        for sample in samples
        for mine, hard, crowd in zip(sample.labels, sample.difficult, sample.crowd, strict=True)
    )
    if total == 0:
        return None, None
    for _, image, box in rows:
        sample, best, which = samples[image], 0.0, -1
        for number, gt in enumerate(sample.boxes_xyxy):
            if sample.labels[number] == label:
                value = plain_iou([float(v) for v in box], gt, extra)
                if value > best:
                    best, which = value, number
        if which >= 0 and (best >= threshold if inclusive else best > threshold):
            if sample.difficult[which] or sample.crowd[which]:
                continue
            if (image, which) in used:
                false += 1
            else:
                used.add((image, which))
                true += 1
        else:
            false += 1
        points.append((true / total, true / (true + false)))
    eleven = sum(max((p for r, p in points if r >= k / 10), default=0.0) for k in range(11)) / 11
    area, before = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[number:])
        before = recall
    return eleven, area


def plain_iou(a, b, extra):
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    if width <= 0 or height <= 0:
        return 0.0
    sizes = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b)]
    return width * height / (sum(sizes) - width * height)


def metrics_of(samples, found, names, *, plus_one=True, **options):
    table = columns(found, samples, names)
    curves = voc_curves(table, overlaps(table, plus_one=plus_one), **options)
    return {"voc07": voc07(curves), "voc12": voc12(curves)}


def test_the_curve_of_the_reference_vector():
    recall = np.array([0.25, 0.25, 0.5, 0.75, 0.75])
    curve = Curve(recall, np.array([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]), np.array([0.9, 0.8, 0.7, 0.6, 0.5]), 4)
    assert curve.ap07 == pytest.approx(0.613636, abs=1e-6)
    assert curve.ap12 == pytest.approx(0.625)
    np.testing.assert_allclose(curve.f1, [2 / 5, 2 / 6, 4 / 7, 6 / 8, 6 / 9])


def test_the_reference_vector_from_boxes(build):
    boxes = [[0, 0, 20, 20], [50, 0, 70, 20], [0, 50, 20, 70], [50, 50, 70, 70]]
    found = build.detections([boxes[0], FAR, boxes[1], boxes[2], FAR], [0.9, 0.8, 0.7, 0.6, 0.5])
    curve = precision_recall([found], [build.sample(boxes)], ["thing"])["thing"]
    np.testing.assert_allclose(curve.recall, [0.25, 0.25, 0.5, 0.75, 0.75])
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.7, 0.6, 0.5], atol=1e-7)
    assert (curve.ap07, curve.ap12) == (pytest.approx(0.6136363636), pytest.approx(0.625))


@pytest.mark.parametrize("tenth", range(1, 11))
def test_eleven_points_include_a_recall_that_equals_one_of_them(build, tenth):
    boxes = [[40 * i, 0, 40 * i + 20, 20] for i in range(10)]
    found = build.detections(boxes[:tenth], np.linspace(0.9, 0.5, tenth))
    curve = precision_recall([found], [build.sample(boxes)], ["thing"])["thing"]
    assert curve.ap07 == pytest.approx((tenth + 1) / 11)
    assert curve.ap12 == pytest.approx(tenth / 10)


def test_a_second_detection_of_an_object_is_false_even_when_another_object_is_near(build):
    sample = build.sample([[0, 0, 100, 100], [30, 0, 130, 100]])
    found = build.detections([[0, 0, 100, 100], [2, 0, 102, 100]], [0.9, 0.8])
    curve = precision_recall([found], [sample], ["thing"])["thing"]
    np.testing.assert_allclose(curve.recall, [0.5, 0.5])


def test_difficult_objects_and_crowds_are_neither_right_nor_wrong(build):
    hard, crowd, easy = [0, 0, 50, 50], [100, 0, 150, 50], [0, 100, 50, 150]
    sample = build.sample([hard, crowd, easy], [0] * 3, [True, False, False], [False, True, False])
    found = build.detections([hard, hard, crowd, easy], [0.9, 0.8, 0.7, 0.6])
    curve = precision_recall([found], [sample], ["thing"])["thing"]
    assert curve.objects == 1
    assert curve.precision.tolist() == [1.0]
    assert curve.ap12 == 1.0


def test_an_overlap_of_exactly_the_threshold_is_not_enough_unless_inclusive(build):
    sample, found = build.sample([[0, 0, 100, 100]]), build.detections([[0, 0, 100, 50]], [0.9])
    assert metrics_of([sample], [found], ["thing"], plus_one=False)["voc12"]["mAP"] == 0.0
    assert metrics_of([sample], [found], ["thing"], plus_one=False, inclusive=True)["voc12"]["mAP"] == 1.0


def test_the_development_kit_counts_both_edge_pixels(build):
    sample, found = build.sample([[1, 1, 10, 10]]), build.detections([[1, 1, 10, 5]], [0.9])
    assert plain_iou([1, 1, 10, 5], [1, 1, 10, 10], 1.0) == 0.5
    assert overlaps(columns([found], [sample], ["thing"])).iou.tolist() == [0.5]
    assert overlaps(columns([found], [sample], ["thing"]), plus_one=False).iou.tolist() == [4 / 9]


def test_classes_without_objects_do_not_count_and_classes_without_detections_are_zero(build):
    names = ("found", "missed", "absent")
    sample = build.sample([[0, 0, 20, 20], [50, 50, 90, 90]], [0, 1])
    found = build.detections([[0, 0, 20, 20], FAR], [0.9, 0.8], [0, 2], names)
    for key in ("voc07", "voc12"):
        metrics = metrics_of([sample], [found], names)[key]
        assert metrics == {"mAP": pytest.approx(0.5), "per_class": {"found": 1.0, "missed": 0.0, "absent": None}}
    assert metrics_of([build.sample([])], [build.detections([], [], names=names)], names)["voc12"]["mAP"] is None
    assert metrics_of([], [], names)["voc12"]["mAP"] is None


def test_equal_scores_keep_their_order(build):
    samples = [build.sample([[0, 0, 20, 20]]), build.sample([])]
    hit, miss = build.detections([[0, 0, 20, 20]], [0.5]), build.detections([FAR], [0.5])
    assert metrics_of(samples, [hit, miss], ["thing"])["voc12"]["mAP"] == 1.0
    assert metrics_of(samples[::-1], [miss, hit], ["thing"])["voc12"]["mAP"] == 0.5
    curve = precision_recall([hit, miss], samples, ["thing"])["thing"]
    assert curve.f1.tolist() == [-1, pytest.approx(2 / 3)]


def test_numbers_that_are_not_finite_are_false_detections(build):
    sample = build.sample([[0, 0, 20, 20]])
    boxes = [[0, 0, 20, 20], [np.nan] * 4, [0, 0, np.inf, 20], [0, 0, 20, 20]]
    found = build.detections(boxes, [0.9, 0.8, 0.7, np.nan])
    curve = precision_recall([found], [sample], ["thing"])["thing"]
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 3, 1 / 4])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("inclusive", "extra"), [(False, 1.0), (True, 0.0)])
def test_equals_a_plain_recomputation(build, monkeypatch, seed, inclusive, extra):
    monkeypatch.setattr(voc_metrics, "PAIRS_AT_ONCE", 50)
    samples, found, names = build.random(seed)
    metrics = metrics_of(samples, found, names, inclusive=inclusive, plus_one=bool(extra))
    options = {"inclusive": inclusive, "extra": extra}
    for label, name in enumerate(names):
        eleven, area = plain_ap(samples, found, label, **options)
        assert metrics["voc07"]["per_class"][name] == (None if eleven is None else pytest.approx(eleven, abs=1e-12))
        assert metrics["voc12"]["per_class"][name] == (None if area is None else pytest.approx(area, abs=1e-12))
    assert metrics["voc12"]["per_class"][names[-1]] is None


def read_table(path, kind=float):
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return [row[0] for row in rows], [[kind(value) for value in row[1:]] for row in rows]


def corners(rows):
    return [[x, y, x + width, y + height] for x, y, width, height in rows]


def test_review_case_1(build, shared):
    folder = shared("golden/map_cases/review/test_case_1")
    samples, found = [], []
    for path in sorted((folder / "gts").glob("*.txt")):
        samples.append(build.sample(corners(read_table(path)[1])))
        rows = read_table(folder / "dets" / path.name)[1]
        found.append(build.detections(corners([row[1:] for row in rows]), [row[0] for row in rows]))
    table = columns(found, samples, ["thing"])
    published = {0.3: (0.2683982683, 0.2456866804), 0.5: (0.0303030303, 0.0222222222), 0.75: (0.0, 0.0)}
    for threshold, (eleven, area) in published.items():
        curve = voc_curves(table, overlaps(table), threshold=threshold)["thing"]
        assert curve.ap07 == pytest.approx(eleven, abs=1e-9)
        assert curve.ap12 == pytest.approx(area, abs=1e-9)


def test_cartucho(build, shared):
    folder = shared("golden/map_cases/cartucho")
    truth = {path.stem: read_table(path, str) for path in sorted((folder / "ground-truth").glob("*.txt"))}
    names = sorted({name for classes, _ in truth.values() for name in classes})
    samples, found = [], []
    for stem, (classes, rows) in truth.items():
        boxes = [[float(value) for value in row[:4]] for row in rows]
        samples.append(build.sample(boxes, [names.index(name) for name in classes], [len(row) > 4 for row in rows]))
        guesses, rows = read_table(folder / "detection-results" / f"{stem}.txt")
        rows = [(names.index(guess), row) for guess, row in zip(guesses, rows, strict=True) if guess in names]
        boxes, labels = [row[1:] for _, row in rows], [label for label, _ in rows]
        found.append(build.detections(boxes, [row[0] for _, row in rows], labels, names))
    assert len(samples) == 85
    metrics = metrics_of(samples, found, names)["voc12"]
    plain = {name: plain_ap(samples, found, label)[1] for label, name in enumerate(names)}
    assert metrics["per_class"] == pytest.approx(plain, abs=1e-12)


def toy_truth(build, shared, names):
    images = {}
    for path in sorted(shared("golden/map_cases/review_toy/gts_vocpascal_format").glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        size = [int(root.findtext(f"size/{key}")) for key in ("width", "height")]
        boxes = [
            [float(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")] for o in root.iter("object")
        ]
        labels = [names.index(o.findtext("name")) for o in root.iter("object")]
        images[path.stem] = (size, build.sample(boxes, labels, name=path.stem))
    return images


def toy_detections(build, shared, images, names, kind):
    found = []
    for stem, (size, _) in images.items():
        path = shared(f"golden/map_cases/review_toy/dets_{kind}") / f"{stem}.txt"
        classes, rows = read_table(path) if path.exists() else ([], [])
        labels = [int(name) if name.isdigit() else names.index(name) for name in classes]
        boxes = [row[1:] for row in rows]
        if kind.endswith("xywh"):
            boxes = corners(boxes)
        if kind.endswith("rel_xcycwh"):
            boxes = corners([[x - w / 2, y - h / 2, w, h] for x, y, w, h in boxes])
            boxes = [np.array(box) * [*size, *size] for box in boxes]
        found.append(build.detections(boxes, [row[0] for row in rows], labels, names))
    return found


def test_the_toy_set_is_the_same_in_every_format(build, shared):
    names = shared("golden/map_cases/review_toy/voc.names").read_text().split()
    images = toy_truth(build, shared, names)
    samples = [sample for _, sample in images.values()]
    places = ["abs_xywh", "abs_xyx2y2", "rel_xcycwh"]
    kinds = [f"{who}_{place}" for who in ("classid", "classname") for place in places]
    metrics = [metrics_of(samples, toy_detections(build, shared, images, names, kind), names) for kind in kinds]
    folder = shared("golden/map_cases/review_toy")
    truth, results = folder / "gts_coco_format/toy_example_coco.JSON", folder / "dets_coco_format/coco_dets.json"
    coco_samples, coco_found, coco_names, _ = build.coco(truth, results)
    assert len(samples) == len(json.loads(truth.read_text())["images"])
    metrics.append(metrics_of(coco_samples, coco_found, coco_names))
    per_class = [{name: ap for name, ap in one["voc12"]["per_class"].items() if ap is not None} for one in metrics]
    assert all(one == pytest.approx(per_class[0], abs=1e-9) for one in per_class)
    found = toy_detections(build, shared, images, names, kinds[0])
    plain = {name: plain_ap(samples, found, names.index(name))[1] for name in per_class[0]}
    assert per_class[0] == pytest.approx(plain, abs=1e-12)
