"""Places in shared memory through which worker processes hand over batches.

A pipe alone would be slow, and not safe: a worker that is killed while it sends leaves half a message there, and
whoever reads waits for the rest for ever. What goes through the pipe beside these places is so short that the system
writes it whole or not at all.
"""

import os
import pickle
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.data.store import map_file, open_shared, shared_file, shared_path
from multibox.structures import Size

ROOM = 1 << 20
"""Bytes for the labels of a batch, beside its pixels; a batch with more goes through the pipe."""


class Arrays(NamedTuple):
    """A batch as arrays; see `multibox.tensors.Batch` for the meaning."""

    images: NDArray[np.uint8]
    """[b, h, w, 3]"""
    gt_xyxy: NDArray[np.float32]
    """[b, g, 4]"""
    gt_labels: NDArray[np.int64]
    """[b, g]"""
    gt_rows: NDArray[np.int64]
    """[b, g]"""
    image_rows: NDArray[np.int64]
    """[b]"""
    image_names: list[str]
    sizes: list[Size]
    lost_boxes: int


class Handed(NamedTuple):
    """What a worker says about a batch that lies in a place."""

    shape: tuple[int, ...]
    """Of the images."""
    rest: int
    """Bytes of all else, after the images."""


class Places:
    """So many places of one size; a copy in another process opens the same ones, or has none if it cannot.

    Args:
        count: of places.
        size: bytes of the largest batch's pixels.

    Raises:
        OSError: there is no room for them.
    """

    def __init__(self, count: int, size: int) -> None:
        self.size = size + ROOM
        self._file = shared_file("multibox-batches", count * self.size)
        self._map = np.frombuffer(map_file(self._file), np.uint8)

    def __getstate__(self) -> tuple[int, str]:
        return self.size, shared_path(self._file)

    def __setstate__(self, state: tuple[int, str]) -> None:
        self.size, path = state
        try:
            self._file = open_shared(path)
        except OSError:
            self._file, self._map = -1, np.zeros(0, np.uint8)
        else:
            self._map = np.frombuffer(map_file(self._file), np.uint8)

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def put(self, place: int, batch: Arrays) -> Arrays | Handed:
        """Lay a batch into a place; return what to send, which is the batch itself if it does not fit."""
        rest = np.frombuffer(pickle.dumps(batch[1:]), np.uint8)
        here, pixels = self._bytes(place), batch.images.size
        if pixels + rest.size > here.size:
            return batch
        here[:pixels] = batch.images.reshape(-1)
        here[pixels : pixels + rest.size] = rest
        return Handed(batch.images.shape, rest.size)

    def take(self, place: int, sent: Handed) -> Arrays:
        """Return the batch that was laid into a place; its images are valid until the next one is put there."""
        here, pixels = self._bytes(place), int(np.prod(sent.shape))
        images = here[:pixels].reshape(sent.shape)
        return Arrays(images, *pickle.loads(here[pixels : pixels + sent.rest].tobytes()))

    def _bytes(self, place: int) -> NDArray[np.uint8]:
        return self._map[place * self.size : (place + 1) * self.size]
