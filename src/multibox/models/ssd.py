"""The detector's network: images in, `HeadOutputs` out. It knows neither losses nor suppression."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from multibox.models.backbones.layers import RoomyConv2d, depthwise_norm_act
from multibox.structures import Size
from multibox.tensors import HeadOutputs

HeadKind = Literal["conv3x3", "conv1x1", "ssdlite", "rfb"]


class SSD(nn.Module):
    """Normalisation, a backbone that returns feature maps, and heads over them."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, heads: "Heads", mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> HeadOutputs:
        """Map RGB values 0 to 255, [b, 3, h, w] of any number type, to outputs for every anchor."""
        normalized = (images - self.mean) / self.std
        if images.is_contiguous(memory_format=torch.channels_last):
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        features = self.backbone(normalized)
        logits, offsets = self.heads(features)
        return HeadOutputs(logits, offsets, tuple(Size(f.shape[2], f.shape[3]) for f in features))


class Heads(nn.Module):
    """One predictor per feature map for the classes and one for the offsets.

    Output order: feature map, row, column, anchor; the class or coordinate is fastest, so channel
    `a * K + k` of a map belongs to anchor `a` of its cell.

    Args:
        kind: conv3x3 (Caffe), conv1x1 (TensorFlow), ssdlite (depthwise 3x3 with batch norm, then 1x1), rfb (the same
            without batch norm, the last map's a 3x3 convolution).
        channels: of each feature map.
        anchors_per_cell: of each feature map.
        logits: K, the logits of an anchor.
    """

    def __init__(self, kind: HeadKind, channels: Sequence[int], anchors_per_cell: Sequence[int], logits: int) -> None:
        super().__init__()
        self.logits = logits
        shapes = list(zip(channels, anchors_per_cell, strict=True))
        kinds: list[HeadKind] = [kind] * len(shapes)
        if kind == "rfb":
            kinds[-1] = "conv3x3"
        self.classification, self.localization = (
            nn.ModuleList(_predictor(k, c, a * width) for k, (c, a) in zip(kinds, shapes, strict=True))
            for width in (logits, 4)
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits [b, a, K] and offsets [b, a, 4] of all maps in order."""
        logits = [_rows(head(f), self.logits) for head, f in zip(self.classification, features, strict=True)]
        offsets = [_rows(head(f), 4) for head, f in zip(self.localization, features, strict=True)]
        return torch.cat(logits, 1), torch.cat(offsets, 1)

    def class_layers(self) -> Iterator[tuple[str, nn.Conv2d]]:
        """Yield the convolution that ends each class predictor, with its name inside the heads."""
        for level, head in enumerate(self.classification):
            name = f"classification.{level}"
            if isinstance(head, nn.Sequential):
                name, head = f"{name}.{len(head) - 1}", head[-1]
            yield name, cast(nn.Conv2d, head)


def _predictor(kind: HeadKind, channels: int, out_channels: int) -> nn.Module:
    if kind == "conv3x3":
        return nn.Conv2d(channels, out_channels, 3, padding=1)
    last = nn.Conv2d(channels, out_channels, 1)
    if kind == "conv1x1":
        return last
    if kind == "rfb":
        depthwise = RoomyConv2d(channels, channels, 3, padding=1, groups=channels)
        return nn.Sequential(depthwise, nn.ReLU(inplace=True), last)
    return nn.Sequential(depthwise_norm_act(channels, partial(nn.BatchNorm2d, eps=1e-3)), last)


def _rows(output: Tensor, width: int) -> Tensor:
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, width)
