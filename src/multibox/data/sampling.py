"""Which pictures a step sees: the order of a whole run, uniform or with more of the rare classes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from multibox.structures import Dataset

Key = tuple[int, ...]
Repeats = NDArray[np.float64]


class EpochBatches:
    """The order of the pictures of a whole run: batches of (epoch, index), each epoch shuffled by (seed, epoch).

    A picture that comes again in the same epoch is (epoch, index, 1), so that it is augmented in another way.

    It can start anywhere, so a resumed run sees exactly the pictures that the interrupted one had left. An epoch has
    pictures // batch_size steps whatever is repeated: what is left over comes in other epochs.

    Args:
        pictures: how many there are.
        batch_size: pictures a step; all of them where there are fewer.
        epochs: of the whole run.
        seed: of the order.
        start_step: where to begin.
        repeats: how often each picture comes on average in a full pass, 1 or more; None is once each. The fraction is
            rounded up or down at random in each epoch.
    """

    def __init__(
        self,
        pictures: int,
        batch_size: int,
        epochs: int,
        *,
        seed: int = 0,
        start_step: int = 0,
        repeats: Repeats | None = None,
    ) -> None:
        self.pictures = pictures
        self.batch_size = min(batch_size, pictures)
        self.epochs = epochs
        self.seed = seed
        self.start_step = start_step
        self.repeats = repeats
        # The last, smaller batch is left out: its pictures come in other epochs, and every step has one shape
        self.steps_per_epoch = pictures // self.batch_size

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        first, skip = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            order = self._order(epoch)
            for batch in range(skip, self.steps_per_epoch):
                chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield [(epoch, index, copy) if copy else (epoch, index) for index, copy in chosen.tolist()]
            skip = 0

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return rows of (index, copy), shuffled."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.repeats is None:
            return np.stack([rng.permutation(self.pictures), np.zeros(self.pictures, np.int64)], 1)
        whole = np.floor(self.repeats).astype(np.int64)
        counts = whole + (rng.random(self.pictures) < self.repeats - whole)
        index = np.repeat(np.arange(self.pictures), counts)
        copy = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rng.permutation(np.stack([index, copy], 1))


def repeat_factors(dataset: Dataset) -> Repeats:
    """Return how often each picture should come so that rare classes are seen more often (Gupta et al. 2019, LVIS).

    A class in a share f of the pictures asks for max(1, sqrt(t / f)), a picture takes the largest of its classes, and
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
