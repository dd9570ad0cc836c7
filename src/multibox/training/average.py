"""A running average of the weights (EMA): what is validated, saved and shipped."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return the average of `model`'s weights and batch-norm statistics, or None when `decay` is 0.

    The decay rises to its full value over the first steps, so that the random start is soon forgotten.
    """
    if decay <= 0:
        return None

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        # AveragedModel hands over one number type at a time; the other one is batch norm's counter
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1 - keep)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_copy_(list(averaged), list(current))  # pyright: ignore[reportPrivateImportUsage]

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
