"""What it takes one core to prepare an image: reading its file, decoding it, augmenting it."""

import time
from dataclasses import dataclass
from statistics import median

from multibox.data.augmented import AugmentedImages
from multibox.data.decoded import DecodedImages
from multibox.data.images import image_bytes
from multibox.data.sampling import Key
from multibox.data.store import Decoded
from multibox.structures import Dataset, Size

IMAGES = 32
"""Measured one after the other."""


@dataclass(frozen=True)
class ImageCost:
    """Seconds of one core per image, medians over some images."""

    read: float
    """Reading the file."""
    decode: float
    """From the file to pixels of at most twice the network's size, reading left out."""
    augment: float
    """From there to the network's input, with the images that are mixed into it."""
    bytes: float
    """Of the file."""
    size: Size
    """As shown, of the largest image."""


class _Remembered(DecodedImages):
    """Images that were decoded before."""

    def __init__(self, images: DecodedImages) -> None:
        super().__init__(images.dataset, images.size, exact=images.exact, background=images.background)
        self.known: dict[int, Decoded] = {}

    def __getitem__(self, index: int) -> Decoded:
        if index not in self.known:
            self.known[index] = super().__getitem__(index)
        return self.known[index]


def image_cost(images: AugmentedImages, keys: list[Key]) -> ImageCost:
    """Measure the preparation of the images of `keys`, without the store that training keeps.

    Args:
        images: as training makes them.
        keys: of some steps; the first `IMAGES` are measured.
    """
    dataset: Dataset = images.dataset
    fresh = DecodedImages(dataset, images.size, background=images.decoded.background)
    remembered = _Remembered(fresh)
    augmented = AugmentedImages(
        dataset, images.size, images.operations, seed=images.seed, fill=images.fill, decoded=remembered
    )
    reads: list[float] = []
    decodes: list[float] = []
    augments: list[float] = []
    sizes: list[int] = []
    largest = Size(0, 0)
    for key in keys[:IMAGES]:
        began = time.perf_counter()
        sizes.append(len(image_bytes(dataset[key.place])))
        read = time.perf_counter()
        # Decoding reads the file once more, most often from the system's cache
        image_bytes(dataset[key.place])
        again = time.perf_counter()
        image = fresh[key.place]
        decoded = time.perf_counter()
        # Once for the images that are mixed into this one, which have to be decoded, too
        augmented[key]
        ready = time.perf_counter()
        augmented[key]
        augments.append(time.perf_counter() - ready)
        reads.append(read - began)
        decodes.append(max(0.0, decoded - again - (again - read)))
        largest = max(largest, image.original, key=lambda size: size.height * size.width)
    return ImageCost(median(reads), median(decodes), median(augments), median(sizes), largest)
