import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.ops.mining import mine_hard_negatives, negative_candidates


def _chosen(background: list[float], labels: list[int], ratio: float, minimum: int = 0) -> set[int]:
    loss = -torch.tensor([background]).log()
    target = torch.tensor([labels])
    negative = mine_hard_negatives(loss, target > 0, target == 0, ratio=ratio, minimum=minimum)
    return set(negative[0].nonzero().flatten().tolist())


def test_the_hardest_three_per_positive_and_an_ignored_anchor_counts_as_neither():
    background = [0.9, 0.2, 0.8, 0.6, 0.6, 0.99, 0.3, 0.5]
    assert _chosen(background, [0, 0, 0, 1, 0, 0, 0, -1], ratio=3) == {1, 4, 6}


def test_ties_are_cut_at_the_lowest_index():
    assert _chosen([0.5, 0.5, 0.5, 0.5, 0.9], [1, 0, 0, 0, 0], ratio=1) == {1}
    assert _chosen([0.5, 0.5, 0.5, 0.5, 0.9], [1, 0, 0, 0, 0], ratio=2) == {1, 2}


def test_a_broken_ratio_is_rounded_down():
    assert _chosen([0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 1, 0, 0], ratio=0.34) == {3}
    assert _chosen([0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 0, 0, 0], ratio=0.34) == set()


def test_fewer_candidates_than_asked_for_are_all_taken():
    assert _chosen([0.9, 0.1, 0.2], [1, 0, 0], ratio=3) == {1, 2}
    assert _chosen([0.9, 0.1, 0.2], [1, 1, -1], ratio=3) == set()


def test_an_image_without_objects_gives_none_or_the_minimum():
    assert _chosen([0.9, 0.1, 0.2], [0, 0, 0], ratio=3) == set()
    assert _chosen([0.9, 0.1, 0.2], [0, 0, 0], ratio=3, minimum=2) == {1, 2}


def test_every_image_is_counted_on_its_own():
    loss = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [5.0, 5.0, 5.0, 5.0]])
    positive = torch.tensor([[True, False, False, False], [True, True, False, False], [False] * 4])
    found = mine_hard_negatives(loss, positive, ~positive, ratio=1)
    expected = [[False, True, False, False], [False, False, True, True], [False] * 4]
    assert found.tolist() == expected


def test_no_candidates_at_all():
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    assert not mine_hard_negatives(torch.rand(2, 5), ~nobody, nobody).any()
    assert not mine_hard_negatives(torch.rand(2, 5), nobody, nobody, minimum=3).any()


def test_infinite_losses_are_the_hardest_and_half_precision_will_do():
    loss = torch.tensor([[0.0, 1.0, float("inf"), 3.0]]).bfloat16()
    positive = torch.tensor([[True, False, False, False]])
    assert mine_hard_negatives(loss, positive, ~positive, 1).tolist() == [[False, False, True, False]]
    assert mine_hard_negatives(loss, positive, ~positive, 2).tolist() == [[False, False, True, True]]


def test_candidates_are_unmatched_and_overlap_little():
    matched = torch.tensor([[True, False, False, False]])
    overlap = torch.tensor([[0.1, 0.49, 0.5, 0.0]])
    assert negative_candidates(matched, overlap).tolist() == [[False, True, False, True]]


def _reference(loss: torch.Tensor, positive: torch.Tensor, candidate: torch.Tensor, ratio: float, minimum: int):
    chosen = torch.zeros_like(positive)
    for row in range(len(loss)):
        eligible = [a for a in range(loss.shape[1]) if candidate[row, a]]
        eligible.sort(key=lambda a: (-float(loss[row, a]), a))
        count = min(max(int(ratio * int(positive[row].sum())), minimum), len(eligible))
        chosen[row, eligible[:count]] = True
    return chosen


@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 4),
    anchors=st.integers(1, 40),
    levels=st.integers(1, 6),
    ratio=st.sampled_from([0.5, 1.0, 3.0]),
    minimum=st.integers(0, 5),
)
def test_equal_to_sorting_by_hand(seed: int, images: int, anchors: int, levels: int, ratio: float, minimum: int):
    random = torch.Generator().manual_seed(seed)
    loss = torch.randint(0, levels, (images, anchors), generator=random) / 3
    kind = torch.randint(0, 4, (images, anchors), generator=random)
    positive, candidate = kind == 0, kind >= 2
    found = mine_hard_negatives(loss, positive, candidate, ratio, minimum)
    assert torch.equal(found, _reference(loss, positive, candidate, ratio, minimum))
    asked = (positive.sum(1) * ratio).long().clamp(min=minimum)
    assert torch.equal(found.sum(1), asked.minimum(candidate.sum(1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu():
    random = torch.Generator().manual_seed(0)
    loss = torch.randint(0, 50, (8, 500), generator=random) / 7
    kind = torch.randint(0, 30, (8, 500), generator=random)
    expected = mine_hard_negatives(loss, kind == 0, kind > 1)
    found = mine_hard_negatives(loss.cuda(), (kind == 0).cuda(), (kind > 1).cuda())
    assert torch.equal(found.cpu(), expected)
