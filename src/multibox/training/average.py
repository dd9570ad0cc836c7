"""A running average of the weights (EMA): what is validated, saved and shipped."""

import copy
from typing import Literal

import torch
from torch import nn


class Average:
    """The average of a network's weights and batch-norm statistics, as a network of its own.

    torch's AveragedModel reads its counter back from the device several times a step; this one counts on the host.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`; at first quickly, so that the random start is soon forgotten."""
        keep = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        averaged, current = self.module.state_dict(), model.state_dict()
        floating = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [averaged[name] for name in floating], [current[name] for name in floating], 1 - keep
        )
        for name in averaged.keys() - floating:
            averaged[name].copy_(current[name])


def make_average(model: nn.Module, decay: float | Literal["none"]) -> Average | None:
    """Return the average of `model`, or None when `decay` is "none"."""
    return None if decay == "none" else Average(model, decay)
