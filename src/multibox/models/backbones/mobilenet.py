"""MobileNetV2 and V3 as SSDLite reads them (MobileNetV2 paper, section 6.2; V3 paper, section 6.3).

`features` are torchvision's, with its names: the weights of its classifiers fit. At 320 pixels the six maps have 20,
10, 5, 3, 2 and 1 cells a side.
"""

# pyright: reportMissingTypeStubs=false

from functools import partial
from typing import cast

from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large
from torchvision.ops import Conv2dNormActivation

from multibox.models.backbones.layers import MakeNorm, depthwise_norm_act, with_extras

EXTRAS = (512, 256, 256, 128)
"""Channels of the extra maps."""


class MobileNetBackbone(nn.Module):
    """The expanded map inside the block that goes to stride 32 (so at stride 16), the last one, and four extra ones.

    Args:
        features: layers of torchvision's classifier.
        tap: which of them is that block.
        norm: makes the batch norms of the extra layers.
    """

    def __init__(self, features: nn.Sequential, tap: int, norm: MakeNorm) -> None:
        super().__init__()
        self.features = features
        self.tap = tap
        expansion = cast(nn.Conv2d, cast(nn.Sequential, _inside(features[tap])[0])[0])
        last = cast(nn.Conv2d, cast(nn.Sequential, features[-1])[0])
        self.channels = (expansion.out_channels, last.out_channels, *EXTRAS)
        self.extras = nn.ModuleList(
            _extra(before, after, norm) for before, after in zip(self.channels[1:], EXTRAS, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to six feature maps, finest first."""
        layers = _inside(self.features[self.tap])
        expanded = layers[0](self.features[: self.tap](images))
        maps = [expanded, self.features[self.tap + 1 :](layers[1:](expanded))]
        return with_extras(maps, self.extras)


def mobilenetv2(width: float) -> MobileNetBackbone:
    """Make MobileNetV2's; `width` multiplies its channels, but not those of the extra layers."""
    features = mobilenet_v2(weights=None, width_mult=width).features
    return MobileNetBackbone(features, 14, partial(nn.BatchNorm2d, eps=1e-3))


def mobilenetv3(width: float, reduced_tail: bool = True) -> MobileNetBackbone:
    """Make MobileNetV3-Large's; `width` multiplies its channels, but not those of the extra layers.

    A reduced tail halves the last stage, as in torchvision's COCO detector; its ImageNet weights have the full one.
    """
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    net = mobilenet_v3_large(weights=None, reduced_tail=reduced_tail, width_mult=width, norm_layer=norm)
    return MobileNetBackbone(net.features, 13, norm)


def _inside(block: nn.Module) -> nn.Sequential:
    """Return an inverted residual's layers; a block that strides has no shortcut around them."""
    return cast(nn.Sequential, block.conv if hasattr(block, "conv") else block.block)  # V2's name and V3's


def _extra(channels: int, wide: int, norm: MakeNorm) -> nn.Sequential:
    narrow = wide // 2
    conv = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.ReLU6)
    return nn.Sequential(
        conv(channels, narrow, kernel_size=1),
        depthwise_norm_act(narrow, norm, stride=2),
        conv(narrow, wide, kernel_size=1),
    )
