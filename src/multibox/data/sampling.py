"""Which images each step sees: the order of a whole run, uniform or with more of the rare classes."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.structures import Dataset

Repeats = NDArray[np.float64]


class Key(NamedTuple):
    """What an augmented image is a function of, beside the seed; plain tuples (epoch, index) are keys as well."""

    epoch: int
    index: int
    """Position of the image in its data set."""
    copy: int = 0
    """Counts the repetitions of an image within an epoch, so that each is augmented in another way."""
    mixed: bool = True
    """Whether operations that mix images apply. It draws nothing, so the other operations stay the same."""


class EpochBatches:
    """The order of the images of a run: one list of keys per step, each epoch shuffled by (seed, epoch).

    Batch k depends on the seed and k only, except for `Key.mixed`, so a resumed run sees exactly the images that the
    interrupted one had left. `steps`, `start_step` and `mixed_steps` may change while batches are loaded: a longer run
    goes on with the same batches, a shorter one ends earlier.

    The last, smaller batch of an epoch is left out, so that every step has one shape; its images come in other epochs.
    An epoch has images // batch_size steps whatever is repeated.

    Args:
        images: number of images, at least 1.
        batch_size: images per step; all of them where there are fewer.
        steps: of the whole run, not necessarily whole epochs; may be set later.
        seed: of the order.
        start_step: step to begin with.
        repeats: [images], how often each image comes on average in a full pass, 1 or more; None is once each. The
            fraction is rounded up or down at random in each epoch.
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
    ) -> None:
        self.images = images
        self.batch_size = min(batch_size, images)
        self.steps_per_epoch = images // self.batch_size
        self.steps = steps
        self.seed = seed
        self.start_step = start_step
        self.repeats = repeats
        self.mixed_steps = math.inf
        """From this step on no images are mixed."""
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start_step
        # Read anew each time: the run may have become longer or shorter
        while step < self.steps:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[Key]:
        """Return the keys of a step, counted from 0, whether or not the run is that long."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = epoch, self._order(epoch)
        chosen = self._shuffled[1][place * self.batch_size : (place + 1) * self.batch_size]
        mixed = step < self.mixed_steps
        return [Key(epoch, index, copy, mixed) for index, copy in chosen.tolist()]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return rows of (index, copy), shuffled."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.repeats is None:
            return np.stack([rng.permutation(self.images), np.zeros(self.images, np.int64)], 1)
        whole = np.floor(self.repeats).astype(np.int64)
        counts = whole + (rng.random(self.images) < self.repeats - whole)
        index = np.repeat(np.arange(self.images), counts)
        copy = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rng.permutation(np.stack([index, copy], 1))


def repeat_factors(dataset: Dataset) -> Repeats:
    """Return how often each image should come so that rare classes are seen more often (Gupta et al. 2019, LVIS).

    A class in a share f of the images asks for max(1, sqrt(t / f)), an image takes the largest of its classes, and
    one without objects comes once. LVIS, with 1203 classes, has t = 0.001, below which no class of a small data set
    ever lies; here t is the share of the class in the middle (the median), so that it needs no setting.
    """
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    # A crowd is not learnt
    learnt = ~dataset.crowd
    present = np.zeros((len(dataset), len(dataset.class_names)), np.bool_)
    present[owner[learnt], dataset.labels[learnt]] = True
    share = present.mean(0)
    if not share.any():
        return np.ones(len(dataset))
    wanted = np.maximum(1, np.sqrt(np.median(share[share > 0]) / np.where(share > 0, share, 1)))
    return np.where(present, wanted, 1).max(1)
