"""What was found out about each image of a data set, kept in a cache file by path, size and time of the image file."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

import multibox
from multibox.columns import Integers, Numbers, Paths, Texts
from multibox.data.column_file import ColumnFile, read_columns, write_columns
from multibox.data.footprint import stamp_of
from multibox.data.formats.index_cache import paths_arrays, paths_of, remove_outdated, texts_arrays, texts_of
from multibox.structures import Dataset, Flags, Sizes

VERSION = 1
"""Of what stands in the file; another one is ignored."""


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What is known of each image."""

    sizes: Sizes
    """As shown, after EXIF orientation; None for images with a problem and those not looked at."""
    problems: Mapping[int, str]
    """By image: why it cannot be decoded."""
    looked_at: Flags
    """[images]"""


def known_verdicts(dataset: Dataset, stamps: Integers, cache: Path | None) -> Verdicts | None:
    """Return what a cache file knows of images whose files have not changed since; None without such a file.

    Args:
        dataset: the images.
        stamps: size and time of each image's file now, [images, 2], as `stamps_of` gives them.
        cache: folder of the cache files; None for none.
    """
    for file in () if cache is None else sorted(cache.glob(f"{_stem(dataset)}-*.columns"), key=stamp_of, reverse=True):
        held = read_columns(file)
        try:
            found = None if held is None else _matched(held, dataset, stamps)
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        if found is not None:
            return found
    return None


def remember_verdicts(dataset: Dataset, stamps: Integers, verdicts: Verdicts, cache: Path | None) -> None:
    """Write what was found to the cache; without one, or where it cannot be written, nothing happens."""
    if cache is None or not verdicts.looked_at.any():
        return
    rows = np.array(sorted(verdicts.problems), np.int64)
    arrays = {
        **paths_arrays("paths", dataset.paths),
        "offsets": dataset.offsets.array,
        "stamps": stamps,
        "sizes": verdicts.sizes.array,
        "looked_at": verdicts.looked_at,
        "problem_rows": rows,
        **texts_arrays("problems", Texts.of(verdicts.problems[row] for row in rows.tolist())),
    }
    with contextlib.suppress(OSError):
        written = write_columns(cache, _stem(dataset), {"version": VERSION}, arrays)
        remove_outdated(cache, _stem(dataset), written)


def _matched(held: ColumnFile, dataset: Dataset, stamps: Integers) -> Verdicts | None:
    """Return the verdicts of a file for the images of a data set, in its order."""
    if held.about["version"] != VERSION:
        return None
    arrays = held.arrays
    paths, offsets = paths_of("paths", arrays), Numbers(arrays["offsets"])
    rows = _rows_of(paths, offsets, dataset)
    # Row -1, an image that is not in the file, matches no stamp: one more row stands for it
    before = np.concatenate([arrays["stamps"], [(-2, -2)]])[rows]
    same = (before == stamps).all(axis=1) & (stamps[:, 0] >= 0) & np.append(arrays["looked_at"], False)[rows]
    sizes = np.concatenate([arrays["sizes"], np.full((1, 2), -1, np.int32)])[rows]
    sizes[~same] = -1
    texts = dict(zip(arrays["problem_rows"].tolist(), texts_of("problems", arrays), strict=True))
    problems: dict[int, str] = {}
    if texts:
        bad = np.flatnonzero(same & np.isin(rows, arrays["problem_rows"]))
        problems = {row: texts[int(rows[row])] for row in bad.tolist()}
    return Verdicts(Sizes(sizes), problems, same)


def _rows_of(paths: Paths, offsets: Numbers, dataset: Dataset) -> Integers:
    """Return where each image of the data set stands among `paths` and `offsets`; -1 for those that are not there."""
    own = dataset.paths
    alike = np.array_equal(paths.places, own.places) and paths.names == own.names and paths.folders == own.folders
    if alike and np.array_equal(offsets.array, dataset.offsets.array):
        return np.arange(len(own))
    there = {key: row for row, key in enumerate(zip(paths.texts(), offsets.array.tolist(), strict=True))}
    wanted = zip(own.texts(), dataset.offsets.array.tolist(), strict=True)
    return np.fromiter((there.get(key, -1) for key in wanted), np.int64, len(own))


def _stem(dataset: Dataset) -> str:
    """Return the start of a cache file's name: which data set it is about, and what decodes its images."""
    code = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem in _DECODERS)
    key: list[Any] = [str(dataset.root), os.path.abspath(dataset.root), dataset.format, dataset.split]  # noqa: PTH100
    key += [multibox.__version__, PIL.__version__, [stamp_of(path) for path in code]]
    return "images-" + hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


_DECODERS = ("images", "pixels", "records")
