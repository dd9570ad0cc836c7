"""How big a network is: parameters, multiply-adds, anchors; nothing is computed for it."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from multibox.config import Config
from multibox.models.build import build_model


class Size(NamedTuple):
    """Figures of a network for one picture."""

    parameters: int
    multiply_adds: int
    """Of convolutions and matrix products; FLOPs count each as two."""
    anchors: int
    feature_shapes: tuple[tuple[int, int], ...]


def measure(config: Config, classes: int) -> Size:
    """Return the size of the network that `config` describes, at its input size."""
    height, width = config.model.input_size
    with torch.device("meta"):
        model = build_model(config, classes).eval()
        picture = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        outputs = model(picture)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, counter.get_total_flops() // 2, outputs.logits.shape[1], outputs.feature_shapes)
