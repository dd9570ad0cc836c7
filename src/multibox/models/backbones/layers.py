"""Layers and helpers that several backbones share."""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Container, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

MakeNorm = Callable[[int], nn.Module]
MakeActivation = Callable[..., nn.Module]


class RoomyConv2d(nn.Conv2d):
    """A convolution for the end of a network, where feature maps may be smaller than its kernel.

    A map that stays too small with the given padding is padded further at the right and at the bottom, so that SSD's
    last, unpadded convolutions take any input. The padding becomes part of the map: otherwise some taps see padding
    alone, and oneDNN (3.13, bfloat16, stride 2 on one cell) leaves their gradients unwritten, now and then infinite,
    where they should be zero.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> "RoomyConv2d":
        """Return one with the settings and the very parameters of `conv`, which must have integer padding."""
        # On the meta device nothing is drawn, so the weights that a seed gives stay the same
        roomy = cls(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            cast(tuple[int, int], conv.stride),
            conv.padding,  # pyright: ignore[reportArgumentType]
            cast(tuple[int, int], conv.dilation),
            conv.groups,
            device="meta",
        )
        roomy.weight, roomy.bias = conv.weight, conv.bias
        return roomy

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, in, h, w] to at least one cell."""
        height, width = input.shape[2:]
        reach = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilation, self.kernel_size, strict=True)]
        padding = cast(tuple[int, int], self.padding)
        if min(height, width) >= max(reach):
            return _convolve(self, input, padding)
        top, left = padding
        bottom, right = (max(p, r - p - s) for p, r, s in zip(padding, reach, (height, width), strict=True))
        return _convolve(self, functional.pad(input, (left, right, top, bottom)), (0, 0))


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: ceil(size / stride) cells, the odd row and column of padding last.

    With stride 1 that is symmetric. With stride 2 on an even size nothing is padded at the left and at the top, so the
    sampling grid is half a cell away from PyTorch's.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, in, h, w] to [b, out, ceil(h / stride), ceil(w / stride)]."""
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (
                _same_padding(size, kernel, stride)
                for size, kernel, stride in zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
            )
            input = functional.pad(input, (left, right, top, bottom))
        return _convolve(self, input, cast(tuple[int, int], self.padding))


class L2Norm(nn.Module):
    """Scale each cell's channels to length 1, then by a learnt factor per channel (ParseNet; SSD, section 3.1)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, features: Tensor) -> Tensor:
        """Map [b, c, h, w] to the same shape."""
        return functional.normalize(features, dim=1) * self.scale.view(1, -1, 1, 1)


def replace_strided_depthwise(backbone: nn.Module) -> nn.Module:
    """Replace, in place, each plain strided depthwise convolution by a `RoomyConv2d`; return the backbone.

    For backbones that a library built: `_convolve` trains those convolutions much faster in bfloat16.
    """
    for name, module in named_modules(backbone):
        if type(module) is nn.Conv2d and _is_strided_depthwise(module):
            backbone.set_submodule(name, RoomyConv2d.like(module))
    return backbone


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every module with its name, as PyTorch's own method does without types."""
    return list(cast("Iterable[tuple[str, nn.Module]]", model.named_modules()))


def conv_norm_act(conv: nn.Conv2d, norm: MakeNorm = nn.BatchNorm2d, act: MakeActivation = nn.ReLU) -> nn.Sequential:
    """Put a batch norm and an activation behind a convolution."""
    return nn.Sequential(conv, norm(conv.out_channels), act(inplace=True))


def depthwise_norm_act(channels: int, norm: MakeNorm, stride: int = 1, act: MakeActivation = nn.ReLU6) -> nn.Sequential:
    """Make a depthwise 3x3 convolution with batch norm and activation, named as torchvision names its own."""
    return conv_norm_act(RoomyConv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), norm, act)


def extra_block(channels: int, narrow: int, wide: int, stride: int = 2) -> nn.Sequential:
    """Make the layers of an extra map, with batch norms: a 1x1 convolution that narrows, a 3x3 one that shrinks.

    With stride 1 the latter is not padded, as in the last two of the SSD paper: it shrinks the map by its border.
    """
    return nn.Sequential(
        *conv_norm_act(nn.Conv2d(channels, narrow, 1, bias=False)),
        *conv_norm_act(RoomyConv2d(narrow, wide, 3, stride, padding=stride - 1, bias=False)),
    )


def outputs_at(places: Container[int], layers: Iterable[nn.Module], images: Tensor) -> list[Tensor]:
    """Run the layers one after the other and return the outputs of those at `places`, counted from 0."""
    kept: list[Tensor] = []
    for place, layer in enumerate(layers):
        images = layer(images)
        if place in places:
            kept.append(images)
    return kept


def with_extras(maps: list[Tensor], extras: Iterable[nn.Module]) -> list[Tensor]:
    """Return the maps and, after them, what each extra block makes of the map before it."""
    maps = list(maps)
    for extra in extras:
        maps.append(extra(maps[-1]))
    return maps


def _convolve(conv: nn.Conv2d, input: Tensor, padding: tuple[int, int]) -> Tensor:
    """Convolve; a strided depthwise one in float32 where a CPU would train it in bfloat16.

    oneDNN (3.13) has no fast backward pass for those: 4 to 12 times slower than float32, half of a MobileNetV1's step.
    """
    options = (conv.stride, padding, conv.dilation, conv.groups)
    low_precision = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    if low_precision and input.is_cpu and _is_strided_depthwise(conv):
        with torch.autocast("cpu", enabled=False):
            return functional.conv2d(input.float(), conv.weight, conv.bias, *options).to(input.dtype)
    return functional.conv2d(input, conv.weight, conv.bias, *options)


def _is_strided_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1 and max(conv.stride) > 1


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2
