"""Losses per element: worked examples, torch's and torchvision's, and the edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from multibox.config import LossConfig
from multibox.errors import ConfigError
from multibox.losses.elementwise import (
    cross_entropy,
    focal_loss,
    l1,
    l2,
    quality_focal,
    sigmoid_focal,
    smooth_l1,
    varifocal,
)
from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import Targets
from multibox.structures import Size
from multibox.tensors import HeadOutputs

X = (-3, -2, -1, -0.5, -0.1, -0.005, 0.01, 0.1, 0.5, 1, 2, 3, 4, 5)
P = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-1.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 1, 1])


def plain_smooth_l1(values, sigma=1.0, **weights):
    prediction = torch.tensor(values, dtype=torch.float32)
    return smooth_l1(prediction, torch.zeros_like(prediction), sigma, **weights)


def binary(probabilities):
    """Logits of two classes, of which the second (label 1) has these probabilities, in float64."""
    p = torch.as_tensor(probabilities, dtype=torch.float64)
    return torch.stack([torch.log1p(-p), p.log()], dim=-1), torch.ones(p.shape, dtype=torch.int64)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (0.5, [1.125, 0.5, 0.125, 0.03125, 0.00125, 3.125e-6, 1.25e-5, 0.00125, 0.03125, 0.125, 0.5, 1.125, 2, 3]),
        (1, [2.5, 1.5, 0.5, 0.125, 0.005, 1.25e-5, 5e-5, 0.005, 0.125, 0.5, 1.5, 2.5, 3.5, 4.5]),
        (
            10,
            [2.995, 1.995, 0.995, 0.495, 0.095, 0.00125, 0.005, 0.095, 0.495, 0.995, 1.995, 2.995, 3.995, 4.995],
        ),
    ],
)
def test_smooth_l1_by_hand(sigma, expected):
    assert torch.allclose(plain_smooth_l1(X, sigma), torch.tensor(expected), rtol=1e-5, atol=1e-8)


def test_smooth_l1_as_the_post_prints_it():
    actual = plain_smooth_l1([-1, 0.1, 0.5, 1, 2, 3, 4])
    assert torch.allclose(actual, torch.tensor([0.5, 0.005, 0.125, 0.5, 1.5, 2.5, 3.5]))


def test_negative_differences_are_not_all_squared():
    assert plain_smooth_l1([-3.0]).item() == pytest.approx(2.5)  # 4.5 by the post's misprint
    assert plain_smooth_l1([-0.5, -2.0], 10).tolist() == pytest.approx([0.495, 1.995])  # 12.5 and 200


def test_smooth_l1_with_inside_and_outside_weights():
    inside, outside = torch.tensor([1, 0.5, 1, 1]), torch.tensor([1, 1, 2, 0.25])
    actual = plain_smooth_l1([1, 2, -0.5, 0], inside_weights=inside, outside_weights=outside)
    assert torch.allclose(actual, torch.tensor([0.5, 0.5, 0.25, 0]))
    assert plain_smooth_l1([1, 2], inside_weights=0.5, outside_weights=3).tolist() == [0.375, 1.5]
    # Weights of each row over its four offsets
    actual = smooth_l1(
        torch.ones(2, 4), torch.zeros(2, 4), 1, torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [5.0]])
    )
    assert actual.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.slow
@given(
    values=st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=8),
    sigma=st.sampled_from([0.5, 1, 2, 3.0, 10]),
)
def test_smooth_l1_is_torchs_with_beta_and_its_gradient_is_clipped(values, sigma):
    prediction, target = torch.tensor(values, dtype=torch.float64).unbind(-1)
    prediction = prediction.clone().requires_grad_()
    actual = smooth_l1(prediction, target, sigma)
    expected = functional.smooth_l1_loss(prediction, target, beta=1 / sigma**2, reduction="none")
    weighted = smooth_l1(prediction, target, sigma, inside_weights=torch.ones(len(target)))
    assert torch.allclose(actual, expected) and torch.allclose(weighted, expected)
    (gradient,) = torch.autograd.grad(actual.sum(), prediction)
    assert torch.allclose(gradient, ((prediction - target) * sigma**2).clamp(-1, 1))


@pytest.mark.parametrize("sigma", [0, -1.0])
def test_smooth_l1_needs_a_sigma_above_zero(sigma):
    with pytest.raises(ConfigError, match="sigma must be above 0"):
        plain_smooth_l1([1.0], sigma)


def test_l1_and_l2_by_hand():
    prediction, target = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    assert l1(prediction, target).tolist() == [1, 3, 0]
    assert l2(prediction, target).tolist() == [0.5, 4.5, 0]


@pytest.mark.parametrize(
    ("gamma", "alpha", "expected"),
    [
        (0, 1, [4.605170, 2.302585, 1.386294, 0.693147, 0.287682, 0.105361, 0.010050]),
        (1, 1, [4.559118, 2.072327, 1.039721, 0.346574, 0.071921, 0.010536, 0.000101]),
        (2, 1, [4.513527, 1.865094, 0.779791, 0.173287, 0.017980, 0.001054, 1.005e-6]),
        (5, 1, [4.379471, 1.359653, 0.328974, 0.021661, 0.000281, 1.05e-6, 1e-12]),
        (2, 0.25, [1.128382, 0.466273, 0.194948, 0.043322, 0.004495, 0.000263, 2.5e-7]),
    ],
)
def test_focal_by_hand(gamma, alpha, expected):
    logits, labels = binary(P)
    for precision, atol in ((torch.float64, 6e-7), (torch.float32, 1e-6)):
        actual = focal_loss(logits.to(precision), labels, alpha, gamma)
        assert torch.allclose(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)
    assert torch.allclose(actual[-1].double(), torch.tensor(expected[-1], dtype=torch.float64), rtol=0.02)


def test_focal_and_cross_entropy_of_three_classes():
    nll = cross_entropy(LOGITS, LABELS)
    assert torch.allclose((-nll).exp(), torch.tensor([0.785597, 0.333333, 0.936240]), atol=1e-6)
    assert torch.allclose(nll, torch.tensor([0.241311, 1.098612, 0.065884]), atol=1e-6)
    actual = focal_loss(LOGITS, LABELS)
    assert torch.allclose(actual, torch.tensor([0.002773, 0.122068, 0.000067]), atol=6e-7)
    assert actual.mean().item() == pytest.approx(0.041636, abs=1e-6)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), scale=st.sampled_from([0.1, 3.0, 30.0]))
def test_focal_without_gamma_and_alpha_is_cross_entropy(seed, classes, scale):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 5, classes, generator=random)
    labels = torch.randint(-1, classes, (2, 5), generator=random)
    actual = focal_loss(logits, labels, 1, 0)
    assert actual.shape == (2, 5)
    assert torch.allclose(actual, cross_entropy(logits, labels))
    expected = -logits.double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(actual.double(), expected.where(labels >= 0, 0), atol=1e-5)
    assert (focal_loss(logits, labels, 1, 2) <= actual).all()


def test_ignored_anchors_cost_nothing_and_learn_nothing():
    logits = torch.tensor([[[5.0, -3.0], [0.5, 0.2]]], requires_grad=True)
    for loss in (cross_entropy, focal_loss, lambda x, y: focal_loss(x, y, (0.5, 2.0), 0.5)):
        actual = loss(logits, torch.tensor([[-1, 1]]))
        assert actual[0, 0] == 0 and actual[0, 1] > 0
        (gradient,) = torch.autograd.grad(actual.sum(), logits)
        assert (gradient[0, 0] == 0).all() and (gradient[0, 1] != 0).all()


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
def test_extreme_logits_are_finite(gamma, size):
    logits = torch.tensor([[size, -size, 0], [-size, size, 0], [size, size, size]], requires_grad=True)
    labels = torch.tensor([0, 0, 0])
    actual = focal_loss(logits, labels, 1, gamma)
    assert actual.isfinite().all() and actual[0] == 0 and actual[1].item() == pytest.approx(2 * size)
    (gradient,) = torch.autograd.grad(actual.sum(), logits)
    assert gradient.isfinite().all()
    actual = sigmoid_focal(logits, (labels[:, None] == torch.arange(3)).float(), 0.25, gamma)
    assert actual.isfinite().all()
    (gradient,) = torch.autograd.grad(actual.sum(), logits)
    assert gradient.isfinite().all()


def test_gradient_for_gamma_below_one_is_finite_where_p_is_one():
    # In float32, 1 - p is exactly 0 here: the derivative of its square root is infinite.
    logits = torch.tensor([[60.0, -60.0], [17.0, 0.0], [1.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0, 0]), 1, 0.5).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[2].abs().min() > 0
    logits.grad = None
    sigmoid_focal(logits, torch.tensor([[1, 0], [1, 1], [1, 0]]).float(), 0.25, 0.5).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("alpha", [[0.5, 2.0, 3.0], (0.5, 2, 3.0), torch.tensor([0.5, 2.0, 3.0])])
def test_alpha_by_class(alpha):
    one = focal_loss(LOGITS, torch.tensor([0, 1, 2]), 1)
    actual = focal_loss(LOGITS, torch.tensor([0, 1, 2]), alpha)
    assert torch.allclose(actual, one * torch.tensor([0.5, 2.0, 3.0]))


@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1]),
    gamma=st.sampled_from([0, 1, 2.0, 2.5]),
    scale=st.sampled_from([0.5, 5.0, 20.0]),
)
def test_sigmoid_focal_is_torchvisions(seed, alpha, gamma, scale):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, 4, generator=random, dtype=torch.float64)
    targets = torch.randint(0, 2, (3, 4), generator=random).double()
    ours, torchvisions = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    actual, expected = (
        sigmoid_focal(ours, targets, alpha, gamma),
        sigmoid_focal_loss(torchvisions, targets, alpha, gamma),
    )
    assert torch.allclose(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    assert torch.allclose(ours.grad, torchvisions.grad)


def test_sigmoid_focal_by_hand():
    actual = sigmoid_focal(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert torch.allclose(actual, torch.tensor([0.043322, 0.129965]), atol=1e-6)


def test_half_precision_is_computed_and_returned_in_float32():
    logits = LOGITS.bfloat16()
    one_hot = functional.one_hot(LABELS, 3).bfloat16()
    for half, full in (
        (cross_entropy(logits, LABELS), cross_entropy(logits.float(), LABELS)),
        (focal_loss(logits, LABELS), focal_loss(logits.float(), LABELS)),
        (focal_loss(logits, LABELS, [1, 2, 3], 0.5), focal_loss(logits.float(), LABELS, [1, 2, 3], 0.5)),
        (sigmoid_focal(logits, one_hot), sigmoid_focal(logits.float(), one_hot.float())),
        (smooth_l1(logits, one_hot, 3), smooth_l1(logits.float(), one_hot.float(), 3)),
        (l1(logits, one_hot), l1(logits.float(), one_hot.float())),
        (l2(logits, one_hot), l2(logits.float(), one_hot.float())),
    ):
        assert half.dtype == torch.float32 and torch.equal(half, full)


def rows_on_their_objects(count):
    """Return marks, offsets, anchors, weights, qualities and objects of positives that sit on their objects."""
    return (
        torch.ones(count, dtype=torch.bool),
        torch.zeros(count, 4),
        torch.tensor([[0.2, 0.2, 0.4, 0.4]]).expand(count, 4),
        torch.ones(count),
        torch.ones(count),
        torch.zeros(count, dtype=torch.long),
    )


def test_d2ls_means():
    logits = torch.tensor([[0.0, 0], [0, 0], [2, 0], [0, 2]])
    labels = torch.tensor([0, 1, 0, 1])
    nll, focal = cross_entropy(logits, labels), focal_loss(logits, labels)
    assert torch.allclose(nll, torch.tensor([0.693147, 0.693147, 0.126928, 0.126928]), atol=1e-6)
    assert nll.mean().item() == pytest.approx(0.410038, abs=1e-6)
    assert torch.allclose(focal, torch.tensor([0.043322, 0.043322, 0.000451, 0.000451]), atol=1e-6)
    assert focal.mean().item() == pytest.approx(0.021886, abs=1e-6)
    offsets = torch.tensor([[0.5, -0.5, 0, 1], [2, 0, 0, 0], [9, 9, 9, 9], [0, 0, 0, -3]])
    mask = torch.tensor([0, 1, 0, 1])[:, None]
    assert l1(offsets * mask, torch.zeros(4, 4)).mean().item() == pytest.approx(0.3125)
    assert smooth_l1(offsets * mask, torch.zeros(4, 4)).mean().item() == pytest.approx(0.25)
    # The same by the multibox loss, which sees the offsets of positives only
    image, anchor = torch.tensor([0, 0]), torch.tensor([1, 3])
    targets = Targets(labels[None], torch.zeros(1, 4), image, anchor, *rows_on_their_objects(2))
    outputs = HeadOutputs(logits[None], offsets[None], (Size(2, 2),))
    for kind, expected in (("l1", 0.3125), ("smooth_l1", 0.25)):
        parts = multibox_loss(outputs, targets, LossConfig(localization=kind, normalizer="anchors"))
        assert parts.classification.item() == pytest.approx(0.410038, abs=1e-6)
        assert parts.localization.item() == pytest.approx(expected)


LN3 = math.log(3)  # a probability of 3/4


def random_case(seed, scale=3.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, 5, 4, generator=random, dtype=dtype)
    quality = torch.rand(3, 5, 4, generator=random, dtype=dtype)
    return logits, quality.where(torch.rand(3, 5, 4, generator=random) < 0.5, 0)


def test_quality_focal_by_hand():
    logits = torch.tensor([0, LN3, LN3, LN3, LN3])
    quality = torch.tensor([0.8, 0.25, 0, 1, 0.75])
    # (0.8 - 0.5)^2 ln 2; (1/2)^2 (1/4 ln 4/3 + 3/4 ln 4); (3/4)^2 ln 4; (1/4)^2 ln 4/3; nothing where p is the quality
    expected = torch.tensor([0.0623832, 0.2779103, 0.7797906, 0.0179801, 0])
    assert torch.allclose(quality_focal(logits, quality), expected, atol=1e-6)
    assert torch.allclose(quality_focal(logits[:1], quality[:1], 1), torch.tensor(0.3 * math.log(2)))


def test_varifocal_by_hand():
    logits = torch.tensor([0, 0, LN3, LN3, LN3])
    quality = torch.tensor([0.8, 0, 0, 0.25, 1])
    # 0.8 ln 2; 3/4 (1/2)^2 ln 2; 3/4 (3/4)^2 ln 4; 1/4 (1/4 ln 4/3 + 3/4 ln 4); ln 4/3
    expected = torch.tensor([0.5545177, 0.1299651, 0.5848429, 0.2779103, 0.2876821])
    assert torch.allclose(varifocal(logits, quality), expected, atol=1e-6)
    assert torch.allclose(varifocal(logits[1:2], quality[1:2], 0.5, 1), torch.tensor(0.25 * math.log(2)))


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.5, 5.0, 20.0]), gamma=st.sampled_from([0, 1, 2.0, 2.5]))
def test_qualities_of_zero_and_one_give_focal_loss_and_cross_entropy(seed, scale, gamma):
    logits, quality = random_case(seed, scale)
    zero_or_one = (quality > 0.5).double()
    entropy = functional.binary_cross_entropy_with_logits(logits, zero_or_one, reduction="none")
    focal = 2 * sigmoid_focal(logits, zero_or_one, 0.5, gamma)
    assert torch.allclose(quality_focal(logits, zero_or_one, gamma), focal, atol=1e-9)
    assert torch.allclose(quality_focal(logits, zero_or_one, 0), entropy, rtol=1e-12, atol=1e-12)
    zeros = sigmoid_focal(logits, torch.zeros_like(logits), 0.25, gamma)
    assert torch.allclose(varifocal(logits, zero_or_one, 0.75, gamma), torch.where(zero_or_one > 0, entropy, zeros))


@given(seed=st.integers(0, 10_000))
def test_beta_zero_and_positives_are_weighted_cross_entropy(seed):
    logits, quality = random_case(seed)
    entropy = functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    assert torch.allclose(quality_focal(logits, quality, 0), entropy, rtol=1e-12, atol=1e-12)
    positive = quality > 0
    assert torch.allclose(varifocal(logits, quality)[positive], (quality * entropy)[positive])


@pytest.mark.parametrize("power", [0, 0.5, 1, 1.5, 2.0, 3])
def test_gradcheck(power):
    logits, quality = random_case(0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: quality_focal(x, quality, power), logits)
    assert torch.autograd.gradcheck(lambda x: varifocal(x, quality, 0.75, power), logits)


def test_no_gradient_goes_into_the_quality():
    logits, quality = (values.requires_grad_() for values in random_case(1))
    (quality_focal(logits, quality) + varifocal(logits, quality)).sum().backward()
    assert quality.grad is None and (logits.grad != 0).any()


@pytest.mark.parametrize("loss", [quality_focal, varifocal])
def test_the_loss_of_a_quality_is_least_at_that_probability(loss):
    quality = torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64)
    logits = quality.logit().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, quality).sum(), logits)
    assert gradient.abs().max() < 1e-12
    there = loss(logits, quality)
    assert all((loss(logits + step, quality) > there).all() for step in (-2, -0.1, 0.1, 2))


@pytest.mark.parametrize("power", [0, 0.5, 1, 2, 3.5])
@pytest.mark.parametrize("size", [20.0, 80.0, 1e4])
def test_large_logits_are_exact_in_float32_with_finite_gradients(power, size):
    values = torch.tensor([-size, -size / 3, 0, size / 7, size])
    logits = values[:, None].repeat(1, 5).requires_grad_()
    quality = torch.tensor([0, 1e-3, 0.5, 0.999, 1]).repeat(5, 1)
    for loss in (lambda x, q: quality_focal(x, q, power), lambda x, q: varifocal(x, q, 0.75, power)):
        actual, expected = loss(logits, quality), loss(logits.double(), quality.double())
        assert torch.allclose(actual.double(), expected, rtol=1e-5, atol=1e-8)
        (gradient,) = torch.autograd.grad(actual.sum(), logits)
        assert gradient.isfinite().all()


def test_gradient_for_powers_below_one_is_finite_where_the_weight_is_zero():
    logits = torch.tensor([-200.0, 200.0, 0.0], requires_grad=True)
    (
        quality_focal(logits, torch.tensor([0, 1, 0.5]), 0.5) + varifocal(logits, torch.zeros(3), 0.75, 0.5)
    ).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [quality_focal, varifocal])
def test_quality_losses_compute_half_precision_in_float32(loss):
    logits, quality = random_case(2, dtype=torch.float32)
    half = loss(logits.bfloat16(), quality.bfloat16())
    assert half.dtype == torch.float32 and half.shape == logits.shape
    assert torch.equal(half, loss(logits.bfloat16().float(), quality.bfloat16().float()))
    assert loss(logits.half(), quality).dtype == torch.float32
    assert loss(logits[:0], quality[:0]).shape == (0, 5, 4)
    # Tensors without data: whatever would have to look at a value fails
    assert loss(logits.to("meta"), quality.to("meta")).shape == logits.shape
