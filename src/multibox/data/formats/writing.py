"""Writing a data set whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from multibox.data.formats import writers
from multibox.data.formats.common import counted
from multibox.data.formats.placing import Placer
from multibox.errors import ConfigError, DataError, did_you_mean
from multibox.structures import Dataset


@dataclass(frozen=True)
class _Writer:
    title: str
    write: Callable[[Mapping[str, Dataset], Path, Placer], list[str]]
    difficult: bool
    """Whether the format can hold VOC's flag."""
    crowd: bool
    """Whether the format can hold COCO's flag."""


_WRITERS = {
    "voc": _Writer("VOC", writers.write_voc, difficult=True, crowd=True),
    "coco": _Writer("COCO", writers.write_coco, difficult=True, crowd=True),
    "yolo": _Writer("YOLO", writers.write_yolo, difficult=False, crowd=False),
    "csv": _Writer("CSV", writers.write_csv, difficult=True, crowd=True),
    "recordio": _Writer("RecordIO", writers.write_recordio, difficult=True, crowd=False),
}


def write_dataset(
    splits: Mapping[str, Dataset], destination: str | Path, format: str, *, link: bool = False
) -> list[str]:
    """Write splits as one data set; the folder appears when it is complete.

    Args:
        splits: name of each split to its labels; classes are joined by name where the splits differ.
        destination: a folder that is not there yet, or is empty.
        format: voc, coco, yolo, csv or recordio.
        link: make hard links to the pictures where possible, instead of copies.

    Returns:
        Sentences on what the format could not hold.

    Raises:
        ConfigError: for an unknown format.
        DataError: when the destination is in use, there is nothing to write, or a picture cannot be read.
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
