"""How hard the labels of a data set were to learn, from the loss ledger of the run that learned them.

A wrong label is learned late or never: over the epochs the model gives its class a low score there, or its box a high
loss. The mean over all epochs tells it even where the model has learned the wrong label by heart in the end (Pleiss et
al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020, https://arxiv.org/abs/2001.10528).
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.ledger import Ledger
from multibox.structures import Dataset, Flags, Labels

Floats = NDArray[np.float64]

LEAST_EPOCHS = 3
"""Epochs that must have shown a label; fewer say little."""
MOST_EPOCHS = 30
"""Epochs that are looked at, evenly spaced; a long run of a million objects would not fit into memory."""
DIGITS = 1
"""Decimals of a pixel by which a label is recognised: the run may have read another format of the same labels."""


class Effort(NamedTuple):
    """How hard each label of a data set was to learn, [M]; NaN where the ledger does not know the label."""

    score: Floats
    """Mean score of the label's class at its anchors, over the median of the class in the same epochs."""
    box_loss: Floats
    """Mean box loss per anchor, over that median."""
    rank: Floats
    """Share of labels that are harder, 0 for the hardest; by the score over the square root of the box loss."""

    @property
    def known(self) -> Flags:
        """[M]; True where the ledger knows the label."""
        return ~np.isnan(self.rank)


def label_effort(ledger: Ledger, dataset: Dataset, class_names: tuple[str, ...]) -> Effort:
    """Return how hard each label was to learn.

    Args:
        ledger: Of the run that learned the labels, or labels like them.
        dataset: Labels that are the same box and class of the same image there are found; all others stay unknown.
        class_names: Of the data set.
    """
    rows = find_objects(ledger, dataset, class_names)
    count = len(ledger.epochs)
    epochs = np.unique(np.linspace(0, max(count - 1, 0), min(count, MOST_EPOCHS)).astype(np.int64))
    matched = ledger.matched[epochs].astype(np.float32)
    shown = matched > 0
    matched[~shown] = np.nan
    score = _beside_class(np.where(shown, ledger.score[epochs].astype(np.float32), np.float32(np.nan)), ledger.labels)
    box_loss = _beside_class(ledger.box_loss[epochs].astype(np.float32) / matched, ledger.labels)
    known = np.flatnonzero((shown.sum(0) >= LEAST_EPOCHS) & np.isfinite(score) & np.isfinite(box_loss))
    ease = score[known] / np.sqrt(np.maximum(box_loss[known], 1e-3))
    rank = np.full(len(score), np.nan)
    rank[known] = np.searchsorted(np.sort(ease), ease, "left") / max(len(known), 1)
    columns = (np.append(column, np.nan)[rows] for column in (score, box_loss, rank))
    return Effort(*columns)


def find_objects(ledger: Ledger, dataset: Dataset, class_names: tuple[str, ...]) -> Labels:
    """Return the ledger's object for each label of a data set [M], by image, box and class; -1 where there is none."""
    image_of = {name: row for row, name in enumerate(ledger.image_names)}
    label_of = {name: row for row, name in enumerate(ledger.class_names)}
    images = np.array([image_of.get(name, -1) for name in dataset.image_names], np.int64)
    labels = np.array([label_of.get(name, -1) for name in class_names], np.int64)
    theirs = np.column_stack([np.repeat(np.arange(len(image_of)), np.diff(ledger.starts)), ledger.labels])
    ours = np.column_stack([np.repeat(images, np.diff(dataset.starts)), labels[dataset.labels]])
    keys = [
        np.column_stack([own, np.rint(boxes * 10**DIGITS).astype(np.int64)])
        for own, boxes in ((theirs, ledger.boxes_xyxy), (ours, dataset.boxes_xyxy))
    ]
    if not len(theirs) or not len(ours):
        return np.full(len(ours), -1)
    _, first, group = np.unique(np.concatenate(keys), axis=0, return_index=True, return_inverse=True)
    found = first[group.ravel()[len(theirs) :]]
    return np.where((found < len(theirs)) & (ours >= 0).all(1), found, -1)


def _beside_class(values: NDArray[np.float32], labels: Labels) -> Floats:
    """Return the mean over the epochs of values [E, N] over the median of their class in each epoch, [N]."""
    means = np.full(values.shape[1], np.nan)
    with warnings.catch_warnings():
        # An epoch that showed no object of a class has no median, and says nothing
        warnings.simplefilter("ignore", RuntimeWarning)
        for label in np.unique(labels).tolist() if len(values) else ():
            rows = np.flatnonzero(labels == label)
            usual = np.nanmedian(values[:, rows], axis=1, keepdims=True)
            means[rows] = np.nanmean(values[:, rows] / np.where(usual > 0, usual, np.nan), axis=0)
    return means
