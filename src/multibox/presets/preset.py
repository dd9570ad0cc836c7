"""What a preset is."""

from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

COCO300_SIZES = ((21, 45), (45, 99), (99, 153), (153, 207), (207, 261), (261, 315))
"""Caffe's anchors for COCO at 300 pixels, (min, max) of each map; torchvision, NVIDIA and others took them over."""


@dataclass(frozen=True)
class Preset:
    """A network with its anchors, preprocessing and post-processing, as settings over the config's defaults."""

    lineage: str
    """Where its parts come from, in a line."""
    settings: dict[str, Any]
    """Dotted keys; a recipe and `--set` go above them. `train.lr` is the peak learning rate of the default recipe."""
