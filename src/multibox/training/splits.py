"""The images that a run learns from and is validated on, and the batches that it makes of them."""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from multibox.config import Config, DataConfig
from multibox.data.augmentation import find_augmentation
from multibox.data.checking import Counting, open_checked, silence, with_classes
from multibox.data.choosing import choose_classes
from multibox.data.decoded import SHARE, DecodedImages
from multibox.data.formats import Layout, find_layout, split_for
from multibox.data.formats.joining import join, set_labels
from multibox.data.left_out import counted
from multibox.data.loading import (
    AugmentedImages,
    Reach,
    choose_workers,
    load_batches,
    prepares_between,
    use_processes,
)
from multibox.data.pixels import as_colour
from multibox.data.read_ahead import ReadAhead
from multibox.data.sampling import EpochBatches, repeat_factors
from multibox.data.shards import find_runs, shard_bytes
from multibox.data.similar import Hashes, remembered_hashes, scene_groups
from multibox.errors import DataError
from multibox.limits import available_memory
from multibox.structures import Dataset, Labels, Size
from multibox.tensors import Batch
from multibox.training.optimizer import known_batch_size
from multibox.training.reporter import Reporter

HELD_OUT = 0.1
"""Share of the images that is validated on where the data has no validation split."""
MOST_COMPARED = 100_000
"""Images among which scenes are looked for before a run; of more it would take minutes."""


def open_splits(
    data: DataConfig, cache: Path | None = None, counting: Counting = silence
) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return the training split, the validation split (or a part held out of training), and what to say about them.

    Several data sets are joined by class name. Each gives its training split to training; to validation it gives what
    it would alone, its validation split or a part held out.

    Args:
        data: which data, and how it is read.
        cache: folder of cache files; None for none.
        counting: tells how far the check of the images is.

    Raises:
        ConfigError: `data.classes` or `data.merge` name a class that the data does not have.
        DataError: there is nothing to learn from, or too little to hold some out.
    """
    format = None if data.format == "auto" else data.format
    paths = list(dict.fromkeys(data.path))
    sets = [find_layout(path, format, cache) for path in paths]
    opened = [_open_one(path, found, data, cache, counting) for path, found in zip(paths, sets, strict=True)]
    training, validation = opened[0]
    if len(opened) > 1:
        labels = set_labels(found.path for found in sets)
        training = join([one for one, _ in opened], labels, training.split)
        held = [(held, label) for (_, held), label in zip(opened, labels, strict=True) if held is not None]
        validation = join([one for one, _ in held], [label for _, label in held], held[0][0].split) if held else None
    training, validation = _choose_classes(training, validation, data)
    training, validation, untaught = match_classes(training, validation)
    if training.crowd.all():
        raise DataError(
            f"{', '.join(data.path)}: no image to train on (split {training.split}) has an object; there is nothing to "
            "learn"
        )
    notes = dict.fromkeys((*training.notes, *(validation.notes if validation else ()), *untaught))
    return training, validation, list(notes)


def _open_one(
    path: str, found: Layout, data: DataConfig, cache: Path | None, counting: Counting
) -> tuple[Dataset, Dataset | None]:
    """Return the training split of one data set, and its validation split or a part held out."""
    format = None if data.format == "auto" else data.format
    splits = found.splits

    def read(split: str | None) -> Dataset:
        return open_checked(path, split, format=format, on_bad=data.on_bad, cache=cache, counting=counting)

    training = read(split_for(splits, "train") if data.train_split == "auto" else data.train_split)
    if data.val_split == "none":
        return training, None
    val_split = split_for(splits, "val") if data.val_split == "auto" else data.val_split
    if val_split is not None and val_split != training.split:
        return training, read(val_split)
    few = len(training) <= MOST_COMPARED
    return hold_out(training, found.path, remembered_hashes(training, cache, counting) if few else None)


def hold_out(training: Dataset, path: Path, hashes: Hashes | None) -> tuple[Dataset, Dataset]:
    """Divide a split into nine tenths to train on and one to validate on; images of one scene stay together.

    Args:
        training: the split.
        path: the data set, for messages.
        hashes: of its images, from `image_hashes`; None divides them by name alone, as more than `MOST_COMPARED` are.

    Raises:
        DataError: it has fewer than two images.
    """
    count = len(training)
    if count < 2:
        raise DataError(f"{path}: {count} image is too few to train and validate; add more, or --val-split none")
    groups = np.arange(count) if hashes is None else scene_groups(list(training.image_names), hashes)
    held = held_out(training.image_names, groups)
    scenes = int((np.bincount(groups) > 1).sum())
    together = "images of one scene were kept together" if held else "all look like one scene, which was divided"
    if hashes is None:
        together = f"scenes were not looked for among more than {MOST_COMPARED:,} images"
    elif not scenes:
        together = "no two look like one scene"
    held = held or held_out(training.image_names, np.arange(count))
    note = f"{path}: {len(held)} of {count} images ({training.split}) are held out for validation; {together}"
    validation = training.subset(sorted(held))
    training = replace(training, notes=(*training.notes, note))
    return training.subset(i for i in range(count) if i not in held), validation


def held_out(image_names: Sequence[str], groups: Labels) -> set[int]:
    """Return the images to hold out: about a tenth, chosen by a hash of the name, so that it stays the same tenth.

    Args:
        image_names: of N images.
        groups: [N]; the number of each image's group, all of which is held out or nothing.

    Returns:
        Indices, at most half a tenth more than a tenth unless the smallest group is larger; none for a single group.
    """
    order = sorted(range(len(image_names)), key=lambda i: hashlib.sha256(image_names[i].encode()).digest())
    wanted = max(1, round(len(order) * HELD_OUT))
    sizes = np.bincount(groups)
    by_name = list(dict.fromkeys(groups[order].tolist()))
    if len(by_name) == 1:
        return set()
    chosen: set[int] = set()
    count = 0
    for group in by_name:
        if count < wanted and count + sizes[group] <= 1.5 * wanted:
            chosen.add(group)
            count += int(sizes[group])
    chosen = chosen or {min(by_name, key=lambda group: int(sizes[group]))}
    return set(np.flatnonzero(np.isin(groups, list(chosen))).tolist())


def _choose_classes(training: Dataset, validation: Dataset | None, data: DataConfig) -> tuple[Dataset, Dataset | None]:
    chosen = choose_classes([training] if validation is None else [training, validation], data.classes, data.merge)
    return chosen[0], chosen[1] if validation is not None else None


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


def choose_sampling(training: Dataset, config: Config, tell: Callable[[str], None]) -> Config:
    """Replace `train.sampling` of auto by shards, and tell it, where the file cache cannot hold the images' files.

    What it holds is read once, whatever the order; of the rest each image would be a request to the disk per epoch.
    """
    if config.train.sampling != "auto":
        return config
    free, size = available_memory(), shard_bytes(training)
    if free is None or size <= SHARE * free:
        return config.updated({"train.sampling": "uniform"})
    tell(
        f"images are read along their files, which take {size / 1e9:.1f} GB, more than half of the free memory "
        "(train.sampling=shards)"
    )
    return config.updated({"train.sampling": "shards"})


def order_images(training: Dataset, config: Config) -> EpochBatches:
    """Return which images each step sees; the caller sets how many steps there are.

    Raises:
        ConfigError: `train.sampling` is shards, but images are files of their own.
    """
    train = config.train
    repeats = repeat_factors(training) if train.sampling == "balanced" else None
    runs = find_runs(training) if train.sampling == "shards" else None
    return EpochBatches(len(training), known_batch_size(train), seed=train.seed, repeats=repeats, runs=runs)


def load_training(
    training: Dataset,
    config: Config,
    batches: EpochBatches,
    device: str,
    reporter: Reporter,
    decoded: DecodedImages | None = None,
) -> Generator[Batch]:
    """Yield `batches` of images, augmented and in memory from where `device` takes them; `decoded` keeps them."""
    train, images = config.train, augmented_for(training, config, decoded)
    workers = choose_workers(train.workers, device)
    processes = use_processes(workers, device)
    between = prepares_between(train.workers, device)
    with _reading_ahead(batches, images.decoded) as reach:
        yield from load_batches(
            images,
            batches,
            workers,
            pin=device != "cpu",
            processes=processes,
            between=between,
            tell=reporter.note,
            reach=reach,
        )


@contextlib.contextmanager
def _reading_ahead(batches: EpochBatches, decoded: DecodedImages) -> Generator[Reach]:
    """Give what `load_batches` calls before a step: reading ahead, where images are read along their files."""
    if batches.runs is None:
        yield lambda step: None
        return
    with contextlib.closing(ReadAhead(batches.runs, batches.batch, decoded.kept)) as ahead:
        yield ahead.reach


def augmented_for(training: Dataset, config: Config, decoded: DecodedImages | None = None) -> AugmentedImages:
    """Return the training images as a step sees them; without `decoded` each is decoded when it is asked for."""
    red, green, blue = (round(value) for value in config.model.mean)
    return AugmentedImages(
        training,
        Size(*config.model.input_size),
        find_augmentation(config.train.augmentation),
        seed=config.train.seed,
        fill=(red, green, blue),
        decoded=decoded or decoded_for(training, config),
    )


def decoded_for(training: Dataset, config: Config) -> DecodedImages:
    """Return the training images without a store: each is decoded when it is asked for."""
    size = Size(*config.model.input_size)
    return DecodedImages(training, size, background=as_colour(config.model.background))
