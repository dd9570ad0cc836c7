"""MobileNetV1 with SSD's extra layers, in two forms: TensorFlow's object detection and qfgaohao's pytorch-ssd."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from multibox.models.backbones.layers import RoomyConv2d, SameConv2d

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Channels at width 1, and stride, of the depthwise separable blocks."""
TAPS = (11, 13)
"""The first map is that of block 11, the second the last one's (counted from 1; layer 0 is the stem)."""
EXTRAS = (512, 256, 256, 256)
EXTRAS_TF = (512, 256, 256, 128)
SMALLEST = 8


class MobileNetV1Body(nn.Module):
    """The maps of blocks 11 and 13 (strides 16 and 32) and four extra ones.

    Args:
        width: multiplier of all channels.
        tensorflow: SAME padding, ReLU6, batch norm in the extra layers too (TensorFlow); otherwise symmetric padding,
            ReLU and plain extra layers (qfgaohao, dusty-nv).
    """

    def __init__(self, width: float = 1.0, tensorflow: bool = True) -> None:
        super().__init__()
        conv, norm, act = _styles(tensorflow)
        self.layers = trunk_layers(width, tensorflow)
        channels = scaled(1024, width)
        wides = EXTRAS_TF if tensorflow else EXTRAS
        self.channels = (scaled(512, width), channels, *(scaled(wide, width) for wide in wides))
        self.extras = nn.ModuleList()
        for wide in self.channels[2:]:
            narrow = wide // 2
            if tensorflow:
                layers = (*_norm_act(conv(channels, narrow, 1, bias=False), norm, act),)
                layers += (*_norm_act(conv(narrow, wide, 3, 2, bias=False), norm, act),)
            else:
                layers = (conv(channels, narrow, 1), act(inplace=True), conv(narrow, wide, 3, 2), act(inplace=True))
            self.extras.append(nn.Sequential(*layers))
            channels = wide

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to six feature maps, finest first."""
        maps: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            images = layer(images)
            if index in TAPS:
                maps.append(images)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


def scaled(channels: int, width: float) -> int:
    """Return how many of `channels` (at width 1) a layer has."""
    return max(SMALLEST, int(channels * width))


def trunk_layers(width: float, tensorflow: bool = True) -> nn.ModuleList:
    """Make the stem and the blocks; they are named alike in every body, so that weights fit all of them."""
    conv, norm, act = _styles(tensorflow)
    channels = scaled(32, width)
    layers = nn.ModuleList([_norm_act(conv(3, channels, 3, 2, bias=False), norm, act)])
    for wide, stride in BLOCKS:
        depthwise = _norm_act(conv(channels, channels, 3, stride, groups=channels, bias=False), norm, act)
        pointwise = _norm_act(conv(channels, scaled(wide, width), 1, bias=False), norm, act)
        layers.append(nn.Sequential(*depthwise, *pointwise))
        channels = scaled(wide, width)
    return layers


def _styles(
    tensorflow: bool,
) -> tuple[Callable[..., nn.Conv2d], Callable[[int], nn.BatchNorm2d], Callable[..., nn.Module]]:
    """Return what makes convolutions, batch norms and activations.

    TensorFlow's slim keeps 0.9997 of the old statistics, too slow for short trainings: PyTorch's 0.9 here.
    """
    norm = partial(nn.BatchNorm2d, eps=1e-3 if tensorflow else 1e-5)
    return (SameConv2d, norm, nn.ReLU6) if tensorflow else (_symmetric, norm, nn.ReLU)


def _symmetric(in_channels: int, out_channels: int, kernel: int, stride: int = 1, **options: bool | int) -> nn.Conv2d:
    return RoomyConv2d(in_channels, out_channels, kernel, stride, kernel // 2, **options)  # pyright: ignore[reportArgumentType]


def _norm_act(conv: nn.Conv2d, norm: Callable[[int], nn.Module], act: Callable[..., nn.Module]) -> nn.Sequential:
    return nn.Sequential(conv, norm(conv.out_channels), act(inplace=True))
