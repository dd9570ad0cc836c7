"""Formats and overlaps: by hand, by their laws, and beside torchvision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops as tv

from multibox.ops import boxes as boxes_module
from multibox.ops.boxes import (
    box_area,
    clip_boxes,
    cxcywh_to_xyxy,
    flip_boxes,
    paired_iou,
    pairwise_iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

KINDS = ("iou", "giou", "diou", "ciou")


def box_lists(smallest=0.001, count=6):
    """[n, 4] xyxy in float64, partly beyond 0..1; sizes from `smallest`."""
    place, size = st.floats(-0.5, 1.2), st.floats(smallest, 1.5)
    rows = st.lists(st.tuples(place, place, size, size), min_size=1, max_size=count)
    return rows.map(lambda values: xywh_to_xyxy(torch.tensor(values, dtype=torch.float64)))


def equal_lists(smallest=0.001):
    return st.tuples(box_lists(smallest), box_lists(smallest)).map(
        lambda pair: tuple(one[: min(len(pair[0]), len(pair[1]))] for one in pair)
    )


def test_formats_by_hand():
    xyxy = torch.tensor([[10.0, 20.0, 40.0, 100.0]])
    assert xyxy_to_cxcywh(xyxy).tolist() == [[25, 60, 30, 80]]
    assert xyxy_to_xywh(xyxy).tolist() == [[10, 20, 30, 80]]
    assert cxcywh_to_xyxy(torch.tensor([[25.0, 60.0, 30.0, 80.0]])).tolist() == xyxy.tolist()
    assert xywh_to_xyxy(torch.tensor([[10.0, 20.0, 30.0, 80.0]])).tolist() == xyxy.tolist()
    assert box_area(xyxy).tolist() == [2400]


def test_swapped_corners_have_no_area_even_along_both_axes():
    swapped = torch.tensor([[0.5, 0.1, 0.2, 0.6], [0.5, 0.6, 0.2, 0.1], [0.3, 0.3, 0.3, 0.9]])
    assert box_area(swapped).tolist() == [0, 0, 0]


def test_clip_and_flip_by_hand():
    boxes = torch.tensor([[-0.25, 0.5, 0.25, 1.5], [1.25, 0.0, 1.5, 1.0]])
    assert clip_boxes(boxes).tolist() == [[0, 0.5, 0.25, 1], [1, 0, 1, 1]]
    assert clip_boxes(boxes * 100, 120).tolist() == [[0, 50, 25, 120], [120, 0, 120, 100]]
    flipped = flip_boxes(torch.tensor([[0.1, 0.2, 0.4, 0.7]]))
    assert torch.allclose(flipped, torch.tensor([[0.6, 0.2, 0.9, 0.7]]))


@given(box_lists())
def test_formats_and_flips_come_back(boxes):
    for there, back in ((xyxy_to_cxcywh, cxcywh_to_xyxy), (xyxy_to_xywh, xywh_to_xyxy), (flip_boxes, flip_boxes)):
        assert torch.allclose(back(there(boxes)), boxes, atol=1e-12)
    assert torch.allclose(xyxy_to_cxcywh(boxes), tv.box_convert(boxes, "xyxy", "cxcywh"), atol=1e-12)
    assert torch.allclose(box_area(flip_boxes(boxes)), box_area(boxes))


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


def test_kinds_by_hand():
    # Two unit squares with half a unit between them: hull 2.5 x 1, diagonal squared 7.25, centres 1.5 apart.
    a, b = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.5, 0.0, 2.5, 1.0]])
    expected = {"iou": 0.0, "giou": -0.2, "diou": -2.25 / 7.25, "ciou": -2.25 / 7.25}
    for kind, value in expected.items():
        assert paired_iou(a, b, kind).item() == pytest.approx(value)
    # Same centre, 2 x 1 in 4 x 4: IoU 1/8; angles atan 2 and atan 1.
    a, b = torch.tensor([[1.0, 1.5, 3.0, 2.5]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    v = 0.041964
    assert paired_iou(a, b, "diou").item() == pytest.approx(0.125)
    assert paired_iou(a, b, "ciou").item() == pytest.approx(0.125 - v * v / (1 - 0.125 + v), abs=1e-5)


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
    found = {kind: paired_iou(a, b, kind) for kind in KINDS}
    assert torch.allclose(found["iou"], pairwise_iou(a, b).diagonal(), atol=1e-9)
    assert (found["giou"] <= found["iou"] + 1e-12).all() and (found["giou"] >= -1 - 1e-12).all()
    assert (found["diou"] <= found["iou"] + 1e-12).all()
    assert (found["ciou"] <= found["diou"] + 1e-12).all()
    for kind in KINDS:
        assert torch.allclose(paired_iou(a, a, kind), torch.ones(len(a), dtype=a.dtype), atol=1e-9)
        assert torch.allclose(paired_iou(b, a, kind), found[kind], atol=1e-9)


@given(equal_lists(smallest=0.05))
def test_paired_kinds_equal_torchvisions(pair):
    theirs = {
        "iou": tv.box_iou,
        "giou": tv.generalized_box_iou,
        "diou": tv.distance_box_iou,
        "ciou": tv.complete_box_iou,
    }
    for kind, function in theirs.items():
        # torchvision adds 1e-7 to its divisors, which shows in small boxes
        assert torch.allclose(paired_iou(*pair, kind), function(*pair).diagonal(), atol=5e-5), kind


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_gradients_equal_torchvisions_losses(kind):
    random = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, 2, generator=random, dtype=torch.float64)
    size = 0.1 + torch.rand(50, 2, 2, generator=random, dtype=torch.float64)
    a, b = torch.cat([low, low + size], dim=-1).unbind(1)
    loss = {"giou": tv.generalized_box_iou_loss, "diou": tv.distance_box_iou_loss, "ciou": tv.complete_box_iou_loss}
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    (1 - paired_iou(ours, b, kind)).sum().backward()
    loss[kind](theirs, b, reduction="sum").backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


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
    found = paired_iou(a, b, kind)
    found.sum().backward()
    assert found.isfinite().all() and a.grad.isfinite().all() and b.grad.isfinite().all()
    assert (found <= 1).all()


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
    theirs = ours.detach().clone().requires_grad_()
    other = _random(2, 9)[0].double()
    weights = torch.rand(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (pairwise_iou(ours, other) * weights).sum().backward()
    (tv.box_iou(theirs, other) * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-9)
