"""The index of a split in a cache file, keyed by what identifies its label files, and mapped when it is opened again.

A cache that is damaged, of another version or out of date is ignored and written anew; one that cannot be written is
done without. Nothing here ever raises an error of its own.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

import multibox
from multibox.columns import Numbers, Paths, Texts, portable
from multibox.data.column_file import Arrays, ColumnFile, read_columns, write_columns
from multibox.data.footprint import Footprint, stamp_of, take_footprint
from multibox.data.formats.text import ReadOptions, folders_read
from multibox.structures import Dataset, Sizes

VERSION = 1
"""Of what stands in the file; another one is read anew."""
SMALL_BYTES = 1 << 20
"""Columns of less than this together may be private to each process."""
KEPT_SECONDS = 86_400
"""An outdated file younger than this may be mapped by a run that still starts processes."""


_Value = TypeVar("_Value")


class Identity(NamedTuple):
    """A data set as it was asked for."""

    path: Path
    """As the user gave it, or where it was found."""
    details: tuple[str, ...] = ()
    """What was found out about it already."""


def open_cached(
    sets: Sequence[Identity],
    split: str | None,
    format: str | None,
    options: ReadOptions,
    cache: Path,
    read: Callable[[], Dataset],
    *,
    refresh: bool = False,
) -> Dataset:
    """Return the data set that `read` returns, from the cache if no label file changed since it was read.

    Args:
        sets: the data sets; the first arguments together say what `read` reads.
        split: as asked for.
        format: as asked for.
        options: how it is read.
        cache: folder of the cache files.
        read: reads the data set.
        refresh: read it even if the cache seems to be up to date.

    Raises:
        DataError: as `read` does.
    """
    stem = "index-" + _key(sets, split, format, options)
    held = None if refresh else _held(cache, stem, _dataset)
    if held is not None:
        return held

    def look() -> tuple[Dataset, Iterable[str]]:
        dataset = read()
        return dataset, dataset.paths.folders

    dataset, footprint = _watched(sets, cache, look)
    if footprint is None:
        return dataset
    about, arrays = dataset_arrays(dataset)
    return _keep(cache, stem, footprint, {"dataset": about}, arrays, _dataset) or dataset


def remember(
    sets: Sequence[Identity], format: str | None, cache: Path | None, what: str, find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the plain values that `find` returns, from the cache if no label file changed since.

    Args:
        sets: the data sets that it looks at.
        format: as asked for.
        cache: folder of the cache files; None for none.
        what: one word for what is found out.
        find: finds it out.
    """
    if cache is None:
        return find()
    stem = f"{what}-{_key(sets, None, format, ReadOptions())}"
    held = _held(cache, stem, _found)
    if held is not None:
        return held
    found, footprint = _watched(sets, cache, lambda: (find(), ()))
    if footprint is not None:
        _keep(cache, stem, footprint, {"found": found}, {}, _found)
    return found


def share(dataset: Dataset, cache: Path, role: str) -> Dataset:
    """Return the data set with all its columns in a mapped file, so that processes share them; small ones as they are.

    Args:
        dataset: a split, or a part of one.
        cache: folder of the cache files.
        role: what it is for, such as "training": an older file of the same role is removed.
    """
    about, arrays = dataset_arrays(dataset)
    private = [column for column in arrays.values() if isinstance(portable(column), np.ndarray)]
    if sum(column.nbytes for column in private) < SMALL_BYTES:
        return dataset
    key = [about["root"], os.path.abspath(about["root"]), about["format"], about["split"], role]  # noqa: PTH100
    stem = f"{role}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    try:
        written = write_columns(cache, stem, about, arrays)
    except OSError:
        return dataset
    remove_outdated(cache, stem, written)
    held = read_columns(written)
    return dataset if held is None else dataset_of(held.about, held.arrays)


def dataset_arrays(dataset: Dataset) -> tuple[dict[str, Any], Arrays]:
    """Return a data set as what JSON can hold and arrays, for a column file."""
    about = {
        "root": str(dataset.root),
        "format": dataset.format,
        "split": dataset.split,
        "class_names": list(dataset.class_names),
        "notes": list(dataset.notes),
        "left_out": dict(dataset.left_out),
    }
    arrays = {
        **texts_arrays("names", dataset.image_names),
        **paths_arrays("paths", dataset.paths),
        "sizes": dataset.sizes.array,
        "offsets": dataset.offsets.array,
        "lengths": dataset.lengths.array,
        "starts": dataset.starts,
        "boxes": dataset.boxes_xyxy,
        "labels": dataset.labels,
        "difficult": dataset.difficult,
        "crowd": dataset.crowd,
    }
    return about, arrays


def dataset_of(about: Mapping[str, Any], arrays: Arrays) -> Dataset:
    """Return the data set that `dataset_arrays` took apart."""
    return Dataset(
        root=Path(about["root"]),
        format=about["format"],
        split=about["split"],
        class_names=tuple(about["class_names"]),
        image_names=texts_of("names", arrays),
        paths=paths_of("paths", arrays),
        sizes=Sizes(arrays["sizes"]),
        offsets=Numbers(arrays["offsets"]),
        starts=arrays["starts"],
        boxes_xyxy=arrays["boxes"],
        labels=arrays["labels"],
        difficult=arrays["difficult"],
        crowd=arrays["crowd"],
        notes=tuple(about["notes"]),
        left_out=dict(about["left_out"]),
        lengths=Numbers(arrays["lengths"]),
    )


def texts_arrays(name: str, texts: Texts) -> Arrays:
    """Return a column of texts as arrays whose names begin with `name`."""
    blob, starts = texts.arrays()
    return {f"{name}.blob": blob, f"{name}.starts": starts}


def texts_of(name: str, arrays: Arrays) -> Texts:
    """Return the column that `texts_arrays` took apart."""
    return Texts(arrays[f"{name}.blob"], arrays[f"{name}.starts"])


def paths_arrays(name: str, paths: Paths) -> Arrays:
    """Return a column of paths as arrays whose names begin with `name`."""
    folders = texts_arrays(f"{name}.folders", paths.folders)
    return {**folders, f"{name}.places": paths.places, **texts_arrays(f"{name}.names", paths.names)}


def paths_of(name: str, arrays: Arrays) -> Paths:
    """Return the column that `paths_arrays` took apart."""
    return Paths(texts_of(f"{name}.folders", arrays), arrays[f"{name}.places"], texts_of(f"{name}.names", arrays))


def _dataset(held: ColumnFile) -> Dataset:
    return dataset_of(held.about["dataset"], held.arrays)


def _found(held: ColumnFile) -> dict[str, Any]:
    return held.about["found"]


def _watched(
    sets: Sequence[Identity], cache: Path, look: Callable[[], tuple[_Value, Iterable[str]]]
) -> tuple[_Value, Footprint | None]:
    """Return what `look` finds, and what identifies the files it read; None if their changes would not be noticed.

    `look` returns as well the folders that matter beside those of text files.
    """
    paths = [one.path for one in sets]
    if not all(path.exists() for path in paths):
        return look()[0], None
    before, began = take_footprint(paths, cache), time.time_ns()
    with folders_read() as texts:
        value, folders = look()
    folders = [folder or "." for folder in (*folders, *texts)]
    after = before.extended(folders)
    changed_meanwhile = after is not before and after.newest() >= began
    not_watched = before.ignored and any(_lies_in(folder, before.ignored) for folder in folders)
    return value, None if changed_meanwhile or not_watched else after


def _keep(
    cache: Path,
    stem: str,
    footprint: Footprint,
    about: Mapping[str, Any],
    arrays: Arrays,
    make: Callable[[ColumnFile], _Value],
) -> _Value | None:
    """Write something to the cache and return it as it comes back; None if it cannot be written."""
    made_of = {
        **texts_arrays("folders", footprint.folders),
        "folder_times": footprint.times,
        "listings": footprint.listings,
        **paths_arrays("files", footprint.files),
        "stamps": footprint.stamps,
    }
    about = {"version": VERSION, "ignored": footprint.ignored, **about}
    try:
        written = write_columns(cache, stem, about, {**arrays, **made_of})
    except OSError:
        return None
    remove_outdated(cache, stem, written)
    held = read_columns(written)
    return None if held is None else make(held)


def _held(cache: Path, stem: str, make: Callable[[ColumnFile], _Value]) -> _Value | None:
    """Return what the cache holds under a name if it is sound and up to date."""
    for file in sorted(cache.glob(f"{stem}-*.columns")):
        held = read_columns(file)
        try:
            if held is not None and held.about["version"] == VERSION and _footprint(held).is_current():
                return make(held)
        except (KeyError, TypeError, ValueError, IndexError):
            continue
    return None


def _footprint(held: ColumnFile) -> Footprint:
    return Footprint(
        folders=texts_of("folders", held.arrays),
        times=held.arrays["folder_times"],
        listings=held.arrays["listings"],
        files=paths_of("files", held.arrays),
        stamps=held.arrays["stamps"],
        ignored=held.about["ignored"],
    )


def _key(sets: Sequence[Identity], split: str | None, format: str | None, options: ReadOptions) -> str:
    """Return 16 hexadecimal digits of what was asked for, and of the code that reads it."""
    package = Path(multibox.__file__).parent
    code = sorted(file for part in ("data", "doctor") for file in (package / part).rglob("*.py"))
    asked = {
        "sets": [(str(one.path), os.path.abspath(one.path), one.details) for one in sets],  # noqa: PTH100
        "split": split,
        "format": format,
        "options": {one.name: getattr(options, one.name) for one in dataclasses.fields(options) if one.name != "raw"},
        "version": [VERSION, multibox.__version__, *(stamp_of(file) for file in code)],
    }
    return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:16]


def _lies_in(folder: str, other: str) -> bool:
    real = os.path.realpath(folder)
    return real == other or Path(other) in Path(real).parents


def remove_outdated(cache: Path, stem: str, written: Path) -> None:
    """Remove older files of the same name, which no run that is about to start processes can have mapped."""
    for file in cache.glob(f"{stem}-*.columns"):
        # On Windows a file that a process has mapped stays
        with contextlib.suppress(OSError):
            if file != written and time.time() - file.stat().st_mtime > KEPT_SECONDS:
                file.unlink()
