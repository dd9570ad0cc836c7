"""The backbone of Linzaer's RFB-320 face detector: depthwise separable blocks and one receptive-field block.

RFB: branches of growing dilation see an object at several sizes (Liu et al. 2018, "Receptive Field Block Net").
"""

import itertools

import torch
from torch import Tensor, nn

from multibox.models.backbones.layers import RoomyConv2d, conv_norm_act, outputs_at

BEFORE_RFB = ((16, 32, 1), (32, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1))
AFTER_RFB = ((64, 128, 2), (128, 128, 1), (128, 128, 1), (128, 256, 2), (256, 256, 1))
"""Channels in and out, and stride, of the separable blocks."""
TAPS = (7, 10, 12)
"""Layers whose outputs are feature maps: the last at each stride."""


class RFBBackbone(nn.Module):
    """Maps at strides 8, 16, 32 and 64 (40x30 to 5x4 cells at 320x240)."""

    channels = (64, 128, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                conv_norm_act(_conv(3, 16, 3, stride=2)),
                *(_separable(*block) for block in BEFORE_RFB),
                ReceptiveField(64, 64),
                *(_separable(*block) for block in AFTER_RFB),
            ]
        )
        self.extra = nn.Sequential(
            nn.Conv2d(256, 64, 1),
            nn.ReLU(inplace=True),
            nn.Sequential(RoomyConv2d(64, 64, 3, 2, 1, groups=64), nn.ReLU(inplace=True), nn.Conv2d(64, 256, 1)),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to four feature maps, finest first."""
        maps = outputs_at(TAPS, self.layers, images)
        return [*maps, self.extra(maps[-1])]


class ReceptiveField(nn.Module):
    """Three branches of 3x3 convolutions, the last of each dilated by 2, 3 and 5, joined and added to a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        thin, wide = in_channels // 8, in_channels // 4
        middle = thin * 3 // 2
        self.branch0 = _branch(in_channels, (thin, wide), dilation=2)
        self.branch1 = _branch(in_channels, (thin, wide), dilation=3)
        self.branch2 = _branch(in_channels, (thin, middle, wide), dilation=5)
        self.join = _conv_norm(3 * wide, out_channels, 1)
        self.shortcut = _conv_norm(in_channels, out_channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map [b, in, h, w] to [b, out, h, w]."""
        branches = [branch(features) for branch in (self.branch0, self.branch1, self.branch2)]
        return self.relu(self.join(torch.cat(branches, 1)) + self.shortcut(features))


def _branch(in_channels: int, widths: tuple[int, ...], dilation: int) -> nn.Sequential:
    """Narrow to the first width, widen by 3x3 convolutions to the others, then convolve with dilation."""
    narrow = _conv_norm(in_channels, widths[0], 1)
    widen = [conv_norm_act(_conv(before, after, 3)) for before, after in itertools.pairwise(widths)]
    return nn.Sequential(narrow, *widen, _conv_norm(widths[-1], widths[-1], 3, dilation=dilation))


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = kernel // 2 * dilation
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)


def _conv_norm(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, out_channels, kernel, dilation=dilation), nn.BatchNorm2d(out_channels))


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    depthwise = _conv(in_channels, in_channels, 3, stride, groups=in_channels)
    return nn.Sequential(*conv_norm_act(depthwise), *conv_norm_act(_conv(in_channels, out_channels, 1)))
