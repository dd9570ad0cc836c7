"""TinySSD of Dive into Deep Learning (d2l.ai, "Single Shot Multibox Detection"; written for Apache MXNet).

Six blocks that halve the map and a global pool. At the original's 256 pixels:

    stage   channels   cells    stride
    0       64         32x32    8        three blocks: 16, 32, 64 channels
    1       128        16x16    16       one block
    2       128        8x8      32       one block
    3       128        4x4      64       one block
    4       128        1x1      -        the maximum over the whole map
"""

from torch import Tensor, nn


class TinySSDBackbone(nn.Module):
    """Five feature maps, all of which the heads read. Blocks and channels are the original's."""

    channels = (64, 128, 128, 128, 128)

    def __init__(self) -> None:
        super().__init__()
        base = nn.Sequential(DownSample(3, 16), DownSample(16, 32), DownSample(32, 64))
        blocks = [nn.Sequential(DownSample(width, 128)) for width in (64, 128, 128)]
        self.stages = nn.ModuleList([base, *blocks, nn.AdaptiveMaxPool2d(1)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to the five feature maps, finest first."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class DownSample(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, then a 2x2 max pool: halves height and width.

    A bias before a batch norm has no effect; the convolutions keep theirs because the original's files hold them.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)

    def forward(self, features: Tensor) -> Tensor:
        """Map [b, in, h, w] to [b, out, h // 2, w // 2]."""
        features = self.activation(self.norm1(self.conv1(features)))
        # Maximum and ReLU commute: pooling first leaves ReLU a quarter of the numbers
        return self.activation(self.pool(self.norm2(self.conv2(features))))
