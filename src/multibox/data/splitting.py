"""Dividing a data set into training, validation and test images without leaks between them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multibox.data.choosing import choose_classes
from multibox.data.convert import check_destination, read_splits, with_same_classes, write_dataset
from multibox.data.formats import FORMATS, DataPaths, check_format, coco, csv_boxes, locate, open_dataset, yolo
from multibox.data.formats.agreement import differ
from multibox.data.formats.joining import join
from multibox.data.formats.text import OnBad
from multibox.data.similar import image_hashes, scene_groups
from multibox.data.unpacking import cache_folder
from multibox.errors import ConfigError, DataError
from multibox.files import whole_folder
from multibox.structures import Dataset, Labels

_REFERRING: dict[str, Callable[[Mapping[str, Dataset], Path], object]] = {
    "coco": partial(coco.write, link=True, refer=True),
    "csv": partial(csv_boxes.write, link=True, refer=True),
    "yolo": yolo.write_lists,
}
"""Formats whose label files can name images that lie elsewhere, and what writes such files."""
_FALLBACK = "coco"
"""Written where the format of the data is only read."""


@dataclass(frozen=True)
class Division:
    """What `split_dataset` did."""

    destination: Path
    written_as: str
    """The format."""
    images: dict[str, int]
    """In each split."""
    groups: dict[str, int]
    """Groups of images in each split; a single image is a group, too."""
    objects: dict[str, dict[str, int]]
    """Of each class, in each split."""
    notes: tuple[str, ...]


def split_dataset(
    source: DataPaths,
    destination: str | Path,
    *,
    val: float = 0.1,
    test: float = 0.0,
    group_by: str | None = None,
    stratify: bool = False,
    seed: int = 0,
    format: str | None = None,
    on_bad: OnBad = "stop",
    classes: Sequence[str] = (),
    merge: Sequence[str] = (),
    progress: Callable[[int, int], object] | None = None,
) -> Division:
    """Divide all images of a data set into train, val and test, and write them as a data set of the same format.

    Near-duplicates and bursts stay in one split (`scene_groups`). COCO, CSV and YOLO label files name the images where
    they are; the other formats get hard links, or copies where the file system has none.

    Args:
        source: the folder or file of a data set, or several that are joined; the splits that it has do not count.
        destination: a folder that is not there yet, or is empty.
        val: share of the images for validation, 0 for none.
        test: share of the images for the test, 0 for none.
        group_by: a regular expression; images whose names agree in its first group, or in the whole match, stay
            together as well.
        stratify: keep the share of each class in each split, as far as the groups allow it.
        seed: the same seed gives the same splits.
        format: the source's format; recognised when not given.
        on_bad: "stop" at the first broken file or box, or "skip" it and count it in the notes.
        classes: those to keep, by name after merging; none keeps all.
        merge: classes to join, such as `car=truck,bus`.
        progress: called with the images looked at so far, and all images.

    Raises:
        ConfigError: shares that leave no image to train on, or a pattern that is none or fits no image's name.
        DataError: the source cannot be read, the destination is in use, or there are fewer groups than splits.
    """
    shares = _checked_shares(val, test)
    pattern = _compiled(group_by)
    check_destination(destination, source)
    found = locate(source, format)
    splits, notes = read_splits(found, on_bad)
    pool = _pooled(splits)
    (pool,) = choose_classes([pool], classes, merge)
    names = list(pool.image_names)
    if pattern is not None and not any(map(pattern.search, names)):
        raise ConfigError(f"--group-by {group_by}: no image's name fits, such as {names[0]}; correct the pattern")
    done = count(1)
    hashes = image_hashes(pool, progress and (lambda: progress(next(done), len(pool))))
    groups = scene_groups(names, hashes, pattern)
    where = divide(groups, pool, list(shares.values()), stratify=stratify, seed=seed)
    parts = {name: np.flatnonzero(where == i) for i, name in enumerate(shares)}
    divided = {name: replace(pool.subset(rows), split=name) for name, rows in parts.items()}
    written_as, more = _write(divided, Path(destination), found.format)
    return Division(
        destination=Path(destination),
        written_as=written_as,
        images={name: len(rows) for name, rows in parts.items()},
        groups={name: len(np.unique(groups[rows])) for name, rows in parts.items()},
        objects={name: _objects(one) for name, one in divided.items()},
        notes=(*notes, *dict.fromkeys(pool.notes), *more),
    )


def divide(groups: Labels, pool: Dataset, shares: Sequence[float], *, stratify: bool, seed: int) -> Labels:
    """Return the split [N] of each image; all images of a group get the same.

    The largest groups come first, in random order among equals; with `stratify` those of the rarest class come first
    (iterative stratification, Sechidis et al. 2011). Each goes to the split that has least of what it should have.

    Args:
        groups: [N]; the number of each image's group.
        pool: the N images.
        shares: of each split, which sum to 1; the first one gets what the others do not need.
        stratify: keep the share of each class, too.
        seed: of the random order.

    Raises:
        DataError: there are fewer groups than splits, or a split remains empty.
    """
    images, groups_in_all = len(groups), int(groups.max()) + 1 if len(groups) else 0
    if groups_in_all < len(shares):
        raise DataError(
            f"{pool.root}: {images} images, of which some belong together, make fewer groups ({groups_in_all}) than "
            f"splits ({len(shares)}); add images, or ask for fewer splits"
        )
    wanted = [max(1.0, share * images) for share in shares[1:]]
    # [groups, classes + 1]: objects of each class, and images
    counts = np.zeros((groups_in_all, len(pool.class_names) * stratify + 1), np.int64)
    np.add.at(counts[:, -1], groups, 1)
    if stratify:
        owners = np.repeat(np.arange(images), np.diff(pool.starts))
        np.add.at(counts, (groups[owners], pool.labels), 1)
    target = np.outer([(images - sum(wanted)) / images, *(number / images for number in wanted)], counts.sum(axis=0))
    order = np.random.default_rng(seed).permutation(groups_in_all)
    where = _fill(counts, target, order)
    if (empty := np.bincount(where, minlength=len(shares)) == 0).any():
        raise DataError(
            f"{pool.root}: the groups of images that belong together are too large for {int(empty.sum())} of the "
            f"{len(shares)} splits; ask for fewer splits or larger shares"
        )
    return where[groups]


def _fill(counts: NDArray[np.int64], target: NDArray[np.float64], order: Labels) -> Labels:
    """Return the split [G] of each group, by what each group has and each split should get, [G, K] and [S, K]."""
    missing = target.copy()
    where, placed = np.full(len(counts), -1), np.zeros(len(target), np.int64)
    remaining = counts.sum(axis=0)
    while (open_groups := where < 0).any():
        of_classes = np.flatnonzero(remaining[:-1])
        column = int(of_classes[np.argmin(remaining[of_classes])]) if len(of_classes) else counts.shape[1] - 1
        rows = order[(open_groups & (counts[:, column] > 0))[order]]
        for group in rows[np.argsort(-counts[rows, -1], kind="stable")].tolist():
            room = missing[:, -1] >= counts[group, -1] / 2
            room = room if room.any() else missing[:, -1] >= missing[:, -1].max()
            # The last groups are for the splits that have none yet
            room = placed == 0 if len(counts) - placed.sum() <= (placed == 0).sum() else room
            lack = missing[:, [column, -1]] / np.maximum(target[:, [column, -1]], 1e-9)
            # The split that lacks most of this class; of equals the one that lacks most images, then the largest
            split = max(np.flatnonzero(room).tolist(), key=lambda s: (lack[s, 0], lack[s, 1], target[s, -1]))
            where[group] = split
            placed[split] += 1
            missing[split] -= counts[group]
        remaining = counts[where < 0].sum(axis=0)
    return where


def _checked_shares(val: float, test: float) -> dict[str, float]:
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ConfigError(
            f"--val {val:g} --test {test:g}: expected shares from 0 that sum to less than 1, such as 0.1 and 0.2; the "
            "rest is trained on"
        )
    if not val and not test:
        raise ConfigError("--val 0 --test 0: that leaves one split; give at least one share above 0")
    return {"train": 1 - val - test} | {name: share for name, share in (("val", val), ("test", test)) if share}


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--group-by {pattern}: no regular expression ({error})") from None


def _pooled(splits: Mapping[str, Dataset]) -> Dataset:
    """Return all images once, with unique names; an image may belong to several splits, as to VOC's trainval."""
    splits = with_same_classes(splits)
    seen: set[tuple[Path, int | None]] = set()
    parts: list[Dataset] = []
    for dataset in splits.values():
        places = list(zip(dataset.paths, dataset.offsets, strict=True))
        parts.append(dataset.subset(i for i, place in enumerate(places) if place not in seen))
        seen.update(places)
    kept = {split: part for split, part in zip(splits, parts, strict=True) if len(part)}
    joined = join(list(kept.values()), list(kept), "all")
    names = [name for part in kept.values() for name in part.image_names]
    unique = names if len(set(names)) == len(names) else joined.image_names
    notes = tuple(note for part in kept.values() for note in part.notes)
    return replace(joined, image_names=unique, notes=notes)


def _objects(dataset: Dataset) -> dict[str, int]:
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    return dict(zip(dataset.class_names, counts.tolist(), strict=True))


def _write(splits: Mapping[str, Dataset], destination: Path, format: str) -> tuple[str, list[str]]:
    """Write the splits and return their format, and notes; label files name the images where they are if they can."""
    formats = format.split(", ")
    own = formats[0] if len(formats) == 1 and FORMATS[check_format(formats[0])].write else _FALLBACK
    if own in _REFERRING and _may_be_named(splits) and _refer(splits, destination, own):
        return own, ["the label files name the images where they are, so these have to stay there"]
    notes = write_dataset(splits, destination, own, link=True)
    return own, [*notes, "the images are hard links to those of the data, or copies where the file system has no links"]


def _may_be_named(splits: Mapping[str, Dataset]) -> bool:
    """Return whether each image is a file of the user's, not one inside another or in the cache folder."""
    cache = cache_folder()
    return all(
        offset is None and not path.is_relative_to(cache)
        for one in splits.values()
        for path, offset in zip(one.paths, one.offsets, strict=True)
    )


def _refer(splits: Mapping[str, Dataset], destination: Path, format: str) -> bool:
    """Write label files that name the images where they are; return whether they are read as the same splits."""

    class _ReadOtherwise(Exception):
        pass

    try:
        with whole_folder(destination) as folder:
            _REFERRING[format](splits, folder)
            for name, expected in splits.items():
                read = open_dataset(folder, name, format=format)
                if len(read) != len(expected) or differ([expected], [read]):
                    raise _ReadOtherwise
    except (_ReadOtherwise, DataError):
        return False
    except OSError as error:
        raise DataError(f"{destination} cannot be written ({error.strerror}); choose another place") from None
    return True
