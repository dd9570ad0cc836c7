"""The body of multibox-s: RegNetX-400MF and a small feature pyramid (Lin et al. 2017) over its three coarser maps.

Chosen by measurement (`docs/decisions.md`): grouped convolutions on few, wide maps train faster on a CPU than the
depthwise ones of MobileNets, whose time goes into memory and batch norms rather than into arithmetic.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.regnet import BlockParams, RegNet

from multibox.models.backbones.layers import depthwise_norm_act

DEPTHS, WIDTHS, GROUP = [1, 2, 7, 12], [32, 64, 160, 400], 16
"""Blocks and channels of RegNetX-400MF at strides 4, 8, 16 and 32, and channels of a group."""
WIDTH = 96
"""Channels of every map of the pyramid."""


class RegNetPyramidBody(nn.Module):
    """Maps at strides 8, 16, 32 and 64, equally wide; the trunk is named as in torchvision, whose weights fit."""

    channels = (WIDTH,) * len(WIDTHS)

    def __init__(self) -> None:
        super().__init__()
        blocks = BlockParams(DEPTHS, WIDTHS, [GROUP] * 4, bottleneck_multipliers=[1.0] * 4, strides=[2] * 4)
        net = RegNet(blocks, num_classes=1)
        self.stem, self.trunk_output = net.stem, net.trunk_output
        self.pyramid = Pyramid(WIDTHS[1:], WIDTH)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to four feature maps, finest first."""
        features = self.stem(images)
        maps: list[Tensor] = []
        for block in self.trunk_output:
            features = block(features)
            maps.append(features)
        return self.pyramid(maps[1:])


class Pyramid(nn.Module):
    """Maps made equally wide, the coarser added to the finer, and one more at half the coarsest's size.

    Args:
        channels: of the maps, finest first.
        width: channels of all results.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)) for wide in channels
        )
        self.smooth = nn.ModuleList(_separable(width) for _ in channels)
        self.coarser = _separable(width, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map n maps [b, c, h, w] to n + 1 maps [b, width, h, w]."""
        merged = [lateral(features) for lateral, features in zip(self.lateral, maps, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            size = merged[finer].shape[2:]
            merged[finer] = merged[finer] + functional.interpolate(merged[finer + 1], size=size, mode="nearest")
        found = [smooth(features) for smooth, features in zip(self.smooth, merged, strict=True)]
        return [*found, self.coarser(found[-1])]


def _separable(width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *depthwise_norm_act(width, nn.BatchNorm2d, stride, nn.ReLU),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
