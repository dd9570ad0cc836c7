"""The L2 penalty by hand, and that it is a decay of the weights by another name."""

import pytest
import torch

from multibox.losses.multibox_loss import HIKAPOK_RULES, l2_penalty


def test_by_hand():
    # 0.5 * 14 in full and 0.1 * 0.5 * 800 of the scale
    named = [
        ("block1.weight", torch.tensor([1.0, 2.0, 3.0])),
        ("conv4_3_scale.weight", torch.tensor([20.0, 20.0])),
        ("block1_bn.weight", torch.tensor([1000.0])),
    ]
    assert l2_penalty(named, 5e-4).item() == pytest.approx(0.0235)


def test_a_fresh_scale_of_conv4_3_adds_five():
    found = l2_penalty([("features.conv4_3_scale", torch.full((512,), 20.0))], 5e-4)
    assert found.shape == () and found.item() == pytest.approx(5.12)


def test_the_first_rule_that_fits_counts():
    named = [("conv4_3_scale_bn", torch.tensor([2.0]))]
    assert l2_penalty(named, 1).item() == 0
    assert l2_penalty(named, 1, tuple(reversed(HIKAPOK_RULES))).item() == pytest.approx(0.2)
    assert l2_penalty(named, 1, ()).item() == pytest.approx(2.0)


def test_biases_count_in_full():
    assert l2_penalty([("head.bias", torch.tensor([2.0]))], 0.5).item() == pytest.approx(1.0)


def test_nothing_to_decay_is_zero():
    assert l2_penalty([], 5e-4).item() == 0
    assert l2_penalty([("x_bn.weight", torch.ones(3))], 5e-4).item() == 0


def test_the_gradient_is_that_of_weight_decay():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    scale = torch.tensor([20.0], requires_grad=True)
    norm = torch.tensor([1.0], requires_grad=True)
    l2_penalty([("a.weight", weight), ("conv4_3_scale", scale), ("a_bn.weight", norm)], 0.01).backward()
    assert torch.allclose(weight.grad, 0.01 * weight.detach())
    assert torch.allclose(scale.grad, 0.001 * scale.detach())
    assert norm.grad is None


def test_half_precision_is_summed_in_float32():
    # 0.5 * 1024 * 1: bfloat16 would stop counting at 256
    found = l2_penalty([("w", torch.ones(1024, dtype=torch.bfloat16))], 1)
    assert found.dtype == torch.float32 and found.item() == 512
