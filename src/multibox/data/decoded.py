"""Images of a split as training or validation wants them decoded, taken from a store where they are in one.

Training takes them at up to twice the network's size, so that augmentation has something to zoom into. Validation takes
them at exactly the network's size, resized from the whole image as prediction does it. Both are the same whether they
come from the store or not.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multibox.data.images import load_at_most, load_image, resize_image, sample_size, shrunk_size, size_of
from multibox.data.pixels import WHITE, Colour
from multibox.data.store import Decoded, ImageStore, Room, folder_store, image_key, memory_store
from multibox.errors import MultiboxError
from multibox.limits import available_memory, sharers
from multibox.structures import Dataset, Sample, Size

GENEROUS = 2
"""Largest size of training images, in lengths of the network's input: a window of half the image loses nothing."""
SHARE = 0.5
"""Of the free memory or disk that a store may take unless told otherwise."""
LEAST = 0.1
"""Share of the training images below which none is kept in memory unless a size is given: nearly all are decoded in
every epoch anyway, and the memory serves them better as file cache."""
MEASURED = 200
"""Images whose size tells how much memory all would take."""
UNKNOWN = 2 << 30
"""Bytes of a store in memory where the system does not tell how much is free."""


class DecodedImages:
    """The images of a data set by index, decoded for a network's size.

    Args:
        dataset: the images.
        size: of the network's input.
        exact: whether images have exactly that size, as validation wants them.
        background: colour behind transparent pixels.
        store: where they are looked for and kept; None decodes each time.
        first: row of the first image in the store.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: Size,
        *,
        exact: bool = False,
        background: Colour = WHITE,
        store: ImageStore | None = None,
        first: int = 0,
    ) -> None:
        self.dataset = dataset
        self.size = Size(*size)
        self.exact = exact
        self.background = background
        self.store = store
        self.first = first

    def __getitem__(self, index: int) -> Decoded:
        """Return image `index`.

        Raises:
            ImageError: it cannot be read.
        """
        if self.store is None:
            return self._decode(self.dataset[index])
        found = self.store.get(self.first + index)
        if found is None:
            found = self._decode(self.dataset[index])
            self.store.put(self.first + index, found)
        return found

    def kept(self, index: int) -> bool:
        """Return whether image `index` lies in the store, so that its file is not read."""
        return self.store is not None and self.store.holds(self.first + index)

    def rooms(self, *, with_keys: bool) -> Iterator[Room]:
        """Yield what each image needs in a store, and with keys if the store outlives the run."""
        height, width = self.size
        kind = f"{height} {width} {'exact' if self.exact else GENEROUS} {self.background}"
        for sample in self.dataset:
            need = self._need(sample)
            yield Room(need, image_key(sample, kind)) if with_keys else Room(need)

    def estimate(self) -> float:
        """Return the bytes that all images take, from the size of `MEASURED` of them."""
        count = len(self.dataset)
        rows = np.unique(np.linspace(0, count - 1, min(MEASURED, count)).astype(np.int64)).tolist()
        return count / max(1, len(rows)) * sum(self._need(self.dataset[row]) for row in rows)

    def _need(self, sample: Sample) -> int:
        height, width = self.size
        most = 3 * height * width * (1 if self.exact else GENEROUS**2)
        return most if self.exact else min(most, _bytes_of(sample, self.pixels))

    @property
    def pixels(self) -> int:
        """Most pixels of a training image."""
        return GENEROUS**2 * self.size.height * self.size.width

    def _decode(self, sample: Sample) -> Decoded:
        if self.exact:
            image = load_image(sample, self.background)
            return Decoded(np.array(resize_image(image, self.size)), size_of(image))
        image, original = load_at_most(sample, self.pixels, self.background)
        return Decoded(np.array(image), original)


def _bytes_of(sample: Sample, pixels: int) -> int:
    """Return the bytes of a training image; a header that cannot be read counts as a large image."""
    try:
        size = shrunk_size(sample_size(sample), pixels)
    except MultiboxError:
        return 3 * pixels
    return 3 * size.height * size.width


class DecodedSplits(NamedTuple):
    """The images of a run."""

    training: DecodedImages
    validation: DecodedImages | None

    def close(self) -> None:
        """Give the store's memory back; images are decoded each time from now on."""
        if self.training.store is not None:
            self.training.store.close()


def decode_once(
    training: Dataset,
    validation: Dataset | None,
    size: Size,
    *,
    background: Colour = WHITE,
    most_gb: float | None = None,
    folder: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> DecodedSplits:
    """Return the images of both splits, which share a store.

    Args:
        training: images to learn from.
        validation: images to validate on.
        size: of the network's input.
        background: colour behind transparent pixels.
        most_gb: largest size of the store in GB (10**9 bytes); None is half of the free memory, or of the free disk.
        folder: where the store lies, for later runs; None keeps it in memory.
        tell: receives a sentence if not all images have room, or the folder cannot be used.
    """
    size = Size(*size)
    splits = [DecodedImages(training, size, background=background)]
    if validation is not None:
        # First, so that it has room
        splits.insert(0, DecodedImages(validation, size, exact=True, background=background))
    store, kept = None, splits
    if most_gb != 0:
        store = _in_folder(splits, folder, most_gb, tell) if folder is not None else None
        if store is None:
            kept = _worth_keeping(splits, most_gb, tell)
            store = _in_memory(kept, most_gb) if kept else None
    if store is not None and store.rooms < len(store):
        place = "memory" if folder is None else f"{folder}"
        tell(
            f"{store.rooms} of {len(store)} images fit decoded into {place} (data.cache_gb); the others are decoded "
            "in every epoch"
        )
    first = 0
    for split in kept:
        split.store, split.first = store, first
        first += len(split.dataset)
    return DecodedSplits(splits[-1], splits[0] if validation is not None else None)


def _worth_keeping(
    splits: list[DecodedImages], most_gb: float | None, tell: Callable[[str], None]
) -> list[DecodedImages]:
    """Return all splits, but without training where hardly any of its images would fit into memory."""
    most, wanted = _most(most_gb), 0.0 if most_gb is not None else splits[-1].estimate()
    if most >= LEAST * wanted:
        return splits
    tell(
        f"training images are decoded in every epoch: decoded they would take {wanted / 1e9:,.0f} GB, and of the free "
        f"memory {most / 1e9:,.1f} GB would be used; data.cache_gb sets how much, data.cache_dir keeps them on a disk"
    )
    return splits[:-1]


def _most(most_gb: float | None) -> int:
    """Return the bytes that a store in memory may take."""
    free = available_memory()
    return int(most_gb * 1e9) if most_gb is not None else UNKNOWN if free is None else int(SHARE * free) // sharers()


def _in_memory(splits: list[DecodedImages], most_gb: float | None) -> ImageStore | None:
    most = _most(most_gb)
    try:
        return memory_store(_rooms(splits, most, with_keys=False), most)
    except OSError:
        return None


def _in_folder(
    splits: list[DecodedImages], folder: Path, most_gb: float | None, tell: Callable[[str], None]
) -> ImageStore | None:
    height, width = splits[0].size
    roots = sorted({str(split.dataset.root.absolute()) for split in splits})
    digest = hashlib.sha256("\0".join((*roots, str(height), str(width))).encode("utf-8", "surrogatepass")).hexdigest()
    name = f"images-{digest[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_size for path in folder.glob(f"{name}.pixels"))
        most = int(most_gb * 1e9) if most_gb is not None else present + int(SHARE * shutil.disk_usage(folder).free)
        return folder_store(folder, name, _rooms(splits, most, with_keys=True), most)
    except BlockingIOError:
        tell(f"another run keeps its decoded images in {folder}; this one keeps them in memory")
    except OSError as error:
        tell(f"{folder} cannot hold decoded images ({error.strerror}); they are kept in memory")
    return None


def _rooms(splits: list[DecodedImages], most: int, *, with_keys: bool) -> list[Room]:
    """Return the needs of all images, but 0 once `most` is reached, so that not every header is read."""
    rooms: list[Room] = []
    for split in splits:
        for room in split.rooms(with_keys=with_keys):
            rooms.append(room)
            most -= room.size
            if most < 0:
                break
    return rooms + [Room(0)] * (sum(len(split.dataset) for split in splits) - len(rooms))
