import dataclasses
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from multibox.columns import Texts
from multibox.data.checking import fingerprint
from multibox.data.formats import open_dataset
from multibox.structures import Sample, pack


def read(folder):
    return open_dataset(folder, "train"), open_dataset(folder, "val")


def test_moving_the_data_or_another_order_changes_nothing(squares, tmp_path):
    training, validation = read(squares)
    found = fingerprint(training, validation)
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(squares, moved)
    assert fingerprint(*read(moved)) == found
    backwards = training.subset(range(len(training) - 1, -1, -1))
    assert fingerprint(backwards, dataclasses.replace(validation, split="other")) == found
    assert len(found) == 64


CHANGES = {
    "box": lambda d: d.boxes_xyxy.__setitem__((1, 0), d.boxes_xyxy[1, 0] + 1),
    "label": lambda d: d.labels.__setitem__(1, 1 - d.labels[1]),
    "crowd": lambda d: d.crowd.__setitem__(1, True),
    "name": lambda d: object.__setattr__(d, "image_names", Texts.of("x" + name for name in d.image_names)),
    "size": lambda d: d.paths[0].write_bytes(d.paths[0].read_bytes() + b"\0"),
    "gone": lambda d: d.paths[0].unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_data_changes_it(squares, change):
    training, validation = read(squares)
    before = fingerprint(training, validation)
    CHANGES[change](training)
    assert fingerprint(training, validation) != before


def test_splits_and_classes_count(squares):
    training, validation = read(squares)
    renamed = dataclasses.replace(training, class_names=("other", *training.class_names[1:]))
    fewer = training.subset(range(len(training) - 1))
    every = {
        fingerprint(*pair)
        for pair in (
            (training, validation), (validation, training), (training, None), (renamed, validation), (fewer, validation)
        )
    }  # fmt: skip
    assert len(every) == 5


def test_boxes_of_two_images_are_not_taken_for_those_of_one():
    first, second = made([[0, 0], [0]]), made([[0], [0, 0]])
    assert fingerprint(first, None) != fingerprint(second, None)


def test_a_hundred_thousand_images_take_seconds(tmp_path):
    file = tmp_path / "image.jpg"
    file.write_bytes(b"x")
    some = made([[0] * 5] * 2000)
    repeated = dataclasses.replace(
        some,
        image_names=[f"{i:06}.jpg" for i in range(100_000)],
        paths=[file] * 100_000,
        sizes=[None] * 100_000,
        offsets=[None] * 100_000,
        starts=np.arange(100_001) * 5,
        boxes_xyxy=np.tile(some.boxes_xyxy, (50, 1)),
        labels=np.tile(some.labels, 50),
        difficult=np.tile(some.difficult, 50),
        crowd=np.tile(some.crowd, 50),
    )
    started = time.process_time()
    fingerprint(repeated, None)
    assert time.process_time() - started < 5


def made(images, names=("a", "b", "c")):
    """Pack images given as lists of labels."""
    samples = [
        Sample(
            f"{i}.jpg",
            Path(f"{i}.jpg"),
            np.tile([0.0, 0, 1, 1], (len(labels), 1)),
            np.array(labels, int),
            np.zeros(len(labels), bool),
            np.zeros(len(labels), bool),
        )
        for i, labels in enumerate(images)
    ]
    return pack(samples, root=Path(), format="voc", split="train", class_names=names)
