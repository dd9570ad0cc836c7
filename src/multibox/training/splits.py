"""The images that a run learns from and is validated on, and the batches that it makes of them."""

import hashlib
from collections.abc import Generator, Sequence

import numpy as np

from multibox.config import Config, DataConfig
from multibox.data.augmentation import find_augmentation
from multibox.data.checking import check_images, with_classes
from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.data.left_out import counted
from multibox.data.loading import AugmentedImages, choose_workers, load_batches, use_processes
from multibox.data.pixels import as_colour
from multibox.data.sampling import EpochBatches, repeat_factors
from multibox.errors import ConfigError, DataError, did_you_mean
from multibox.structures import Dataset
from multibox.tensors import Batch
from multibox.training.optimizer import known_batch_size
from multibox.training.reporter import Reporter

HELD_OUT = 0.1
"""Share of the images that is validated on where the data has no validation split."""


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
        return check_images(open_dataset(path, split, format=format, on_bad=data.on_bad), data.on_bad)

    training = read(split_for(splits, "train") if data.train_split == "auto" else data.train_split)
    validation = None
    if data.val_split != "none":
        val_split = split_for(splits, "val") if data.val_split == "auto" else data.val_split
        if val_split is not None and val_split != training.split:
            validation = read(val_split)
        else:
            training, validation = hold_out(training, path)
    training, validation = choose_classes(training, validation, data)
    training, validation, untaught = match_classes(training, validation)
    if training.crowd.all():
        raise DataError(
            f"{path}: no image to train on (split {training.split}) has an object; there is nothing to learn"
        )
    notes = dict.fromkeys((*training.notes, *(validation.notes if validation else ()), *untaught))
    return training, validation, list(notes)


def hold_out(training: Dataset, path: str) -> tuple[Dataset, Dataset]:
    """Divide a split into nine tenths to train on and one to validate on."""
    if len(training) < 2:
        raise DataError(
            f"{path}: {len(training)} image is too few to train and validate; add more, or --val-split none"
        )
    held = held_out(training.image_names)
    return training.subset([i for i in range(len(training)) if i not in held]), training.subset(sorted(held))


def held_out(image_names: Sequence[str]) -> set[int]:
    """Return the images to hold out: a tenth, chosen by a hash of the name, so that it stays the same tenth."""
    order = sorted(range(len(image_names)), key=lambda i: hashlib.sha256(image_names[i].encode()).digest())
    return set(order[: max(1, round(len(order) * HELD_OUT))])


def choose_classes(training: Dataset, validation: Dataset | None, data: DataConfig) -> tuple[Dataset, Dataset | None]:
    """Return both splits with the classes that `data.merge` joins under new names and `data.classes` chooses.

    Raises:
        ConfigError: a class that neither split has.
    """
    if not data.merge and not data.classes:
        return training, validation
    names = list(dict.fromkeys((*training.class_names, *(validation.class_names if validation else ()))))
    joined: dict[str, str] = {}
    for rule in data.merge:
        new, _, old = rule.partition("=")
        parts = [part.strip() for part in old.split(",")]
        _check_known("data.merge", parts, names)
        joined |= dict.fromkeys(parts, new.strip())
    after = list(dict.fromkeys(joined.get(name, name) for name in names))
    _check_known("data.classes", data.classes, after)
    wanted = data.classes or after
    return with_classes(training, wanted, joined), validation and with_classes(validation, wanted, joined)


def _check_known(setting: str, wanted: Sequence[str], class_names: Sequence[str]) -> None:
    for name in wanted:
        if name not in class_names:
            raise ConfigError(
                f"{setting}: the data has no class {name!r}{did_you_mean(name, class_names)}; "
                f"it has {', '.join(class_names)}"
            )


def match_classes(training: Dataset, validation: Dataset | None) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return both splits with the classes that have an object to learn from, and a note that names the others.

    Nothing could predict the others' objects in validation, so these are left out as well. The splits may name their
    classes in any order.
    """
    objects, validated = _objects(training), {} if validation is None else _objects(validation)
    class_names = [name for name, count in objects.items() if count]
    lost = [name for name in objects | validated if not objects.get(name) and (name in objects or validated[name])]
    if not class_names:
        return training, validation, []
    notes: list[str] = []
    if lost:
        listed = [f"{name} ({count} in validation)" if (count := validated.get(name)) else name for name in lost]
        shown = ", ".join(listed[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        what, verb = counted(len(lost), "class has", "classes have"), "is" if len(lost) == 1 else "are"
        notes = [f"{what} no object in training ({training.split}) and {verb} left out: {shown}"]
    return with_classes(training, class_names), validation and with_classes(validation, class_names), notes


def _objects(dataset: Dataset) -> dict[str, int]:
    counts = np.bincount(dataset.labels[~dataset.crowd], minlength=len(dataset.class_names))
    return dict(zip(dataset.class_names, counts.tolist(), strict=True))


def order_images(training: Dataset, config: Config) -> EpochBatches:
    """Return which images each step sees; the caller sets how many steps there are."""
    train = config.train
    repeats = repeat_factors(training) if train.sampling == "balanced" else None
    return EpochBatches(len(training), known_batch_size(train), seed=train.seed, repeats=repeats)


def load_training(
    training: Dataset, config: Config, batches: EpochBatches, device: str, reporter: Reporter
) -> Generator[Batch]:
    """Yield `batches` of images, augmented and in memory from where `device` takes them."""
    train = config.train
    red, green, blue = (round(value) for value in config.model.mean)
    images = AugmentedImages(
        training,
        config.model.input_size,
        find_augmentation(train.augmentation),
        seed=train.seed,
        fill=(red, green, blue),
        background=as_colour(config.model.background),
    )
    workers = choose_workers(train.workers, device)
    processes = use_processes(workers, device)
    yield from load_batches(images, batches, workers, pin=device != "cpu", processes=processes, tell=reporter.note)
