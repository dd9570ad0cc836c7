"""From a `Dataset` to batches on the way to the device: decode, augment, collate, in worker processes."""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from multibox.data.augmentation import Operation, plan, project, render
from multibox.data.mixing import Mixing, Scene, mix, narrow
from multibox.data.samples import load_picture
from multibox.data.sampling import EpochBatches
from multibox.errors import PictureError
from multibox.structures import Dataset, Sample
from multibox.tensors import Batch

_ERROR = f"{PictureError.__module__}.{PictureError.__name__}"
CACHE_BYTES = 2 << 30
"""Decoded pictures are kept up to this much memory in all; the rest is decoded again each time."""

Item = tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64], str, tuple[int, int]]


class AugmentedPictures(TorchDataset[Item]):
    """Pictures of the network's size with their labels; item (epoch, index) is the same whoever asks for it."""

    def __init__(
        self,
        dataset: Dataset,
        size: tuple[int, int],
        operations: Sequence[Operation],
        *,
        seed: int = 0,
        fill: tuple[int, int, int] = (124, 116, 104),
        cache_bytes: int = CACHE_BYTES,
        mixing_epochs: float = math.inf,
    ) -> None:
        self.dataset = dataset
        self.size = size
        self.operations = operations
        self.mixing = [operation for operation in operations if isinstance(operation, Mixing)]
        # From this epoch on every picture stays by itself
        self.mixing_epochs = mixing_epochs
        self.seed = seed
        self.fill = fill
        self.cache: dict[int, NDArray[np.uint8]] = {}
        self.cache_left = cache_bytes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> Item:
        """Return pixels [h, w, 3], boxes [N, 4] as fractions, labels [N], name and (width, height) of the original."""
        # A picture that comes several times an epoch has a third number, so that each copy is another one
        epoch, index, *copy = key
        sample = self.dataset[index]
        picture = self._picture(index, sample)
        rng = np.random.default_rng((self.seed, epoch, index, *copy))
        own, other = partial(self._scene, sample, picture, rng), partial(self._other, rng)
        scene = mix(self.mixing if epoch < self.mixing_epochs else (), own, other, self.size, rng)
        return scene.pixels, scene.boxes_xyxy, scene.labels, sample.name, picture.size

    def _other(self, rng: np.random.Generator, size: tuple[int, int]) -> Scene:
        index = int(rng.integers(len(self)))
        sample = self.dataset[index]
        return self._scene(sample, self._picture(index, sample), rng, size)

    def _scene(self, sample: Sample, picture: Image.Image, rng: np.random.Generator, size: tuple[int, int]) -> Scene:
        # A crowd is a region of many objects: no single box to learn
        keep = ~sample.crowd
        boxes, labels = sample.boxes_xyxy[keep], sample.labels[keep]
        view = plan(self.operations, picture.size, boxes, rng)
        if size != self.size:
            narrow(view, size[1] / self.size[1], size[0] / self.size[0], rng)
        pixels = render(picture, view, size, self.fill)
        kept = view.kept()
        return Scene(pixels, project(view, boxes[kept]), labels[kept])

    def _picture(self, index: int, sample: Sample) -> Image.Image:
        if index in self.cache:
            return Image.fromarray(self.cache[index])
        picture = load_picture(sample)
        pixels = np.asarray(picture)
        if pixels.nbytes <= self.cache_left:
            self.cache[index] = pixels
            self.cache_left -= pixels.nbytes
        return picture


def collate(items: Sequence[Item]) -> Batch:
    """Stack pictures and pad their labels with -1 rows."""
    pixels, boxes, labels, names, sizes = zip(*items, strict=True)
    rows = max(1, *(len(each) for each in labels))
    gt_xyxy = torch.full((len(items), rows, 4), -1.0)
    gt_labels = torch.full((len(items), rows), -1, dtype=torch.int64)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        gt_xyxy[i, : len(label)] = torch.from_numpy(np.asarray(box, np.float32))
        gt_labels[i, : len(label)] = torch.from_numpy(label)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return Batch(images, gt_xyxy, gt_labels, list(names), list(sizes))


def load_batches(
    pictures: AugmentedPictures, batches: EpochBatches | Sequence[list[tuple[int, int]]], workers: int, *, pin: bool
) -> Iterator[Batch]:
    """Yield every batch of `batches`, in order, prepared by `workers` processes (0: by this one).

    Raises:
        PictureError: a picture that cannot be read, in its own words whichever process met it.
    """
    pictures.cache_left //= max(1, workers)
    loader = DataLoader(
        pictures,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType] - a list of keys is a batch
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from loader
    except PictureError as error:
        # A worker's error arrives wrapped in the text of its traceback, whose last line is the sentence
        raise PictureError(str(error).strip().splitlines()[-1].removeprefix(f"{_ERROR}: ")) from None


def choose_workers(asked: int | Literal["auto"]) -> int:
    """Return how many worker processes to use: this process's cores but one, 1 to 8, where "auto" is asked for."""
    if asked != "auto":
        return asked
    # A container or a cluster's job may have fewer cores than the machine; only Linux tells
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores - 1))


def in_order(pictures: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Return batches of (0, index) over all pictures, in order, the last one smaller."""
    return [[(0, i) for i in range(s, min(s + batch_size, pictures))] for s in range(0, pictures, batch_size)]


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C is the main process's business: it finishes the step and ends the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
