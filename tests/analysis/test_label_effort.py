"""What the loss ledger says about labels: found by image and box, hard ones first, and learned by heart or not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from multibox.analysis.label_effort import find_objects, label_effort
from multibox.analysis.ledger import append_epoch, new_record, read_ledger, write_objects
from multibox.analysis.suspects import find_suspects
from multibox.structures import Detections, Sample, Size, pack

NAMES = ("cell", "plate")
WRONG = 7
"""The label that was never learned."""


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    samples = []
    for number in range(20):
        low = rng.uniform(0, 100, (2, 2)) + np.array([[0, 0], [120, 120]])
        flags = np.zeros(2, np.bool_)
        boxes = np.concatenate([low, low + 40], axis=1)
        samples.append(
            Sample(f"{number}.jpg", Path(f"{number}.jpg"), boxes, np.array([0, 1]), flags, flags, Size(300, 300))
        )
    return pack(samples, root=Path(), format="voc", split="train", class_names=NAMES)


def ledger_of(dataset, run, *, epochs=6, box_cost=1.0):
    """Write and read a ledger in which label `WRONG` is not learned before the last epoch."""
    write_objects(run, dataset)
    rng = np.random.default_rng(1)
    for epoch in range(1, epochs + 1):
        record = new_record(40, 20)
        score = np.clip(0.2 + 0.1 * epoch + rng.uniform(-0.05, 0.05, 40), 0, 1)
        box_loss = 4 * rng.uniform(0.9, 1.1, 40)
        score[WRONG], box_loss[WRONG] = (0.05 if epoch < epochs else 0.8), 4 * box_cost
        shown = np.flatnonzero(rng.random(40) < 0.9)
        values = np.stack([1 - score, box_loss, np.full(40, 4.0), np.full(40, 0.6), score]).astype(np.float32)
        record.note_objects(shown, values[:, shown])
        append_epoch(run, epoch, epoch * 10, record)
    return read_ledger(run)


def learned_by_heart(dataset):
    return [
        Detections(one.boxes_xyxy.astype(np.float32), np.full(2, 0.95, np.float32), one.labels, NAMES)
        for one in dataset
    ]


def test_the_label_that_was_not_learned_is_the_hardest(dataset, tmp_path):
    effort = label_effort(ledger_of(dataset, tmp_path), dataset, NAMES)
    assert effort.known.all() and int(effort.rank.argmin()) == WRONG and effort.rank[WRONG] == 0
    assert effort.score[WRONG] < 0.5 < np.delete(effort.score, WRONG).min()
    assert np.allclose(effort.box_loss, 1, atol=0.15)


def test_labels_are_found_whatever_the_order_of_images_and_classes(dataset, tmp_path):
    ledger = ledger_of(dataset, tmp_path)
    some = dataset.subset([5, 3, 11])
    turned = dataclasses.replace(some, class_names=("plate", "cell"), labels=1 - some.labels)
    assert find_objects(ledger, turned, ("plate", "cell")).tolist() == [10, 11, 6, 7, 22, 23]
    boxes = some.boxes_xyxy.copy()
    boxes[0] += 3
    changed = dataclasses.replace(some, boxes_xyxy=boxes, labels=np.array([0, 0, 0, 1, 0, 1]))
    assert find_objects(ledger, changed, NAMES).tolist() == [-1, -1, 6, 7, 22, 23]
    assert np.isnan(label_effort(ledger, changed, NAMES).rank[:2]).all()
    foreign = dataclasses.replace(some, image_names=["a.jpg", "b.jpg", "c.jpg"])
    assert not label_effort(ledger, foreign, NAMES).known.any()


def test_a_short_run_says_nothing(dataset, tmp_path):
    assert not label_effort(ledger_of(dataset, tmp_path, epochs=2), dataset, NAMES).known.any()


def test_a_ledger_without_epochs_says_nothing(dataset, tmp_path):
    write_objects(tmp_path, dataset)
    assert not label_effort(read_ledger(tmp_path), dataset, NAMES).known.any()


@pytest.mark.parametrize(("box_cost", "kind"), [(1.0, "class"), (3.0, "location")])
def test_a_wrong_label_that_was_learned_by_heart_is_suspect_all_the_same(dataset, tmp_path, box_cost, kind):
    ledger, seen = ledger_of(dataset, tmp_path, box_cost=box_cost), learned_by_heart(dataset)
    assert find_suspects(seen, dataset, NAMES) == []
    (found,) = find_suspects(seen, dataset, NAMES, ledger=ledger, lowest=0.3)
    assert (found["kind"], found["file"], found["name"]) == (kind, "3.jpg", "plate")
    assert found["evidence"] == ["ledger"] and found["suggested_box"] is None
    assert found["why"].startswith("While it was learned, plate scored 0.")


def test_the_ledger_confirms_what_the_predictions_say(dataset, tmp_path):
    ledger, seen = ledger_of(dataset, tmp_path), learned_by_heart(dataset)
    seen[3] = dataclasses.replace(seen[3], labels=np.array([0, 0]))
    (alone,) = find_suspects(seen, dataset, NAMES)
    (both,) = find_suspects(seen, dataset, NAMES, ledger=ledger)
    assert both["evidence"] == ["predictions", "ledger"] and both["suggested_name"] == "cell"
    assert both["suspicion"] > alone["suspicion"] > 0.5
