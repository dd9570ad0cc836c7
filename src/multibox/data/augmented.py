"""Augmented images and their batches as numpy arrays, without PyTorch, so that worker processes start fast.

All random draws depend on the seed, the epoch, the index of the image and the index of its copy in the epoch, and on
nothing else. Which of these make a batch depends on the seed and the step (`EpochBatches`). So an item is the same
whichever thread or process makes it, and a resumed run repeats the interrupted one bit for bit.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from functools import partial
from multiprocessing import connection, parent_process
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.augmentation import Operation, plan, project, render
from multibox.data.images import load_image, size_of
from multibox.data.mixing import Mixing, Scene, mix, narrow
from multibox.data.pixels import WHITE, Colour
from multibox.data.sampling import Key
from multibox.structures import Dataset, Sample, Size

CACHE_BYTES = 2 << 30
"""Decoded images are kept up to this much memory in all; the rest is decoded again each time."""

Item = tuple[Scene, str, Size]
"""What an image shows, its name and the size of the original."""


class Arrays(NamedTuple):
    """A batch as arrays; see `multibox.tensors.Batch` for the meaning."""

    images: NDArray[np.uint8]
    """[b, h, w, 3]"""
    gt_xyxy: NDArray[np.float32]
    """[b, g, 4]"""
    gt_labels: NDArray[np.int64]
    """[b, g]"""
    image_names: list[str]
    sizes: list[Size]
    lost_boxes: int


class AugmentedImages:
    """Images of the network's size with their labels; an item is the same whichever thread or process makes it."""

    def __init__(
        self,
        dataset: Dataset,
        size: Size,
        operations: Sequence[Operation],
        *,
        seed: int = 0,
        fill: tuple[int, int, int] = (124, 116, 104),
        background: Colour = WHITE,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.dataset = dataset
        self.size = size
        self.operations = operations
        self.mixing = [operation for operation in operations if isinstance(operation, Mixing)]
        self.seed = seed
        self.fill = fill
        self.background = background
        self.cache: dict[int, NDArray[np.uint8]] = {}
        self.cache_left = cache_bytes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getstate__(self) -> dict[str, object]:
        # Decoded images stay behind: a worker process decodes its own share
        return {**self.__dict__, "cache": {}}

    def __getitem__(self, key: Key | tuple[int, ...]) -> Item:
        """Return what the augmented image shows, its name and the size of the original."""
        epoch, index, copy, mixed = key if isinstance(key, Key) else Key(key[0], key[1], key[2] if len(key) > 2 else 0)
        sample = self.dataset[index]
        image = self._image(index, sample)
        # The first copy has no third number, so that runs of older versions are repeated exactly
        rng = np.random.default_rng((self.seed, epoch, index, copy) if copy else (self.seed, epoch, index))
        own, other = partial(self._scene, sample, image, rng), partial(self._other, rng)
        scene = mix(self.mixing if mixed else (), own, other, self.size, rng)
        return scene, sample.name, size_of(image)

    def batch(self, keys: Sequence[tuple[int, ...]]) -> Arrays:
        """Return the items of `keys` as one batch."""
        return collate_items([self[key] for key in keys])

    def _other(self, rng: np.random.Generator, size: Size) -> Scene:
        index = int(rng.integers(len(self)))
        sample = self.dataset[index]
        return self._scene(sample, self._image(index, sample), rng, size)

    def _scene(self, sample: Sample, image: Image.Image, rng: np.random.Generator, size: Size) -> Scene:
        # A crowd is a region of many objects: no single box to learn
        keep = ~sample.crowd
        boxes, labels = sample.boxes_xyxy[keep], sample.labels[keep]
        view = plan(self.operations, size_of(image), boxes, rng)
        if size != self.size:
            narrow(view, size.width / self.size.width, size.height / self.size.height, rng)
        pixels = render(image, view, size, self.fill)
        kept = view.kept()
        return Scene(pixels, project(view, boxes[kept]), labels[kept], int((~kept).sum()))

    def _image(self, index: int, sample: Sample) -> Image.Image:
        if (cached := self.cache.get(index)) is not None:
            return Image.fromarray(cached)
        image = load_image(sample, self.background)
        pixels = np.asarray(image)
        if pixels.nbytes <= self.cache_left:
            self.cache_left -= pixels.nbytes
            self.cache[index] = pixels
        return image


def collate_items(items: Sequence[Item]) -> Arrays:
    """Stack images and pad their labels with -1 rows."""
    scenes, names, sizes = zip(*items, strict=True)
    rows = max(1, *(len(scene.labels) for scene in scenes))
    gt_xyxy = np.full((len(items), rows, 4), -1, np.float32)
    gt_labels = np.full((len(items), rows), -1, np.int64)
    for i, scene in enumerate(scenes):
        gt_xyxy[i, : len(scene.labels)] = scene.boxes_xyxy
        gt_labels[i, : len(scene.labels)] = scene.labels
    pixels, lost = np.stack([scene.pixels for scene in scenes]), sum(scene.lost for scene in scenes)
    return Arrays(pixels, gt_xyxy, gt_labels, list(names), list(sizes), lost)


_held: list[AugmentedImages] = []


def start_worker(images: AugmentedImages, cache_bytes: int) -> None:
    """Keep the images that this worker makes items of.

    Args:
        images: the worker's own copy.
        cache_bytes: this worker's share of the memory for decoded images.
    """
    # Ctrl-C ends the main process, which ends its workers; Windows cannot block the signal before the start
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    images.cache_left = cache_bytes
    _held[:] = [images]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def make_batch(keys: Sequence[tuple[int, ...]]) -> Arrays:
    """Return the batch of `keys`.

    Raises:
        ImageError: an image cannot be read.
    """
    return _held[0].batch(keys)


def _end_with_parent() -> None:
    """End this process when its parent is gone: the pool's pipe stays open, so nothing else would tell."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
