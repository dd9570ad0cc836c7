"""TinySSD's body: small convolution blocks from 64 channels at stride 8 down to one cell (Dive into Deep Learning)."""

from torch import Tensor, nn


class DownSample(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, then a 2x2 max pool: halves height and width.

    The convolution biases are redundant before a batch norm; they stay because the original has them.
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
        # The largest of four commutes with ReLU: pooling first leaves it a quarter of the numbers
        return self.activation(self.pool(self.norm2(self.conv2(features))))


class TinySSDBody(nn.Module):
    """Five feature maps: strides 8, 16, 32, 64 and the whole image as one cell."""

    channels = (64, 128, 128, 128, 128)

    def __init__(self) -> None:
        super().__init__()
        base = nn.Sequential(DownSample(3, 16), DownSample(16, 32), DownSample(32, 64))
        blocks = [nn.Sequential(DownSample(width, 128)) for width in (64, 128, 128)]
        self.stages = nn.ModuleList([base, *blocks, nn.AdaptiveMaxPool2d(1)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to the five feature maps, finest first."""
        features: list[Tensor] = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        return features
