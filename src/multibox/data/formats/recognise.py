"""Which format a path holds; never a guess: a folder that holds two is refused with both named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.formats import coco, csv_boxes, recordio, voc, yolo
from multibox.data.formats.text import ReadOptions, files_in, folders_in, is_split_name
from multibox.errors import ConfigError, DataError, did_you_mean
from multibox.structures import Dataset


@dataclass(frozen=True)
class Format:
    """What the toolkit needs from a label format."""

    recognise: Callable[[Path], str | None]
    """What makes this folder or file one of the format, as shown to the user; None when it is none."""
    find_splits: Callable[[Path], Mapping[str, Any]]
    read: Callable[[Path, str, ReadOptions], Dataset]
    looked_for: str


FORMATS: dict[str, Format] = {
    "voc": Format(voc.recognise, voc.find_splits, voc.read, "voc: Annotations/*.xml"),
    "coco": Format(coco.recognise, coco.find_splits, coco.read, "coco: annotations/*.json, _annotations.coco.json"),
    "yolo": Format(yolo.recognise, yolo.find_splits, yolo.read, "yolo: data.yaml, images and labels/*.txt"),
    "csv": Format(
        csv_boxes.recognise, csv_boxes.find_splits, csv_boxes.read, "csv: a .csv whose header names xmin ..."
    ),
    "recordio": Format(recordio.recognise, recordio.find_splits, recordio.read, "recordio: *.rec, *.lst"),
}
_PARTS = frozenset(
    (
        "annotations",
        "imagesets",
        "jpegimages",
        "images",
        "image",
        "img",
        "imgs",
        "labels",
        "xmls",
        "xml",
        "obj_train_data",
    )
)


@dataclass(frozen=True)
class Found:
    """A data set: its format, its root, and what gave it away."""

    format: str
    path: Path
    evidence: str


def locate(path: Path, format: str | None = None) -> Found:
    """Find the one data set at a path: in the folder itself, or exactly one level down.

    Raises:
        DataError: when there is none, or more than one.
        ConfigError: for a format that does not exist.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}; known: {', '.join(FORMATS)}")
    if not path.exists():
        raise DataError(f"{path} does not exist; give the folder or file of a data set")
    here = look(path, format)
    below: list[Found] = []
    for folder in folders_in(path) if path.is_dir() else []:
        if folder.name.lower() not in _PARTS and not (here and is_split_name(folder.name)):
            below += [found for found in look(folder, format) if found.format not in {one.format for one in here}]
    found = here + below
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(_nothing(path, format))
    listing = " and ".join(f"{_shown(one, path)} ({one.format})" for one in found)
    raise DataError(
        f"{path} holds more than one data set: {listing}; name one with --format, or give its folder or file"
    )


def look(path: Path, format: str | None = None) -> list[Found]:
    """Return every format this folder or file can be, without looking into other folders."""
    names = FORMATS if format is None else (format,)
    evidence = {name: FORMATS[name].recognise(path) for name in names}
    return [Found(name, path, what) for name, what in evidence.items() if what is not None]


def _shown(found: Found, path: Path) -> str:
    if found.path != path:
        return f"{path.name}/{found.path.relative_to(path).as_posix()}"
    return f"{path.name}/{found.evidence}"


def _nothing(path: Path, format: str | None) -> str:
    formats = FORMATS.values() if format is None else (FORMATS[format],)
    looked_for = "; ".join(one.looked_for for one in formats)
    if path.is_file():
        return f"{path} is no label file that can be read; looked for {looked_for}"
    tables = [csv_boxes.explain(file) for file in files_in(path, ".csv", ".tsv")] if format in (None, "csv") else []
    if tables:
        return f"{path} is no data set: {tables[0]}"
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    held = ", ".join(entries[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")
    return f"{path} is no data set; looked for {looked_for}; found {held or 'nothing'}"
