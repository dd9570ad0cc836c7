"""Anchors as a pure, cached function of the spec, the feature shapes and the input size."""

import functools
import hashlib
import json

from torch import Tensor

from multibox.config import AnchorConfig, Config, ShapesPerLevel
from multibox.ops.anchors import caffe_shapes, grid_anchors, hikapok_shapes, mxnet_shapes, pair_shapes

FeatureShapes = tuple[tuple[int, int], ...]


def cell_shapes(anchors: AnchorConfig, input_size: tuple[int, int]) -> ShapesPerLevel:
    """Return (width, height) of every anchor of one cell, per feature map, as fractions of the input.

    MXNet's are fractions of the height; those of the other lineages are fractions of the shorter side, so that a
    square anchor is a square of pixels whatever the input's aspect. Shapes given as such are taken as given.
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


def anchors_per_cell(config: Config) -> list[int]:
    """Return how many anchors a cell of each feature map has."""
    return [len(shapes) for shapes in cell_shapes(config.anchors, config.model.input_size)]


def _of_shorter_side(anchors: AnchorConfig, input_size: tuple[int, int]) -> ShapesPerLevel:
    if anchors.style == "pairs":
        return pair_shapes(anchors.sizes, anchors.ratios)
    first, second = zip(*anchors.sizes, strict=True) if anchors.sizes else ((), ())
    if anchors.style == "hikapok":
        return hikapok_shapes(second, first, anchors.ratios)
    side = min(input_size) if anchors.design_size == "none" else anchors.design_size
    return caffe_shapes(first, second, anchors.ratios, (side, side))


@functools.lru_cache(maxsize=64)
def make_anchors(
    anchors: AnchorConfig, feature_shapes: FeatureShapes, input_size: tuple[int, int], device: str = "cpu"
) -> Tensor:
    """Return all anchors [a, 4] as xyxy fractions of the input, in the order of the head's outputs.

    Cached: treat the tensor as constant.
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


def anchors_hash(config: Config) -> str:
    """Return a fingerprint of one cell's shapes and their placing, stored in checkpoints."""
    spec = config.anchors
    values = [cell_shapes(spec, config.model.input_size), spec.steps, spec.offset, spec.clip, spec.style == "mxnet"]
    # Only where it is set, so that older checkpoints keep their fingerprint
    values += [True] * spec.clip_centers
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
