"""Bodies by name; each has `channels`, one entry per feature map it returns."""

from collections.abc import Callable

from torch import nn

from multibox.errors import ConfigError, did_you_mean
from multibox.models.backbones.tinyssd import TinySSDBody

BACKBONES: dict[str, Callable[[], nn.Module]] = {"tinyssd": TinySSDBody}


def find_backbone(name: str) -> Callable[[], nn.Module]:
    """Return the function that makes the body called `name`."""
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}{did_you_mean(name, BACKBONES)}; known: {', '.join(BACKBONES)}")
    return BACKBONES[name]
