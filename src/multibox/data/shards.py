"""Runs of images that lie behind each other in large files (tar, RecordIO), and an order that reads them that way.

A random order asks a disk or a network file system for small pieces in random places, which takes many times as long
as reading the same bytes front to back. So runs of some MB are shuffled, not images, and each run is read in one go.

The order of an epoch is a function of the seed and the epoch. It has as many lanes as a batch has images. Each lane is
a stretch of the shuffled runs, read front to back through a shuffle buffer; a batch takes one image of each lane. So
the images of a batch come from as many different runs, a process that takes a part of each batch reads its own lanes
only, and a resumed run needs no position but its step.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.columns import Integers, Texts, ragged
from multibox.errors import ConfigError
from multibox.structures import Dataset

RUN_BYTES = 4 << 20
"""Bytes of a run. A disk that seeks for 10 ms and reads 200 MB/s spends two thirds of its time reading at this size."""
BUFFER = 128
"""Images of a lane that its shuffle buffer holds."""


class Runs(NamedTuple):
    """Images of a data set grouped by where they lie: R runs of files, each read in one go."""

    images: Integers
    """[images]; indices of the images in the order in which they lie in their files."""
    starts: Integers
    """[R + 1]; run r owns the places starts[r] .. starts[r + 1] of `images`."""
    paths: Texts
    """Of the files."""
    files: NDArray[np.int32]
    """[R]; each run's file, a place in `paths`."""
    first: Integers
    """[R]; byte at which the run's first image begins."""
    end: Integers
    """[R]; byte behind its last image."""
    of_image: NDArray[np.int32]
    """[images]; the run of each image, by the image's index."""


def find_runs(dataset: Dataset, run_bytes: int = RUN_BYTES) -> Runs:
    """Group the images of a data set by where they lie.

    Images belong to one run if they begin in the same `run_bytes` of the same file.

    Raises:
        ConfigError: an image is a file of its own.
    """
    offsets = dataset.offsets.array
    alone = np.flatnonzero(offsets < 0)
    if len(alone):
        raise ConfigError(
            "train.sampling is shards, which reads images from tar or RecordIO files front to back, but "
            f"{dataset.paths[int(alone[0])]} is a file of its own; leave the setting away, or put the images into one "
            "file: multibox data convert DATA OUT --to recordio"
        )
    file_of_image, paths = _files(dataset)
    order = np.lexsort((offsets, file_of_image))
    files, begins = file_of_image[order], offsets[order]
    ends = _ends(dataset, order, files, begins)
    block = begins // run_bytes
    new = np.ones(len(order), np.bool_)
    new[1:] = (files[1:] != files[:-1]) | (block[1:] != block[:-1])
    starts = np.append(np.flatnonzero(new), len(order)).astype(np.int64)
    of_image = np.empty(len(order), np.int32)
    of_image[order] = np.cumsum(new) - 1
    run_end = np.maximum.reduceat(ends, starts[:-1]) if len(order) else ends
    return Runs(order, starts, paths, files[starts[:-1]], begins[starts[:-1]], run_end, of_image)


def shard_bytes(dataset: Dataset) -> int:
    """Return the bytes of the files that hold the images; 0 if an image is a file of its own."""
    if not len(dataset) or (dataset.offsets.array < 0).any():
        return 0
    with contextlib.suppress(OSError):
        return sum(Path(path).stat().st_size for path in _files(dataset)[1])
    return 0


def shard_order(runs: Runs, batch_size: int, seed: int, epoch: int) -> Integers:
    """Return the images of an epoch, one batch behind the other: place k of each batch is lane k.

    Args:
        runs: of the data set.
        batch_size: images per batch, at most all images.
        seed: of the order.
        epoch: counted from 0.

    Returns:
        [batch_size * (images // batch_size)]; indices of images, each at most once. Which ones are left out changes
        from epoch to epoch.
    """
    rng = np.random.default_rng((seed, epoch))
    shuffled = rng.permutation(len(runs.files))
    sequence = runs.images[ragged(runs.starts, shuffled)[1]]
    # Without it a data set of one run would leave out the same last images in every epoch
    sequence = np.roll(sequence, int(rng.integers(len(sequence))))
    steps = len(sequence) // batch_size
    lanes = sequence[: steps * batch_size].reshape(batch_size, steps)
    # Sorted by place plus a random part of the buffer's length, an image moves by less than the buffer
    due = np.arange(steps) + BUFFER * rng.random((batch_size, steps))
    return np.take_along_axis(lanes, due.argsort(axis=1), axis=1).T.ravel()


def _files(dataset: Dataset) -> tuple[NDArray[np.int32], Texts]:
    """Return the file of each image, [images], and the files' paths."""
    places: dict[str, int] = {}
    of_image = np.fromiter((places.setdefault(path, len(places)) for path in dataset.paths.texts()), np.int32)
    return of_image, Texts.of(places)


def _ends(dataset: Dataset, order: Integers, files: NDArray[np.int32], begins: Integers) -> Integers:
    """Return the byte behind each image, in `order`: by its length, else where the next one begins."""
    following = np.append(begins[1:], -1)
    following[np.flatnonzero(files[1:] != files[:-1])] = -1
    # Behind the last one of a file nothing tells; reading stops at the end of the file anyway
    following = np.where(following < 0, begins + RUN_BYTES, following)
    if not len(dataset.lengths):
        return following
    lengths = dataset.lengths.array[order]
    return np.where(lengths < 0, following, begins + lengths)
