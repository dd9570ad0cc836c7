"""Anchors fitted to the boxes of a data set."""

import numpy as np
from numpy.typing import NDArray

from multibox.structures import Dataset

Shapes = NDArray[np.float64]
LevelShapes = tuple[tuple[tuple[float, float], ...], ...]


def box_shapes(dataset: Dataset) -> Shapes:
    """Return width and height of every box as fractions of its image, [N, 2]; needs image sizes."""
    from multibox.data.images import sample_size

    sizes = np.array([sample_size(sample) for sample in dataset], np.float64).reshape(-1, 2)
    rows = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    keep = ~dataset.crowd
    return ((dataset.boxes_xyxy[:, 2:] - dataset.boxes_xyxy[:, :2]) / sizes[rows])[keep]


def fit_shapes(shapes_wh: Shapes, base: LevelShapes, per_cell: int, seed: int = 0) -> LevelShapes:
    """Return `per_cell` anchor shapes for each feature map, fitted to the boxes that belong to it.

    A box belongs to the map whose base anchors are nearest in size; neighbouring maps share boxes near their border.
    k-means on log width and height within a map; a map with too few boxes keeps the base's shapes, repeated or cut to
    `per_cell` is avoided: it keeps exactly what the base gives.

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
    levels = []
    for index, level in enumerate(base):
        margin = np.log(1.25)
        mine = logs[(scale >= borders[index] - margin) & (scale < borders[index + 1] + margin)]
        levels.append(level if len(mine) < 8 * per_cell else _clusters(mine, per_cell, seed))
    return tuple(levels)


def _clusters(logs: Shapes, count: int, seed: int) -> tuple[tuple[float, float], ...]:
    rng = np.random.default_rng(seed)
    # Quantiles along size and aspect spread the start over the data better than random picks
    order = np.argsort(logs.sum(axis=1), kind="stable")
    centres = logs[order[np.linspace(0, len(order) - 1, count + 2).astype(int)[1:-1]]]
    centres = centres + rng.normal(0, 1e-3, centres.shape)
    for _ in range(50):
        nearest = np.square(logs[:, None] - centres[None]).sum(-1).argmin(1)
        centres = np.stack([logs[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
    shapes = np.exp(centres[np.argsort(centres.sum(axis=1))])
    return tuple((round(float(w), 4), round(float(h), 4)) for w, h in shapes)
