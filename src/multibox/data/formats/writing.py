"""Writing a data set whole or not at all."""

import csv
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.finder import bytes_of, file_name, shown_size
from multibox.data.formats.records import ImageRecord, write_record
from multibox.data.formats.text import counted
from multibox.data.formats.voc import AnnotatedObject, number_text, write_annotation
from multibox.errors import ConfigError, DataError, ImageError, did_you_mean
from multibox.structures import Dataset, Sample


class Placer:
    """Copies images, or links them where that is asked for and the file system can."""

    def __init__(self, *, link: bool) -> None:
        self.link = link

    def put(self, sample: Sample, target: Path) -> None:
        """Put a sample's image at `target`.

        Raises:
            ImageError: when it cannot be read.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if sample.offset is not None:
            target.write_bytes(bytes_of(sample))
            return
        if self.link:
            try:
                os.link(sample.path.resolve(), target)
                return
            except OSError:
                pass  # another disk, or a file system without links: copy
        try:
            shutil.copyfile(sample.path, target)
        except OSError as error:
            raise ImageError(f"{sample.path} cannot be copied to {target} ({error.strerror})") from None


def target_names(dataset: Dataset) -> list[str]:
    """Return the file name of each image in a written data set.

    Raises:
        DataError: when two would share a label file, as a.jpg and a.png do.
    """
    names = [file_name(sample) for sample in dataset]
    stems: dict[str, str] = {}
    for name in names:
        stem = str(Path(name).with_suffix(""))
        if stem in stems:
            raise DataError(
                f"{dataset.root}: images {stems[stem]} and {name} of split {dataset.split!r} would share "
                "one label file; rename one of them"
            )
        stems[stem] = name
    return names


Splits = Mapping[str, Dataset]


def write_voc(splits: Splits, folder: Path, placer: Placer) -> list[str]:
    """Write JPEGImages, Annotations and ImageSets/Main; in folders by split where two splits share a name."""
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "Annotations").mkdir()
    apart = _names_clash(splits)
    for split, dataset in splits.items():
        stems: list[str] = []
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            name = f"{split}/{name}" if apart else name
            stem = str(Path(name).with_suffix(""))
            stems.append(stem)
            target = folder / "JPEGImages" / name
            if target.exists():
                continue  # in another split, the same image with the same boxes
            placer.put(sample, target)
            path = folder / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_annotation(path, target.name, sample.size or shown_size(sample), _voc_objects(sample, dataset))
        (lists / f"{split}.txt").write_text("\n".join([*stems, ""]), encoding="utf-8")
    notes = ["images of different splits share names, so each split has a folder of its own"] if apart else []
    return notes + _order_note(splits)


def write_coco(splits: Splits, folder: Path, placer: Placer) -> list[str]:
    """Write annotations/instances_SPLIT.json and the images in a folder for each split."""
    (folder / "annotations").mkdir()
    for split, dataset in splits.items():
        categories = [{"id": number, "name": name} for number, name in enumerate(dataset.class_names, start=1)]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, sample) in enumerate(zip(target_names(dataset), dataset, strict=True), start=1):
            placer.put(sample, folder / split / name)
            height, width = sample.size or shown_size(sample)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            annotations += [
                {"id": len(annotations) + one, "image_id": number, **_coco_object(sample, one - 1)}
                for one in range(1, len(sample.labels) + 1)
            ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(content, ensure_ascii=False)
        (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return []


def write_yolo(splits: Splits, folder: Path, placer: Placer) -> list[str]:
    """Write data.yaml, and images and labels with a folder for each split."""
    names = next(iter(splits.values())).class_names
    notes = _Fractions()
    for split, dataset in splits.items():
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            placer.put(sample, folder / "images" / split / name)
            fractions, keep = notes.of(sample)
            x1, y1, x2, y2 = fractions.T
            rows = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)[keep].tolist()
            labels = sample.labels[keep].tolist()
            lines = [
                " ".join([str(label), *(f"{x:.12g}" for x in row)]) for label, row in zip(labels, rows, strict=True)
            ]
            path = (folder / "labels" / split / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    # A list in JSON's spelling is YAML too, and quotes names like "no" and "007".
    listing = ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
    lines = [f"{split}: images/{split}" for split in splits]
    (folder / "data.yaml").write_text("\n".join([*lines, f"names: [{listing}]", ""]), encoding="utf-8")
    return notes.sentences("YOLO")


def write_csv(splits: Splits, folder: Path, placer: Placer) -> list[str]:
    """Write SPLIT/label.csv and SPLIT/images, as the d2l bananas are, and classes.txt for the order of the classes."""
    flags = [
        name for name in ("difficult", "crowd") if any(getattr(dataset, name).any() for dataset in splits.values())
    ]
    for split, dataset in splits.items():
        (folder / split).mkdir()
        with (folder / split / "label.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img_name", "label", "xmin", "ymin", "xmax", "ymax", *flags])
            for name, sample in zip(target_names(dataset), dataset, strict=True):
                placer.put(sample, folder / split / "images" / name)
                if not len(sample.labels):
                    table.writerow([name, *[""] * (5 + len(flags))])
                for row, label in enumerate(sample.labels):
                    corners = [number_text(value) for value in sample.boxes_xyxy[row]]
                    marks = [int(getattr(sample, flag)[row]) for flag in flags]
                    table.writerow([name, dataset.class_names[label], *corners, *marks])
    _write_classes(splits, folder)
    return []


def write_recordio(splits: Splits, folder: Path, placer: Placer) -> list[str]:
    """Write SPLIT.rec with .idx and .lst, labels as the Pikachu files have them, and classes.txt."""
    notes = _Fractions()
    for split, dataset in splits.items():
        flags = bool(dataset.difficult.any())
        positions: list[str] = []
        listed: list[str] = []
        with (folder / f"{split}.rec").open("wb") as file:
            for key, (name, sample) in enumerate(zip(target_names(dataset), dataset, strict=True)):
                fractions, keep = notes.of(sample)
                columns = [sample.labels[:, None], fractions, *([sample.difficult[:, None]] if flags else [])]
                rows = np.concatenate(columns, axis=1)[keep].astype(np.float32)
                label = np.concatenate([np.array([2, 5 + flags], np.float32), rows.ravel()])
                positions.append(f"{key}\t{write_record(file, ImageRecord(key, label, bytes_of(sample)))}")
                listed.append("\t".join([str(key), *(f"{value:.9g}" for value in label.tolist()), name]))
        (folder / f"{split}.idx").write_text("".join(f"{line}\n" for line in positions), encoding="utf-8")
        (folder / f"{split}.lst").write_text("".join(f"{line}\n" for line in listed), encoding="utf-8")
    _write_classes(splits, folder)
    return notes.sentences("RecordIO")


class _Fractions:
    """Turns boxes into fractions of their images, and counts those that do not fit between 0 and 1."""

    def __init__(self) -> None:
        self.clipped: list[str] = []
        self.gone: list[str] = []

    def of(self, sample: Sample) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the fractions xyxy and which of them are boxes still."""
        if not len(sample.labels):
            return np.zeros((0, 4)), np.zeros(0, np.bool_)
        height, width = shown_size(sample)
        edges = np.array([width, height] * 2, dtype=np.float64)
        inside = np.clip(sample.boxes_xyxy, 0.0, edges)
        keep = np.asarray((inside[:, 2:] > inside[:, :2]).all(axis=1))
        self.clipped += [sample.name] * int(((inside != sample.boxes_xyxy).any(axis=1) & keep).sum())
        self.gone += [sample.name] * int((~keep).sum())
        return inside / edges, keep

    def sentences(self, format: str) -> list[str]:
        """Return what has to be said about it."""
        because = f", as {format} holds fractions of the image"
        cut = counted(len(self.clipped), "box was", "boxes were", ()) + f" clipped at the image's edge{because}"
        left = counted(len(self.gone), "box", "boxes", ()) + f" outside the image left out{because}"
        return [cut] * bool(self.clipped) + [left] * bool(self.gone)


def _voc_objects(sample: Sample, dataset: Dataset) -> list[AnnotatedObject]:
    rows = zip(sample.boxes_xyxy.tolist(), sample.labels, sample.difficult, sample.crowd, strict=True)
    return [
        AnnotatedObject(dataset.class_names[label], (box[0], box[1], box[2], box[3]), bool(difficult), bool(crowd))
        for box, label, difficult, crowd in rows
    ]


def _coco_object(sample: Sample, row: int) -> dict[str, Any]:
    x1, y1, x2, y2 = sample.boxes_xyxy[row].tolist()
    width, height = _extent(x1, x2), _extent(y1, y2)
    flags = {"difficult": 1} if sample.difficult[row] else {}
    return {
        "category_id": int(sample.labels[row]) + 1,
        "bbox": [_plain(value) for value in (x1, y1, width, height)],
        "area": _plain(width * height),
        "iscrowd": int(sample.crowd[row]),
        **flags,
    }


def _extent(low: float, high: float) -> float:
    """Return the width that leads back from `low` to `high` exactly, where floats have one."""
    width = high - low
    near = (width, math.nextafter(width, math.inf), math.nextafter(width, 0.0))
    return next((one for one in near if low + one == high), width)


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _names_clash(splits: Splits) -> bool:
    seen: dict[str, Sample] = {}
    for dataset in splits.values():
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            other = seen.setdefault(str(Path(name).with_suffix("")), sample)
            if other is not sample and not _same(other, sample):
                return True
    return False


def _same(one: Sample, other: Sample) -> bool:
    if not (np.array_equal(one.labels, other.labels) and np.array_equal(one.boxes_xyxy, other.boxes_xyxy)):
        return False
    return (one.path, one.offset) == (other.path, other.offset) or bytes_of(one) == bytes_of(other)


def _order_note(splits: Splits) -> list[str]:
    names = next(iter(splits.values())).class_names
    used = {int(label) for dataset in splits.values() for label in np.unique(dataset.labels)}
    unused = [name for number, name in enumerate(names) if number not in used]
    notes = [f"VOC has no list of classes: {', '.join(unused)} without boxes are lost"] if unused else []
    in_order = list(names) == sorted(names)
    return (
        notes if in_order else [*notes, "VOC has no order of classes: they will be read in the order of the alphabet"]
    )


def _write_classes(splits: Splits, folder: Path) -> None:
    names = next(iter(splits.values())).class_names
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


@dataclass(frozen=True)
class _Writer:
    title: str
    write: Callable[[Mapping[str, Dataset], Path, Placer], list[str]]
    difficult: bool
    """Whether the format can hold VOC's flag."""
    crowd: bool
    """Whether the format can hold COCO's flag."""


_WRITERS = {
    "voc": _Writer("VOC", write_voc, difficult=True, crowd=True),
    "coco": _Writer("COCO", write_coco, difficult=True, crowd=True),
    "yolo": _Writer("YOLO", write_yolo, difficult=False, crowd=False),
    "csv": _Writer("CSV", write_csv, difficult=True, crowd=True),
    "recordio": _Writer("RecordIO", write_recordio, difficult=True, crowd=False),
}


def write_dataset(
    splits: Mapping[str, Dataset], destination: str | Path, format: str, *, link: bool = False
) -> list[str]:
    """Write splits as one data set; the folder appears when it is complete.

    Args:
        splits: name of each split to its labels; classes are joined by name where the splits differ.
        destination: a folder that is not there yet, or is empty.
        format: voc, coco, yolo, csv or recordio.
        link: make hard links to the images where possible, instead of copies.

    Returns:
        Sentences on what the format could not hold.

    Raises:
        ConfigError: for an unknown format.
        DataError: when the destination is in use, there is nothing to write, or an image cannot be read.
    """
    if format not in _WRITERS:
        raise ConfigError(f"unknown format {format!r}{did_you_mean(format, _WRITERS)}; known: {', '.join(_WRITERS)}")
    check_destination(destination)
    if not splits:
        raise DataError(f"nothing to write to {destination}: no splits were given; give at least one")
    writer = _WRITERS[format]
    held, notes = _without_what_it_cannot_hold(_with_same_classes(splits), writer)
    target = Path(destination)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        notes += writer.write(held, unfinished, Placer(link=link))
        if target.is_dir():
            target.rmdir()  # empty; Windows cannot rename over it
        os.replace(unfinished, target)  # noqa: PTH105
    except OSError as error:
        raise DataError(f"{destination} cannot be written ({error.strerror}); choose another place") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return notes


def check_destination(destination: str | Path) -> None:
    """Refuse a destination that holds something.

    Raises:
        DataError: when it is a file, or a folder that is not empty.
    """
    target = Path(destination)
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise DataError(f"{destination} exists already; give a folder that is not there yet, or empty it")


def _with_same_classes(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    names = tuple(dict.fromkeys(name for dataset in splits.values() for name in dataset.class_names))
    index = {name: number for number, name in enumerate(names)}
    joined: dict[str, Dataset] = {}
    for split, dataset in splits.items():
        table = np.array([index[name] for name in dataset.class_names], dtype=np.int64)
        labels = table[dataset.labels] if len(dataset.labels) else dataset.labels
        joined[split] = replace(dataset, class_names=names, labels=labels)
    return joined


def _without_what_it_cannot_hold(
    splits: Mapping[str, Dataset], writer: _Writer
) -> tuple[dict[str, Dataset], list[str]]:
    notes: list[str] = []
    difficult = sum(int(dataset.difficult.sum()) for dataset in splits.values())
    crowd = sum(int(dataset.crowd.sum()) for dataset in splits.values())
    held = dict(splits)
    if difficult and not writer.difficult:
        flags = counted(difficult, "difficult flag has", "difficult flags have")
        notes.append(f"{flags} no place in {writer.title} and {'was' if difficult == 1 else 'were'} dropped")
    if crowd and not writer.crowd:
        # Without its flag a crowd would be trained as one object.
        boxes = counted(crowd, "crowd box has", "crowd boxes have")
        notes.append(f"{boxes} no place in {writer.title} and {'was' if crowd == 1 else 'were'} left out")
        held = {split: _without_crowds(dataset) for split, dataset in splits.items()}
    return held, notes


def _without_crowds(dataset: Dataset) -> Dataset:
    keep = ~dataset.crowd
    starts = np.concatenate([[0], np.cumsum(keep)])[dataset.starts].astype(np.int64)
    return replace(
        dataset,
        starts=starts,
        boxes_xyxy=dataset.boxes_xyxy[keep],
        labels=dataset.labels[keep],
        difficult=dataset.difficult[keep],
        crowd=dataset.crowd[keep],
    )
