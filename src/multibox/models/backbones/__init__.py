"""Bodies by name. A body has `channels`, one entry a feature map, and maps images to a list of maps, finest first."""

from collections.abc import Callable
from functools import partial

from torch import nn

from multibox.errors import ConfigError, did_you_mean
from multibox.models.backbones.layers import replace_strided_depthwise
from multibox.models.backbones.mobilenet import mobilenetv2_body, mobilenetv3_body
from multibox.models.backbones.mobilenetv1 import MobileNetV1Body
from multibox.models.backbones.pyramid import FineMobileNetV1Body, MobileNetV1PyramidBody, RegNetPyramidBody
from multibox.models.backbones.resnet import ResNet50Body
from multibox.models.backbones.rfb import RFBBody
from multibox.models.backbones.timm_body import TimmBody
from multibox.models.backbones.tinyssd import TinySSDBody
from multibox.models.backbones.vgg import EXTRAS_300, EXTRAS_512, VGG16Body

FIXED: dict[str, Callable[[], nn.Module]] = {
    "tinyssd": TinySSDBody,
    "regnetx400-pyramid": RegNetPyramidBody,
    "vgg16-300": partial(VGG16Body, EXTRAS_300),
    "vgg16-300-same": partial(VGG16Body, EXTRAS_300, same=True),
    "vgg16-512": partial(VGG16Body, EXTRAS_512),
    "resnet50-300": ResNet50Body,
    "rfb320": RFBBody,
}

WITH_WIDTH: dict[str, Callable[[float], nn.Module]] = {
    "mobilenetv1-tf": MobileNetV1Body,
    "mobilenetv1-pyramid": MobileNetV1PyramidBody,
    "mobilenetv1-fine": FineMobileNetV1Body,
    "mobilenetv1": partial(MobileNetV1Body, tensorflow=False),
    "mobilenetv2": mobilenetv2_body,
    "mobilenetv3": mobilenetv3_body,
    "mobilenetv3-full": partial(mobilenetv3_body, reduced_tail=False),
}
"""Bodies that take a multiplier of their channels (`model.width`)."""

BACKBONES = (*FIXED, *WITH_WIDTH)
TIMM = "timm:"


def make_backbone(name: str, width: float, levels: int) -> nn.Module:
    """Make the body called `name` with fresh weights.

    Args:
        name: an entry of the tables, or timm:NAME.
        width: multiplier of the channels.
        levels: feature maps that the anchors describe; timm's bodies grow as many, the others have theirs.

    Raises:
        ConfigError: an unknown name, or a width for a body that has none.
    """
    if name in WITH_WIDTH:
        return replace_strided_depthwise(WITH_WIDTH[name](width))
    if width != 1:
        raise ConfigError(
            f"model.width={width}: backbone {name} has one width; those with many: {', '.join(WITH_WIDTH)}"
        )
    if name.startswith(TIMM):
        return replace_strided_depthwise(TimmBody(name.removeprefix(TIMM), levels))
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
