"""Multi-scale training: every step sees its pictures at another size."""

import random

from torch.nn import functional

from multibox.config import Config
from multibox.tensors import Batch

MULTIPLE = 32
"""Sides are multiples of this, the stride that bodies share, so that no map loses a row."""


def draw_size(config: Config, step: int) -> tuple[int, int]:
    """Return height and width of the input in this step, a function of seed and step alone.

    Both sides follow one scale, each to the nearest multiple of 32: a side that is none itself (300) does not occur,
    and the picture's aspect changes by what rounding takes. Without a range it is the config's input size.
    """
    low, high = config.train.scales
    height, width = config.model.input_size
    if low == high == 1:
        return height, width
    scale = random.Random(f"scale {config.train.seed} {step}").uniform(low, high)
    return _nearest(height * scale), _nearest(width * scale)


def largest_size(config: Config) -> tuple[int, int]:
    """Return the largest height and width that a step may have."""
    low, high = config.train.scales
    height, width = config.model.input_size
    return (height, width) if low == high == 1 else (_nearest(height * high), _nearest(width * high))


def resize_batch(batch: Batch, size: tuple[int, int]) -> Batch:
    """Return the batch at another size (bilinear, antialiased); boxes are fractions and stay."""
    if tuple(batch.images.shape[2:]) == size:
        return batch
    # CUDA has no kernel for bytes
    images = functional.interpolate(batch.images.float(), size, mode="bilinear", antialias=True)
    return Batch(images.round().clamp(0, 255).byte(), batch.gt_xyxy, batch.gt_labels, batch.names, batch.sizes)


def _nearest(side: float) -> int:
    return max(1, round(side / MULTIPLE)) * MULTIPLE
