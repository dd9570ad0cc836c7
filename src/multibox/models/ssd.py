"""The detector's network: pictures in, `HeadOutputs` out; it knows neither loss nor suppression."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multibox.models.heads import Heads
from multibox.tensors import HeadOutputs


class SSD(nn.Module):
    """Normalisation, a body that returns feature maps, and heads over them."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, heads: Heads, mean: Sequence[float], std: Sequence[float]) -> None:
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
        return HeadOutputs(logits, offsets, tuple((f.shape[2], f.shape[3]) for f in features))
