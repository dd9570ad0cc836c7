"""One label format into another: all splits, images byte for byte, and a count of what could not come along."""

from dataclasses import dataclass
from pathlib import Path

from multibox.data.formats import find_splits, locate, open_dataset, write_dataset
from multibox.data.formats.text import OnBad
from multibox.data.formats.writing import check_destination


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
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    format: str | None = None,
    on_bad: OnBad = "stop",
    link: bool = False,
) -> Conversion:
    """Write every split of a data set in another format.

    Coordinates are written as they were read. Nothing is left behind when it fails.

    Args:
        source: the folder or file of a data set.
        destination: a folder that is not there yet, or is empty.
        to: voc, coco, yolo, csv or recordio.
        format: the source's format; recognised when not given.
        on_bad: "stop" at the first broken file or box, or "skip" it and count it in the notes.
        link: make hard links to the images where possible, instead of copies.

    Raises:
        DataError: when the source cannot be read or the destination is in use.
        ConfigError: for an unknown format.
    """
    check_destination(destination)
    found = locate(Path(source), format)
    names = find_splits(found.path, found.format)
    splits = {name: open_dataset(found.path, name, format=found.format, on_bad=on_bad) for name in names}
    notes = [f"{name}: {note}" for name, dataset in splits.items() for note in dataset.notes]
    notes += write_dataset(splits, destination, to, link=link)
    return Conversion(
        source=found.path,
        destination=Path(destination),
        read_as=found.format,
        written_as=to,
        splits={name: len(dataset) for name, dataset in splits.items()},
        boxes=sum(len(dataset.labels) for dataset in splits.values()),
        class_names=tuple(dict.fromkeys(name for one in splits.values() for name in one.class_names)),
        notes=tuple(notes),
    )
