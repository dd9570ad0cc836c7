"""Anchor shapes fitted to the boxes of a data set: as training fits them, by k-means on IoU, by differential evolution.

An anchor's best place for a box is the cell whose centre is nearest along each axis, because overlap only falls with
distance. So the best IoU of a box with all anchors of one shape needs one comparison instead of one per cell.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from multibox.analysis.coverage import IOU50, Objects, is_reached, some_objects
from multibox.config import Config
from multibox.data.images import sample_size
from multibox.models.anchor_layout import cell_shapes, make_anchors
from multibox.models.build import measure
from multibox.structures import Dataset

Shapes = NDArray[np.float64]
LevelShapes = tuple[tuple[tuple[float, float], ...], ...]
ROUNDS = 50
"""Rounds of k-means."""
MARGIN = float(np.log(1.25))
"""How far beyond its border a feature map still looks at boxes, as a logarithm: neighbours share those."""
SAMPLED = 2000
"""Boxes that differential evolution looks at."""
POPULATION, GENERATIONS, SWEEPS = 40, 60, 2
"""Differential evolution: shape sets that compete, generations per feature map, and passes over all maps."""
SPREAD = 0.25
"""Standard deviation of the first shape sets around the start, in logarithms of a side."""
LOSS = 10.0
"""Price of reaching fewer boxes at IoU 0.5 than the start does, per share: a better mean does not pay for it."""
STAY = 1e-3
"""Price of moving an anchor, in the score's unit per logarithm: shapes that reach nothing stay where they are."""


class Grid(NamedTuple):
    """Boxes seen from a network's feature maps."""

    wh: Shapes
    """[N, 2] width and height of each box."""
    distances: list[Shapes]
    """Per feature map [N, 2]: distance (x, y) of each box's centre from the nearest cell's centre."""


def box_shapes(dataset: Dataset) -> Shapes:
    """Return width and height of every box as fractions of its image, [N, 2]; crowds are left out."""
    # Size is (height, width)
    sizes_wh = np.array([sample_size(sample)[::-1] for sample in dataset], np.float64).reshape(-1, 2)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    return ((dataset.boxes_xyxy[:, 2:] - dataset.boxes_xyxy[:, :2]) / sizes_wh[owner])[~dataset.crowd]


def with_shapes(config: Config, shapes: LevelShapes) -> Config:
    """Return the config with these anchors per feature map, width and height as fractions of the input."""
    values = {"style": "shapes", "shapes": shapes, "sizes": (), "ratios": (), "fit": "none"}
    return config.updated({f"anchors.{name}": value for name, value in values.items()})


def fitted_as_asked(config: Config, shapes_wh: Shapes) -> Config:
    """Return the config with its anchors fitted to boxes [N, 2] as training does; as it is without `anchors.fit`."""
    if config.anchors.fit == "none":
        return config
    base = cell_shapes(config.anchors, config.model.input_size)
    return with_shapes(config, fit_shapes(shapes_wh, base, config.anchors.fit))


def fit_shapes(shapes_wh: Shapes, base: LevelShapes, per_cell: int, seed: int = 0) -> LevelShapes:
    """Return `per_cell` anchor shapes for each feature map, fitted to the boxes that belong to it.

    A box belongs to the map whose base anchors are nearest in size; neighbouring maps share boxes near their border.
    Shapes are k-means centres of log width and height. A map with too few boxes keeps the shapes of `base`.

    Args:
        shapes_wh: [N, 2] boxes as fractions of the input.
        base: the preset's shapes per map, in any order of size.
        per_cell: anchors wanted per cell.
        seed: of the k-means start.
    """
    logs = np.log(np.clip(shapes_wh, 1e-3, 1.0))
    levels: list[tuple[tuple[float, float], ...]] = []
    for level, (low, high) in zip(base, _borders(base), strict=True):
        scale = logs.mean(axis=1)
        near = logs[(scale >= low - MARGIN) & (scale < high + MARGIN)]
        levels.append(level if len(near) < 8 * per_cell else _clusters(near, per_cell, seed))
    return tuple(levels)


def _borders(base: LevelShapes) -> list[tuple[float, float]]:
    """Return between which sizes the boxes of each feature map lie, as means of log width and height."""
    centres = np.array([np.log(np.array(level)).mean() for level in base])
    order = np.argsort(centres, kind="stable")
    ascending = centres[order]
    edges = np.concatenate([[-np.inf], (ascending[1:] + ascending[:-1]) / 2, [np.inf]])
    rank = np.argsort(order, kind="stable")
    return [(float(edges[place]), float(edges[place + 1])) for place in rank.tolist()]


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


def level_shapes(config: Config) -> LevelShapes:
    """Return width and height of each feature map's anchors as they are laid out, as fractions of the input."""
    shapes = cell_shapes(config.anchors, config.model.input_size)
    if config.anchors.style != "mxnet":
        return shapes
    # MXNet narrows its anchors on a map that is wider than high
    maps = measure(config, 1).feature_shapes
    return tuple(
        tuple((w * rows / columns, h) for w, h in level) for level, (rows, columns) in zip(shapes, maps, strict=True)
    )


def see_grid(objects: Objects, config: Config) -> Grid:
    """Return the boxes with their distance from the nearest cell of each feature map."""
    maps = measure(config, 1).feature_shapes
    points = (((1e-6, 1e-6),),) * len(maps)
    anchors = msgspec.structs.replace(config.anchors, style="shapes", shapes=points, clip=False)
    boxes = make_anchors(anchors, maps, config.model.input_size).double().numpy()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    of_boxes = (objects.boxes_xyxy[:, :2] + objects.boxes_xyxy[:, 2:]) / 2
    distances: list[Shapes] = []
    start = 0
    for rows, columns in maps:
        level = centres[start : start + rows * columns].reshape(rows, columns, 2)
        axes = (level[0, :, 0], level[:, 0, 1])
        distances.append(np.stack([_nearest(of_boxes[:, k], axes[k]) for k in (0, 1)], axis=1))
        start += rows * columns
    return Grid(objects.wh, distances)


def _nearest(values: Shapes, ascending: Shapes) -> Shapes:
    middles = (ascending[1:] + ascending[:-1]) / 2
    return np.abs(values - ascending[np.searchsorted(middles, values)])


def overlap(wh: Shapes, distances: Shapes, shapes: Shapes) -> Shapes:
    """Return the largest IoU of each box [N] with each shape [..., 2] on one feature map's cells, [..., N]."""
    inner = np.ones(())
    for axis in (0, 1):
        side, own = shapes[..., axis, None], wh[:, axis]
        inner = inner * np.clip(np.minimum(np.minimum(side, own), (side + own) / 2 - distances[:, axis]), 0, None)
    return inner / (shapes.prod(-1)[..., None] + wh.prod(1) - inner)


def best_on_grid(grid: Grid, shapes: Sequence[Shapes] | LevelShapes) -> Shapes:
    """Return the largest IoU of each box with any anchor, [N]; equal to `coverage.cover` unless anchors are clipped."""
    return np.max(per_level(grid, shapes), axis=0)


def per_level(grid: Grid, shapes: Sequence[Shapes] | LevelShapes) -> Shapes:
    """Return the largest IoU of each box with the anchors of each feature map, [L, N]."""
    levels = zip(grid.distances, shapes, strict=True)
    return np.stack([overlap(grid.wh, away, np.array(level)).max(0) for away, level in levels])


def score(best_iou: Shapes, config: Config) -> Shapes:
    """Return how good coverages [..., N] are, 0 to 2: mean of the largest IoUs plus share of the boxes reached.

    That share is the mean of the one at the matching threshold and the one at IoU 0.5.
    """
    reached = (is_reached(best_iou, config.matching).mean(-1) + (best_iou >= IOU50).mean(-1)) / 2
    return np.asarray(reached + best_iou.mean(-1))


def cluster_by_iou(objects: Objects, config: Config) -> LevelShapes:
    """Return as many shapes per feature map as there are: k-means centres with 1 - IoU as distance.

    Boxes belong to feature maps as in `fit_shapes`, and maps with too few boxes keep their shapes.
    """
    base, wh = level_shapes(config), objects.wh
    scale = np.log(np.clip(wh, 1e-3, 1.0)).mean(axis=1)
    levels: list[Shapes] = []
    for level, (low, high) in zip(base, _borders(base), strict=True):
        near = wh[(scale >= low - MARGIN) & (scale < high + MARGIN)]
        centres = _iou_centres(near, len(level)) if len(near) >= 8 * len(level) else np.array(level)
        levels.append(_in_order_of(centres, np.array(level)))
    return _rounded(levels)


def _iou_centres(wh: Shapes, count: int) -> Shapes:
    order = np.argsort(wh.prod(axis=1), kind="stable")
    centres = wh[order[np.linspace(0, len(order) - 1, count + 2).astype(int)[1:-1]]]
    # Equal starts would stay equal
    centres = centres * (1 + 1e-3 * np.arange(count)[:, None] * (1, -1))
    together = np.zeros_like(wh)
    for _ in range(ROUNDS):
        nearest = overlap(wh, together, centres).argmax(0)
        moved = np.stack([wh[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
        if np.allclose(moved, centres, atol=1e-6):
            break
        centres = moved
    return centres


def evolve(objects: Objects, config: Config, start: LevelShapes, seed: int = 0) -> LevelShapes:
    """Return shapes found by differential evolution on the coverage itself (Storn and Price, 1997), from `start` on.

    One feature map after the other, that of the smallest anchors first, changes its shapes while the others stay: so
    each search has few numbers. Sides stay between half and twice those of the preset's map; the smallest may shrink to
    half a cell. The work is the same for all data sets of 2,000 boxes and more.

    Args:
        objects: The boxes.
        config: The network, with the preset's own anchors.
        start: As many shapes per feature map as the result has.
        seed: The same one gives the same shapes.
    """
    grid = see_grid(some_objects(objects, SAMPLED), config)
    base, found = [np.array(level) for level in level_shapes(config)], [np.array(level) for level in start]
    each = per_level(grid, found)
    order = np.argsort([np.log(level).mean() for level in base], kind="stable").tolist()
    cells = [(1 / columns, 1 / rows) for rows, columns in measure(config, 1).feature_shapes]
    rng = np.random.default_rng(seed)
    for at in order * SWEEPS:
        least = np.minimum(base[at].min(0) / 2, np.array(cells[at]) / 2 if at == order[0] else np.inf)
        # The start lies inside; an anchor larger than the input learns nothing that one of its size does not
        low = np.minimum(least, found[at].min(0))
        high = np.maximum(np.minimum(2 * base[at].max(0), 1), found[at].max(0))
        others = np.delete(each, at, axis=0).max(0, initial=0)
        found[at] = _evolve_map(grid, at, found[at], (low, high), others, config, rng)
        each[at] = overlap(grid.wh, grid.distances[at], found[at]).max(0)
    return _rounded([_in_order_of(level, own) for level, own in zip(found, base, strict=True)])


def _evolve_map(
    grid: Grid, at: int, start: Shapes, sides: tuple[Shapes, Shapes], others: Shapes, config: Config,
    rng: np.random.Generator,
) -> Shapes:  # fmt: skip
    """Return the shapes [k, 2] of one feature map that improve the score most over the `others`' best IoU [N]."""
    from scipy.optimize import differential_evolution

    first, (low, high) = np.log(start), np.log(sides)
    present = _reached50(np.maximum(overlap(grid.wh, grid.distances[at], start).max(0), others))

    def cost(flat: Shapes) -> Shapes:
        # [2k, S]: S sets of k shapes
        logs = flat.T.reshape(-1, *first.shape)
        best = np.maximum(overlap(grid.wh, grid.distances[at], np.exp(logs)).max(1), others)
        lost = np.clip(present - _reached50(best), 0, None)
        return STAY * np.abs(logs - first).mean((1, 2)) + LOSS * lost - score(best, config)

    noise = rng.normal(0, SPREAD, (POPULATION, *first.shape))
    noise[0] = 0
    result = differential_evolution(
        cost,
        list(zip(np.tile(low, len(first)), np.tile(high, len(first)), strict=True)),
        init=cast("Any", np.clip(first + noise, low, high).reshape(POPULATION, -1)),
        maxiter=GENERATIONS,
        tol=0,
        polish=False,
        vectorized=True,
        updating="deferred",
        rng=rng,
    )
    return np.exp(result.x.reshape(first.shape))


def _reached50(best_iou: Shapes) -> Shapes:
    return np.asarray((best_iou >= IOU50).mean(-1))


def _in_order_of(shapes: Shapes, base: Shapes) -> Shapes:
    """Return the shapes, each at the place of the base shape that it resembles: heads that know that one go on."""
    from scipy.optimize import linear_sum_assignment

    apart = np.square(np.log(base)[:, None] - np.log(shapes)[None]).sum(-1)
    return shapes[linear_sum_assignment(apart)[1]]


def _rounded(levels: Sequence[Shapes]) -> LevelShapes:
    return tuple(tuple((round(float(w), 4), round(float(h), 4)) for w, h in level) for level in levels)
