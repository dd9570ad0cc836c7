"""From config to network and anchors: the only reader of the config among the models."""

import math
from typing import cast

import torch
from torch import nn

from multibox.config import Config, ModelConfig
from multibox.errors import ConfigError
from multibox.models.anchors import anchors_per_cell
from multibox.models.backbones import make_backbone
from multibox.models.heads import Heads
from multibox.models.ssd import SSD


def build_model(config: Config, classes: int, seed: int = 0) -> SSD:
    """Make a network with fresh weights for `classes` classes; the same seed gives the same weights.

    Raises:
        ConfigError: an unknown backbone, or anchors of another number of maps.
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
        model = SSD(
            backbone, Heads(config.model.heads, channels, per_cell, logits), config.model.mean, config.model.std
        )
        _initialize(model, config.model)
    return model


def _initialize(model: SSD, config: ModelConfig) -> None:
    if config.init != "torch":
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                if config.init == "kaiming" and name.startswith("backbone."):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    if config.prior != "none":
        for _, layer in model.heads.class_layers():
            _set_prior(layer, model.heads.logits, config.score, config.prior)


def _set_prior(head: nn.Conv2d, logits: int, score: str, prior: float) -> None:
    """Start with `prior` as the probability of any object, so that the first loss is not all background."""
    assert head.bias is not None
    bias = head.bias.detach().view(-1, logits)
    if score == "softmax":
        bias[:, 0] = math.log((1 - prior) / prior * (logits - 1))
    else:
        bias[:] = math.log(prior / (1 - prior))
