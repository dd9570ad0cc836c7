"""Small sets in five formats whose four numbers per box are written as given, right or wrong."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multibox.data.records import ImageRecord, write_record

WIDTH, HEIGHT = 200, 120
CLASSES = ("cat", "dog")
FORMATS = ("voc", "coco", "yolo", "csv", "recordio")
LAYOUTS = {"voc": "xyxy", "coco": "xywh", "yolo": "cxcywh", "csv": "xyxy", "recordio": "xyxy"}
Rows = Mapping[str, Sequence[tuple[str, Sequence[Any]]]]
"""The objects of each image: class and four numbers as the file of the format holds them."""


def clean(images: int = 12, objects: int = 3, seed: int = 0) -> dict[str, list[tuple[str, list[float]]]]:
    """Boxes xyxy in whole pixels all over the images, none of them in the way of another."""
    rng = np.random.default_rng(seed)
    made: dict[str, list[tuple[str, list[float]]]] = {}
    for number in range(images):
        rows: list[tuple[str, list[float]]] = []
        for place in range(objects):
            width, height = rng.integers(16, 50), rng.integers(16, 60)
            x = place * WIDTH // objects + rng.integers(2, max(WIDTH // objects - width, 3))
            y = rng.integers(3, HEIGHT - height)
            box = [float(value) for value in (x, y, min(x + width, WIDTH - 1), y + height)]
            rows.append((CLASSES[(number + place) % 2], box))
        made[f"image{number:02}"] = rows
    return made


def columns(box: Sequence[float], layout: str) -> list[float]:
    x1, y1, x2, y2 = box
    return {
        "xyxy": [x1, y1, x2, y2],
        "xxyy": [x1, x2, y1, y2],
        "xywh": [x1, y1, x2 - x1, y2 - y1],
        "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
    }[layout]


def in_format(objects: Rows, format: str, *, layout: str = "", fractions: bool | None = None) -> Rows:
    """Turn xyxy in pixels into the numbers of a format, or into others by mistake."""
    fractions = format in ("yolo", "recordio") if fractions is None else fractions
    scale = np.array([WIDTH, HEIGHT] * 2) if fractions else np.ones(4)
    if fractions and layout == "xxyy":
        scale = np.array([WIDTH, WIDTH, HEIGHT, HEIGHT])
    return {
        name: [(label, (np.array(columns(box, layout or LAYOUTS[format])) / scale).tolist()) for label, box in rows]
        for name, rows in objects.items()
    }


def photo(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    small = np.random.default_rng(number).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write(folder: Path, format: str, rows: Rows, classes: Sequence[str] = CLASSES, split: str = "train") -> Path:
    """Write one split; what stands in `rows` is not looked at."""
    names = list(rows)
    WRITERS[format](folder, rows, list(classes), split)
    for name in names if format != "recordio" else ():
        path = (
            folder / {"voc": "JPEGImages", "coco": split, "yolo": f"images/{split}", "csv": f"{split}/images"}[format]
        )
        path.mkdir(parents=True, exist_ok=True)
        photo(int(name[-2:]) + (1000 if split != "train" else 0)).save(path / f"{name}.png")
    return folder


def _voc(folder: Path, rows: Rows, classes: list[str], split: str) -> None:
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in rows))
    tags = ("xmin", "ymin", "xmax", "ymax")
    for name, things in rows.items():
        objects = ""
        for label, box in things:
            corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, box, strict=True))
            objects += f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)


def _coco(folder: Path, rows: Rows, classes: list[str], split: str) -> None:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    images = [
        {"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
        for number, name in enumerate(rows, 1)
    ]
    annotations: list[dict[str, Any]] = []
    for number, things in enumerate(rows.values(), 1):
        for label, box in things:
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": classes.index(label) + 1}
            annotations.append({**one, "bbox": list(box), "area": 100, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _yolo(folder: Path, rows: Rows, classes: list[str], split: str) -> None:
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    for name, things in rows.items():
        lines = [f"{classes.index(label)} {' '.join(map(str, box))}\n" for label, box in things]
        (labels / f"{name}.txt").write_text("".join(lines))
    splits = "".join(f"{one.name}: images/{one.name}\n" for one in sorted((folder / "labels").iterdir()))
    (folder / "data.yaml").write_text(f"{splits}names: {json.dumps(classes)}\n")


def _csv(folder: Path, rows: Rows, classes: list[str], split: str) -> None:
    (folder / split).mkdir(parents=True)
    lines = ["img_name,label,xmin,ymin,xmax,ymax\n"]
    for name, things in rows.items():
        lines += [] if things else [f"{name}.png,,,,,\n"]
        lines += [f"{name}.png,{label},{','.join(map(str, box))}\n" for label, box in things]
    (folder / split / "label.csv").write_text("".join(lines))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))


def _recordio(folder: Path, rows: Rows, classes: list[str], split: str) -> None:
    import io

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    with (folder / f"{split}.rec").open("wb") as file:
        for key, (name, things) in enumerate(rows.items()):
            data = io.BytesIO()
            photo(int(name[-2:])).save(data, "PNG")
            values = [2.0, 5.0]
            for label, box in things:
                values += [classes.index(label), *box]
            write_record(file, ImageRecord(key, np.array(values, np.float32), data.getvalue()))


WRITERS: dict[str, Callable[[Path, Rows, list[str], str], None]] = {
    "voc": _voc,
    "coco": _coco,
    "yolo": _yolo,
    "csv": _csv,
    "recordio": _recordio,
}


class Sets:
    """The functions above, for tests."""

    formats, layouts, classes, size = FORMATS, LAYOUTS, CLASSES, (WIDTH, HEIGHT)
    clean, in_format, columns, write, photo = map(staticmethod, (clean, in_format, columns, write, photo))


@pytest.fixture(scope="session")
def sets() -> type[Sets]:
    return Sets
