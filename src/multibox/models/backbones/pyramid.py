"""Light trunks under a small feature pyramid (Lin et al. 2017): RegNetX-400MF (multibox-s) and MobileNetV1.

Chosen by measurement (`docs/decisions.md`): grouped convolutions on few, wide maps train fastest on a CPU; for
MobileNetV1 there are weights to start from, those of the COCO SSD.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.regnet import BlockParams, RegNet

from multibox.models.backbones.layers import depthwise_norm_act
from multibox.models.backbones.mobilenetv1 import TAPS, MobileNetV1Body, scaled, trunk_layers

DEPTHS, WIDTHS, GROUP = [1, 2, 7, 12], [32, 64, 160, 400], 16
"""Blocks and channels of RegNetX-400MF at strides 4, 8, 16 and 32, and channels of a group."""
ENDS = (5, 11, 13)
"""MobileNetV1's last layers at strides 8, 16 and 32."""
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


class MobileNetV1PyramidBody(nn.Module):
    """The same maps over MobileNetV1 as TensorFlow has it; the trunk is named as in `MobileNetV1Body`."""

    channels = (WIDTH,) * 4

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.layers = trunk_layers(width)
        self.pyramid = Pyramid([scaled(channels, width) for channels in (256, 512, 1024)], WIDTH)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to four feature maps, finest first."""
        maps: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            images = layer(images)
            if index in ENDS:
                maps.append(images)
        return self.pyramid(maps)


class FineMobileNetV1Body(MobileNetV1Body):
    """The six maps of the COCO SSD and a finer one at stride 8, for small objects; all that the COCO SSD knows is kept.

    The finer map stands last, so that layers and heads are named as in the COCO SSD, whose weights fit. It adds the
    stride-16 map, made equally wide and twice as large, to the trunk's stride-8 map, as a feature pyramid does.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(width)
        narrow, wide = scaled(256, width), scaled(512, width)
        self.lateral = nn.Sequential(nn.Conv2d(narrow, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.above = nn.Sequential(nn.Conv2d(wide, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.smooth = nn.Sequential(_separable(WIDTH), _separable(WIDTH))
        self.channels = (*self.channels, WIDTH)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to seven feature maps: strides 16 to 300, then stride 8."""
        maps: list[Tensor] = []
        fine = images
        for index, layer in enumerate(self.layers):
            images = layer(images)
            if index == ENDS[0]:
                fine = images
            if index in TAPS:
                maps.append(images)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        lateral = self.lateral(fine)
        above = functional.interpolate(self.above(maps[0]), size=lateral.shape[2:], mode="nearest")
        return [*maps, self.smooth(lateral + above)]


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
