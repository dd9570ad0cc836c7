"""Others read the same files: multibox agrees with supervision and, where it is installed, with datumaro."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multibox.data.convert import write_dataset
from multibox.data.formats import open_dataset
from multibox.structures import Dataset, Sample, pack

CLASSES = ("ant", "bee")
BOXES = {"a.jpg": [[1, 2, 30, 40], [10, 20, 55, 48]], "b.jpg": [[0, 0, 60, 50]], "c.jpg": [[5.5, 6.25, 20.75, 30]]}
Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    samples: list[Sample] = []
    for number, (name, boxes) in enumerate(BOXES.items()):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (60, 50), (90 * number, 10, 10)).save(tmp_path / "in" / name)
        flags = np.zeros(len(boxes), np.bool_)
        labels = (np.arange(len(boxes)) + number) % 2
        samples.append(Sample(name, tmp_path / "in" / name, np.array(boxes, float), labels, flags, flags))
    return pack(samples, root=tmp_path, format="voc", split="train", class_names=CLASSES)


def ours(held: Dataset) -> Rows:
    return {
        Path(one.name).name: sorted(
            (held.class_names[label], *box) for label, box in zip(one.labels, one.boxes_xyxy.tolist(), strict=True)
        )
        for one in held
    }


def supervisions(held: Any) -> Rows:
    return {
        Path(path).name: sorted(
            (held.classes[label], *box) for label, box in zip(found.class_id.tolist(), found.xyxy.tolist(), strict=True)
        )
        for path, _, found in held
    }


def datumaros(folder: Path, format: str) -> Rows:
    held = pytest.importorskip("datumaro", reason="datumaro is not installed").Dataset.import_from(str(folder), format)
    names = next(iter(held.categories().values()))
    boxes: Rows = {}
    for item in held:
        found = [one for one in item.annotations if type(one).__name__ == "Bbox"]
        rows = sorted((names[one.label].name, one.x, one.y, one.x + one.w, one.y + one.h) for one in found)
        boxes[f"{Path(item.id).name}.jpg"] = rows
    return boxes


def assert_alike(one: Rows, other: Rows, atol: float = 0.02) -> None:
    assert one.keys() == other.keys()
    for name, rows in one.items():
        assert [row[0] for row in rows] == [row[0] for row in other[name]]
        np.testing.assert_allclose([row[1:] for row in rows], [row[1:] for row in other[name]], atol=atol)


def reader(name: str) -> Callable[..., Any]:
    supervision = pytest.importorskip("supervision", reason="needs multibox[video]")
    if not hasattr(supervision.DetectionDataset, name):
        pytest.skip(f"this supervision has no {name}")
    return getattr(supervision.DetectionDataset, name)


@pytest.mark.parametrize(
    ("format", "name", "arguments"),
    [
        ("coco", "from_coco", ("train", "annotations/instances_train.json")),
        ("yolo", "from_yolo", ("images/train", "labels/train", "data.yaml")),
        ("labelme", "from_labelme", ("train", "train")),
    ],
)
def test_supervision_reads_what_we_write(
    tmp_path: Path, source: Dataset, format: str, name: str, arguments: tuple[str, ...]
) -> None:
    read = reader(name)
    write_dataset({"train": source}, tmp_path / "out", format)
    assert_alike(supervisions(read(*(str(tmp_path / "out" / one) for one in arguments))), ours(source))
    assert_alike(ours(open_dataset(tmp_path / "out")), ours(source))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("as_createml", {"images_directory_path": "train", "annotations_path": "train/_annotations.createml.json"}),
        ("as_labelme", {"images_directory_path": "images", "annotations_directory_path": "labels"}),
        ("as_coco", {"images_directory_path": "train", "annotations_path": "train/_annotations.coco.json"}),
    ],
)
def test_we_read_what_supervision_writes(tmp_path: Path, source: Dataset, name: str, arguments: Any) -> None:
    supervision = pytest.importorskip("supervision", reason="needs multibox[video]")
    if not hasattr(supervision.DetectionDataset, name):
        pytest.skip(f"this supervision has no {name}")
    found = {
        str(one.path): supervision.Detections(xyxy=one.boxes_xyxy.astype(np.float32), class_id=one.labels)
        for one in source
    }
    held = supervision.DetectionDataset(classes=list(CLASSES), images=list(found), annotations=found)
    (tmp_path / "out" / "train").mkdir(parents=True)
    getattr(held, name)(**{key: str(tmp_path / "out" / value) for key, value in arguments.items()})
    assert_alike(ours(open_dataset(tmp_path / "out")), ours(source), atol=0.51)


# Not CreateML: datumaro 1.13 takes the centre for the corner, supervision and Apple do not
@pytest.mark.parametrize(("format", "theirs"), [("cvat", "cvat"), ("yolo", "yolo")])
def test_datumaro_reads_what_we_write(tmp_path: Path, source: Dataset, format: str, theirs: str) -> None:
    pytest.importorskip("datumaro", reason="datumaro is not installed")
    write_dataset({"train": source}, tmp_path / "out", format)
    assert_alike(datumaros(tmp_path / "out", theirs), ours(open_dataset(tmp_path / "out")))
