"""Light backbones with a small feature pyramid (Lin et al. 2017): RegNetX-400MF (multibox-s) and MobileNetV1.

Chosen by measurement (`docs/decisions.md`): grouped convolutions on few, wide maps train fastest on a CPU; for
MobileNetV1 there are weights to start from, those of the COCO SSD.
"""

# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.regnet import BlockParams, RegNet

from multibox.models.backbones.layers import conv_norm_act, depthwise_norm_act, outputs_at, with_extras
from multibox.models.backbones.mobilenetv1 import TAPS, MobileNetV1Backbone, scaled, stem_and_blocks

DEPTHS, WIDTHS, GROUP = [1, 2, 7, 12], [32, 64, 160, 400], 16
"""Blocks and channels of RegNetX-400MF at strides 4, 8, 16 and 32, and channels of a group."""
ENDS = (5, 11, 13)
"""MobileNetV1's last layers at strides 8, 16 and 32."""
WIDTH = 96
"""Channels of every map of the pyramid."""


class RegNetPyramidBackbone(nn.Module):
    """Equally wide maps at strides 8, 16, 32 and 64. RegNet's parts are named as in torchvision, whose weights fit."""

    channels = (WIDTH,) * 4

    def __init__(self) -> None:
        super().__init__()
        blocks = BlockParams(DEPTHS, WIDTHS, [GROUP] * 4, bottleneck_multipliers=[1.0] * 4, strides=[2] * 4)
        net = RegNet(blocks, num_classes=1)
        self.stem, self.trunk_output = net.stem, net.trunk_output
        self.pyramid = Pyramid(WIDTHS[1:])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to four feature maps, finest first."""
        return self.pyramid(outputs_at((1, 2, 3), self.trunk_output, self.stem(images)))


class MobileNetV1PyramidBackbone(nn.Module):
    """The same maps from MobileNetV1 as TensorFlow has it; its layers are named as in `MobileNetV1Backbone`."""

    channels = (WIDTH,) * 4

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.layers = stem_and_blocks(width)
        self.pyramid = Pyramid([scaled(channels, width) for channels in (256, 512, 1024)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to four feature maps, finest first."""
        return self.pyramid(outputs_at(ENDS, self.layers, images))


class FineMobileNetV1Backbone(MobileNetV1Backbone):
    """The six maps of the COCO SSD, which keep all that its weights know, and a finer one at stride 8.

    The finer map is for small objects. It adds the stride-16 map, made equally wide and twice as large, to the stride-8
    map, as a feature pyramid does. It stands last, so that layers and heads are named as in the COCO SSD.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(width)
        narrow, wide = scaled(256, width), scaled(512, width)
        self.lateral, self.above = _project(narrow), _project(wide)
        self.smooth = nn.Sequential(_separable(), _separable())
        self.channels = (*self.channels, WIDTH)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to seven feature maps: strides 16 to 300, then stride 8."""
        fine, *maps = outputs_at((ENDS[0], *TAPS), self.layers, images)
        return [*with_extras(maps, self.extras), self.smooth(_add_coarser(self.lateral(fine), self.above(maps[0])))]


class Pyramid(nn.Module):
    """Maps made equally wide, each coarser one added to the finer, and one more at half the size of the coarsest.

    Args:
        channels: of the maps, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_project(wide) for wide in channels)
        self.smooth = nn.ModuleList(_separable() for _ in channels)
        self.coarser = _separable(stride=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map n maps [b, c, h, w] to n + 1 maps [b, WIDTH, h, w]."""
        merged = [lateral(features) for lateral, features in zip(self.lateral, maps, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            merged[finer] = _add_coarser(merged[finer], merged[finer + 1])
        smoothed = [smooth(features) for smooth, features in zip(self.smooth, merged, strict=True)]
        return [*smoothed, self.coarser(smoothed[-1])]


def _add_coarser(fine: Tensor, coarse: Tensor) -> Tensor:
    """Add a coarser map, enlarged to the finer map's size, to it."""
    return fine + functional.interpolate(coarse, size=fine.shape[2:], mode="nearest")


def _project(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))


def _separable(stride: int = 1) -> nn.Sequential:
    depthwise = depthwise_norm_act(WIDTH, nn.BatchNorm2d, stride, nn.ReLU)
    return nn.Sequential(*depthwise, *conv_norm_act(nn.Conv2d(WIDTH, WIDTH, 1, bias=False)))
