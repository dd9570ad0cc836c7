"""Losses per element: no reduction here, so that mining and weighting stay visible where they happen.

Every function computes in float32 where it is given half precision.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from multibox.errors import ConfigError
from multibox.ops.boxes import Number, at_least_float32

Weights = Number | Float[Tensor, "..."]

_SMALLEST = 1e-12


def smooth_l1(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    sigma: Number = 1.0,
    inside_weights: Weights = 1.0,
    outside_weights: Weights = 1.0,
) -> Float[Tensor, "*shape"]:
    """Return smooth L1 with sigma (Fast R-CNN, arXiv:1504.08083; SSD.TensorFlow, MXNet), times `outside_weights`.

    With x = inside_weights * (prediction - target): 0.5 * (sigma * x)^2 where |x| < 1 / sigma^2, otherwise
    |x| - 0.5 / sigma^2. A large sigma approaches L1, a small one squares more. Weights broadcast against the
    prediction; give 0 where nothing is to be learnt.

    Raises:
        ConfigError: sigma is not above 0.
    """
    if sigma <= 0:
        raise ConfigError(f"smooth_l1: sigma must be above 0, got {sigma}; 1 is the usual one")
    prediction, target = at_least_float32(prediction), at_least_float32(target)
    if not _is_one(inside_weights):
        prediction = (prediction - target) * inside_weights
        target = prediction.new_zeros(()).expand_as(prediction)
    loss = functional.smooth_l1_loss(prediction, target, reduction="none", beta=1 / sigma**2)
    return loss if _is_one(outside_weights) else loss * outside_weights


def _is_one(weights: Weights) -> bool:
    return isinstance(weights, int | float) and weights == 1


def l1(prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return |prediction - target| (Dive into Deep Learning, chapter on SSD)."""
    return functional.l1_loss(at_least_float32(prediction), at_least_float32(target), reduction="none")


def l2(prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 0.5 * (prediction - target)^2 (Caffe's `EuclideanLoss`)."""
    return 0.5 * functional.mse_loss(at_least_float32(prediction), at_least_float32(target), reduction="none")


def cross_entropy(logits: Float[Tensor, "*shape k"], labels: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the softmax cross-entropy -ln p[label].

    Labels are 0 to k - 1 with background 0; label -1 (ignored) gives 0.
    """
    logits = at_least_float32(logits)
    flat = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), reduction="none", ignore_index=-1
    )
    return flat.view(labels.shape)


def focal_loss(
    logits: Float[Tensor, "*shape k"],
    labels: Int[Tensor, "*shape"],
    alpha: Number | Sequence[Number] | Float[Tensor, " k"] = 0.25,
    gamma: Number = 2.0,
) -> Float[Tensor, "*shape"]:
    """Return the softmax focal loss -alpha * (1 - p)^gamma * ln p, with p the label's probability.

    Alpha multiplies all classes alike, background included, or is one number per class ([k]; give a tensor on the
    logits' device, or it is copied there at each step). Gamma 0 with alpha 1 is cross-entropy. Label -1 gives 0. ln p
    is computed without the softmax, so it is finite for any logits; the gradient is finite at p = 1, also for gamma
    below 1.
    """
    nll = cross_entropy(logits, labels)
    loss = _power(-torch.expm1(-nll), gamma) * nll
    if isinstance(alpha, int | float):
        return loss * alpha
    per_class = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
    return loss * per_class[labels.clamp(min=0).long()]


def sigmoid_focal(
    logits: Float[Tensor, "*shape c"], targets: Float[Tensor, "*shape c"], alpha: Number = 0.25, gamma: Number = 2.0
) -> Float[Tensor, "*shape c"]:
    """Return the sigmoid focal loss (RetinaNet, arXiv:1708.02002): -alpha_t * (1 - p_t)^gamma * ln p_t, per class.

    Targets are 0 or 1; alpha weights the ones and 1 - alpha the zeros.
    """
    sign = 2 * at_least_float32(targets) - 1
    wrong = -sign * at_least_float32(logits)
    alpha_t = sign * (alpha - 0.5) + 0.5
    return alpha_t * _power(torch.sigmoid(wrong), gamma) * functional.softplus(wrong)


def quality_focal(
    logits: Float[Tensor, "*shape k"], quality: Float[Tensor, "*shape k"], beta: Number = 2.0
) -> Float[Tensor, "*shape k"]:
    """Return the quality focal loss |q - p|^beta * BCE(p, q) with p = sigmoid(logit) (Li et al., arXiv:2006.04388).

    Quality is 0 to 1, and 0 for background. The loss is 0 at p = q, where BCE alone is the entropy of q. Beta 0 is BCE;
    with qualities of 0 and 1 the loss is twice the sigmoid focal loss with alpha 0.5 and gamma = beta.
    """
    logits, quality = at_least_float32(logits), at_least_float32(quality).detach()
    gap = (quality - torch.sigmoid(logits)).abs()
    return _power(gap, beta) * _binary_cross_entropy(logits, quality)


def varifocal(
    logits: Float[Tensor, "*shape k"], quality: Float[Tensor, "*shape k"], alpha: Number = 0.75, gamma: Number = 2.0
) -> Float[Tensor, "*shape k"]:
    """Return the varifocal loss (Zhang et al., arXiv:2008.13367): BCE(p, q) with p = sigmoid(logit), weighted.

    The weight of positives (q above 0) is q itself, so that good boxes count more. The weight of the others is
    alpha * p^gamma, as in the sigmoid focal loss with 1 - alpha for its alpha. The gradient goes through p^gamma, as in
    MMDetection's varifocal loss. A positive of quality 0 is a negative here.
    """
    logits, quality = at_least_float32(logits), at_least_float32(quality).detach()
    weight = torch.where(quality > 0, quality, alpha * _power(torch.sigmoid(logits), gamma))
    return weight * _binary_cross_entropy(logits, quality)


def _power(miss: Float[Tensor, "*shape"], gamma: Number) -> Float[Tensor, "*shape"]:
    """Return miss^gamma, the weight of an element whose prediction is off by `miss`, 0 to 1."""
    # Below 1, the derivative of miss^gamma is infinite at 0, and infinity times a loss of 0 is NaN.
    return (miss.clamp(min=_SMALLEST) if gamma < 1 else miss) ** gamma


def _binary_cross_entropy(logits: Float[Tensor, "*shape"], quality: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    # Not torch's: that takes (1 - q) * logit from a logarithm, and loses digits of large logits in float32.
    return -(quality * functional.logsigmoid(logits) + (1 - quality) * functional.logsigmoid(-logits))
