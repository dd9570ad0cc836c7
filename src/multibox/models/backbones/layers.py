"""Layers that several bodies share: convolutions with TensorFlow's padding, or roomy enough for any map."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class RoomyConv2d(nn.Conv2d):
    """A convolution for the end of a network, where maps may be smaller than its kernel; elsewhere a plain one.

    A map that stays too small with the padding given is padded further at the right and at the bottom, so that the
    unpadded convolutions at SSD's end take any input. And the padding becomes part of the map: some taps see nothing
    else, and oneDNN (3.13, bfloat16, stride 2 on one cell) leaves their gradients as the memory was, now and then
    infinite, where they should be zero.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, in, h, w] to at least one cell."""
        height, width = input.shape[2:]
        reach = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilation, self.kernel_size, strict=True)]
        if min(height, width) >= max(reach):
            return _convolve(self, input, cast(tuple[int, int], self.padding))
        top, left = (int(pad) for pad in self.padding)
        bottom, right = (max(p, r - p - s) for p, r, s in zip((top, left), reach, (height, width), strict=True))
        return _convolve(self, functional.pad(input, (left, right, top, bottom)), (0, 0))


def _is_strided_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1 and max(conv.stride) > 1


def _convolve(conv: nn.Conv2d, input: Tensor, padding: Sequence[int]) -> Tensor:
    """Convolve; a strided depthwise one in float32 where a CPU would train it in bfloat16.

    oneDNN (3.13) has no fast backward pass for those: 4 to 12 times slower than float32, half of a MobileNetV1's step.
    """
    options = (conv.stride, padding, conv.dilation, conv.groups)
    low_precision = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    if low_precision and input.is_cpu and _is_strided_depthwise(conv):
        with torch.autocast("cpu", enabled=False):
            return functional.conv2d(input.float(), conv.weight, conv.bias, *options).to(input.dtype)
    return functional.conv2d(input, conv.weight, conv.bias, *options)


def replace_strided_depthwise(body: nn.Module) -> nn.Module:
    """Make a `RoomyConv2d` of every plain strided depthwise convolution of a body that a library built; return it."""
    for module in body.modules():
        if type(module) is nn.Conv2d and _is_strided_depthwise(module):
            # It differs in what it does, not in what it holds
            module.__class__ = RoomyConv2d
    return body


def depthwise_norm_act(
    channels: int, norm: Callable[[int], nn.Module], stride: int = 1, act: Callable[..., nn.Module] = nn.ReLU6
) -> nn.Sequential:
    """Make a depthwise 3x3 convolution with batch norm and activation, named as torchvision names its own."""
    conv = RoomyConv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return nn.Sequential(conv, norm(channels), act(inplace=True))


def extra_block(channels: int, narrow: int, wide: int, stride: int = 2) -> nn.Sequential:
    """Make an extra map's layers with batch norm and ReLU: a 1x1 convolution that narrows, a 3x3 one that shrinks.

    With stride 1 the latter is not padded, as in the paper's last two: it shrinks the map by its border.
    """
    return nn.Sequential(
        nn.Conv2d(channels, narrow, 1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(inplace=True),
        RoomyConv2d(narrow, wide, 3, stride, padding=stride - 1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU(inplace=True),
    )


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: ceil(size / stride) cells, the odd row and column of padding last.

    With stride 1 that is symmetric; with stride 2 on an even size nothing is padded at the left and at the top, so the
    sampling grid is half a cell away from PyTorch's.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, **options: bool | int
    ) -> None:
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, **options)  # pyright: ignore[reportArgumentType]

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, in, h, w] to [b, out, ceil(h / stride), ceil(w / stride)]."""
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (
                _same_padding(size, kernel, stride)
                for size, kernel, stride in zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
            )
            input = functional.pad(input, (left, right, top, bottom))
        return _convolve(self, input, cast(tuple[int, int], self.padding))


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


class L2Norm(nn.Module):
    """Scale each cell's channels to length 1, then by a learnt factor a channel (ParseNet; SSD paper, section 3.1)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, features: Tensor) -> Tensor:
        """Map [b, c, h, w] to the same shape."""
        return functional.normalize(features, dim=1) * self.scale.view(1, -1, 1, 1)
