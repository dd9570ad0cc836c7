"""Readers and writers of label formats: VOC XML, COCO JSON, YOLO, CSV and MXNet RecordIO."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from multibox.data.formats.recognise import FORMATS, locate
from multibox.data.formats.recordio import read_record_image
from multibox.data.formats.text import OnBad, ReadOptions, Unknown, pick_split, split_for
from multibox.data.formats.writing import write_dataset
from multibox.errors import ConfigError
from multibox.structures import Dataset

__all__ = ["FORMATS", "find_splits", "locate", "open_dataset", "read_record_image", "split_for", "write_dataset"]


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
        on_bad: "stop" at the first broken file or box, or "skip" it and count it in `Dataset.notes`.
        rename: the data set's class names to other names, before they are compared with `class_names`; "" drops the
            objects of a class.
        one_based: VOC only; corners are 1-based and inclusive, so that a box spans xmin - 1 .. xmax.
        unknown: "refuse" an object whose class is not among `class_names`, or "drop" it and count it in
            `Dataset.notes`.

    Raises:
        DataError: when the path holds no data set or several, the split does not exist or is empty, a file is broken,
            or a class is not among `class_names` (with "drop": none is). ImageError when an image's file is missing.
        ConfigError: for an unknown format or `on_bad`.
    """
    if on_bad not in ("stop", "skip"):
        raise ConfigError(f"on_bad should be 'stop' or 'skip', got {on_bad!r}")
    found = locate(Path(path), format)
    reader = FORMATS[found.format]
    chosen = pick_split(list(reader.find_splits(found.path)), split, found.path)
    names = None if class_names is None else tuple(class_names)
    return reader.read(found.path, chosen, ReadOptions(on_bad, names, rename, unknown, one_based))


def find_splits(path: str | Path, format: str | None = None) -> list[str]:
    """Return the splits of a data set, train and val first.

    Raises:
        DataError: when the path holds no data set or several.
    """
    found = locate(Path(path), format)
    return list(FORMATS[found.format].find_splits(found.path))
