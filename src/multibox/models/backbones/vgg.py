"""VGG16 with its two big layers turned into convolutions, and the paper's extra layers (SSD paper, section 3.1).

`features` are numbered as torchvision numbers them, so that its weights fit by name. Maps at 300 pixels: 38, 19, 10, 5,
3 and 1 cells a side; at 512: 64, 32, 16, 8, 4, 2 and 1.
"""

# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from multibox.models.backbones.layers import L2Norm, RoomyConv2d, SameConv2d, with_extras

CONVS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Places of the convolutions among `features`, block by block."""
CONV4_3 = 23
"""How many layers of `features` lead to the ReLU after conv4_3."""


class Extra(NamedTuple):
    """A 1x1 convolution that narrows, and one that shrinks the map; ReLU after both."""

    narrow: int
    wide: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0


EXTRAS_300 = (Extra(256, 512, 3, 2, 1), Extra(128, 256, 3, 2, 1), Extra(128, 256), Extra(128, 256))
EXTRAS_512 = (Extra(256, 512, 3, 2, 1), *(Extra(128, 256, 3, 2, 1),) * 3, Extra(128, 256, 4, 1, 1))


class VGG16Backbone(nn.Module):
    """conv4_3 (normalised, for the heads only), fc7, and the extra maps.

    Args:
        extras: the blocks after fc7, one map each.
        same: pad the shrinking layers as TensorFlow does; HiKapok's SSD.TensorFlow trained its weights so.
    """

    def __init__(self, extras: Sequence[Extra], same: bool = False) -> None:
        super().__init__()
        self.channels = (512, 1024, *(extra.wide for extra in extras))
        # Without the last pool: SSD's pool5 neither shrinks the map nor leaves a cell out
        self.features = make_layers(cfgs["D"][:-1])
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        self.norm = L2Norm(512)
        self.pool5 = nn.MaxPool2d(3, stride=1, padding=1)
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.relu = nn.ReLU(inplace=True)
        self.extras = nn.ModuleList(
            _extra(before, extra, same) for before, extra in zip(self.channels[1:], extras, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to the feature maps, finest first."""
        conv4_3 = self.features[:CONV4_3](images)
        normed = self.norm(conv4_3)
        deep = self.pool5(self.features[CONV4_3:](conv4_3))
        return with_extras([normed, self.relu(self.fc7(self.relu(self.fc6(deep))))], self.extras)


def _extra(channels: int, extra: Extra, same: bool) -> nn.Sequential:
    if same and extra.stride > 1:
        shrink: nn.Conv2d = SameConv2d(extra.narrow, extra.wide, extra.kernel, extra.stride)
    else:
        shrink = RoomyConv2d(extra.narrow, extra.wide, extra.kernel, extra.stride, extra.padding)
    return nn.Sequential(nn.Conv2d(channels, extra.narrow, 1), nn.ReLU(inplace=True), shrink, nn.ReLU(inplace=True))
