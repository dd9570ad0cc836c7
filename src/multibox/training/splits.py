"""The images that a run learns from and is validated on."""

import hashlib
from collections.abc import Sequence

import numpy as np

from multibox.config import DataConfig
from multibox.data.checking import check_images, match_classes, with_classes
from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.data.formats.text import counted
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
        return check_images(dataset, data.on_bad)

    training = read(split_for(splits, "train") if data.train_split == "auto" else data.train_split)
    validation = None
    if data.val_split != "none":
        val_split = split_for(splits, "val") if data.val_split == "auto" else data.val_split
        if val_split is not None and val_split != training.split:
            validation = read(val_split)
        else:
            training, validation = hold_out(training, path)
    training, validation = choose_classes(training, validation, data)
    training, validation, strange = match_classes(training, validation)
    training, validation, untaught = leave_out_untaught(training, validation)
    if training.crowd.all():
        raise DataError(
            f"{path}: no image to train on (split {training.split}) has an object; there is nothing to learn"
        )
    notes = dict.fromkeys((*training.notes, *(validation.notes if validation else ()), *strange, *untaught))
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


def choose_classes(training: Dataset, validation: Dataset | None, data: DataConfig) -> tuple[Dataset, Dataset | None]:
    """Return both splits with the classes that `data.merge` joins under new names and `data.classes` chooses.

    Raises:
        ConfigError: a class that neither split has.
    """
    if not data.merge and not data.classes:
        return training, validation
    names = dict.fromkeys((*training.class_names, *(validation.class_names if validation else ())))
    joined: dict[str, str] = {}
    for rule in data.merge:
        new, _, old = rule.partition("=")
        parts = [part.strip() for part in old.split(",")]
        _check_known("data.merge", parts, list(names))
        joined |= dict.fromkeys(parts, new.strip())
    after = list(dict.fromkeys(joined.get(name, name) for name in names))
    _check_known("data.classes", data.classes, after)
    wanted = data.classes or after
    return with_classes(training, wanted, joined), validation and with_classes(validation, wanted, joined)


def leave_out_untaught(training: Dataset, validation: Dataset | None) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return both splits without the classes that have no object to learn from, and a note that names them.

    A reader names the classes of all splits or of a list; the model would carry outputs that mean nothing.
    """
    taught = np.bincount(training.labels[~training.crowd], minlength=len(training.class_names)) > 0
    names = [name for name, known in zip(training.class_names, taught, strict=True) if known]
    lost = [name for name in training.class_names if name not in names]
    if not names or not lost:
        return training, validation, []
    shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    what = counted(len(lost), "class has", "classes have")
    note = f"{what} no object in training ({training.split}) and {'is' if len(lost) == 1 else 'are'} left out: {shown}"
    return with_classes(training, names), validation and with_classes(validation, names), [note]


def _check_known(setting: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            known = ", ".join(names)
            raise ConfigError(f"{setting}: the data has no class {name!r}{did_you_mean(name, names)}; it has {known}")
