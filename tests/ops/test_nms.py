"""Suppression against plain Python and torchvision, ties, limits, groups of all sizes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import nms as torchvision_nms

from multibox.errors import ConfigError
from multibox.ops.nms import nms, suppress


def random_boxes(count, size, generator=None, grid=None):
    low = torch.rand((count, 2), generator=generator)
    sides = size * (0.5 + torch.rand((count, 2), generator=generator))
    boxes = torch.cat([low, low + sides], dim=1)
    return boxes if grid is None else (boxes * grid).round() / grid


def reference(boxes, scores, threshold, groups, inclusive):
    """Box after box, in the float32 of the definition."""
    x1, y1, x2, y2 = boxes.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    w = (torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)).clamp(min=0)
    h = (torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)).clamp(min=0)
    iou = w * h / (area[:, None] + area - w * h)
    over = iou >= threshold if inclusive else iou > threshold
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i)):
        if not any(over[i, j] and groups[i] == groups[j] for j in kept):
            kept.append(i)
    return kept


@given(
    st.integers(0, 10_000),
    st.integers(0, 150),
    st.sampled_from([0.05, 0.3, 0.8]),
    st.sampled_from([0.3, 0.45, 0.5, 0.7]),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_against_the_reference(seed, count, size, threshold, group_count, inclusive, ties):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, size, generator, grid=8 if ties else None)
    scores = torch.rand(count, generator=generator)
    scores = (scores * 5).round() if ties else scores
    groups = torch.randint(0, group_count, (count,), generator=generator)
    actual = nms(boxes, scores, threshold, groups, inclusive)
    assert actual.tolist() == reference(boxes, scores, threshold, groups.tolist(), inclusive)


@pytest.mark.parametrize("size", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("counts", [[2500], [1500, 1, 40, 0, 130, 33, 2], [900] * 4, [1200, 1100]])
def test_groups_of_any_size_equal_torchvision(size, counts):
    """Large groups are suppressed alone and in several rounds, small ones together; padding suppresses nothing."""
    boxes = random_boxes(sum(counts), size, torch.Generator().manual_seed(4))
    keep = suppress(boxes, torch.tensor(counts), 0.4)
    for part, actual in zip(boxes.split(counts), keep.split(counts), strict=True):
        alone = torch.zeros(len(part), dtype=torch.bool)
        alone[torchvision_nms(part, torch.arange(len(part), 0, -1).float(), 0.4)] = True
        assert torch.equal(actual, alone)


def test_a_group_far_away_in_number_changes_nothing():
    # Shifting groups apart rounds coordinates: 0.45 + 1 ulp of IoU would be lost next to group 100 000.
    generator = torch.Generator().manual_seed(5)
    boxes = random_boxes(400, 0.3, generator)
    scores = torch.rand(400, generator=generator)
    alone = nms(boxes, scores, 0.45)
    far = torch.full((400,), 10**9)
    assert torch.equal(nms(boxes, scores, 0.45, far), alone)
    both = nms(boxes.repeat(2, 1), scores.repeat(2), 0.45, torch.cat([far, far + 1]))
    assert sorted(both.tolist()) == sorted([*alone.tolist(), *(alone + 400).tolist()])


def test_equal_scores_go_by_index():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(3, 1)
    assert nms(boxes, torch.ones(3), 0.5).tolist() == [0]
    far = boxes + torch.arange(3)[:, None] * 2.0
    assert nms(far, torch.ones(3), 0.5).tolist() == [0, 1, 2]


def test_inclusive_decides_at_the_threshold():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.5, inclusive=True).tolist() == [0]


def test_a_suppressed_box_suppresses_nothing():
    # Box 0 suppresses box 1, so box 2 (IoU 0.545 with box 0, 0.631 with box 1) stays at 0.6.
    boxes = torch.tensor([[0.1, 0.08, 0.52, 0.92], [0.08, 0.2, 0.56, 0.95], [0.15, 0.3, 0.62, 0.91]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.6).tolist() == [0, 2]


def test_a_long_chain_is_decided_one_after_another():
    steps = torch.arange(300) * 0.4
    boxes = torch.stack([steps, torch.zeros(300), steps + 1, torch.ones(300)], dim=1)
    actual = nms(boxes, torch.arange(300, 0, -1).float(), 0.4)
    assert actual.tolist() == list(range(0, 300, 2))


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_box_that_is_no_box_harms_no_other(odd):
    generator = torch.Generator().manual_seed(6)
    boxes = random_boxes(200, 0.3, generator)
    scores = torch.arange(200, 0, -1).float()
    expected = (nms(boxes, scores, 0.45) + 1).tolist()
    strange = torch.tensor([[0.0, 0.0, odd, odd]])
    actual = nms(torch.cat([strange, boxes]), torch.cat([torch.tensor([999.0]), scores]), 0.45)
    assert [i for i in actual.tolist() if i > 0] == expected


def test_boxes_without_area_stay():
    boxes = torch.zeros((100, 4)) + 0.5
    assert len(nms(boxes, torch.ones(100), 0.5)) == 100


def test_nothing():
    assert nms(torch.zeros((0, 4)), torch.zeros(0), 0.5).tolist() == []
    assert nms(torch.zeros((0, 4)), torch.zeros(0), 0.5, torch.zeros(0, dtype=torch.long)).tolist() == []


@pytest.mark.parametrize(("threshold", "inclusive"), [(-0.1, False), (1.5, False), (0.0, True)])
def test_a_threshold_that_is_no_iou_is_refused(threshold, inclusive):
    with pytest.raises(ConfigError, match="nms threshold"):
        nms(torch.zeros((1, 4)), torch.zeros(1), threshold, inclusive=inclusive)
