"""Label suspects, worked by hand: a model that sees 30 images right, and labels of which a few are wrong."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.analysis.label_pairs import one_to_one, rising_share
from multibox.analysis.suspects import find_suspects
from multibox.structures import Detections, Sample, Size, pack

NAMES = ("cell", "plate")
IMAGES = 30


def scene(change=None, *, score=0.9, crowd=None, difficult=None):
    """Return detections and labels: two cells and a plate per image; `change` edits the labels of image 0."""
    boxes = np.array([[10.0, 10, 50, 50], [100, 100, 150, 150], [60, 150, 90, 190]])
    labels = np.array([0, 0, 1])
    samples, detections = [], []
    for number in range(IMAGES):
        flags = np.zeros(3, np.bool_)
        own = (boxes.copy(), labels.copy(), flags.copy(), flags.copy())
        if number == 0 and change is not None:
            own = change(*own)
        samples.append(Sample(f"{number}.jpg", Path(f"{number}.jpg"), *own, size=Size(200, 200)))
        moved = (boxes + np.random.default_rng(number).uniform(-1, 1, boxes.shape)).astype(np.float32)
        # Junk of low scores lies around every object, as in every SSD
        junk = np.array([[12, 12, 60, 60], [95, 90, 140, 140]], np.float32)
        detections.append(
            Detections(
                np.concatenate([moved, junk]),
                np.array([score, score - 0.02, score - 0.04, 0.06, 0.04], np.float32),
                np.array([0, 0, 1, 1, 0]),
                NAMES,
            )
        )
    return detections, pack(samples, root=Path(), format="voc", split="train", class_names=NAMES)


def suspects_of(change=None, **options):
    detections, dataset = scene(change, **options)
    return find_suspects(detections, dataset, NAMES)


def without(row):
    return lambda *columns: tuple(np.delete(column, row, axis=0) for column in columns)


def test_labels_that_the_model_confirms_are_not_suspect():
    assert suspects_of() == []


def test_a_deleted_label_is_missing():
    (found,) = suspects_of(without(1))
    assert (found["kind"], found["file"], found["position"], found["rank"]) == ("missing", "0.jpg", 0, 1)
    assert found["box"] is None and found["name"] is None
    assert np.allclose(found["suggested_box"], [100, 100, 150, 150], atol=1.5) and found["suggested_name"] == "cell"
    assert found["suspicion"] > 0.9 and found["evidence"] == ["predictions"]
    assert found["why"] == "The model sees cell with a score of 0.88 where no label is."


@pytest.mark.parametrize("shift", [15, 30, 40], ids=["overlapping", "beside", "just overlapping"])
def test_a_moved_label_is_one_suspect_with_both_boxes(shift):
    def move(boxes, *rest):
        boxes[1] += [shift, 0, shift, 0]
        return (boxes, *rest)

    (found,) = suspects_of(move)
    assert found["kind"] == "location" and found["suspicion"] > 0.7
    assert found["box"] == [100 + shift, 100, 150 + shift, 150]
    assert np.allclose(found["suggested_box"], [100, 100, 150, 150], atol=1.5)
    assert (found["name"], found["suggested_name"]) == ("cell", "cell")


@pytest.mark.parametrize("shift", [42, 60], ids=["IoU below 0.1", "apart"])
def test_a_label_far_from_its_object_is_two_suspects(shift):
    def move(boxes, *rest):
        boxes[1] += [shift, 0, shift, 0]
        return (boxes, *rest)

    missing, spurious = suspects_of(move)
    assert missing["kind"] == "missing" and np.allclose(missing["suggested_box"], [100, 100, 150, 150], atol=1.5)
    assert spurious["kind"] == "location" and spurious["suggested_box"] is None
    assert spurious["box"] == [100 + shift, 100, 150 + shift, 150]


def test_a_swapped_class_is_suspect_with_the_other_class():
    def swap(boxes, labels, *rest):
        labels[2] = 0
        return (boxes, labels, *rest)

    (found,) = suspects_of(swap)
    assert found["kind"] == "class" and found["suspicion"] > 0.9
    assert found["box"] == [60, 150, 90, 190] and (found["name"], found["suggested_name"]) == ("cell", "plate")


def test_a_label_on_nothing_is_suspect_without_a_suggestion():
    def add(boxes, labels, difficult, crowd):
        extra = np.array([[160.0, 10, 190, 40]])
        return (
            np.concatenate([boxes, extra]),
            np.append(labels, 1),
            np.append(difficult, False),
            np.append(crowd, False),
        )

    (found,) = suspects_of(add)
    assert found["kind"] == "location" and found["box"] == [160, 10, 190, 40] and found["suggested_box"] is None


@pytest.mark.parametrize("seen", [0, 3])
def test_nothing_is_doubted_where_the_model_overlooks_a_class(seen):
    detections, dataset = scene()
    # A rare class: four plates that are left, of which the model sees none, or all but one
    plates = np.flatnonzero(dataset.labels == 1)
    few = dataset.keep_boxes(~np.isin(np.arange(len(dataset.labels)), plates[4:]))
    found = []
    for number, one in enumerate(detections):
        keep = (one.labels == 0) | ((number < seen) & (one.scores > 0.5))
        found.append(Detections(one.boxes[keep], one.scores[keep], one.labels[keep], NAMES))
    assert find_suspects(found, few, NAMES) == []


def test_a_crowd_explains_the_detections_in_it():
    def crowd(boxes, labels, difficult, crowd):
        boxes[1] = [80, 80, 200, 200]
        crowd[1] = True
        return boxes, labels, difficult, crowd

    assert suspects_of(crowd) == []


def test_a_difficult_label_is_less_suspect():
    def swap(hard):
        def change(boxes, labels, difficult, crowd):
            labels[2], difficult[2] = 0, hard
            return boxes, labels, difficult, crowd

        return change

    detections, dataset = scene(swap(True))
    (hard,) = find_suspects(detections, dataset, NAMES, lowest=0.3)
    assert hard["suspicion"] == pytest.approx(suspects_of(swap(False))[0]["suspicion"] / 2, abs=1e-3)


def test_a_model_that_knows_nothing_suspects_nothing():
    rng = np.random.default_rng(0)
    _, dataset = scene()
    corners = rng.uniform(0, 150, (IMAGES, 20, 2))
    detections = [
        Detections(
            np.concatenate([low, low + 30], axis=1).astype(np.float32), np.full(20, 0.4, np.float32),
            rng.integers(0, 2, 20), NAMES,
        )
        for low in corners
    ]  # fmt: skip
    assert [one for one in find_suspects(detections, dataset, NAMES) if one["kind"] != "location"] == []


def test_nothing_to_look_at_gives_nothing():
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), NAMES)
    _, dataset = scene()
    assert find_suspects([empty] * IMAGES, dataset, NAMES) == []
    assert find_suspects([], dataset.subset([]), NAMES) == []


@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)), max_size=25, unique_by=lambda p: p[:2]
    )
)
@settings(deadline=None)
def test_one_to_one_takes_the_best_pair_again_and_again(pairs):
    detection, gt, value = (np.array([pair[i] for pair in pairs], np.int64) for i in range(3))
    chosen, used = [], (set(), set())
    for row in sorted(range(len(pairs)), key=lambda row: (-value[row], row)):
        if detection[row] not in used[0] and gt[row] not in used[1]:
            chosen.append(row)
            used[0].add(detection[row])
            used[1].add(gt[row])
    assert sorted(one_to_one(detection, gt, value.astype(np.float64)).tolist()) == sorted(chosen)


@given(data=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60))
@settings(deadline=None)
def test_shares_rise_with_the_score(data):
    scores, hits = np.array([s for s, _ in data]), np.array([h for _, h in data], np.bool_)
    share = rising_share(scores, hits)
    assert ((share >= 0) & (share <= 1)).all()
    assert (np.diff(share[np.argsort(scores, kind="stable")]) >= -1e-12).all()


@pytest.mark.slow
def test_cleanlab_puts_the_same_labels_first():
    """ObjectLab's scores of cleanlab, one per kind of error, are lowest at the labels that are our suspects."""
    rank = pytest.importorskip("cleanlab.object_detection.rank", reason="cleanlab is not installed")

    def damage(boxes, labels, *flags):
        labels[2] = 0
        boxes[1] += [30, 0, 30, 0]
        return tuple(np.delete(column, 0, axis=0) for column in (boxes, labels, *flags))

    detections, dataset = scene(damage, score=0.97)
    suspects = find_suspects(detections, dataset, NAMES)
    assert sorted(one["kind"] for one in suspects) == ["class", "location", "missing"]
    table = [np.column_stack([one.boxes, one.scores]).astype(np.float64) for one in detections]
    pairs = list(zip(detections, table, strict=True))
    given = {
        "labels": [{"bboxes": sample.boxes_xyxy, "labels": sample.labels} for sample in dataset],
        "predictions": [np.array([rows[one.labels == label] for label in (0, 1)], dtype=object) for one, rows in pairs],
    }
    scores = {
        "missing": rank.compute_overlooked_box_scores(**given, high_probability_threshold=0.9),
        "class": rank.compute_swap_box_scores(**given, high_probability_threshold=0.9),
        "location": rank.compute_badloc_box_scores(**given),
    }
    for kind, per_image in scores.items():
        lowest = [np.nanmin(np.append(values, np.inf)) for values in per_image]
        (ours,) = (one for one in suspects if one["kind"] == kind)
        assert int(np.argmin(lowest)) == ours["position"] == 0
        if kind != "missing":
            box = dataset[0].boxes_xyxy[int(np.nanargmin(per_image[0]))]
            assert box.tolist() == ours["box"]
