import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.ops.mining import mine_hard_negatives, mine_ohem


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
    actual = mine_hard_negatives(loss, positive, ~positive, ratio=1)
    expected = [[False, True, False, False], [False, False, True, True], [False] * 4]
    assert actual.tolist() == expected


def test_no_candidates_at_all():
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    assert not mine_hard_negatives(torch.rand(2, 5), ~nobody, nobody).any()
    assert not mine_hard_negatives(torch.rand(2, 5), nobody, nobody, minimum=3).any()


def test_infinite_losses_are_the_hardest_and_half_precision_will_do():
    loss = torch.tensor([[0.0, 1.0, float("inf"), 3.0]]).bfloat16()
    positive = torch.tensor([[True, False, False, False]])
    assert mine_hard_negatives(loss, positive, ~positive, 1).tolist() == [[False, False, True, False]]
    assert mine_hard_negatives(loss, positive, ~positive, 2).tolist() == [[False, False, True, True]]


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
    actual = mine_hard_negatives(loss, positive, candidate, ratio, minimum)
    assert torch.equal(actual, _reference(loss, positive, candidate, ratio, minimum))
    asked = (positive.sum(1) * ratio).long().clamp(min=minimum)
    assert torch.equal(actual.sum(1), asked.minimum(candidate.sum(1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu():
    random = torch.Generator().manual_seed(0)
    loss = torch.randint(0, 50, (8, 500), generator=random) / 7
    kind = torch.randint(0, 30, (8, 500), generator=random)
    expected = mine_hard_negatives(loss, kind == 0, kind > 1)
    actual = mine_hard_negatives(loss.cuda(), (kind == 0).cuda(), (kind > 1).cuda())
    assert torch.equal(actual.cpu(), expected)


INFINITY = float("inf")


def _examples(loss: list[float], labels: list[int], keep: int) -> list[int]:
    target = torch.tensor([labels])
    chosen = mine_ohem(torch.tensor([loss]), target > 0, target == 0, keep)
    return chosen[0].nonzero().flatten().tolist()


def test_the_highest_losses_of_both_kinds_and_an_easy_positive_is_demoted():
    loss, labels = [0.3, 2.0, 0.1, 1.5, 0.2, 9.0, 0.9], [0, 1, 2, 0, 0, -1, 1]
    assert _examples(loss, labels, 1) == [1]
    assert _examples(loss, labels, 3) == [1, 3, 6]
    assert _examples(loss, labels, 5) == [
        0,
        1,
        3,
        4,
        6,
    ]  # the positive of loss 0.1 is out, an ignored one of 9 never in


def test_of_equal_losses_the_first_are_examples():
    assert _examples([0.5, 0.7, 0.5, 0.5, 0.5], [0, 0, 1, 0, 2], 3) == [0, 1, 2]
    assert _examples([0.0, -0.0, 0.0, -0.0], [0, 0, 0, 0], 2) == [0, 1]


def test_fewer_anchors_than_asked_for_are_all_examples():
    assert _examples([0.5, 0.7, 0.1], [-1, 0, 1], 64) == [1, 2]
    assert _examples([0.5, 0.7, 0.1], [-1, 0, 1], 2) == [1, 2]
    assert _examples([0.5, 0.7, 0.1], [-1, -1, -1], 2) == []
    assert _examples([], [], 2) == []


def test_an_image_without_objects_gives_background_and_infinite_losses_count():
    assert _examples([0.5, INFINITY, 0.1, 0.6], [0, 0, 0, 0], 2) == [1, 3]
    assert _examples([-INFINITY, 0.2, -INFINITY], [0, -1, 1], 2) == [0, 2]


def test_sixty_four_by_default_and_every_image_on_its_own():
    loss = torch.stack([torch.arange(200.0), -torch.arange(200.0)])
    positive = torch.zeros(2, 200, dtype=torch.bool)
    chosen = mine_ohem(loss.requires_grad_(), positive, ~positive)
    assert chosen[0].nonzero().flatten().tolist() == list(range(136, 200))
    assert chosen[1].nonzero().flatten().tolist() == list(range(64))
    assert chosen.dtype == torch.bool and not chosen.requires_grad


def _examples_by_hand(loss: torch.Tensor, positive: torch.Tensor, candidate: torch.Tensor, keep: int):
    chosen = torch.zeros_like(positive)
    for row in range(len(loss)):
        eligible = [a for a in range(loss.shape[1]) if positive[row, a] or candidate[row, a]]
        eligible.sort(key=lambda a: (-float(loss[row, a]), a))
        chosen[row, eligible[:keep]] = True
    return chosen


@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 4),
    anchors=st.integers(1, 40),
    levels=st.integers(1, 50),
    keep=st.integers(1, 45),
    kinds=st.integers(2, 6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_examples_equal_sorting_by_hand(seed, images, anchors, levels, keep, kinds, dtype):
    random = torch.Generator().manual_seed(seed)
    loss = (torch.randint(-levels // 3, levels, (images, anchors), generator=random) / 3).to(dtype)
    kind = torch.randint(0, kinds, (images, anchors), generator=random)
    positive, candidate = kind == 0, kind == 1
    actual = mine_ohem(loss, positive, candidate, keep)
    assert torch.equal(actual, _examples_by_hand(loss, positive, candidate, keep))
    assert torch.equal(actual.sum(1), (positive | candidate).sum(1).clamp(max=keep))
    assert not (actual & ~positive & ~candidate).any()


def test_nothing_looks_at_a_value():
    # Tensors without data: whatever would make the host wait for a device fails
    nobody = torch.zeros(2, 500, dtype=torch.bool, device="meta")
    for keep in (64, 500, 1000):
        assert mine_ohem(torch.zeros(2, 500, device="meta"), nobody, nobody, keep).shape == (2, 500)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_examples_on_a_gpu():
    random = torch.Generator().manual_seed(0)
    loss = torch.randint(0, 50, (8, 8732), generator=random) / 7
    kind = torch.randint(0, 30, (8, 8732), generator=random)
    expected = mine_ohem(loss, kind == 0, kind > 1)
    there = [part.cuda() for part in (loss, kind == 0, kind > 1)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = mine_ohem(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(actual.cpu(), expected)
