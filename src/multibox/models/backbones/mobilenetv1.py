"""MobileNetV1 with SSD's extra layers, in two forms: TensorFlow's object detection API and qfgaohao's pytorch-ssd."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from multibox.models.backbones.layers import (
    MakeActivation,
    MakeNorm,
    RoomyConv2d,
    SameConv2d,
    conv_norm_act,
    outputs_at,
    with_extras,
)

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Channels at width 1, and stride, of the depthwise separable blocks (MobileNets paper, table 1)."""
TAPS = (11, 13)
"""Layers of the first two feature maps, at strides 16 and 32; layer 0 is the stem."""
EXTRAS = (512, 256, 256, 256)
EXTRAS_TF = (512, 256, 256, 128)
SMALLEST = 8
"""Fewest channels of a layer, whatever the width (TensorFlow's `min_depth`)."""


class MobileNetV1Backbone(nn.Module):
    """The maps of blocks 11 and 13 and four extra ones: 19, 10, 5, 3, 2 and 1 cells a side at 300 pixels.

    Args:
        width: multiplier of all channels.
        tensorflow: SAME padding, ReLU6, and batch norms in the extra layers too (TensorFlow); otherwise symmetric
            padding, ReLU and plain extra layers (qfgaohao, dusty-nv).
    """

    def __init__(self, width: float = 1.0, tensorflow: bool = True) -> None:
        super().__init__()
        style = _style(tensorflow)
        self.layers = stem_and_blocks(width, tensorflow)
        wides = EXTRAS_TF if tensorflow else EXTRAS
        self.channels = tuple(scaled(channels, width) for channels in (512, 1024, *wides))
        self.extras = nn.ModuleList()
        for before, wide in zip(self.channels[1:], self.channels[2:], strict=False):
            narrow = wide // 2
            if tensorflow:
                layers = (*style.block(before, narrow, 1), *style.block(narrow, wide, 3, 2))
            else:
                narrowing = (style.conv(before, narrow, 1), style.act(inplace=True))
                layers = (*narrowing, style.conv(narrow, wide, 3, 2), style.act(inplace=True))
            self.extras.append(nn.Sequential(*layers))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to six feature maps, finest first."""
        return with_extras(outputs_at(TAPS, self.layers, images), self.extras)


def scaled(channels: int, width: float) -> int:
    """Return how many of `channels` (at width 1) a layer has."""
    return max(SMALLEST, int(channels * width))


def stem_and_blocks(width: float, tensorflow: bool = True) -> nn.ModuleList:
    """Make the stem and the blocks, named alike in every backbone, so that weights fit all of them."""
    style = _style(tensorflow)
    channels = scaled(32, width)
    layers = nn.ModuleList([style.block(3, channels, 3, 2)])
    for wide, stride in BLOCKS:
        depthwise = style.block(channels, channels, 3, stride, groups=channels)
        layers.append(nn.Sequential(*depthwise, *style.block(channels, scaled(wide, width), 1)))
        channels = scaled(wide, width)
    return layers


class _Style(NamedTuple):
    """What makes the convolutions, batch norms and activations of one form."""

    conv: Callable[..., nn.Conv2d]
    norm: MakeNorm
    act: MakeActivation

    def block(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> nn.Sequential:
        conv = self.conv(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        return conv_norm_act(conv, self.norm, self.act)


def _style(tensorflow: bool) -> _Style:
    """Return TensorFlow's form or qfgaohao's.

    TensorFlow's slim keeps 0.9997 of the old batch statistics, too slow for short trainings: PyTorch's 0.9 here.
    """
    if tensorflow:
        return _Style(SameConv2d, partial(nn.BatchNorm2d, eps=1e-3), nn.ReLU6)
    return _Style(_symmetric, nn.BatchNorm2d, nn.ReLU)


def _symmetric(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True
) -> nn.Conv2d:
    return RoomyConv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
