"""Anchors as a pure, cached function of the spec, the feature shapes and the input size."""

import functools
import hashlib
import json

from torch import Tensor

from multibox.config import AnchorConfig, Config, ShapesPerLevel
from multibox.ops.anchors import caffe_shapes, grid_anchors, hikapok_shapes, mxnet_shapes

FeatureShapes = tuple[tuple[int, int], ...]


def cell_shapes(anchors: AnchorConfig, input_size: tuple[int, int]) -> ShapesPerLevel:
    """Return (width, height) of every anchor of one cell, per feature map, as fractions of the input."""
    if anchors.style == "shapes":
        return anchors.shapes
    if anchors.style == "mxnet":
        return mxnet_shapes(anchors.sizes, anchors.ratios)
    first, second = zip(*anchors.sizes, strict=True)
    if anchors.style == "hikapok":
        return hikapok_shapes(second, first, anchors.ratios)
    return caffe_shapes(first, second, anchors.ratios, input_size)


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
    steps = tuple((step / height, step / width) for step in anchors.steps) or None
    return grid_anchors(
        cell_shapes(anchors, input_size),
        feature_shapes,
        steps,
        anchors.offset,
        anchors.clip,
        feature_aspect=anchors.style == "mxnet",
    )


def anchors_hash(config: Config) -> str:
    """Return a fingerprint of one cell's shapes and their placing, stored in checkpoints."""
    spec = config.anchors
    values = [cell_shapes(spec, config.model.input_size), spec.steps, spec.offset, spec.clip, spec.style == "mxnet"]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
