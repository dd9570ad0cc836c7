"""The body of Linzaer's RFB-320 face detector: depthwise separable blocks and one receptive-field block.

RFB: branches with growing dilation see an object at several sizes (Liu et al. 2018, "Receptive Field Block Net").
"""

import torch
from torch import Tensor, nn

from multibox.models.backbones.layers import RoomyConv2d

BEFORE_RFB = ((16, 32, 1), (32, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1))
AFTER_RFB = ((64, 128, 2), (128, 128, 1), (128, 128, 1), (128, 256, 2), (256, 256, 1))
"""Channels in and out, and stride."""
TAPS = (7, 10, 12)


class RFBBody(nn.Module):
    """Maps at strides 8, 16, 32 and 64 (40x30 to 5x4 cells at 320x240)."""

    channels = (64, 128, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(*_conv_norm(3, 16, 3, stride=2), nn.ReLU(inplace=True)),
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
        maps: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            images = layer(images)
            if index in TAPS:
                maps.append(images)
        return [*maps, self.extra(images)]


class ReceptiveField(nn.Module):
    """Three branches of 3x3 convolutions, the last of each dilated by 2, 3 and 5, joined and added to a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        thin, wide = in_channels // 8, in_channels // 4
        middle = thin * 3 // 2
        relu = nn.ReLU(inplace=True)
        self.branch0 = nn.Sequential(
            _conv_norm(in_channels, thin, 1),
            nn.Sequential(*_conv_norm(thin, wide, 3), relu),
            _conv_norm(wide, wide, 3, dilation=2),
        )
        self.branch1 = nn.Sequential(
            _conv_norm(in_channels, thin, 1),
            nn.Sequential(*_conv_norm(thin, wide, 3), relu),
            _conv_norm(wide, wide, 3, dilation=3),
        )
        self.branch2 = nn.Sequential(
            _conv_norm(in_channels, thin, 1),
            nn.Sequential(*_conv_norm(thin, middle, 3), relu),
            nn.Sequential(*_conv_norm(middle, wide, 3), relu),
            _conv_norm(wide, wide, 3, dilation=5),
        )
        self.join = _conv_norm(3 * wide, out_channels, 1)
        self.shortcut = _conv_norm(in_channels, out_channels, 1)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Map [b, in, h, w] to [b, out, h, w]."""
        branches = [branch(features) for branch in (self.branch0, self.branch1, self.branch2)]
        return self.relu(self.join(torch.cat(branches, 1)) + self.shortcut(features))


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2 * dilation
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    depthwise = _conv_norm(in_channels, in_channels, 3, stride, groups=in_channels)
    pointwise = _conv_norm(in_channels, out_channels, 1)
    return nn.Sequential(*depthwise, nn.ReLU(inplace=True), *pointwise, nn.ReLU(inplace=True))
