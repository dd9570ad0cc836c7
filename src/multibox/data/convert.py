"""Writing a data set in any label format, whole or not at all, and converting one format into another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from multibox.data.choosing import choose_classes
from multibox.data.formats import (
    FORMATS,
    DataPaths,
    Format,
    Found,
    Joined,
    Writer,
    check_format,
    locate,
    open_dataset,
)
from multibox.data.formats.finder import fit_name
from multibox.data.formats.text import OnBad, fit_text, safe_name
from multibox.data.left_out import CROWD, counted, drop_boxes
from multibox.errors import ConfigError, DataError
from multibox.files import whole_folder
from multibox.structures import Dataset


@dataclass(frozen=True)
class Conversion:
    """What `convert` did."""

    source: Path
    destination: Path
    read_as: str
    """The format that was read."""
    written_as: str
    splits: dict[str, int]
    """Images in each split."""
    boxes: int
    """Boxes read, over all splits."""
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    """What was dropped on reading, and what the new format has no place for."""


def convert(
    source: DataPaths,
    destination: str | Path,
    to: str,
    *,
    format: str | None = None,
    on_bad: OnBad = "stop",
    classes: Sequence[str] = (),
    merge: Sequence[str] = (),
    link: bool = False,
) -> Conversion:
    """Write every split of a data set in another format.

    Coordinates are written as they were read, images byte for byte. Nothing is left behind when it fails.

    Args:
        source: the folder or file of a data set, or several that are joined by class name.
        destination: a folder that is not there yet, or is empty.
        to: a format of `FORMATS` that is written.
        format: the source's format; recognised when not given.
        on_bad: "stop" at the first broken file or box, or "skip" it and count it in the notes.
        classes: those to write, by name after merging; none writes all.
        merge: classes to join, such as `car=truck,bus`.
        link: make hard links to the images where possible, instead of copies.

    Raises:
        DataError: the source cannot be read or the destination is in use.
        ConfigError: for an unknown format or class.
    """
    writer_of(to)
    check_destination(destination, source)
    found = locate(source, format)
    splits, notes = read_splits(found, on_bad)
    splits = dict(zip(splits, choose_classes(list(splits.values()), classes, merge), strict=True))
    notes += _noted(splits)
    notes += write_dataset(splits, destination, to, link=link)
    return Conversion(
        source=found.path,
        destination=Path(destination),
        read_as=found.format,
        written_as=check_format(to),
        splits={name: len(dataset) for name, dataset in splits.items()},
        boxes=sum(len(dataset.labels) for dataset in splits.values()),
        class_names=tuple(dict.fromkeys(name for one in splits.values() for name in one.class_names)),
        notes=tuple(notes),
    )


def _noted(splits: Mapping[str, Dataset]) -> list[str]:
    """Return the notes of all splits: each once, after the splits that have it unless these are all of several."""
    having: dict[str, list[str]] = {}
    for name, dataset in splits.items():
        for note in dict.fromkeys(dataset.notes):
            having.setdefault(note, []).append(name)
    everywhere = max(len(splits), 2)
    return [note if len(names) == everywhere else f"{', '.join(names)}: {note}" for note, names in having.items()]


def read_splits(found: Found | Joined, on_bad: OnBad) -> tuple[dict[str, Dataset], list[str]]:
    """Return every split of a data set, and a note for each that is left out because it holds no images.

    Raises:
        DataError: a split cannot be read, or none holds images.
    """
    splits: dict[str, Dataset] = {}
    notes: list[str] = []
    empty: DataError | None = None
    for name in found.splits():
        try:
            splits[name] = open_dataset(found, name, on_bad=on_bad)
        except DataError as error:
            if error.kind != "empty-split":
                raise
            empty = empty or error
            notes.append(f"{error}; it is left out")
    if empty is not None and not splits:
        raise empty
    return splits, notes


def write_dataset(
    splits: Mapping[str, Dataset], destination: str | Path, format: str, *, link: bool = False
) -> list[str]:
    """Write splits as one data set; the folder appears when it is complete.

    Args:
        splits: name of each split to its labels; classes are joined by name where the splits differ.
        destination: a folder that is not there yet, or is empty.
        format: one of `FORMATS` that is written.
        link: make hard links to the images where possible, instead of copies.

    Returns:
        Sentences on what the format could not hold.

    Raises:
        ConfigError: for an unknown format.
        DataError: the destination is in use, there is nothing to write, or an image cannot be read.
    """
    write = writer_of(format)
    check_destination(destination)
    if not splits:
        raise DataError(f"nothing to write to {destination}: no splits were given; give at least one")
    splits, notes = _without_what_it_cannot_hold(with_same_classes(splits), FORMATS[check_format(format)])
    notes += _renamed(splits, destination)
    try:
        with whole_folder(destination) as folder:
            notes += write(splits, folder, link=link)
    except OSError as error:
        raise DataError(f"{destination} cannot be written ({error.strerror}); choose another place") from None
    return notes


def writer_of(format: str) -> Writer:
    """Return what writes a format.

    Raises:
        ConfigError: there is no such format, or it is only read.
    """
    write = FORMATS[check_format(format)].write
    if write is None:
        known = ", ".join(name for name, one in FORMATS.items() if one.write is not None)
        raise ConfigError(f"format {format!r} is read, not written; give one of {known}")
    return write


def check_destination(destination: str | Path, source: DataPaths = ()) -> None:
    """Refuse a destination that holds something, or that lies in a folder of the source, which would change it.

    Raises:
        DataError: it is a file, a folder that is not empty, or inside the source.
    """
    target = Path(destination)
    empty = target.is_dir() and not any(target.iterdir())
    if not empty and (target.exists() or target.is_symlink()):
        raise DataError(f"{destination} exists already; give a folder that is not there yet, or empty it")
    given = source if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    for path in (Path(one) for one in given if isinstance(one, str | Path)):
        if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
            raise DataError(f"{destination} lies in {path}, which is never changed; give a folder outside it")


def _renamed(splits: dict[str, Dataset], destination: str | Path) -> list[str]:
    """Give classes names that label files can hold, in place; return notes on those and on images that get others.

    Raises:
        DataError: two classes would get one name.
    """
    given = next(iter(splits.values())).class_names
    classes = tuple(map(fit_text, given))
    if len(set(classes)) < len(classes):
        raise DataError(f"two classes would have one name in {destination}; rename one of {', '.join(given)}")
    for name, dataset in splits.items():
        splits[name] = replace(dataset, class_names=classes)
    odd = [name for dataset in splits.values() for name in dataset.image_names if fit_name(name) != safe_name(name)]
    odder = [name for name, other in zip(given, classes, strict=True) if name != other]
    because = "renamed, as label files cannot hold the letters of the name"
    notes = [f"{counted(len(odd), 'image was', 'images were')} {because}"] if odd else []
    return [*notes, f"{counted(len(odder), 'class was', 'classes were')} {because}"] if odder else notes


def with_same_classes(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return splits that share one list of classes, joined by name in the order met."""
    names = tuple(dict.fromkeys(name for dataset in splits.values() for name in dataset.class_names))
    joined: dict[str, Dataset] = {}
    for split, dataset in splits.items():
        table = np.array([names.index(name) for name in dataset.class_names], dtype=np.int64)
        joined[split] = replace(dataset, class_names=names, labels=table[dataset.labels])
    return joined


def _without_what_it_cannot_hold(splits: Mapping[str, Dataset], format: Format) -> tuple[dict[str, Dataset], list[str]]:
    notes: list[str] = []
    difficult = sum(int(dataset.difficult.sum()) for dataset in splits.values())
    crowd = sum(int(dataset.crowd.sum()) for dataset in splits.values())
    held = dict(splits)
    if difficult and not format.holds_difficult:
        flags = counted(difficult, "difficult flag has", "difficult flags have")
        notes.append(f"{flags} no place in {format.title} and {'was' if difficult == 1 else 'were'} dropped")
    if crowd and not format.holds_crowd:
        # Without its flag a crowd would be trained as one object.
        boxes = counted(crowd, "crowd box has", "crowd boxes have")
        notes.append(f"{boxes} no place in {format.title} and {'was' if crowd == 1 else 'were'} left out")
        held = {split: drop_boxes(dataset, dataset.crowd, CROWD) for split, dataset in splits.items()}
    return held, notes
