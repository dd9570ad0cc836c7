"""Builders of labelled images and detections, real and random."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multibox.structures import Detections, Sample

SHARED = Path(__file__).parents[3] / "shared"


def make_sample(boxes, labels=None, difficult=None, crowd=None, name="image") -> Sample:
    count = len(boxes)
    return Sample(
        name=name,
        path=Path(name),
        boxes_xyxy=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.zeros(count, np.int64) if labels is None else np.array(labels, np.int64),
        difficult=np.zeros(count, np.bool_) if difficult is None else np.array(difficult, np.bool_),
        crowd=np.zeros(count, np.bool_) if crowd is None else np.array(crowd, np.bool_),
    )


def make_detections(boxes, scores, labels=None, names=("thing",), precision=np.float32) -> Detections:
    return Detections(
        np.array(boxes, precision).reshape(-1, 4),
        np.array(scores, precision),
        np.zeros(len(scores), np.int64) if labels is None else np.array(labels, np.int64),
        tuple(names),
    )


def make_random(seed: int, images: int = 30, classes: int = 4, flags: bool = True):
    """Images with crowds, difficult objects, equal scores, empty images and a class that never occurs."""
    random = np.random.default_rng(seed)
    names = tuple(f"class {number}" for number in range(classes))
    samples, found = [], []
    for number in range(images):
        count = int(random.choice([0, 1, 3, 9]))
        size = random.choice([12.0, 50.0, 150.0], (count, 2)) * random.uniform(0.7, 1.3, (count, 2))
        corner = random.uniform(0, 250, (count, 2))
        boxes = np.concatenate([corner, corner + size], 1).round()
        labels = random.integers(0, classes - 1, count)
        flag = random.random(count) if flags else np.ones(count)
        samples.append(make_sample(boxes, labels, (flag > 0.1) & (flag < 0.25), flag < 0.1, f"{number}"))
        near = np.repeat(boxes, 2, axis=0) + random.normal(0, 6, (2 * count, 4)).round()
        far = random.uniform(0, 150, (5, 4))
        far[:, 2:] = far[:, :2] + random.uniform(5, 150, (5, 2))
        every = np.concatenate([near, far])
        kept = random.random(len(every)) < (0.8 if number % 5 else 0.0)
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        guess = np.where(random.random(len(every)) < 0.8, np.append(np.repeat(labels, 2), np.zeros(5)), 1)
        found.append(make_detections(every[kept], random.integers(1, 9, int(kept.sum())) / 10, guess[kept], names))
    return samples, found, names


def read_coco(truth: Path, results: Path):
    """Return samples, detections, class names and the objects' areas as written, by image id.

    Equal scores of different images stand in the order of the images, and the original tools sort them by id.
    """
    written, detected = json.loads(truth.read_text()), json.loads(results.read_text())
    detected = detected["annotations"] if isinstance(detected, dict) else detected
    names = tuple(category["name"] for category in written["categories"])
    place = {category["id"]: number for number, category in enumerate(written["categories"])}
    samples, found, areas = [], [], []
    for image in sorted(written["images"], key=lambda image: image["id"]):
        mine = [row for row in written["annotations"] if row["image_id"] == image["id"]]
        rows = [row for row in detected if row["image_id"] == image["id"] and row["category_id"] in place]
        rows.sort(key=lambda row: -row["score"])
        crowd = [bool(row["iscrowd"]) for row in mine]
        labels = [place[row["category_id"]] for row in mine]
        samples.append(make_sample([_corners(row["bbox"]) for row in mine], labels, None, crowd, image["file_name"]))
        areas.extend(row["area"] for row in mine)
        boxes = [_corners(row["bbox"]) for row in rows]
        guess = [place[row["category_id"]] for row in rows]
        found.append(make_detections(boxes, [row["score"] for row in rows], guess, names, np.float64))
    return samples, found, names, np.array(areas)


def _corners(xywh):
    x, y, width, height = xywh
    return [x, y, x + width, y + height]


class Builders:
    sample = staticmethod(make_sample)
    detections = staticmethod(make_detections)
    random = staticmethod(make_random)
    coco = staticmethod(read_coco)


@pytest.fixture(scope="session")
def build() -> type[Builders]:
    return Builders


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Return a file of the shared folder, or skip."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{path} is absent")
        return path

    return find
