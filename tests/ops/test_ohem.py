import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.ops.mining import mine_ohem

INFINITY = float("inf")


def _chosen(loss: list[float], labels: list[int], keep: int) -> list[int]:
    target = torch.tensor([labels])
    chosen = mine_ohem(torch.tensor([loss]), target > 0, target == 0, keep)
    return chosen[0].nonzero().flatten().tolist()


def test_the_highest_losses_of_both_kinds_and_an_easy_positive_is_demoted():
    loss, labels = [0.3, 2.0, 0.1, 1.5, 0.2, 9.0, 0.9], [0, 1, 2, 0, 0, -1, 1]
    assert _chosen(loss, labels, 1) == [1]
    assert _chosen(loss, labels, 3) == [1, 3, 6]
    assert _chosen(loss, labels, 5) == [0, 1, 3, 4, 6]  # the positive of loss 0.1 is out, an ignored one of 9 never in


def test_of_equal_losses_the_first_are_chosen():
    assert _chosen([0.5, 0.7, 0.5, 0.5, 0.5], [0, 0, 1, 0, 2], 3) == [0, 1, 2]
    assert _chosen([0.0, -0.0, 0.0, -0.0], [0, 0, 0, 0], 2) == [0, 1]


def test_fewer_anchors_than_asked_for_are_all_chosen():
    assert _chosen([0.5, 0.7, 0.1], [-1, 0, 1], 64) == [1, 2]
    assert _chosen([0.5, 0.7, 0.1], [-1, 0, 1], 2) == [1, 2]
    assert _chosen([0.5, 0.7, 0.1], [-1, -1, -1], 2) == []
    assert _chosen([], [], 2) == []


def test_an_image_without_objects_gives_background_and_infinite_losses_count():
    assert _chosen([0.5, INFINITY, 0.1, 0.6], [0, 0, 0, 0], 2) == [1, 3]
    assert _chosen([-INFINITY, 0.2, -INFINITY], [0, -1, 1], 2) == [0, 2]


def test_sixty_four_by_default_and_every_image_on_its_own():
    loss = torch.stack([torch.arange(200.0), -torch.arange(200.0)])
    positive = torch.zeros(2, 200, dtype=torch.bool)
    chosen = mine_ohem(loss.requires_grad_(), positive, ~positive)
    assert chosen[0].nonzero().flatten().tolist() == list(range(136, 200))
    assert chosen[1].nonzero().flatten().tolist() == list(range(64))
    assert chosen.dtype == torch.bool and not chosen.requires_grad


def _reference(loss: torch.Tensor, positive: torch.Tensor, candidate: torch.Tensor, keep: int):
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
def test_equal_to_sorting_by_hand(seed, images, anchors, levels, keep, kinds, dtype):
    random = torch.Generator().manual_seed(seed)
    loss = (torch.randint(-levels // 3, levels, (images, anchors), generator=random) / 3).to(dtype)
    kind = torch.randint(0, kinds, (images, anchors), generator=random)
    positive, candidate = kind == 0, kind == 1
    found = mine_ohem(loss, positive, candidate, keep)
    assert torch.equal(found, _reference(loss, positive, candidate, keep))
    assert torch.equal(found.sum(1), (positive | candidate).sum(1).clamp(max=keep))
    assert not (found & ~positive & ~candidate).any()


def test_nothing_looks_at_a_value():
    # Tensors without data: whatever would make the host wait for a device fails
    nobody = torch.zeros(2, 500, dtype=torch.bool, device="meta")
    for keep in (64, 500, 1000):
        assert mine_ohem(torch.zeros(2, 500, device="meta"), nobody, nobody, keep).shape == (2, 500)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu():
    random = torch.Generator().manual_seed(0)
    loss = torch.randint(0, 50, (8, 8732), generator=random) / 7
    kind = torch.randint(0, 30, (8, 8732), generator=random)
    expected = mine_ohem(loss, kind == 0, kind > 1)
    there = [part.cuda() for part in (loss, kind == 0, kind > 1)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = mine_ohem(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), expected)
