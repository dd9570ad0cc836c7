"""Backbones by name.

A backbone has `channels`, one entry per feature map, and maps images to a list of feature maps, finest first.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from multibox.errors import ConfigError, did_you_mean
from multibox.models.backbones.layers import replace_strided_depthwise
from multibox.models.backbones.mobilenet import mobilenetv2, mobilenetv3
from multibox.models.backbones.mobilenetv1 import MobileNetV1Backbone
from multibox.models.backbones.pyramid import (
    FineMobileNetV1Backbone,
    MobileNetV1PyramidBackbone,
    RegNetPyramidBackbone,
)
from multibox.models.backbones.resnet import ResNet50Backbone
from multibox.models.backbones.rfb import RFBBackbone
from multibox.models.backbones.timm_backbone import TimmBackbone
from multibox.models.backbones.tinyssd import TinySSDBackbone
from multibox.models.backbones.vgg import EXTRAS_300, EXTRAS_512, VGG16Backbone

FIXED: dict[str, Callable[[], nn.Module]] = {
    "tinyssd": TinySSDBackbone,
    "regnetx400-pyramid": RegNetPyramidBackbone,
    "vgg16-300": partial(VGG16Backbone, EXTRAS_300),
    "vgg16-300-same": partial(VGG16Backbone, EXTRAS_300, same=True),
    "vgg16-512": partial(VGG16Backbone, EXTRAS_512),
    "resnet50-300": ResNet50Backbone,
    "rfb320": RFBBackbone,
}
WITH_WIDTH: dict[str, Callable[[float], nn.Module]] = {
    "mobilenetv1-tf": MobileNetV1Backbone,
    "mobilenetv1-pyramid": MobileNetV1PyramidBackbone,
    "mobilenetv1-fine": FineMobileNetV1Backbone,
    "mobilenetv1": partial(MobileNetV1Backbone, tensorflow=False),
    "mobilenetv2": mobilenetv2,
    "mobilenetv3": mobilenetv3,
    "mobilenetv3-full": partial(mobilenetv3, reduced_tail=False),
}
"""Backbones that take a multiplier of their channels (`model.width`)."""
BACKBONES = (*FIXED, *WITH_WIDTH)
TIMM = "timm:"


def make_backbone(name: str, width: float, levels: int) -> nn.Module:
    """Make the backbone called `name` with fresh weights.

    Args:
        name: an entry of the tables, or timm:NAME.
        width: multiplier of the channels.
        levels: feature maps that the anchors describe; timm's backbones get as many, the others have their own number.

    Raises:
        ConfigError: an unknown name, or a width for a backbone that has none.
    """
    if name in WITH_WIDTH:
        return replace_strided_depthwise(WITH_WIDTH[name](width))
    if width != 1:
        raise ConfigError(
            f"model.width={width}: backbone {name} has one width; those with many: {', '.join(WITH_WIDTH)}"
        )
    if name.startswith(TIMM):
        return replace_strided_depthwise(TimmBackbone(name.removeprefix(TIMM), levels))
    check_backbone(name)
    return FIXED[name]()


def check_backbone(name: str) -> None:
    """Refuse a name that is in no table.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in FIXED and name not in WITH_WIDTH and not name.startswith(TIMM):
        raise ConfigError(
            f"model.backbone: unknown backbone {name!r}{did_you_mean(name, BACKBONES)}; known: "
            f"{', '.join(BACKBONES)}, timm:NAME"
        )
