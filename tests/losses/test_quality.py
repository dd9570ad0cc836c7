"""Losses of qualities: by hand, by what they become for qualities of 0 and 1, and at the edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from multibox.losses.elementwise import quality_focal, sigmoid_focal, varifocal

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
        found, expected = loss(logits, quality), loss(logits.double(), quality.double())
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-8)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert gradient.isfinite().all()


def test_gradient_for_powers_below_one_is_finite_where_the_weight_is_zero():
    logits = torch.tensor([-200.0, 200.0, 0.0], requires_grad=True)
    (
        quality_focal(logits, torch.tensor([0, 1, 0.5]), 0.5) + varifocal(logits, torch.zeros(3), 0.75, 0.5)
    ).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [quality_focal, varifocal])
def test_half_precision_is_computed_and_returned_in_float32(loss):
    logits, quality = random_case(2, dtype=torch.float32)
    half = loss(logits.bfloat16(), quality.bfloat16())
    assert half.dtype == torch.float32 and half.shape == logits.shape
    assert torch.equal(half, loss(logits.bfloat16().float(), quality.bfloat16().float()))
    assert loss(logits.half(), quality).dtype == torch.float32
    assert loss(logits[:0], quality[:0]).shape == (0, 5, 4)
    # Tensors without data: whatever would have to look at a value fails
    assert loss(logits.to("meta"), quality.to("meta")).shape == logits.shape
