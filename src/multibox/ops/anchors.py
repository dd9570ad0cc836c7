"""Anchors (the same as priors and default boxes): shapes by three lineages' rules, laid on grids by one generator.

A shape rule gives, for each feature map ("level"), the (width, height) of every anchor of one cell, as fractions of
the network's input, in the order in which that lineage's weights expect them. Shapes of any other origin (fitted to a
data set, TensorFlow's object detection) are written down as such tuples. `grid_anchors` does the rest.
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
"""The anchors of one cell, for each level."""


def caffe_shapes(
    min_sizes: Sequence[Number],
    max_sizes: Sequence[Number | None],
    ratios: Sequence[Sequence[Number]],
    input_size: tuple[int, int],
    truncate: bool = False,
) -> LevelShapes:
    """Return the anchors of Caffe's `PriorBox` (the paper's release): [min, sqrt(min * max), r, 1/r, ...] per level.

    Args:
        min_sizes: Pixels, one a level.
        max_sizes: Pixels, one a level; None leaves out the square of sqrt(min * max).
        ratios: Extra aspect ratios of each level, without 1 and without the flipped ones: (2,) or (2, 3).
        input_size: Height and width of the network's input in pixels.
        truncate: Cut sizes to whole pixels, as Caffe's C++ does by accident: 35.84 becomes 35. Released SSD512 weights
            were trained so; at 300 all sizes are whole.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _same_lengths(min_sizes=min_sizes, max_sizes=max_sizes, ratios=ratios)
    height, width = input_size
    levels: list[tuple[Shape, ...]] = []
    for low, high, extra in zip(min_sizes, max_sizes, ratios, strict=True):
        size = int(low) if truncate else low
        shapes = [(size, size)]
        if high is not None:
            square = math.sqrt(size * (int(high) if truncate else high))
            shapes.append((square, square))
        shapes += [_stretched(size, r) for ratio in extra for r in (ratio, 1 / ratio)]
        levels.append(tuple((w / width, h / height) for w, h in shapes))
    return tuple(levels)


def hikapok_shapes(
    scales: Sequence[Number], extra_scales: Sequence[Number], ratios: Sequence[Sequence[Number]]
) -> LevelShapes:
    """Return the anchors of SSD.TensorFlow: the extra square first, then every ratio as listed (1 and flips included).

    Its ratio 0.3333 is not 1/3, and its extra scales are rounded to four digits; the numbers given are taken as given.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _same_lengths(scales=scales, extra_scales=extra_scales, ratios=ratios)
    return tuple(
        ((extra, extra), *(_stretched(scale, ratio) for ratio in listed))
        for scale, extra, listed in zip(scales, extra_scales, ratios, strict=True)
    )


def mxnet_shapes(sizes: Sequence[Sequence[Number]], ratios: Sequence[Sequence[Number]]) -> LevelShapes:
    """Return the anchors of MXNet's `MultiBoxPrior` (TinySSD): each size at ratios[0], then size[0] at ratios[1:].

    The first ratio is usually 1, so that sizes are sides of squares; MXNet 1.9.1 heeds another one. Sizes are fractions
    of the input's height: hand the result to `grid_anchors` with `feature_aspect=True`, which narrows the anchors on a
    map that is wider than high.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _same_lengths(sizes=sizes, ratios=ratios)
    return tuple(
        (*(_stretched(size, listed[0]) for size in squares), *(_stretched(squares[0], ratio) for ratio in listed[1:]))
        for squares, listed in zip(sizes, ratios, strict=True)
    )


def pair_shapes(sizes: Sequence[Sequence[Number]], ratios: Sequence[Sequence[Number]]) -> LevelShapes:
    """Return one anchor for each pair of a size and a ratio, as listed: whatever no other rule spells.

    TensorFlow's object detection needs it for its lowest map, whose three anchors have two sizes.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _same_lengths(sizes=sizes, ratios=ratios)
    for level, (listed, stretches) in enumerate(zip(sizes, ratios, strict=True)):
        if len(listed) != len(stretches):
            raise ConfigError(f"feature map {level} has {len(listed)} sizes but {len(stretches)} ratios; pair them up")
    return tuple(
        tuple(_stretched(size, ratio) for size, ratio in zip(*level, strict=True))
        for level in zip(sizes, ratios, strict=True)
    )


def caffe_sizes(
    min_ratio: int, max_ratio: int, levels: int, first_ratio: Number, input_size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the min and max sizes, in pixels, of the paper's release for a square input.

    Percentages of the input run from `min_ratio` in steps of floor((max_ratio - min_ratio) / (levels - 2)) over all
    levels but the first, which has `first_ratio`; a level's max size is the next level's min size. The paper's own
    formula does not round the step down (`linear_scales`). VOC300 is (20, 90, 6, 10, 300), COCO300 (15, 90, 6, 7, 300),
    VOC512 (15, 90, 7, 7, 512), COCO512 (10, 90, 7, 4, 512).

    Raises:
        ConfigError: Fewer than three levels.
    """
    if levels < 3:
        raise ConfigError(f"caffe_sizes needs at least 3 levels, got {levels}; give the sizes themselves instead")
    step = (max_ratio - min_ratio) // (levels - 2)
    percents = [first_ratio, *(min_ratio + index * step for index in range(levels))]
    sizes = tuple(input_size * percent / 100 for percent in percents)
    return sizes[:-1], sizes[1:]


def linear_scales(smallest: Number, largest: Number, levels: int) -> tuple[float, ...]:
    """Return evenly spaced scales (SSD paper, equation 4; TensorFlow's object detection): 0.2 to 0.9 in the paper."""
    return tuple(smallest + (largest - smallest) * index / max(1, levels - 1) for index in range(levels))


def extra_scales(scales: Sequence[Number], last: Number) -> tuple[float, ...]:
    """Return the scale of each level's extra square, sqrt(s[k] * s[k + 1]); `last` stands for the one past the end."""
    return tuple(math.sqrt(scale * following) for scale, following in zip(scales, [*scales[1:], last], strict=True))


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
    output once its channels are last. Computed in float64, returned as float32 on the CPU: fractions of the input,
    xyxy.

    Args:
        shapes_wh: For each level, the (width, height) of a cell's anchors.
        feature_shapes: Height and width of each level's map in cells.
        steps: For each level, the distance (y, x) between neighbouring centres as a fraction of the input, such as
            8 / 300 for VGG's first map; without it 1 / rows and 1 / columns.
        offset: Where in a cell the centre is, in steps; one number or (y, x).
        clip: Cut the anchors at the input's border. Only ssd.pytorch does; the original lets them hang over.
        feature_aspect: Multiply widths by rows / columns, as MXNet does, so that squares stay square in the image
            when sizes are fractions of its height.
        clip_centers: Pull centres beyond the input onto its border.

    Raises:
        ConfigError: The lists have different lengths.
    """
    _same_lengths(shapes=shapes_wh, feature_shapes=feature_shapes)
    if steps is None:
        steps = [(1 / rows, 1 / columns) for rows, columns in feature_shapes]
    _same_lengths(steps=steps, feature_shapes=feature_shapes)
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


def _stretched(size: Number, ratio: Number) -> tuple[float, float]:
    return size * math.sqrt(ratio), size / math.sqrt(ratio)


def _same_lengths(**lists: Sequence[object]) -> None:
    if len({len(entries) for entries in lists.values()}) > 1:
        found = ", ".join(f"{name} has {len(entries)}" for name, entries in lists.items())
        raise ConfigError(f"expected one entry per feature map in every list, but {found}; make them equally long")
