"""Matchers against plain Python references, hand-worked cases, ties, chains, padding and images without objects."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.ops import matching
from multibox.ops.matching import IGNORED, NEGATIVE, anchor_overlaps, greedy_bipartite, match_bipartite, match_dual_max
from multibox.ops.rows import without_reading

# The five anchors and two objects of d2l's chapter on anchors (d2l.ai, 14.4).
ANCHORS = torch.tensor(
    [
        [0.0, 0.1, 0.2, 0.3],
        [0.15, 0.2, 0.4, 0.4],
        [0.63, 0.05, 0.88, 0.98],
        [0.66, 0.45, 0.8, 0.8],
        [0.57, 0.3, 0.92, 0.9],
    ]
)
OBJECTS = torch.tensor([[[0.1, 0.08, 0.52, 0.92], [0.55, 0.2, 0.9, 0.88]]])
VALID = torch.ones((1, 2), dtype=torch.bool)


def reference_greedy(overlaps, valid, minimum):
    """One image, pair after pair: the definition."""
    objects, anchors = len(overlaps), len(overlaps[0]) if overlaps else 0
    chosen = [-1] * objects
    while True:
        pairs = [
            (-overlaps[g][a], a, g)
            for g in range(objects)
            for a in range(anchors)
            if valid[g] and chosen[g] < 0 and a not in chosen and overlaps[g][a] > minimum
        ]
        if not pairs:
            return chosen
        _, anchor, row = min(pairs)
        chosen[row] = anchor


def reference_dual_max(overlaps, valid, low, high):
    """One image, anchor after anchor."""
    rows = [g for g in range(len(overlaps)) if valid[g]]
    anchors = len(overlaps[0])
    if not rows:
        return [NEGATIVE] * anchors
    actual = []
    for a in range(anchors):
        best = max(overlaps[g][a] for g in rows)
        owner = next(g for g in rows if overlaps[g][a] == best)
        actual.append(owner if best >= high and best > 0 else NEGATIVE if best < low else IGNORED)
    claims = {}
    for g in rows:
        if max(overlaps[g]) > 1e-6:
            claims.setdefault(overlaps[g].index(max(overlaps[g])), []).append(g)
    for a, owners in claims.items():
        actual[a] = max(owners, key=lambda g: (overlaps[g][a], -g))
    return actual


@st.composite
def overlap_tables(draw):
    """Overlaps of few distinct values, so that ties are the rule."""
    batch, objects, anchors = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    values = st.sampled_from([0.0, 0.25, 0.5, 0.75]) if draw(st.booleans()) else st.floats(0, 1, width=32)
    table = [[[draw(values) for _ in range(anchors)] for _ in range(objects)] for _ in range(batch)]
    valid = [[draw(st.booleans()) for _ in range(objects)] for _ in range(batch)]
    return table, valid


@given(overlap_tables())
def test_rounds_equal_one_pair_at_a_time(case):
    table, valid = case
    overlaps, flags = torch.tensor(table, dtype=torch.float32), torch.tensor(valid)
    expected = [reference_greedy(rows, flags, 1e-6) for rows, flags in zip(table, valid, strict=True)]
    assert greedy_bipartite(overlaps, flags).tolist() == expected
    with without_reading():
        assert greedy_bipartite(overlaps, flags).tolist() == expected


def test_a_chain_that_needs_as_many_rounds_as_objects():
    # Object g wants the anchor that object g - 1 is pushed to, bids the same for it and loses by number.
    count = 30
    table = torch.zeros(1, count, count + 1)
    value = 1.0
    for g in range(count):
        table[0, g, 0 if g == 0 else g - 1] = value
        table[0, g, g] = value = value - 0.01 if g else 1.0
    table[0, :, count] = 0.01
    valid, expected = (
        torch.ones((1, count), dtype=torch.bool),
        reference_greedy(table[0].tolist(), [True] * count, 1e-6),
    )
    assert greedy_bipartite(table, valid)[0].tolist() == expected
    with without_reading():
        assert greedy_bipartite(table, valid)[0].tolist() == expected


def test_all_equal_goes_by_number():
    table = torch.full((2, 3, 5), 0.5)
    valid = torch.tensor([[True, True, True], [False, True, True]])
    assert greedy_bipartite(table, valid).tolist() == [[0, 1, 2], [-1, 0, 1]]


def boxes(draw, count):
    """Boxes on a coarse grid: equal IoUs, touching boxes and equal boxes are common."""
    sides = st.integers(0, 6)
    rows = []
    for _ in range(count):
        x1, y1, w, h = draw(sides), draw(sides), draw(st.integers(1, 5)), draw(st.integers(1, 5))
        rows.append([x1 / 8, y1 / 8, (x1 + w) / 8, (y1 + h) / 8])
    return rows


@st.composite
def scenes(draw):
    batch, objects, anchors = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 10))
    valid = torch.tensor([[draw(st.booleans()) for _ in range(objects)] for _ in range(batch)])
    gt = torch.tensor([boxes(draw, objects) for _ in range(batch)])
    return torch.tensor(boxes(draw, anchors)), torch.where(valid[..., None], gt, -1.0), valid


@given(scenes(), st.sampled_from([0.3, 0.5, 0.0]), st.booleans())
def test_bipartite_then_threshold(scene, threshold, inclusive):
    anchors, gt, valid = scene
    overlaps = anchor_overlaps(anchors, gt, valid).double()
    actual = match_bipartite(anchors, gt, valid, threshold=threshold, inclusive=inclusive)
    with without_reading():
        blind = match_bipartite(anchors, gt, valid, threshold=threshold, inclusive=inclusive)
    assert torch.equal(blind.gt_index, actual.gt_index) and torch.equal(blind.overlap, actual.overlap)
    for i, rows in enumerate(overlaps.tolist()):
        chosen = reference_greedy(rows, valid[i].tolist(), 1e-6)
        for a in range(len(anchors)):
            best = max(row[a] for row in rows)
            owner = next(g for g, row in enumerate(rows) if row[a] == best)
            limit = torch.tensor(threshold).item()
            enough = best > 0 and (best >= limit if inclusive else best > limit)
            expected = chosen.index(a) if a in chosen else owner if enough else NEGATIVE
            assert actual.gt_index[i, a] == expected
            assert actual.overlap[i, a] == best


@given(scenes(), st.sampled_from([(0.5, 0.5), (0.1, 0.5), (0.25, 0.3)]))
def test_dual_max(scene, zone):
    anchors, gt, valid = scene
    actual = match_dual_max(anchors, gt, valid, low=zone[0], high=zone[1])
    with without_reading():
        assert torch.equal(match_dual_max(anchors, gt, valid, low=zone[0], high=zone[1]).gt_index, actual.gt_index)
    overlaps = anchor_overlaps(anchors, gt, valid)
    limits = torch.tensor(zone).tolist()
    for i, rows in enumerate(overlaps.tolist()):
        assert actual.gt_index[i].tolist() == reference_dual_max(rows, valid[i].tolist(), *limits)


def test_overlaps_of_the_chapter():
    actual = anchor_overlaps(ANCHORS, OBJECTS, VALID)[0].T
    expected = [[0.053648, 0], [0.141723, 0], [0, 0.565724], [0, 0.205882], [0, 0.745908]]
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("matcher", "options", "expected"),
    [
        (match_bipartite, {}, [-1, 0, 1, -1, 1]),
        (match_bipartite, {"threshold": None}, [-1, 0, -1, -1, 1]),
        (match_bipartite, {"threshold": 1.5}, [-1, 0, -1, -1, 1]),
        (match_bipartite, {"threshold": 0.2}, [-1, 0, 1, 1, 1]),
        (match_dual_max, {}, [-1, 0, 1, -1, 1]),
        (match_dual_max, {"low": 0.1}, [-1, 0, 1, -2, 1]),
    ],
)
def test_the_chapter(matcher, options, expected):
    actual = matcher(ANCHORS, OBJECTS, VALID, **options)
    assert actual.gt_index.tolist() == [expected]
    assert actual.weights.shape == actual.soft_scores.shape == (1, 5)
    assert bool((actual.weights == 1).all()) and bool((actual.soft_scores == 1).all())


def test_only_bipartite_gives_the_loser_of_a_collision_an_anchor():
    # Both objects like anchor 0 best; the second more.
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]])
    gt = torch.tensor([[[0.0, 0.0, 0.6, 1.0], [0.0, 0.0, 0.9, 1.0]]])
    assert match_bipartite(anchors, gt, VALID, threshold=None).gt_index.tolist() == [[1, 0]]
    assert match_dual_max(anchors, gt, VALID, low=0.95, high=0.95).gt_index.tolist() == [[1, NEGATIVE]]


def test_inclusive_decides_at_the_threshold():
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    gt = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    valid = torch.ones((1, 1), dtype=torch.bool)
    assert match_bipartite(anchors, gt, valid).gt_index.tolist() == [[0, 0]]
    assert match_bipartite(anchors, gt, valid, inclusive=False).gt_index.tolist() == [[0, NEGATIVE]]
    assert match_dual_max(anchors, gt, valid).gt_index.tolist() == [[0, 0]]
    assert match_dual_max(anchors, gt, valid, inclusive=False).gt_index.tolist() == [[0, NEGATIVE]]
    assert match_dual_max(anchors, gt, valid, low=0.4, inclusive=False).gt_index.tolist() == [[0, IGNORED]]


@pytest.mark.parametrize("matcher", [match_bipartite, match_dual_max])
@pytest.mark.parametrize("objects", [0, 3])
def test_images_without_objects_are_background(matcher, objects):
    gt = torch.full((2, objects, 4), -1.0)
    actual = matcher(ANCHORS, gt, torch.zeros((2, objects), dtype=torch.bool))
    assert bool((actual.gt_index == NEGATIVE).all())
    assert bool((actual.overlap == 0).all())
    assert actual.gt_index.shape == actual.overlap.shape == actual.weights.shape == (2, 5)


@pytest.mark.parametrize("matcher", [match_bipartite, match_dual_max])
def test_what_padding_holds_does_not_matter(matcher):
    gt = torch.cat([torch.tensor([[[0.0, 0.0, 1.0, 1.0], [float("nan")] * 4]]), OBJECTS], dim=1)
    valid = torch.tensor([[False, False, True, True]])
    expected = matcher(ANCHORS, OBJECTS, VALID)
    actual = matcher(ANCHORS, gt, valid)
    assert torch.equal(actual.gt_index, torch.where(expected.gt_index >= 0, expected.gt_index + 2, expected.gt_index))
    assert torch.equal(actual.overlap, expected.overlap)


@pytest.mark.parametrize("matcher", [match_bipartite, match_dual_max])
def test_an_object_without_area_or_out_of_the_image_is_left_alone(matcher):
    gt = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [3.0, 3.0, 4.0, 4.0]]])
    actual = matcher(ANCHORS, gt, VALID)
    assert bool((actual.gt_index == NEGATIVE).all())
    assert bool((actual.overlap == 0).all())


def test_half_precision_boxes_are_compared_in_float32():
    actual = match_bipartite(ANCHORS.bfloat16(), OBJECTS.bfloat16(), VALID)
    assert actual.overlap.dtype == torch.float32


@pytest.mark.parametrize("matcher", [match_bipartite, match_dual_max])
@pytest.mark.parametrize("blind", [False, True])
def test_a_few_images_at_a_time_give_the_same(monkeypatch, matcher, blind):
    source = torch.Generator().manual_seed(3)
    corner = torch.rand(7, 6, 2, generator=source)
    gt, valid = torch.cat([corner, corner + 0.3], 2), torch.rand(7, 6, generator=source) < 0.7
    low = torch.rand(50, 2, generator=source)
    anchors = torch.cat([low, low + 0.3], 1)
    with without_reading() if blind else contextlib.nullcontext():
        whole = matcher(anchors, gt, valid)
        for pairs in (1, 2 * 6 * 50, 4 * 6 * 50):
            monkeypatch.setattr(matching, "CHUNK_ELSEWHERE" if blind else "CHUNK", pairs)
            for one, other in zip(matcher(anchors, gt, valid), whole, strict=True):
                assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("matcher", [match_bipartite, match_dual_max])
def test_the_same_matches_on_a_gpu(matcher):
    source = torch.Generator().manual_seed(3)
    corner = torch.randint(0, 6, (8, 30, 2), generator=source) / 8
    gt, valid = torch.cat([corner, corner + 0.25], 2), torch.rand(8, 30, generator=source) < 0.7
    low = torch.randint(0, 12, (900, 2), generator=source) / 16
    anchors = torch.cat([low, low + 0.25], 1)
    expected, actual = matcher(anchors, gt, valid), matcher(anchors.cuda(), gt.cuda(), valid.cuda())
    assert torch.equal(actual.gt_index.cpu(), expected.gt_index)
