"""Label formats: one table, which format a path holds, and opening its splits.

A format is one file here with `recognise`, `find_splits`, `read` and `write`; a new one is added to `FORMATS`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from multibox.data.formats import (
    coco,
    createml,
    csv_boxes,
    cvat,
    imagefolder,
    label_studio,
    labelme,
    parquet,
    recordio,
    voc,
    webdataset,
    yolo,
)
from multibox.data.formats.index_cache import Identity, open_cached, remember
from multibox.data.formats.joining import Joined
from multibox.data.formats.locating import Format, Found, Writer, search
from multibox.data.formats.raw_labels import RawLabels
from multibox.data.formats.text import OnBad, ReadOptions, Unknown, pick_split, split_for
from multibox.errors import ConfigError, DataError, did_you_mean
from multibox.structures import Dataset

__all__ = [
    "FORMATS",
    "DataPath",
    "DataPaths",
    "Format",
    "Found",
    "Joined",
    "Writer",
    "find_layout",
    "find_splits",
    "locate",
    "open_dataset",
    "read_raw",
    "split_for",
]

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
        "csv: a .csv whose header names xmin ..., also Open Images' (openimages)",
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
    "imagefolder": Format(
        "imagefolder",
        "imagefolder: metadata.jsonl",
        imagefolder.recognise,
        imagefolder.find_splits,
        imagefolder.read,
        imagefolder.write,
    ),
    "parquet": Format(
        "Parquet", "parquet: *.parquet with image and objects", parquet.recognise, parquet.find_splits, parquet.read
    ),
    "webdataset": Format(
        "WebDataset", "webdataset: *.tar shards", webdataset.recognise, webdataset.find_splits, webdataset.read
    ),
}
DataPath = str | Path | Found | Joined
"""The folder or file of a data set, or one that was located."""
DataPaths = DataPath | Sequence[str | Path]
"""One data set, or several that are joined by class name."""


def open_dataset(
    path: DataPaths,
    split: str | None = None,
    *,
    format: str | None = None,
    class_names: Iterable[str] | None = None,
    on_bad: OnBad = "stop",
    rename: Mapping[str, str] | None = None,
    merge: Mapping[str, str] | None = None,
    one_based: bool = False,
    unknown: Unknown = "refuse",
    cache: Path | None = None,
    refresh: bool = False,
) -> Dataset:
    """Read the labels of one split; images are not opened, except their headers where boxes are fractions.

    Args:
        path: the folder or file of a data set, as `locate` takes it; several are joined by class name.
        split: as `find_splits` gives them; `val` also finds `val2017` and `valid`. None takes the only one.
        format: a name of `FORMATS`, in any spelling; recognised when not given.
        class_names: a trained model's classes; labels are mapped to this order by name.
        on_bad: "stop" at the first broken file or box, or "skip" it and count it in `Dataset.left_out`.
        rename: the data set's class names to other names, before they are compared with `class_names`; "" drops the
            objects of a class.
        merge: as `rename`, for classes that the data need not have, such as those that a model's run joined.
        one_based: VOC only; corners are 1-based and inclusive, so that a box spans xmin - 1 .. xmax.
        unknown: "refuse" an object whose class is not among `class_names`, or "drop" it and count it in
            `Dataset.left_out`.
        cache: folder of cache files, from which the split comes if no label file changed since; None for none. The
            columns then lie in a file that is mapped into memory.
        refresh: with `cache`, read the label files even if they seem unchanged.

    Raises:
        DataError: the path holds no data set or several, the split does not exist or is empty, a file is broken, or a
            class is not among `class_names` (with "drop": none is). ImageError if an image's file is missing.
        ConfigError: for an unknown format or `on_bad`.
    """
    if on_bad not in ("stop", "skip"):
        raise ConfigError(f"on_bad should be 'stop' or 'skip', got {on_bad!r}")
    names = None if class_names is None else tuple(class_names)
    options = ReadOptions(on_bad, names, rename, merge, unknown, one_based)

    def read() -> Dataset:
        found = locate(path, format)
        return found.read(pick_split(found.splits(), split, found.path), options)

    if cache is None:
        return read()
    return open_cached(_identity(path), split, format, options, cache, read, refresh=refresh)


def _identity(path: DataPaths) -> list[Identity]:
    """Return what tells data sets apart in a cache."""
    if isinstance(path, Joined):
        return [one for found in path.sets for one in _identity(found)]
    if isinstance(path, Found):
        return [Identity(path.path, (path.format, *path.notes, *(str(part.path) for part in path.parts)))]
    paths = [path] if isinstance(path, str | Path) else path
    return [Identity(Path(one)) for one in paths]


def read_raw(path: DataPaths, split: str, *, format: str | None = None) -> RawLabels:
    """Read one split as its label files say it, for checks: nothing is dropped but what cannot be read at all.

    Raises:
        DataError: the path holds no data set or several, the split does not exist, or its label file cannot be read.
    """
    found = locate(path, format)
    chosen = pick_split(found.splits(), split, found.path)
    held: list[RawLabels] = []
    with suppress(DataError):  # such as an empty split: what was read before it counts
        found.read(chosen, ReadOptions(on_bad="skip", raw=held))
    if not held:
        found.read(chosen, ReadOptions(on_bad="skip"))  # raises what was suppressed
        raise AssertionError("a reader ended without `IndexBuilder.finish`")
    return held[0]


class Layout(NamedTuple):
    """Where a data set was found, and its splits."""

    path: Path
    splits: list[str]


def find_layout(path: str | Path, format: str | None = None, cache: Path | None = None) -> Layout:
    """Return where the data set at a path lies and its splits, train and val first.

    Args:
        path: the folder or file of a data set.
        format: its format; recognised when not given.
        cache: folder of cache files, which know it if no label file changed since; None for none.

    Raises:
        DataError: the path holds no data set or several.
    """

    def find() -> dict[str, Any]:
        found = locate(path, format)
        return {"path": str(found.path), "splits": found.splits()}

    found = remember([Identity(Path(path))], format, cache, "layout", find)
    return Layout(Path(found["path"]), found["splits"])


def find_splits(path: DataPaths, format: str | None = None) -> list[str]:
    """Return the splits of a data set, train and val first.

    Raises:
        DataError: the path holds no data set or several.
    """
    return locate(path, format).splits()


_OTHER_NAMES = {"openimages": "csv", "darknet": "yolo", "pascalvoc": "voc", "mscoco": "coco"}
"""What users may call a format, and the format that reads it."""


def check_format(format: str) -> str:
    """Return the name of a format in our spelling; capitals, hyphens and underscores do not matter in the user's.

    Raises:
        ConfigError: there is none of that name.
    """
    name = format.lower().replace("-", "").replace("_", "").replace(" ", "")
    name = _OTHER_NAMES.get(name, name)
    if name not in FORMATS:
        raise ConfigError(f"unknown format {format!r}{did_you_mean(name, FORMATS)}; known: {', '.join(FORMATS)}")
    return name


def locate(path: DataPaths, format: str | None = None) -> Found | Joined:
    """Find the data set at a path: in the file or folder itself, in the folders below it, or in a .zip.

    Two formats that hold the same boxes are one data set, folders of one format named like splits are its splits, and
    a data set alone somewhere below is taken; each with a note. Else nothing is guessed: a folder that holds two is
    refused with both named.

    Args:
        path: one path, or several whose data sets are joined. What was located before is returned as it is.
        format: a name of `FORMATS`, in any spelling; recognised when not given.

    Raises:
        DataError: there is none, or more than one.
        ConfigError: for a format that does not exist.
    """
    if isinstance(path, Found | Joined):
        return path
    if not isinstance(path, str | Path):
        found = [search(Path(one), _formats(format)) for one in dict.fromkeys(map(Path, path))]
        if not found:
            raise DataError("no data set was given; give the folder or file of one")
        return found[0] if len(found) == 1 else Joined(tuple(found))
    return search(Path(path), _formats(format))


def _formats(format: str | None) -> Mapping[str, Format]:
    if format is None:
        return FORMATS
    name = check_format(format)
    return {name: FORMATS[name]}
