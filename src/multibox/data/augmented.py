"""Augmented images and their batches as numpy arrays.

All random draws depend on the seed, the epoch, the index of the image and the index of its copy in the epoch, and on
nothing else. Which of these make a batch depends on the seed and the step (`EpochBatches`). So an item is the same
whichever thread or process makes it, and a resumed run repeats the interrupted one bit for bit.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from multiprocessing import connection, parent_process

import numpy as np
import torch

from multibox.data.augmentation import Operation, plan
from multibox.data.decoded import DecodedImages
from multibox.data.handover import Arrays, Handed, Places
from multibox.data.mixing import Mixing, Scene, mix, narrow
from multibox.data.rendering import project, render, snap
from multibox.data.sampling import Key
from multibox.data.store import Decoded
from multibox.limits import keep_freed_memory
from multibox.structures import Dataset, Size

Item = tuple[Scene, str, Size]
"""What an image shows, its name and the size of the original."""


class AugmentedImages:
    """Images of the network's size with their labels; an item is the same whichever thread or process makes it.

    Args:
        dataset: the images and their labels.
        size: of what is returned.
        operations: the recipe.
        seed: of all draws.
        fill: colour beyond the images.
        decoded: the same images decoded, through a store; None decodes each time.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: Size,
        operations: Sequence[Operation],
        *,
        seed: int = 0,
        fill: tuple[int, int, int] = (124, 116, 104),
        decoded: DecodedImages | None = None,
    ) -> None:
        self.dataset = dataset
        self.size = Size(*size)
        self.operations = operations
        self.mixing = [operation for operation in operations if isinstance(operation, Mixing)]
        self.seed = seed
        self.fill = fill
        self.decoded = decoded or DecodedImages(dataset, self.size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key | tuple[int, ...]) -> Item:
        """Return what the augmented image shows, its name and the size of the original."""
        key = key if isinstance(key, Key) else Key(key[0], key[1], key[2] if len(key) > 2 else 0)
        epoch, index, copy, mixed, partners = key
        image = self.decoded[index]
        # The first copy has no third number, so that runs of older versions are repeated exactly
        rng = np.random.default_rng((self.seed, epoch, index, copy) if copy else (self.seed, epoch, index))
        own, other = partial(self._scene, index, image, rng), partial(self._other, rng, partners)
        scene = mix(self.mixing if mixed else (), own, other, self.size, rng)
        return scene, self.dataset.image_names[index], image.original

    def batch(self, keys: Sequence[Key | tuple[int, ...]], pool: Executor | None = None, threads: int = 1) -> Arrays:
        """Return the items of `keys` as one batch, made by so many threads of `pool`, each by one task."""
        places = [key[1] for key in keys]
        if pool is None:
            return collate_items(self._items(keys), places)
        shares = list(pool.map(self._items, [keys[i::threads] for i in range(threads)]))
        return collate_items([shares[i % threads][i // threads] for i in range(len(keys))], places)

    def _items(self, keys: Sequence[Key | tuple[int, ...]]) -> list[Item]:
        return [self[key] for key in keys]

    def _other(self, rng: np.random.Generator, partners: tuple[int, ...], size: Size) -> Scene:
        index = int(rng.integers(len(partners) or len(self)))
        index = partners[index] if partners else index
        return self._scene(index, self.decoded[index], rng, size)

    def _scene(self, index: int, image: Decoded, rng: np.random.Generator, size: Size) -> Scene:
        # The columns themselves: a sample with its path would take longer than the image's flip
        data = self.dataset
        first, end = int(data.starts[index]), int(data.starts[index + 1])
        # A crowd is a region of many objects: no single box to learn
        rows = np.flatnonzero(~data.crowd[first:end]) + first
        boxes, labels = data.boxes_xyxy[rows], data.labels[rows]
        view = plan(self.operations, image.original, boxes, rng)
        if size != self.size:
            narrow(view, size.width / self.size.width, size.height / self.size.height, rng)
        snap(view, Size(*image.pixels.shape[:2]))
        pixels = render(image.pixels, view, size, self.fill)
        kept = view.kept()
        return Scene(pixels, project(view, boxes[kept]), labels[kept], rows[kept], int((~kept).sum()))


def collate_items(items: Sequence[Item], places: Sequence[int]) -> Arrays:
    """Stack images and pad their labels with -1 rows; `places` are the images' own in their data set."""
    scenes, names, sizes = zip(*items, strict=True)
    rows = max(1, *(len(scene.labels) for scene in scenes))
    gt_xyxy = np.full((len(items), rows, 4), -1, np.float32)
    gt_labels, gt_rows = (np.full((len(items), rows), -1, np.int64) for _ in range(2))
    for i, scene in enumerate(scenes):
        gt_xyxy[i, : len(scene.labels)] = scene.boxes_xyxy
        gt_labels[i, : len(scene.labels)] = scene.labels
        gt_rows[i, : len(scene.labels)] = scene.rows
    pixels, lost = np.stack([scene.pixels for scene in scenes]), sum(scene.lost for scene in scenes)
    image_rows = np.array(places, np.int64)
    return Arrays(pixels, gt_xyxy, gt_labels, gt_rows, image_rows, list(names), list(sizes), lost)


_held: list[tuple[AugmentedImages, Places | None]] = []


def start_worker(images: AugmentedImages, places: Places | None) -> None:
    """Keep the images that this worker makes items of, its own copy on the common store, and where batches go."""
    # Ctrl-C ends the main process, which ends its workers; Windows cannot block the signal before the start
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As in the threads of `loading`; and the memory of a batch stays for the next one
    torch.set_num_threads(1)
    keep_freed_memory(always=True)
    _held[:] = [(images, places)]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def make_batch(keys: Sequence[Key | tuple[int, ...]], place: int) -> Arrays | Handed:
    """Return the batch of `keys`, or what says that it lies in a place.

    Raises:
        ImageError: an image cannot be read.
    """
    images, places = _held[0]
    batch = images.batch(keys)
    return batch if places is None else places.put(place, batch)


def _end_with_parent() -> None:
    """End this process when its parent is gone: the pool's pipe stays open, so nothing else would tell."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
