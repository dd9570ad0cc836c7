"""Pictures to verify and to calibrate on: of a data set, or of a folder without labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.data.pictures import list_pictures, read_picture
from multibox.data.samples import load_picture
from multibox.errors import DataError
from multibox.structures import Dataset, Sample


def spread_pictures(data: Path, split: str | None, most: int) -> Iterator[Image.Image]:
    """Return up to `most` pictures of a split or folder, evenly spread over it, each decoded when its turn comes.

    Raises:
        DataError: there are none, or several splits and none was named.
    """
    found = _find(data, split)
    entries = (found[index] for index in range(0, len(found), -(-len(found) // most)))
    return (load_picture(entry) if isinstance(entry, Sample) else read_picture(entry) for entry in entries)


def labelled(data: Path, split: str | None, names: tuple[str, ...]) -> Dataset | None:
    """Return a split with its classes in the detector's order, or None for pictures without labels."""
    return open_dataset(data, split, class_names=names) if _is_dataset(data) else None


def training_split(data: Path) -> str | None:
    """Return the split to train on where a data set has one of that name."""
    return split_for(find_splits(data), "train") if _is_dataset(data) else None


def _find(data: Path, split: str | None) -> Dataset | Sequence[Path]:
    return open_dataset(data, split) if _is_dataset(data) else list_pictures(data)


def _is_dataset(data: Path) -> bool:
    try:
        find_splits(data)
    except DataError:
        # A folder of pictures will do; anything else is worth the data set's own sentence
        if data.is_dir() and any(_pictures_in(data)):
            return False
        raise
    return True


def _pictures_in(folder: Path) -> Sequence[Path]:
    try:
        return list_pictures(folder)
    except DataError:
        return ()
