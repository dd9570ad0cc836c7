"""Anchors of a config: a cached function of its anchor settings, the feature shapes and the input size."""

import functools
import hashlib
import json

from torch import Tensor

from multibox.config import AnchorConfig, Config, ShapesPerLevel
from multibox.errors import ConfigError
from multibox.ops.anchors import caffe_shapes, grid_anchors, hikapok_shapes, mxnet_shapes, pair_shapes
from multibox.structures import Size
from multibox.tensors import HeadOutputs

FeatureShapes = tuple[Size, ...]


def cell_shapes(anchors: AnchorConfig, input_size: Size) -> ShapesPerLevel:
    """Return (width, height) of every anchor of one cell, per feature map, as fractions of the input.

    MXNet's sizes are fractions of the height, all others of the shorter side, so that a square anchor is a square of
    pixels whatever the input's aspect. Shapes of style `shapes` are taken as given.
    """
    if anchors.style == "shapes":
        shapes = anchors.shapes
    elif anchors.style == "mxnet":
        shapes = mxnet_shapes(anchors.sizes, anchors.ratios)
    else:
        height, width = input_size
        shapes = _of_shorter_side(anchors, input_size)
        x, y = min(input_size) / width, min(input_size) / height
        shapes = tuple(tuple((w * x, h * y) for w, h in level) for level in shapes)
    if anchors.clip_shapes:
        shapes = tuple(tuple((min(w, 1.0), min(h, 1.0)) for w, h in level) for level in shapes)
    return shapes


def check_anchors(config: Config) -> None:
    """Refuse lists of sizes, ratios, shapes and steps that do not describe the same feature maps.

    Raises:
        ConfigError: Lists of different lengths, or sizes that the style cannot read.
    """
    anchors = config.anchors
    lists = "anchors.shapes" if anchors.style == "shapes" else "anchors.sizes and anchors.ratios"
    try:
        maps = len(cell_shapes(anchors, config.model.input_size))
    except ConfigError as error:
        raise ConfigError(f"{lists}: {error}") from None
    except ValueError:
        # Caffe and HiKapok have two numbers per feature map
        raise ConfigError(
            f"anchors.sizes={[list(level) for level in anchors.sizes]}: expected two numbers per feature map for "
            f"anchors.style={anchors.style}"
        ) from None
    if not maps:
        raise ConfigError(f"{lists}: expected one entry per feature map for anchors.style={anchors.style}, got none")
    if anchors.steps and len(anchors.steps) != maps:
        raise ConfigError(
            f"anchors.steps={list(anchors.steps)}: expected one number per feature map as in {lists}, which have {maps}"
        )


def anchors_per_cell(config: Config) -> list[int]:
    """Return the number of anchors per cell of each feature map."""
    return [len(shapes) for shapes in cell_shapes(config.anchors, config.model.input_size)]


def _of_shorter_side(anchors: AnchorConfig, input_size: Size) -> ShapesPerLevel:
    if anchors.style == "pairs":
        return pair_shapes(anchors.sizes, anchors.ratios)
    first, second = zip(*anchors.sizes, strict=True) if anchors.sizes else ((), ())
    if anchors.style == "hikapok":
        return hikapok_shapes(second, first, anchors.ratios)
    side = min(input_size) if anchors.design_size == "none" else anchors.design_size
    return caffe_shapes(first, second, anchors.ratios, (side, side))


@functools.lru_cache(maxsize=64)
def make_anchors(anchors: AnchorConfig, feature_shapes: FeatureShapes, input_size: Size, device: str = "cpu") -> Tensor:
    """Return all anchors [a, 4] as xyxy fractions of the input, in the order of the heads' outputs.

    If `anchors.design_size` is set and differs from the input, `anchors.steps` are not used: the centres divide the
    input evenly, because steps in pixels of one input would leave a border of another one without anchors. The result
    is cached: treat the tensor as constant.
    """
    if device != "cpu":
        return make_anchors(anchors, feature_shapes, input_size).to(device)
    height, width = input_size
    designed = anchors.design_size == "none" or anchors.design_size == height == width
    steps = tuple((step / height, step / width) for step in anchors.steps) if designed else ()
    return grid_anchors(
        cell_shapes(anchors, input_size),
        feature_shapes,
        steps or None,
        anchors.offset,
        anchors.clip,
        feature_aspect=anchors.style == "mxnet",
        clip_centers=anchors.clip_centers,
    )


def anchors_for(outputs: HeadOutputs, config: Config) -> Tensor:
    """Return the anchors [a, 4] of a network's outputs, on their device; treat the tensor as constant."""
    device = str(outputs.offsets.device)
    return make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size, device)


def anchors_hash(config: Config) -> str:
    """Return a hash of one cell's shapes and their placing, stored in checkpoints."""
    spec = config.anchors
    values = [cell_shapes(spec, config.model.input_size), spec.steps, spec.offset, spec.clip, spec.style == "mxnet"]
    # Only where it is set, so that older checkpoints keep their hash
    values += [True] * spec.clip_centers
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
