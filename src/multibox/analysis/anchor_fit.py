"""Anchor shapes fitted to the boxes of a data set."""

import numpy as np
from numpy.typing import NDArray

from multibox.data.images import sample_size
from multibox.structures import Dataset

Shapes = NDArray[np.float64]
LevelShapes = tuple[tuple[tuple[float, float], ...], ...]
ROUNDS = 50
"""Rounds of k-means."""


def box_shapes(dataset: Dataset) -> Shapes:
    """Return width and height of every box as fractions of its image, [N, 2]; crowds are left out."""
    # Size is (height, width)
    sizes_wh = np.array([sample_size(sample)[::-1] for sample in dataset], np.float64).reshape(-1, 2)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    return ((dataset.boxes_xyxy[:, 2:] - dataset.boxes_xyxy[:, :2]) / sizes_wh[owner])[~dataset.crowd]


def fit_shapes(shapes_wh: Shapes, base: LevelShapes, per_cell: int, seed: int = 0) -> LevelShapes:
    """Return `per_cell` anchor shapes for each feature map, fitted to the boxes that belong to it.

    A box belongs to the map whose base anchors are nearest in size; neighbouring maps share boxes near their border.
    Shapes are k-means centres of log width and height. A map with too few boxes keeps the shapes of `base`.

    Args:
        shapes_wh: [N, 2] boxes as fractions of the input.
        base: the preset's shapes per map, finest map first.
        per_cell: anchors wanted per cell.
        seed: of the k-means start.
    """
    logs = np.log(np.clip(shapes_wh, 1e-3, 1.0))
    scale = logs.mean(axis=1)
    centres = np.array([np.log(np.array(level)).mean() for level in base])
    borders = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
    margin = np.log(1.25)
    levels: list[tuple[tuple[float, float], ...]] = []
    for level, low, high in zip(base, borders, borders[1:], strict=False):
        near = logs[(scale >= low - margin) & (scale < high + margin)]
        levels.append(level if len(near) < 8 * per_cell else _clusters(near, per_cell, seed))
    return tuple(levels)


def _clusters(logs: Shapes, count: int, seed: int) -> tuple[tuple[float, float], ...]:
    # Quantiles along size and aspect spread the start over the data better than random picks
    order = np.argsort(logs.sum(axis=1), kind="stable")
    centres = logs[order[np.linspace(0, len(order) - 1, count + 2).astype(int)[1:-1]]]
    centres = centres + np.random.default_rng(seed).normal(0, 1e-3, centres.shape)
    for _ in range(ROUNDS):
        nearest = np.square(logs[:, None] - centres[None]).sum(-1).argmin(1)
        centres = np.stack([logs[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
    shapes = np.exp(centres[np.argsort(centres.sum(axis=1))])
    return tuple((round(float(w), 4), round(float(h), 4)) for w, h in shapes)
