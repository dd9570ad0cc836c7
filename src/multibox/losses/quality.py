"""Sigmoid losses whose targets are qualities, usually IoUs with the ground truth: scores that tell where a box is good.

Element by element and without reduction, like the other losses; half precision is computed in float32. Quality is a
label: no gradient goes into it. A one-hot target times the IoU of the decoded box makes one [b, a, k] tensor of them.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from multibox.losses.elementwise import modulate
from multibox.ops.boxes import Number, at_least_float32


def quality_focal(
    logits: Float[Tensor, "*shape k"], quality: Float[Tensor, "*shape k"], beta: Number = 2.0
) -> Float[Tensor, "*shape k"]:
    """Return the quality focal loss |q - p|^beta * BCE(p, q) with p = sigmoid(logit) (Li et al., arXiv:2006.04388).

    Quality is 0 to 1, and 0 for background. The loss is 0 at p = q, while BCE alone ends at the entropy of q. Beta 0
    is BCE; with qualities of 0 and 1 it is twice the sigmoid focal loss with alpha 0.5 and gamma = beta.
    """
    logits, quality = at_least_float32(logits), at_least_float32(quality).detach()
    gap = (quality - torch.sigmoid(logits)).abs()
    return modulate(gap, beta) * _binary_cross_entropy(logits, quality)


def varifocal(
    logits: Float[Tensor, "*shape k"], quality: Float[Tensor, "*shape k"], alpha: Number = 0.75, gamma: Number = 2.0
) -> Float[Tensor, "*shape k"]:
    """Return the varifocal loss (Zhang et al., arXiv:2008.13367): BCE(p, q) with p = sigmoid(logit), weighted.

    The weight of positives (q above 0) is q itself, so that good boxes count more and none is let off for being easy;
    that of the rest is alpha * p^gamma, which makes them the sigmoid focal loss's zeros with 1 - alpha for its alpha.
    The gradient goes through p^gamma, as in the focal loss and in MMDetection's varifocal loss. A
    positive of quality 0 is a negative here.
    """
    logits, quality = at_least_float32(logits), at_least_float32(quality).detach()
    weight = torch.where(quality > 0, quality, alpha * modulate(torch.sigmoid(logits), gamma))
    return weight * _binary_cross_entropy(logits, quality)


def _binary_cross_entropy(logits: Float[Tensor, "*shape"], quality: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    # Not torch's: that takes (1 - q) * logit from a logarithm, and loses digits of large logits in float32.
    return -(quality * functional.logsigmoid(logits) + (1 - quality) * functional.logsigmoid(-logits))
