"""The images that a run learns from and is validated on."""

import hashlib

from multibox.config import DataConfig
from multibox.data.checking import check_pictures
from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.errors import DataError
from multibox.structures import Dataset

HELD_OUT = 0.1


def open_splits(data: DataConfig) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return the training split, the validation split (or a part held out of training), and what to say about them.

    Raises:
        DataError: there is nothing to learn from, or too little to hold some out.
    """
    path = data.path[0]
    format = None if data.format == "auto" else data.format
    splits = find_splits(path, format)

    def read(split: str | None, names: tuple[str, ...] | None = None) -> Dataset:
        dataset = open_dataset(path, split, format=format, class_names=names, on_bad=data.on_bad)
        return check_pictures(dataset, data.on_bad)

    training = read(split_for(splits, "train") if data.train_split == "auto" else data.train_split)
    validation = None
    if data.val_split != "none":
        val_split = split_for(splits, "val") if data.val_split == "auto" else data.val_split
        if val_split is not None and val_split != training.split:
            validation = read(val_split, training.class_names)
        else:
            training, validation = hold_out(training, path)
    if training.crowd.all():
        raise DataError(
            f"{path}: no image to train on (split {training.split}) has an object; there is nothing to learn"
        )
    notes = dict.fromkeys((*training.notes, *(validation.notes if validation else ())))
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
