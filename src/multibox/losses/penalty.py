"""The L2 penalty as a term of the loss, weighted by parameter name (SSD.TensorFlow)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from multibox.ops.boxes import Number

PenaltyRules = tuple[tuple[str, Number], ...]

HIKAPOK_RULES: PenaltyRules = (("_bn", 0.0), ("conv4_3_scale", 0.1), ("backbone.norm.scale", 0.1))
"""Batch norm is left out, the scale of conv4_3 counts a tenth (under the original's name and ours), everything else
(biases too) in full. The post's comment says that the scale is left out as well; its code weights it, and the code made
the weights."""


def l2_penalty(
    named_parameters: Iterable[tuple[str, Tensor]], weight_decay: Number, rules: PenaltyRules = HIKAPOK_RULES
) -> Float[Tensor, ""]:
    """Return weight_decay * sum over parameters of c * 0.5 * sum of squares, as part of the loss.

    A parameter's c is that of the first rule whose text its name contains, otherwise 1; parameters of c = 0 cost
    nothing. As a gradient this equals a decay of c * weight_decay in the optimiser, so use one of the two; what differs
    is that the loss shown contains it. For a fresh SSD300 the scale of conv4_3 (512 numbers of 20) alone adds 5.12.
    The original counts trainable parameters only: hand over those that the optimiser has.
    """
    terms = [
        parameter.float().square().sum() * (coefficient * 0.5 * weight_decay)
        for name, parameter in named_parameters
        if (coefficient := _coefficient(name, rules)) != 0
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _coefficient(name: str, rules: PenaltyRules) -> Number:
    return next((coefficient for text, coefficient in rules if text in name), 1.0)
