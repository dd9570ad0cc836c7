"""Anchors, also called priors or default boxes: shapes by the rule of an original, laid on the grids of feature maps.

A shape rule gives, per feature map ("level"), the (width, height) of every anchor of one cell as fractions of the
network's input, in the order that weights of that original expect. `grid_anchors` lays them on every cell.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from multibox.errors import ConfigError
from multibox.ops.boxes import Number

Shape = tuple[Number, Number]
"""Width and height of an anchor, as fractions of the input."""
LevelShapes = tuple[tuple[Shape, ...], ...]
"""The anchors of one cell, per level."""


def caffe_shapes(
    min_sizes: Sequence[Number],
    max_sizes: Sequence[Number],
    ratios: Sequence[Sequence[Number]],
    input_size: tuple[int, int],
) -> LevelShapes:
    """Return the anchors of Caffe's `PriorBox` layer: per level [min, sqrt(min * max), r, 1/r, ...].

    Caffe's C++ cuts sizes to whole pixels, 35.84 to 35; give whole ones for weights that were trained so (SSD512).

    Args:
        min_sizes: Pixels, one per level.
        max_sizes: Pixels, one per level; the second anchor is a square of sqrt(min * max).
        ratios: Further aspect ratios of each level, without 1 and without the flipped ones: (2,) or (2, 3).
        input_size: Height and width of the network's input in pixels.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _check_lengths(min_sizes=min_sizes, max_sizes=max_sizes, ratios=ratios)
    height, width = input_size
    levels: list[tuple[Shape, ...]] = []
    for low, high, extra in zip(min_sizes, max_sizes, ratios, strict=True):
        square = math.sqrt(low * high)
        shapes = [(low, low), (square, square), *(_stretch(low, r) for ratio in extra for r in (ratio, 1 / ratio))]
        levels.append(tuple((w / width, h / height) for w, h in shapes))
    return tuple(levels)


def hikapok_shapes(
    scales: Sequence[Number], extra_scales: Sequence[Number], ratios: Sequence[Sequence[Number]]
) -> LevelShapes:
    """Return the anchors of HiKapok's SSD.TensorFlow: the extra square first, then every ratio listed, 1 included.

    Its ratio 0.3333 is not 1/3, and its extra scales are rounded to four digits; numbers are taken as given.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _check_lengths(scales=scales, extra_scales=extra_scales, ratios=ratios)
    return tuple(
        ((extra, extra), *(_stretch(scale, ratio) for ratio in listed))
        for scale, extra, listed in zip(scales, extra_scales, ratios, strict=True)
    )


def mxnet_shapes(sizes: Sequence[Sequence[Number]], ratios: Sequence[Sequence[Number]]) -> LevelShapes:
    """Return the anchors of MXNet's `MultiBoxPrior` (TinySSD): each size at ratios[0], then size[0] at ratios[1:].

    Sizes are fractions of the input's height: call `grid_anchors` with `feature_aspect=True`, which narrows the anchors
    on a map that is wider than high.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _check_lengths(sizes=sizes, ratios=ratios)
    return tuple(
        (*(_stretch(size, listed[0]) for size in squares), *(_stretch(squares[0], ratio) for ratio in listed[1:]))
        for squares, listed in zip(sizes, ratios, strict=True)
    )


def pair_shapes(sizes: Sequence[Sequence[Number]], ratios: Sequence[Sequence[Number]]) -> LevelShapes:
    """Return one anchor per pair of a size and a ratio, as listed (TensorFlow's object detection API).

    Raises:
        ConfigError: The lists have different lengths.
    """
    _check_lengths(sizes=sizes, ratios=ratios)
    for level, (listed, stretches) in enumerate(zip(sizes, ratios, strict=True)):
        if len(listed) != len(stretches):
            raise ConfigError(f"feature map {level} has {len(listed)} sizes but {len(stretches)} ratios; pair them up")
    return tuple(
        tuple(_stretch(size, ratio) for size, ratio in zip(*level, strict=True))
        for level in zip(sizes, ratios, strict=True)
    )


def grid_anchors(
    shapes_wh: Sequence[Sequence[Shape]],
    feature_shapes: Sequence[tuple[int, int]],
    steps: Sequence[tuple[Number, Number]] | None = None,
    offset: Number | tuple[Number, Number] = 0.5,
    clip: bool = False,
    feature_aspect: bool = False,
    clip_centers: bool = False,
) -> Float[Tensor, "a 4"]:
    """Lay each level's shapes on every cell of its feature map.

    Anchors stand level by level, row by row, column by column, and shape by shape within a cell: the order of a head's
    output once its channels are last. Computed in float64, returned as float32 on the CPU: xyxy, fractions of the
    input.

    Args:
        shapes_wh: Per level, the (width, height) of a cell's anchors.
        feature_shapes: Height and width of each level's map in cells.
        steps: Per level, the distance (y, x) between neighbouring centres as a fraction of the input, such as 8 / 300
            for VGG's first map. None divides the input evenly: 1 / rows and 1 / columns.
        offset: Where in a cell the centre is, in steps; one number or (y, x).
        clip: Cut the anchors at the input's border: the option `clip` of Caffe's and MXNet's layers, off in both.
            ssd.pytorch's option of that name clips centres and sizes instead.
        feature_aspect: Multiply widths by rows / columns, as MXNet does, so that squares stay square in the image when
            sizes are fractions of its height.
        clip_centers: Pull centres beyond the input onto its border (ssd.pytorch).

    Raises:
        ConfigError: The lists have different lengths.
    """
    _check_lengths(shapes=shapes_wh, feature_shapes=feature_shapes)
    if steps is None:
        steps = [(1 / rows, 1 / columns) for rows, columns in feature_shapes]
    _check_lengths(steps=steps, feature_shapes=feature_shapes)
    offset_yx = offset if isinstance(offset, tuple) else (offset, offset)
    levels: list[Tensor] = []
    for shapes, (rows, columns), step_yx in zip(shapes_wh, feature_shapes, steps, strict=True):
        size = torch.tensor(shapes, dtype=torch.float64).reshape(-1, 2)
        if feature_aspect:
            size = size * torch.tensor([rows / columns, 1.0], dtype=torch.float64)
        centers = _centers((rows, columns), step_yx, offset_yx)
        if clip_centers:
            centers = centers.clamp(0, 1)
        levels.append(torch.cat([centers - size * 0.5, centers + size * 0.5], dim=-1).reshape(-1, 4))
    anchors = torch.cat(levels)
    return (anchors.clamp(0, 1) if clip else anchors).float()


def _centers(cells: tuple[int, int], step_yx: Shape, offset_yx: Shape) -> Float[Tensor, "rows columns 1 2"]:
    y, x = (
        (torch.arange(count, dtype=torch.float64) + offset) * step
        for count, step, offset in zip(cells, step_yx, offset_yx, strict=True)
    )
    return torch.stack([x.expand(cells), y.unsqueeze(-1).expand(cells)], dim=-1).unsqueeze(-2)


def _stretch(size: Number, ratio: Number) -> tuple[float, float]:
    return size * math.sqrt(ratio), size / math.sqrt(ratio)


def _check_lengths(**lists: Sequence[object]) -> None:
    if len({len(entries) for entries in lists.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(entries)}" for name, entries in lists.items())
        raise ConfigError(f"expected one entry per feature map in every list, but {lengths}; make them equally long")
