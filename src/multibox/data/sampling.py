"""The order of the images of a whole run: uniform, with more of rare classes, or along the files that hold them."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.data.shards import Runs, shard_order
from multibox.structures import Dataset

PARTNERS = 8
"""Images that may be mixed into one where images are read along their files."""
Repeats = NDArray[np.float64]


class Key(NamedTuple):
    """What determines an augmented image, besides the seed; plain tuples (epoch, place) are keys as well."""

    epoch: int
    place: int
    """Index of the image in its data set."""
    copy: int = 0
    """Index among the repetitions of an image in an epoch; each is augmented differently."""
    mixed: bool = True
    """Whether operations that mix images apply. The draws of the other operations do not depend on it."""
    partners: tuple[int, ...] = ()
    """Indices of the images that may be mixed into this one; empty for all of the data set."""


class EpochBatches:
    """The order of the images of a run: one list of keys per step.

    Batch k depends only on the seed and k, but for `Key.mixed`. So a resumed run sees exactly the images that the
    interrupted one had left. `steps`, `start_step` and `mixed_steps` may change while batches are loaded: a longer run
    goes on with the same batches, a shorter one ends earlier.

    The last, smaller batch of an epoch is left out, so that every step has the same shape. An epoch has
    images // batch_size steps, also with `repeats`.

    Args:
        images: number of images, at least 1.
        batch_size: images per step; all images if there are fewer.
        steps: of the whole run, not necessarily whole epochs; may be set later.
        seed: of the order.
        start_step: step to begin with.
        repeats: [images], how often each image comes on average in a full pass, at least 1; None is once each. The
            fraction is rounded up or down at random in each epoch.
        runs: where the images lie in large files, to read them in an order of long reads. Images that are mixed then
            come from the same batch. Not together with `repeats`.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps: int = 0,
        *,
        seed: int = 0,
        start_step: int = 0,
        repeats: Repeats | None = None,
        runs: Runs | None = None,
    ) -> None:
        self.images = images
        self.batch_size = min(batch_size, images)
        self.steps_per_epoch = images // self.batch_size
        self.steps = steps
        self.seed = seed
        self.start_step = start_step
        self.repeats = repeats
        self.runs = runs
        self.mixed_steps = math.inf
        """No images are mixed from this step on."""
        self.own = slice(None)
        """Which images of a step `batch` gives: all, or this process's part of them."""
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start_step
        # `steps` is read each time: the run may have become longer or shorter
        while step < self.steps:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[Key]:
        """Return the keys of a step, counted from 0, also beyond the end of the run."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            order = self._order(epoch)
            # Two epochs: what reads ahead is in the next one while the last batches of this one are loaded
            self._orders = {one: kept for one, kept in self._orders.items() if abs(one - epoch) == 1} | {epoch: order}
        first = step_of_epoch * self.batch_size
        chosen: list[list[int]] = order[first : first + self.batch_size].tolist()
        mixed = step < self.mixed_steps
        if self.runs is None:
            return [Key(epoch, place, copy, mixed) for place, copy in chosen[self.own]]
        places = [place for place, _ in chosen]
        around = (places + places)[1:]
        near = min(PARTNERS, len(places))
        keys = [Key(epoch, place, 0, mixed, tuple(around[k : k + near])) for k, place in enumerate(places)]
        return keys[self.own]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows (place, copy) of an epoch, shuffled."""
        if self.runs is not None:
            places = shard_order(self.runs, self.batch_size, self.seed, epoch)
            return np.stack([places, np.zeros_like(places)], 1)
        rng = np.random.default_rng((self.seed, epoch))
        if self.repeats is None:
            return np.stack([rng.permutation(self.images), np.zeros(self.images, np.int64)], 1)
        whole = np.floor(self.repeats).astype(np.int64)
        counts = whole + (rng.random(self.images) < self.repeats - whole)
        place = np.repeat(np.arange(self.images), counts)
        copy = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rng.permutation(np.stack([place, copy], 1))


def repeat_factors(dataset: Dataset) -> Repeats:
    """Return how often each image should come so that rare classes are seen more often (LVIS, arXiv 1908.03195).

    A class in a share f of the images repeats them max(1, sqrt(t / f)) times. An image takes the largest of its
    classes; without objects it comes once. LVIS, with 1203 classes, sets t = 0.001, which no class of a small data set
    falls below. Here t is the median share of the classes.
    """
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    # Crowds are not trained on
    learnt = ~dataset.crowd
    present = np.zeros((len(dataset), len(dataset.class_names)), np.bool_)
    present[owner[learnt], dataset.labels[learnt]] = True
    share = present.mean(0)
    if not share.any():
        return np.ones(len(dataset))
    wanted = np.maximum(1, np.sqrt(np.median(share[share > 0]) / np.where(share > 0, share, 1)))
    return np.where(present, wanted, 1).max(1)
