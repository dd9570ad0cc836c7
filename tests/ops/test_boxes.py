"""Areas and overlaps: by hand, by their laws, and beside torchvision."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops as tv

from multibox.ops import boxes as boxes_module
from multibox.ops.boxes import box_area, paired_iou, pairwise_iou

TORCHVISION_LOSSES = {
    "giou": tv.generalized_box_iou_loss,
    "diou": tv.distance_box_iou_loss,
    "ciou": tv.complete_box_iou_loss,
}
KINDS = ("iou", *TORCHVISION_LOSSES)


def loss_of(kind):
    return lambda predicted, gt: 1 - paired_iou(predicted, gt, kind)


def box_lists(smallest=0.001, count=6):
    """[n, 4] xyxy in float64, partly beyond 0..1; sizes from `smallest`."""
    place, size = st.floats(-0.5, 1.2), st.floats(smallest, 1.5)
    rows = st.lists(st.tuples(place, place, size, size), min_size=1, max_size=count)
    return rows.map(lambda values: tv.box_convert(torch.tensor(values, dtype=torch.float64), "xywh", "xyxy"))


def equal_lists(smallest=0.001):
    return st.tuples(box_lists(smallest), box_lists(smallest)).map(
        lambda pair: tuple(one[: min(len(pair[0]), len(pair[1]))] for one in pair)
    )


def test_area_and_that_swapped_corners_have_none_even_along_both_axes():
    assert box_area(torch.tensor([[10.0, 20.0, 40.0, 100.0]])).tolist() == [2400]
    swapped = torch.tensor([[0.5, 0.1, 0.2, 0.6], [0.5, 0.6, 0.2, 0.1], [0.3, 0.3, 0.3, 0.9]])
    assert box_area(swapped).tolist() == [0, 0, 0]


def test_overlaps_of_the_d2l_anchors():
    anchors = torch.tensor(
        [
            [0.0, 0.1, 0.2, 0.3],
            [0.15, 0.2, 0.4, 0.4],
            [0.63, 0.05, 0.88, 0.98],
            [0.66, 0.45, 0.8, 0.8],
            [0.57, 0.3, 0.92, 0.9],
        ]
    )
    gt = torch.tensor([[0.1, 0.08, 0.52, 0.92], [0.55, 0.2, 0.9, 0.88]])
    rows = [[0.053648, 0], [0.141723, 0], [0, 0.565724], [0, 0.205882], [0, 0.745908]]
    assert torch.allclose(pairwise_iou(anchors, gt), torch.tensor(rows), atol=1e-6)
    assert torch.allclose(pairwise_iou(gt[None], anchors), torch.tensor([rows]).mT, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "giou", "diou", "ciou"),
    [
        # Unit squares half a unit apart: hull 2.5 x 1 of which 0.5 is empty, centres 1.5 apart, diagonal squared 7.25
        ([0.0, 0, 1, 1], [1.5, 0, 2.5, 1], -0.2, -2.25 / 7.25, -2.25 / 7.25),
        # 2 x 2 and 2 x 2 that share a unit: IoU 1/7, hull 9 of which 2 is empty, centres 2 apart (squared), diagonal 18
        ([0.0, 0, 2, 2], [1.0, 1, 3, 3], 1 / 7 - 2 / 9, 1 / 7 - 1 / 9, 1 / 7 - 1 / 9),
        # 2 x 1 in the middle of 4 x 4: IoU 1/8, no distance; the angles of the diagonals are atan 2 and atan 1
        ([1, 1.5, 3, 2.5], [0.0, 0, 4, 4], 1 / 8, 1 / 8, 1 / 8 - 0.041964**2 / (7 / 8 + 0.041964)),
    ],
)
def test_kinds_by_hand(a, b, giou, diou, ciou):
    actual = [paired_iou(torch.tensor(a), torch.tensor(b), kind).item() for kind in ("giou", "diou", "ciou")]
    assert actual == pytest.approx([giou, diou, ciou], abs=1e-6)


@given(box_lists(), box_lists())
def test_iou_is_symmetric_and_a_share(a, b):
    table = pairwise_iou(a, b)
    assert table.shape == (len(a), len(b))
    assert ((table >= 0) & (table <= 1 + 1e-12)).all()
    assert torch.allclose(table, pairwise_iou(b, a).T, atol=1e-12)
    assert torch.allclose(table, tv.box_iou(a, b), atol=1e-9)
    assert torch.allclose(pairwise_iou(a, a).diagonal(), torch.ones(len(a), dtype=a.dtype))


@given(equal_lists())
def test_paired_kinds_keep_their_order(pair):
    a, b = pair
    actual = {kind: paired_iou(a, b, kind) for kind in KINDS}
    assert torch.allclose(actual["iou"], pairwise_iou(a, b).diagonal(), atol=1e-9)
    assert (actual["giou"] <= actual["iou"] + 1e-12).all() and (actual["giou"] >= -1 - 1e-12).all()
    assert (actual["diou"] <= actual["iou"] + 1e-12).all()
    assert (actual["ciou"] <= actual["diou"] + 1e-12).all()
    for kind in KINDS:
        assert torch.allclose(paired_iou(a, a, kind), torch.ones(len(a), dtype=a.dtype), atol=1e-9)
        assert torch.allclose(paired_iou(b, a, kind), actual[kind], atol=1e-9)


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


@pytest.mark.parametrize("kind", TORCHVISION_LOSSES)
@pytest.mark.parametrize(("side", "values", "gradients"), [(50.0, 1e-8, 1e-8), (0.5, 1e-6, 1e-6), (0.1, 5e-6, 5e-5)])
def test_torchvisions_losses_but_for_the_epsilon_they_add(kind, side, values, gradients):
    actual = value_and_gradients(loss_of(kind), *pairs(side))
    expected = value_and_gradients(TORCHVISION_LOSSES[kind], *pairs(side))
    assert (actual[0] > 1).any() and (actual[0] < 0.7).any()
    for ours, torchvisions, atol in zip(actual, expected, (values, gradients, gradients), strict=True):
        assert torch.allclose(ours, torchvisions, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["giou", "diou"])  # torchvision's CIoU does not hand its eps on
@pytest.mark.parametrize("side", [0.01, 0.1])
def test_torchvisions_losses_of_small_boxes_without_the_epsilon(kind, side):
    actual = value_and_gradients(loss_of(kind), *pairs(side))
    expected = value_and_gradients(partial(TORCHVISION_LOSSES[kind], eps=0.0), *pairs(side))
    for ours, torchvisions in zip(actual, expected, strict=True):
        assert torch.allclose(ours, torchvisions, rtol=1e-9, atol=1e-12)


def test_alpha_of_ciou_is_a_constant_to_the_gradient():
    predicted, gt = pairs(0.5, count=20)

    def aspects(boxes, gt_boxes):
        angles = [torch.atan2(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]) for b in (boxes, gt_boxes)]
        return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2

    v = aspects(predicted, gt)
    alpha = v / (1 - tv.box_iou(predicted, gt).diagonal() + v)
    expected = value_and_gradients(lambda a, b: loss_of("diou")(a, b) + alpha * aspects(a, b), predicted, gt)
    for ours, by_hand in zip(value_and_gradients(loss_of("ciou"), predicted, gt), expected, strict=True):
        assert torch.allclose(ours, by_hand, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", TORCHVISION_LOSSES)
def test_boxes_apart_are_drawn_together_and_equal_ones_stay(kind):
    predicted, gt = torch.tensor([[0.0, 0.1, 0.2, 0.3]]), torch.tensor([[0.6, 0.1, 0.8, 0.3]])
    value, gradient, _ = value_and_gradients(loss_of(kind), predicted, gt)
    assert value > 1
    assert gradient[0, [0, 2]].sum() < 0 and gradient[0, [1, 3]].sum().abs() < 1e-6
    boxes, _ = pairs(0.5)
    value, gradient, _ = value_and_gradients(loss_of(kind), boxes, boxes)
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def test_cious_gradient_of_decoded_sizes_is_small_for_tiny_boxes():
    gt = torch.tensor([0.3, 0.4, 0.6, 0.5], dtype=torch.float64)
    for log_size in (-1, -5, -10, -14):
        size = torch.tensor([float(log_size), log_size - 1.0], dtype=torch.float64, requires_grad=True)
        box = torch.cat([0.45 - size.exp() / 2, 0.45 + size.exp() / 2])
        (gradient,) = torch.autograd.grad(loss_of("ciou")(box, gt), size)
        assert gradient.isfinite().all() and gradient.abs().max() < 1


DEGENERATE = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.3, 0.3, 0.3, 0.3],
        [0.3, 0.3, 0.3, 0.8],
        [0.8, 0.3, 0.2, 0.6],
        [0.8, 0.6, 0.2, 0.3],
        [-1.0, -1.0, -1.0, -1.0],
        [0.2, 0.2, 0.2 + 1e-7, 0.2 + 1e-7],
        [0.1, 0.1, 0.9, 0.9],
    ]
)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_are_finite_with_finite_gradients(kind):
    count = len(DEGENERATE)
    a = DEGENERATE.repeat_interleave(count, 0).requires_grad_()
    b = DEGENERATE.repeat(count, 1).requires_grad_()
    actual = paired_iou(a, b, kind)
    actual.sum().backward()
    assert actual.isfinite().all() and a.grad.isfinite().all() and b.grad.isfinite().all()
    assert (actual <= 1).all()


def test_boxes_without_area_overlap_nothing_and_not_themselves():
    table = pairwise_iou(DEGENERATE, DEGENERATE)
    assert table.isfinite().all()
    assert (table[:6] == 0).all() and (table[:, :6] == 0).all()
    assert table[7, 7] == 1
    boxes = DEGENERATE.clone().requires_grad_()
    pairwise_iou(boxes, boxes).sum().backward()
    assert boxes.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    a = torch.tensor([[0.1, 0.1, 0.5, 0.5]]).bfloat16()
    b = torch.tensor([[0.2, 0.1, 0.6, 0.4]]).bfloat16()
    assert pairwise_iou(a, b).dtype == torch.float32
    assert torch.equal(pairwise_iou(a, b), pairwise_iou(a.float(), b.float()))
    for kind in KINDS:
        assert paired_iou(a, b, kind).dtype == torch.float32
        assert torch.equal(paired_iou(a, b, kind), paired_iou(a.float(), b.float(), kind))
        assert paired_iou(a.view(1, 1, 4), b.view(1, 1, 4), kind).shape == (1, 1)
        # Tensors without data: whatever would have to look at a value, and so wait for a GPU, fails
        assert paired_iou(a.to("meta"), b.to("meta"), kind).shape == (1,)


def _random(*shape):
    low = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(len(shape)))
    return torch.cat([low, low + 0.05 + low.flip(-1) * 0.4], dim=-1)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 17])
def test_blocks_change_nothing_and_leading_axes_broadcast(monkeypatch, block):
    gt, anchors = _random(3, 5), _random(40)
    expected = tv.box_iou(gt.view(-1, 4), anchors).view(3, 5, 40)
    monkeypatch.setattr(boxes_module, "_BLOCK", block)
    assert torch.allclose(pairwise_iou(gt, anchors), expected, atol=1e-6)
    assert torch.allclose(pairwise_iou(gt, anchors.expand(3, 40, 4)), expected, atol=1e-6)
    assert pairwise_iou(gt[:, :0], anchors).shape == (3, 0, 40)
    assert pairwise_iou(gt, anchors[:0]).shape == (3, 5, 0)


@pytest.mark.parametrize("block", [7, 1 << 17])
def test_the_table_can_be_differentiated(monkeypatch, block):
    monkeypatch.setattr(boxes_module, "_BLOCK", block)
    ours = _random(6).double().requires_grad_()
    torchvisions = ours.detach().clone().requires_grad_()
    other = _random(2, 9)[0].double()
    weights = torch.rand(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (pairwise_iou(ours, other) * weights).sum().backward()
    (tv.box_iou(torchvisions, other) * weights).sum().backward()
    assert torch.allclose(ours.grad, torchvisions.grad, atol=1e-9)
