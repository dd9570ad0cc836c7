"""Class and offset predictors over feature maps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """One 3x3 convolution per feature map for the classes and one for the offsets.

    Output order: feature map, row, column, anchor; the class or coordinate is fastest, so channel
    `a * K + k` of a map belongs to anchor `a` of its cell.
    """

    def __init__(self, channels: Sequence[int], anchors_per_cell: Sequence[int], logits: int) -> None:
        super().__init__()
        pairs = list(zip(channels, anchors_per_cell, strict=True))
        self.logits = logits
        self.classification = nn.ModuleList([nn.Conv2d(c, a * logits, 3, padding=1) for c, a in pairs])
        self.localization = nn.ModuleList([nn.Conv2d(c, a * 4, 3, padding=1) for c, a in pairs])

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits [b, a, K] and offsets [b, a, 4] of all maps in order."""
        logits = [_rows(head(f), self.logits) for head, f in zip(self.classification, features, strict=True)]
        offsets = [_rows(head(f), 4) for head, f in zip(self.localization, features, strict=True)]
        return torch.cat(logits, 1), torch.cat(offsets, 1)


def _rows(output: Tensor, width: int) -> Tensor:
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, width)
