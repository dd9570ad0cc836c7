"""From config to network: the layers, their first weights, and how large the network is."""

# pyright: reportUnknownMemberType=false

import math
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from multibox.config import Config, ModelConfig
from multibox.errors import ConfigError
from multibox.models.anchor_layout import anchors_per_cell
from multibox.models.backbones import make_backbone
from multibox.models.backbones.layers import named_modules
from multibox.models.ssd import SSD, Heads
from multibox.structures import Size

PIXEL_SPREAD = 70.0
"""Standard deviation of grey levels 0 to 255: 74 if they are uniform, 60 to 75 in photographs."""
FEATURE_SPREAD = 8.0
"""Standard deviation of the maps that heads see over a backbone without batch norms. At 1 the heads learn slowly under
AdamW, whose steps do not follow the gradient's size; at 70, the pixels' own, the first losses are in the hundreds
(docs/decisions.md)."""
HEAD_SPREAD = 0.1
"""Standard deviation of the first class logits, about, where a prior is set."""


def build_model(config: Config, classes: int, seed: int = 0) -> SSD:
    """Make a network with fresh weights for `classes` classes; the same seed gives the same weights.

    Raises:
        ConfigError: an unknown backbone, or anchors for another number of feature maps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        per_cell = anchors_per_cell(config)
        backbone = make_backbone(config.model.backbone, config.model.width, len(per_cell))
        channels = cast("tuple[int, ...]", backbone.channels)
        if len(per_cell) != len(channels):
            raise ConfigError(
                f"anchors describe {len(per_cell)} feature maps but {config.model.backbone} has {len(channels)}; "
                "give one entry of anchors.sizes and anchors.ratios (or anchors.shapes) per map"
            )
        logits = classes + (config.model.score == "softmax")
        heads = Heads(config.model.heads, channels, per_cell, logits)
        model = SSD(backbone, heads, config.model.mean, config.model.std)
        _initialize(model, config.model)
    return model


def _initialize(model: SSD, config: ModelConfig) -> None:
    if config.init != "torch":
        for name, module in named_modules(model):
            if isinstance(module, nn.Conv2d):
                if config.init == "kaiming" and name.startswith("backbone."):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    features = 1.0
    if config.init == "kaiming":
        features = FEATURE_SPREAD
        _expect_pixels(model, config)
    if config.prior != "none":
        for _, layer in model.heads.class_layers():
            if config.init != "torch":
                # PyTorch's own rule is small enough
                nn.init.normal_(layer.weight, std=HEAD_SPREAD / features / math.sqrt(layer.weight[0].numel()))
            _set_prior(layer, model.heads.logits, config.score, config.prior)


def _expect_pixels(model: SSD, config: ModelConfig) -> None:
    """Bring the pixels' scale down to `FEATURE_SPREAD`, by the same factor per convolution up to the extra layers.

    He's rule keeps the scale of its input, so pixels that are not divided by their standard deviation (Caffe's) would
    give logits of several hundred. The first convolution alone could take the whole factor, but its weights would then
    be so small that a step of AdamW changes them by a tenth.
    """
    convs = [
        m for name, m in named_modules(model.backbone) if isinstance(m, nn.Conv2d) and not name.startswith("extras.")
    ]
    scale = FEATURE_SPREAD / PIXEL_SPREAD * sum(config.std) / len(config.std)
    with torch.no_grad():
        for conv in convs:
            conv.weight *= scale ** (1 / len(convs))
        for conv in (m for m in model.heads.localization.modules() if isinstance(m, nn.Conv2d)):
            conv.weight /= FEATURE_SPREAD


def _set_prior(head: nn.Conv2d, logits: int, score: str, prior: float) -> None:
    """Start with `prior` as the probability of any object, so that the first loss is not all background."""
    assert head.bias is not None
    bias = head.bias.detach().view(-1, logits)
    if score == "softmax":
        bias[:, 0] = math.log((1 - prior) / prior * (logits - 1))
    else:
        bias[:] = math.log(prior / (1 - prior))


class NetworkSize(NamedTuple):
    """How large a network is, for one image of its input size."""

    parameters: int
    multiply_adds: int
    """Of convolutions and matrix products; FLOPs count each as two."""
    anchors: int
    feature_shapes: tuple[Size, ...]


def measure(config: Config, classes: int) -> NetworkSize:
    """Return the size of the network that `config` describes."""
    height, width = config.model.input_size
    with torch.device("meta"):
        model = build_model(config, classes).eval()
        image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        outputs = model(image)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return NetworkSize(parameters, counter.get_total_flops() // 2, outputs.logits.shape[1], outputs.feature_shapes)
