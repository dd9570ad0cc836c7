"""The package `supervision` reads YOLO, VOC and COCO folders as we do."""

import json

import numpy as np
import pytest
from PIL import Image

from multibox.data.formats import open_dataset

WIDTH, HEIGHT = 160, 120
BOXES = {
    "a": [(0, (10, 20, 60, 80)), (1, (30, 40, 110, 100))],
    "b": [(1, (2, 2, 25, 30))],
    "c": [],
}
NAMES = ("cat", "dog")


def yolo(root):
    lines = {
        name: [
            f"{label} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"
            for label, (x1, y1, x2, y2) in boxes
        ]
        for name, boxes in BOXES.items()
    }
    (root / "labels").mkdir()
    for name, held in lines.items():
        (root / "labels" / f"{name}.txt").write_text("\n".join(held))
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")
    return {"annotations_directory_path": str(root / "labels"), "data_yaml_path": str(root / "data.yaml")}


def pascal_voc(root):
    (root / "Annotations").mkdir()
    for name, boxes in BOXES.items():
        things = "".join(
            f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2) in boxes
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{things}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    return {"annotations_directory_path": str(root / "Annotations")}


def coco(root):
    images = [
        {"id": number, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT}
        for number, name in enumerate(BOXES, 1)
    ]
    flat = [(image, label, box) for image, boxes in enumerate(BOXES.values(), 1) for label, box in boxes]
    things = [
        {
            "id": number,
            "image_id": image,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for number, (image, label, (x1, y1, x2, y2)) in enumerate(flat, 1)
    ]
    categories = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(NAMES, 1)]
    path = root / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    return {"annotations_path": str(path)}


@pytest.mark.slow  # importing supervision takes seconds
@pytest.mark.parametrize("write", [yolo, pascal_voc, coco], ids=["yolo", "voc", "coco"])
def test_supervision_reads_the_same_boxes(write, tmp_path):
    supervision = pytest.importorskip("supervision")
    (tmp_path / "images").mkdir()
    for name in BOXES:
        Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)).save(tmp_path / "images" / f"{name}.jpg")
    arguments = write(tmp_path)
    reader = getattr(supervision.DetectionDataset, f"from_{write.__name__}")
    theirs = reader(images_directory_path=str(tmp_path / "images"), **arguments)
    split = "train" if write is yolo else None
    # supervision takes VOC's corners as counted from 1
    ours = open_dataset(tmp_path, split, format=write.__name__.removeprefix("pascal_"), one_based=write is pascal_voc)
    held = {sample.path.name: sample for sample in ours}
    assert len(theirs) == len(ours) == 3
    for path, _, found in theirs:
        sample = held[path.rpartition("/")[2]]
        labels = [ours.class_names.index(theirs.classes[label]) for label in found.class_id]
        assert labels == sample.labels.tolist()
        np.testing.assert_allclose(found.xyxy.reshape(-1, 4), sample.boxes_xyxy, atol=0.01)
