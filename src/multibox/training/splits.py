"""The images that a run learns from and is validated on."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from multibox.config import DataConfig
from multibox.data.checking import check_pictures, match_classes
from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.errors import ConfigError, DataError, did_you_mean
from multibox.structures import Dataset

HELD_OUT = 0.1


def open_splits(data: DataConfig) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return the training split, the validation split (or a part held out of training), and what to say about them.

    Raises:
        ConfigError: `data.classes` or `data.merge` name a class that the data does not have.
        DataError: there is nothing to learn from, or too little to hold some out.
    """
    if len(data.path) != 1:
        raise ConfigError(f"data.path={list(data.path)}: expected one data set; put them into one folder or file first")
    (path,) = data.path
    format = None if data.format == "auto" else data.format
    splits = find_splits(path, format)

    def read(split: str | None) -> Dataset:
        dataset = open_dataset(path, split, format=format, on_bad=data.on_bad)
        return check_pictures(dataset, data.on_bad)

    training = read(split_for(splits, "train") if data.train_split == "auto" else data.train_split)
    validation = None
    if data.val_split != "none":
        val_split = split_for(splits, "val") if data.val_split == "auto" else data.val_split
        if val_split is not None and val_split != training.split:
            validation = read(val_split)
        else:
            training, validation = hold_out(training, path)
    training, validation, strange = match_classes(training, validation)
    training, validation, note = choose_classes(training, validation, data)
    if training.crowd.all():
        raise DataError(
            f"{path}: no image to train on (split {training.split}) has an object; there is nothing to learn"
        )
    notes = dict.fromkeys((*training.notes, *(validation.notes if validation else ()), *strange, *note))
    return training, validation, list(notes)


def hold_out(training: Dataset, path: str) -> tuple[Dataset, Dataset]:
    """Divide a split into nine tenths to train on and one to validate on."""
    if len(training) < 2:
        raise DataError(
            f"{path}: {len(training)} image is too few to train and validate; add more, or --val-split none"
        )
    held = held_out(training.names)
    return training.subset([i for i in range(len(training)) if i not in held]), training.subset(sorted(held))


def held_out(names: list[str]) -> set[int]:
    """Return the images to hold out: a tenth, chosen by a hash of the name, so that it stays the same tenth."""
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    return set(order[: max(1, round(len(names) * HELD_OUT))])


def choose_classes(
    training: Dataset, validation: Dataset | None, data: DataConfig
) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return both splits with the classes to learn, and a note about those that are left out on their own account.

    `data.merge` joins classes, then `data.classes` chooses some. A class without an object to learn from is left out:
    the model would carry outputs that mean nothing.

    Raises:
        ConfigError: a class that the data does not have.
    """
    names = _merged(training.class_names, data.merge)
    _known("data.classes", data.classes, names)
    wanted = data.classes or tuple(dict.fromkeys(names))
    learnt = {names[label] for label in np.unique(training.labels[~training.crowd])}
    kept = tuple(name for name in wanted if name in learnt)
    if not kept:
        return training, validation, []
    lost = [name for name in wanted if name not in learnt]
    if kept == training.class_names:
        return training, validation, []
    note = []
    if lost:
        shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
        there = np.isin(validation.labels, [i for i, name in enumerate(names) if name in lost]) if validation else []
        note = [
            f"left out, for they have no object in the training split: {shown}"
            + (f"; validation ignores their {n} objects" if (n := int(np.sum(there))) else "")
        ]
    return _with_classes(training, names, kept), validation and _with_classes(validation, names, kept), note


def _merged(names: Sequence[str], merge: Sequence[str]) -> list[str]:
    """Return the name that each class has after `data.merge`."""
    to: dict[str, str] = {}
    for rule in merge:
        new, _, old = rule.partition("=")
        parts = [part.strip() for part in old.split(",")]
        _known("data.merge", parts, names)
        to |= dict.fromkeys(parts, new.strip())
    return [to.get(name, name) for name in names]


def _known(setting: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            known = ", ".join(dict.fromkeys(names))
            raise ConfigError(f"{setting}: the data has no class {name!r}{did_you_mean(name, names)}; it has {known}")


def _with_classes(dataset: Dataset, names: Sequence[str], kept: tuple[str, ...]) -> Dataset:
    """Return a data set whose classes are `kept`, without the objects of others.

    Args:
        dataset: the data set.
        names: for each of its classes the name that it has now; several may have one name.
        kept: the classes to keep, in the model's order.
    """
    labels = np.array([kept.index(name) if name in kept else -1 for name in names])[dataset.labels]
    rows = labels >= 0
    starts = np.concatenate([[0], np.cumsum(rows)])[dataset.starts].astype(dataset.starts.dtype)
    return dataclasses.replace(
        dataset,
        class_names=kept,
        starts=starts,
        boxes_xyxy=dataset.boxes_xyxy[rows],
        labels=labels[rows].astype(dataset.labels.dtype),
        difficult=dataset.difficult[rows],
        crowd=dataset.crowd[rows],
    )
