"""Label formats: one table, which format a path holds, and opening its splits.

A format is one file here with `recognise`, `find_splits`, `read` and `write`; a new one is added to `FORMATS`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from multibox.data.formats import coco, createml, csv_boxes, cvat, label_studio, labelme, recordio, voc, yolo
from multibox.data.formats.raw_labels import RawLabels
from multibox.data.formats.text import (
    OnBad,
    ReadOptions,
    Unknown,
    files_in,
    folders_in,
    is_split_name,
    pick_split,
    split_for,
)
from multibox.errors import ConfigError, DataError, did_you_mean
from multibox.structures import Dataset

__all__ = ["FORMATS", "find_splits", "locate", "open_dataset", "read_raw", "split_for"]


class Writer(Protocol):
    """Writes splits, whose classes are the same, into an empty folder; returns what has to be said about it."""

    def __call__(self, splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
        """Write; with `link` images become hard links if possible."""
        ...


@dataclass(frozen=True)
class Format:
    """What the toolkit needs from a label format."""

    title: str
    looked_for: str
    recognise: Callable[[Path], str | None]
    """What makes this folder or file one of the format, as shown to the user; None if it is none."""
    find_splits: Callable[[Path], Mapping[str, Any]]
    read: Callable[[Path, str, ReadOptions], Dataset]
    write: Writer | None = None
    """None for a format that is only read."""
    holds_difficult: bool = True
    """Whether the format can hold VOC's flag."""
    holds_crowd: bool = True
    """Whether the format can hold COCO's flag."""


FORMATS: dict[str, Format] = {
    "voc": Format("VOC", "voc: Annotations/*.xml", voc.recognise, voc.find_splits, voc.read, voc.write),
    "coco": Format(
        "COCO",
        "coco: annotations/*.json, _annotations.coco.json",
        coco.recognise,
        coco.find_splits,
        coco.read,
        coco.write,
    ),
    "yolo": Format(
        "YOLO",
        "yolo: data.yaml, images and labels/*.txt",
        yolo.recognise,
        yolo.find_splits,
        yolo.read,
        yolo.write,
        holds_difficult=False,
        holds_crowd=False,
    ),
    "csv": Format(
        "CSV",
        "csv: a .csv whose header names xmin ...",
        csv_boxes.recognise,
        csv_boxes.find_splits,
        csv_boxes.read,
        csv_boxes.write,
    ),
    "recordio": Format(
        "RecordIO",
        "recordio: *.rec, *.lst",
        recordio.recognise,
        recordio.find_splits,
        recordio.read,
        recordio.write,
        holds_crowd=False,
    ),
    "labelme": Format(
        "LabelMe",
        "labelme: *.json beside the images",
        labelme.recognise,
        labelme.find_splits,
        labelme.read,
        labelme.write,
    ),
    "cvat": Format("CVAT", "cvat: annotations.xml", cvat.recognise, cvat.find_splits, cvat.read, cvat.write),
    "labelstudio": Format(
        "Label Studio",
        "labelstudio: a .json of tasks",
        label_studio.recognise,
        label_studio.find_splits,
        label_studio.read,
        label_studio.write,
    ),
    "createml": Format(
        "CreateML", "createml: a .json list of images", createml.recognise, createml.find_splits, createml.read
    ),
}
_PARTS = frozenset(
    (
        *("annotations", "imagesets", "jpegimages", "images", "image", "img", "imgs"),
        *("labels", "xmls", "xml", "obj_train_data"),
    )
)
"""Folders, in small letters, that belong to a data set and hold none."""


@dataclass(frozen=True)
class Found:
    """A data set: its format, its root, and what gave it away."""

    format: str
    path: Path
    evidence: str


def open_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    format: str | None = None,
    class_names: Iterable[str] | None = None,
    on_bad: OnBad = "stop",
    rename: Mapping[str, str] | None = None,
    one_based: bool = False,
    unknown: Unknown = "refuse",
) -> Dataset:
    """Read the labels of one split; images are not opened, except their headers where boxes are fractions.

    Args:
        path: the folder of a data set, or its .json, .csv, .rec, .lst or data.yaml file.
        split: as `find_splits` gives them; `val` also finds `val2017` and `valid`. None takes the only one.
        format: voc, coco, yolo, csv or recordio; recognised when not given.
        class_names: a trained model's classes; labels are mapped to this order by name.
        on_bad: "stop" at the first broken file or box, or "skip" it and count it in `Dataset.left_out`.
        rename: the data set's class names to other names, before they are compared with `class_names`; "" drops the
            objects of a class.
        one_based: VOC only; corners are 1-based and inclusive, so that a box spans xmin - 1 .. xmax.
        unknown: "refuse" an object whose class is not among `class_names`, or "drop" it and count it in
            `Dataset.left_out`.

    Raises:
        DataError: the path holds no data set or several, the split does not exist or is empty, a file is broken, or a
            class is not among `class_names` (with "drop": none is). ImageError if an image's file is missing.
        ConfigError: for an unknown format or `on_bad`.
    """
    if on_bad not in ("stop", "skip"):
        raise ConfigError(f"on_bad should be 'stop' or 'skip', got {on_bad!r}")
    found = locate(Path(path), format)
    reader = FORMATS[found.format]
    chosen = pick_split(list(reader.find_splits(found.path)), split, found.path)
    names = None if class_names is None else tuple(class_names)
    return reader.read(found.path, chosen, ReadOptions(on_bad, names, rename, unknown, one_based))


def read_raw(path: str | Path, split: str, *, format: str | None = None) -> RawLabels:
    """Read one split as its label files say it, for checks: nothing is dropped but what cannot be read at all.

    Raises:
        DataError: the path holds no data set or several, the split does not exist, or its label file cannot be read.
    """
    found = locate(Path(path), format)
    reader = FORMATS[found.format]
    chosen = pick_split(list(reader.find_splits(found.path)), split, found.path)
    held: list[RawLabels] = []
    with suppress(DataError):  # such as an empty split: what was read before it counts
        reader.read(found.path, chosen, ReadOptions(on_bad="skip", raw=held))
    if not held:
        reader.read(found.path, chosen, ReadOptions(on_bad="skip"))  # raises what was suppressed
        raise AssertionError("a reader ended without `IndexBuilder.finish`")
    return held[0]


def find_splits(path: str | Path, format: str | None = None) -> list[str]:
    """Return the splits of a data set, train and val first.

    Raises:
        DataError: the path holds no data set or several.
    """
    found = locate(Path(path), format)
    return list(FORMATS[found.format].find_splits(found.path))


def check_format(format: str) -> None:
    """Refuse a format that does not exist.

    Raises:
        ConfigError: there is none of that name.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}; known: {', '.join(FORMATS)}")


def locate(path: Path, format: str | None = None) -> Found:
    """Find the one data set at a path: in the folder itself, or exactly one level down.

    Nothing is guessed: a folder that holds two is refused with both named.

    Raises:
        DataError: there is none, or more than one.
        ConfigError: for a format that does not exist.
    """
    if format is not None:
        check_format(format)
    if not path.exists():
        raise DataError(f"{path} does not exist; give the folder or file of a data set")
    here = _look(path, format)
    below: list[Found] = []
    for folder in folders_in(path) if path.is_dir() else []:
        if folder.name.lower() not in _PARTS and not (here and is_split_name(folder.name)):
            below += [found for found in _look(folder, format) if found.format not in {one.format for one in here}]
    found = here + below
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(_nothing(path, format))
    listing = " and ".join(f"{_shown(one, path)} ({one.format})" for one in found)
    raise DataError(
        f"{path} holds more than one data set: {listing}; name one with --format, or give its folder or file"
    )


def _look(path: Path, format: str | None) -> list[Found]:
    """Return every format this folder or file can be, without looking into other folders."""
    names = FORMATS if format is None else (format,)
    evidence = {name: FORMATS[name].recognise(path) for name in names}
    return [Found(name, path, what) for name, what in evidence.items() if what is not None]


def _shown(found: Found, path: Path) -> str:
    inside = found.evidence if found.path == path else found.path.relative_to(path).as_posix()
    return f"{path.name}/{inside}"


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
