"""Losses of whole boxes: by hand, against torchvision's, and at the edges where torchvision's are NaN."""

import math

import pytest
import torch
from torchvision import ops as tv

from multibox.losses.elementwise import ciou_loss, diou_loss, giou_loss

LOSSES = {
    giou_loss: tv.generalized_box_iou_loss,
    diou_loss: tv.distance_box_iou_loss,
    ciou_loss: tv.complete_box_iou_loss,
}
DEGENERATE = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.3, 0.3, 0.3, 0.3],
        [0.3, 0.3, 0.3, 0.8],
        [0.3, 0.3, 0.8, 0.3],
        [0.2, 0.2, 0.2 + 1e-7, 0.2 + 1e-7],
        [0.1, 0.1, 0.9, 0.9],
        [0.95, 0.95, 1.0, 1.0],
        [0.8, 0.6, 0.2, 0.3],  # corners swapped: no box, nor the next
        [0.8, 0.3, 0.2, 0.6],
    ]
)


def pairs(side, count=500, dtype=torch.float64):
    """Boxes of `side` to twice that, some overlapping, some apart."""
    random = torch.Generator().manual_seed(0)
    low = 3 * side * torch.rand(count, 2, 2, generator=random, dtype=dtype)
    size = side * (1 + torch.rand(count, 2, 2, generator=random, dtype=dtype))
    return torch.cat([low, low + size], dim=-1).unbind(1)


def value_and_gradients(loss, predicted, gt):
    predicted, gt = predicted.clone().requires_grad_(), gt.clone().requires_grad_()
    value = loss(predicted, gt)
    return value, *torch.autograd.grad(value.sum(), (predicted, gt))


def test_by_hand():
    # Unit squares half a unit apart: hull 2.5 x 1 of which 0.5 is empty, centres 1.5 apart, diagonal squared 7.25
    a, b = torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.5, 0, 2.5, 1])
    assert giou_loss(a, b).item() == pytest.approx(1.2)
    assert diou_loss(a, b).item() == ciou_loss(a, b).item() == pytest.approx(1 + 2.25 / 7.25)
    # 2 x 2 and 2 x 2 that share a unit: IoU 1/7, hull 9 of which 2 is empty, centres 2 apart (squared), diagonal 18
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert giou_loss(a, b).item() == pytest.approx(6 / 7 + 2 / 9)
    assert diou_loss(a, b).item() == ciou_loss(a, b).item() == pytest.approx(6 / 7 + 1 / 9)
    # 2 x 1 in the middle of 4 x 4: IoU 1/8, no distance; the angles of the diagonals are atan 2 and atan 1
    a, b = torch.tensor([1, 1.5, 3, 2.5]), torch.tensor([0.0, 0, 4, 4])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert giou_loss(a, b).item() == diou_loss(a, b).item() == pytest.approx(7 / 8)
    assert ciou_loss(a, b).item() == pytest.approx(7 / 8 + v * v / (7 / 8 + v))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("side", "values", "gradients"), [(50.0, 1e-8, 1e-8), (0.5, 1e-6, 1e-6), (0.1, 5e-6, 5e-5)])
def test_torchvisions_but_for_the_epsilon_it_adds(loss, side, values, gradients):
    found = value_and_gradients(loss, *pairs(side))
    expected = value_and_gradients(LOSSES[loss], *pairs(side))
    assert (found[0] > 1).any() and (found[0] < 0.7).any()
    for mine, theirs, atol in zip(found, expected, (values, gradients, gradients), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("loss", [giou_loss, diou_loss])  # torchvision's CIoU does not hand its eps on
@pytest.mark.parametrize("side", [0.01, 0.1])
def test_torchvisions_of_small_boxes_without_the_epsilon(loss, side):
    found = value_and_gradients(loss, *pairs(side))
    expected = value_and_gradients(lambda a, b: LOSSES[loss](a, b, eps=0.0), *pairs(side))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_torchvisions_in_float32(loss):
    predicted, gt = pairs(0.5, dtype=torch.float32)
    assert torch.allclose(loss(predicted, gt), LOSSES[loss](predicted, gt), rtol=0, atol=2e-6)


@pytest.mark.parametrize("loss", [giou_loss, diou_loss])
def test_gradcheck(loss):
    predicted, gt = (boxes.clone().requires_grad_() for boxes in pairs(0.5, count=20))
    assert torch.autograd.gradcheck(loss, (predicted, gt))


def test_alpha_of_ciou_is_a_constant_to_the_gradient():
    predicted, gt = pairs(0.5, count=20)

    def with_constant(alpha):
        def value(boxes, gt_boxes):
            return diou_loss(boxes, gt_boxes) + alpha * aspects(boxes, gt_boxes)

        return value

    def aspects(boxes, gt_boxes):
        angles = [torch.atan2(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]) for b in (boxes, gt_boxes)]
        return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2

    v = aspects(predicted, gt)
    iou = tv.box_iou(predicted, gt).diagonal()
    expected = value_and_gradients(with_constant(v / (1 - iou + v)), predicted, gt)
    for mine, theirs in zip(value_and_gradients(ciou_loss, predicted, gt), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_degenerate_boxes_are_finite_with_finite_gradients(loss):
    count = len(DEGENERATE)
    found = value_and_gradients(loss, DEGENERATE.repeat_interleave(count, 0), DEGENERATE.repeat(count, 1))
    assert all(part.isfinite().all() for part in found)
    of_boxes = found[0].view(count, count)[:-2, :-2]
    assert (of_boxes >= 0).all() and (of_boxes <= (2.5 if loss is ciou_loss else 2)).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_boxes_cost_nothing_and_stay_where_they_are(loss):
    boxes, _ = pairs(0.5)
    value, gradient, _ = value_and_gradients(loss, boxes, boxes)
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_boxes_apart_are_drawn_together(loss):
    predicted, gt = torch.tensor([[0.0, 0.1, 0.2, 0.3]]), torch.tensor([[0.6, 0.1, 0.8, 0.3]])
    value, gradient, _ = value_and_gradients(loss, predicted, gt)
    assert value > 1
    assert gradient[0, [0, 2]].sum() < 0 and gradient[0, [1, 3]].sum().abs() < 1e-6


def test_cious_gradient_of_decoded_sizes_is_small_for_tiny_boxes():
    gt = torch.tensor([0.3, 0.4, 0.6, 0.5])
    for log_size in (-1, -5, -10, -14):
        size = torch.tensor([float(log_size), log_size - 1.0], dtype=torch.float64, requires_grad=True)
        box = torch.cat([0.45 - size.exp() / 2, 0.45 + size.exp() / 2])
        (gradient,) = torch.autograd.grad(ciou_loss(box, gt.double()), size)
        assert gradient.isfinite().all() and gradient.abs().max() < 1


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_half_precision_and_no_wait_for_the_device(loss):
    predicted, gt = (boxes.view(5, 4, 4) for boxes in pairs(0.5, count=20, dtype=torch.float32))
    assert loss(predicted, gt).shape == (5, 4) and loss(predicted[:0], gt[:0]).shape == (0, 4)
    half = loss(predicted.bfloat16(), gt.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, loss(predicted.bfloat16().float(), gt.bfloat16().float()))
    # Tensors without data: whatever would have to look at a value fails
    assert loss(predicted.to("meta"), gt.to("meta")).shape == (5, 4)
