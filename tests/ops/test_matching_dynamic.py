"""ATSS, SimOTA and task-aligned assignment: worked by hand, properties, and plain Python references.

Boxes of the references lie on a grid of 1/64, where float32 computes areas and distances exactly and rounds an IoU as
Python does: ties are common and must fall alike.
"""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from multibox.errors import ConfigError
from multibox.ops.matching import NEGATIVE, MatchInputs, anchor_overlaps
from multibox.ops.matching_dynamic import match_atss, match_simota, match_task_aligned
from multibox.ops.rows import without_reading

KINDS = ["atss", "simota", "tal"]
CLASSES = 6
CELLS = [(8 / 64, 8 / 64), (16 / 64, 20 / 64)]


def match(kind, anchors, gt, valid, outputs):
    """Run one matcher on two levels, with options that make its choices differ from taking everything."""
    half = len(anchors) // 2
    levels = [half, len(anchors) - half]
    if kind == "atss":
        return match_atss(anchors, gt, valid, outputs, level_sizes=levels, topk=4)
    if kind == "simota":
        return match_simota(anchors, gt, valid, outputs, level_sizes=levels, cell_sizes=CELLS, radius=1.0)
    return match_task_aligned(anchors, gt, valid, outputs, topk=3)


@st.composite
def scenes(draw, exact=True):
    """Anchors, objects and predictions on the grid, or anywhere; classes of an image's objects differ."""
    batch, objects, anchors = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 24))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(low, high, *shape):
        if exact:
            return torch.randint(low, high, shape, generator=source) / 64
        return (torch.rand(shape, generator=source) * (high - low) + low) / 64

    def boxes(*shape):
        corner = numbers(0, 40, *shape, 2)
        return torch.cat([corner, corner + numbers(6, 30, *shape, 2)], dim=-1)

    valid = torch.rand((batch, objects), generator=source) < 0.8
    gt = torch.where(valid[..., None], boxes(batch, objects), -1.0)
    places = boxes(anchors)
    labels = torch.rand((batch, CLASSES), generator=source).argsort(dim=1)[:, :objects]
    scores = torch.rand((batch, anchors, CLASSES), generator=source)
    if draw(st.booleans()):
        scores = (scores * 4).softmax(-1)
    outputs = MatchInputs(places + numbers(-2, 3, batch, anchors, 4), scores, torch.where(valid, labels, -1))
    return places, gt, valid, outputs


def iou(a, b):
    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    inner = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    value = inner / (area(a) + area(b) - inner) if inner else 0.0
    return torch.tensor(value, dtype=torch.float32).item()


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def is_inside(point, box):
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def resolve(count, chosen, preference, overlaps):
    """Resolve conflicts, then deal free anchors to objects without: pair after pair, the largest IoU first."""
    actual = [NEGATIVE] * count
    for a in range(count):
        owners = [g for g in chosen if a in chosen[g]]
        if owners:
            actual[a] = max(owners, key=lambda g: (preference[g][a], -g))
    while True:
        pairs = [
            (-overlaps[g][a], a, g)
            for g in chosen
            for a in range(count)
            if g not in actual and actual[a] == NEGATIVE and overlaps[g][a] > 1e-6
        ]
        if not pairs:
            return actual
        _, a, g = min(pairs)
        actual[a] = g


def reference_atss(anchors, objects, topk):
    """One image; `objects` holds the valid rows by number."""
    half = len(anchors) // 2
    overlaps = {g: [iou(a, box) for a in anchors] for g, box in objects.items()}
    chosen = {}
    for g, box in objects.items():
        near = []
        for level in (range(half), range(half, len(anchors))):
            near += sorted(level, key=lambda a: (math.dist(center(anchors[a]), center(box)) ** 2, a))[:topk]
        values = [overlaps[g][a] for a in near]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        threshold = statistics.fmean(values) + spread
        # On the edge, the last digit of the deviation decides.
        assume(spread == 0 or all(abs(value - threshold) > 1e-9 for value in values))
        chosen[g] = [a for a in near if overlaps[g][a] >= threshold and is_inside(center(anchors[a]), box)]
    return resolve(len(anchors), chosen, overlaps, overlaps)


def reference_simota(anchors, objects, predictions, radius):
    boxes, scores, labels = predictions
    overlaps = {g: [iou(a, box) for a in anchors] for g, box in objects.items()}
    chosen, costs, ious = {}, {}, {}
    for g, box in objects.items():
        ious[g] = [iou(answer, box) for answer in boxes]
        costs[g], candidates = [], []
        for a, anchor in enumerate(anchors):
            width, height = CELLS[a >= len(anchors) // 2]
            (x, y), (gx, gy) = center(anchor), center(box)
            near = abs(x - gx) < radius * width and abs(y - gy) < radius * height
            inside = is_inside((x, y), box)
            probabilities = [p if c == labels[g] else 1 - p for c, p in enumerate(scores[a])]
            cost = -sum(math.log(max(p, 1e-7)) for p in probabilities) - 3 * math.log(max(ious[g][a], 1e-7))
            costs[g].append(cost + (0 if near and inside else 1000))
            if near or inside:
                candidates.append(a)
        wanted = max(1, math.floor(sum(sorted((ious[g][a] for a in candidates), reverse=True)[:10])))
        chosen[g] = sorted(candidates, key=lambda a: costs[g][a])[:wanted]
        assume_apart([costs[g][a] for a in candidates])
    for a in range(len(anchors)):
        assume_apart([costs[g][a] for g in objects])
    preference = {g: [-cost for cost in costs[g]] for g in objects}
    return resolve(len(anchors), chosen, preference, overlaps), ious


def assume_apart(values):
    """Leave out scenes in which float32 may order two values the other way round."""
    ordered = sorted(values)
    assume(all(b - a > 1e-3 for a, b in itertools.pairwise(ordered)))


def reference_tal(anchors, objects, predictions, topk):
    boxes, scores, labels = predictions
    overlaps = {g: [iou(a, box) for a in anchors] for g, box in objects.items()}
    chosen, aligned, ious = {}, {}, {}
    for g, box in objects.items():
        ious[g] = [iou(answer, box) for answer in boxes]
        aligned[g] = [scores[a][labels[g]] * ious[g][a] ** 6 for a in range(len(anchors))]
        inside = [a for a in range(len(anchors)) if is_inside(center(anchors[a]), box) and aligned[g][a] > 0]
        ordered = sorted(inside, key=lambda a: -aligned[g][a])
        assume(all(aligned[g][b] < aligned[g][a] * 0.9999 for a, b in itertools.pairwise(ordered)))
        chosen[g] = ordered[:topk]
    actual = resolve(len(anchors), chosen, ious, overlaps)
    soft = [0.0] * len(anchors)
    for g in objects:
        own = [a for a in range(len(anchors)) if actual[a] == g]
        most = max((aligned[g][a] for a in own), default=0.0)
        for a in own:
            soft[a] = (aligned[g][a] / most if most else 1.0) * max(ious[g][b] for b in own)
    return actual, soft


def images(scene):
    """Unpack a batch into plain lists, one entry an image, padding left out."""
    anchors, gt, valid, outputs = scene
    for i in range(len(gt)):
        objects = {g: gt[i, g].tolist() for g in range(gt.shape[1]) if valid[i, g]}
        yield i, anchors.tolist(), objects, [part[i].tolist() for part in outputs]


@given(scenes())
def test_atss_equals_the_plain_reference(scene):
    actual = match("atss", *scene)
    for i, anchors, objects, _ in images(scene):
        assert actual.gt_index[i].tolist() == reference_atss(anchors, objects, topk=4)
    assert bool((actual.weights == 1).all()) and bool((actual.soft_scores == 1).all())


@given(scenes())
def test_simota_equals_the_plain_reference(scene):
    actual = match("simota", *scene)
    for i, anchors, objects, predictions in images(scene):
        expected, ious = reference_simota(anchors, objects, predictions, radius=1.0)
        assert actual.gt_index[i].tolist() == expected
        assert actual.soft_scores[i].tolist() == [ious[g][a] if g >= 0 else 0.0 for a, g in enumerate(expected)]
    assert bool((actual.weights == 1).all())


@given(scenes())
def test_task_aligned_equals_the_plain_reference(scene):
    actual = match("tal", *scene)
    for i, anchors, objects, predictions in images(scene):
        expected, soft = reference_tal(anchors, objects, predictions, topk=3)
        assert actual.gt_index[i].tolist() == expected
        assert actual.soft_scores[i].tolist() == pytest.approx(soft, rel=1e-4, abs=1e-7)
    assert torch.equal(actual.weights, actual.soft_scores)


@pytest.mark.parametrize("kind", KINDS)
@given(scene=scenes())
def test_every_object_has_an_anchor_or_none_is_free(kind, scene):
    anchors, gt, valid, _ = scene
    actual = match(kind, *scene)
    overlaps = anchor_overlaps(anchors, gt, valid)
    assert torch.equal(actual.overlap, overlaps.amax(dim=1))
    for part in (actual.weights, actual.soft_scores):
        assert part.shape == actual.gt_index.shape and bool(((part >= 0) & (part <= 1)).all())
    for i in range(len(gt)):
        taken = actual.gt_index[i] != NEGATIVE
        owners = set(actual.gt_index[i][taken].tolist())
        rows = {g for g in range(gt.shape[1]) if valid[i, g]}
        assert owners <= rows
        for g in rows - owners:
            assert bool(taken[overlaps[i, g] > 1e-6].all())


@pytest.mark.parametrize("kind", KINDS)
@given(scene=scenes(exact=False), seed=st.integers(0, 1000))
def test_the_order_of_objects_does_not_matter(kind, scene, seed):
    anchors, gt, valid, outputs = scene
    order = torch.randperm(gt.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = match(kind, anchors, gt[:, order], valid[:, order], outputs._replace(gt_labels=outputs.gt_labels[:, order]))
    actual = match(kind, *scene)
    back = torch.where(moved.gt_index >= 0, order[moved.gt_index.clamp(min=0)], moved.gt_index)
    assert torch.equal(back, actual.gt_index)
    assert torch.equal(moved.soft_scores, actual.soft_scores)


@pytest.mark.parametrize("kind", KINDS)
@given(
    scene=scenes(),
    before=st.integers(0, 2),
    after=st.integers(0, 3),
    content=st.sampled_from([[math.nan] * 4, [-1.0] * 4, [0.0, 0.0, 1.0, 1.0]]),
)
def test_padding_changes_nothing_whatever_it_holds(kind, scene, before, after, content):
    anchors, gt, valid, outputs = scene

    def pad(values, value):
        rows = [values.new_full((len(values), n, *values.shape[2:]), value) for n in (before, after)]
        return torch.cat([rows[0], values, rows[1]], dim=1)

    labels, known = pad(outputs.gt_labels, -1), pad(valid, False)
    boxes = torch.where(known[..., None], pad(gt, 0), torch.tensor(content))
    padded = match(kind, anchors, boxes, known, outputs._replace(gt_labels=labels))
    actual = match(kind, *scene)
    assert torch.equal(padded.gt_index, torch.where(actual.gt_index >= 0, actual.gt_index + before, actual.gt_index))
    for a, b in zip(padded[1:], actual[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@given(scene=scenes())
def test_a_batch_is_its_images_one_by_one(kind, scene):
    anchors, gt, valid, outputs = scene
    actual = match(kind, *scene)
    for i in range(len(gt)):
        alone = match(kind, anchors, gt[i, None], valid[i, None], MatchInputs(*(part[i, None] for part in outputs)))
        for a, b in zip(alone, actual, strict=True):
            assert torch.equal(a[0], b[i])


def predictions(boxes, scores, labels):
    return MatchInputs(torch.tensor([boxes]), torch.tensor([scores]), torch.tensor([labels]))


def yes(*boxes):
    return torch.tensor([boxes], dtype=torch.float32), torch.ones((1, len(boxes)), dtype=torch.bool)


SQUARE = [0.0, 0.0, 4.0, 4.0]
FAR = [90.0, 90.0, 94.0, 94.0]


@pytest.mark.parametrize(
    ("objects", "anchors", "options", "expected"),
    [
        # IoU 1, 0.5 and 1/7: the threshold is 0.548 + 0.431.
        ([SQUARE], [SQUARE, [0, 0, 4, 2], [2, 2, 6, 6], FAR], {"topk": 3}, [0, -1, -1, -1]),
        # IoU 1, 0.8 and four times 0: the threshold is 0.3 + 0.469.
        ([[0, 0, 10, 10]], [[0, 0, 10, 10], [0, 0, 10, 8], FAR, FAR, FAR, FAR], {}, [0, 0, -1, -1, -1, -1]),
        # Two candidates of IoU 1 and 0.5: 0.75 + 0.354 is above both, so the object is served afterwards.
        ([SQUARE], [SQUARE, [0, 0, 4, 2]], {}, [0, -1]),
        # Equal IoUs are their own threshold; the second centre is outside.
        ([SQUARE], [[0, 0, 4, 1], [2, 0, 8, 4]], {}, [0, -1]),
        # No centre inside a small object: it takes what it overlaps most.
        ([[3, 3, 5, 5]], [SQUARE, [4, 4, 9, 9], [0, 0, 8, 3]], {}, [0, -1, -1]),
        # Both objects choose the first anchor; the loser gets the second.
        ([SQUARE, [0, 0, 4, 2]], [[0, 0, 4, 2], [0, 2, 4, 6]], {"topk": 1}, [1, 0]),
        # One candidate per level, each its own level's nearest, of equal IoU.
        ([SQUARE], [[0, 0, 4, 2], FAR, [0, 0, 2, 4]], {"topk": 1, "level_sizes": [2, 1]}, [0, -1, 0]),
        # One cell with two anchors: the first of them, or both and the better one.
        ([[1, 1, 3, 3]], [SQUARE, [1, 1, 3, 3]], {"topk": 1}, [0, -1]),
        ([[1, 1, 3, 3]], [SQUARE, [1, 1, 3, 3]], {"topk": 1, "per_cell": [2]}, [-1, 0]),
        # Equally near: the lower anchors.
        ([SQUARE], [[1, 0, 3, 2], [1, 2, 3, 4], [0, 1, 2, 3], [2, 1, 4, 3]], {"topk": 2}, [0, 0, -1, -1]),
        # An anchor without area overlaps nothing, wherever it lies.
        ([SQUARE], [[2, 2, 2, 2]], {}, [-1]),
        # Equal IoU with two objects: the lower one has it, the other one finds nothing else.
        ([SQUARE, SQUARE], [SQUARE], {}, [0]),
    ],
)
def test_atss_by_hand(objects, anchors, options, expected):
    actual = match_atss(
        torch.tensor(anchors, dtype=torch.float32), *yes(*objects), **{"level_sizes": [len(anchors)]} | options
    )
    assert actual.gt_index.tolist() == [expected]


@pytest.mark.parametrize("count", range(3, 10))
@pytest.mark.parametrize("height", [0.3, 0.7, 1.1, 1.3, 1.9])
def test_atss_takes_all_of_equal_iou(count, height):
    anchors = torch.tensor([[0.0, 0.0, 4.0, height]] * count)
    assert bool((match_atss(anchors, *yes(SQUARE), level_sizes=[count]).gt_index == 0).all())


def simota(anchors, objects, outputs, **options):
    levels = {"level_sizes": [len(anchors)], "cell_sizes": [(4, 4)]}
    return match_simota(torch.tensor(anchors), *yes(*objects), outputs, **levels | options)


FIT = [SQUARE, [0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 4.0, 2.0], FAR]
"""Predictions of IoU 1, 0.75, 0.5 and 0 with SQUARE: two and a quarter boxes' worth."""


def test_simota_takes_as_many_as_the_ious_add_up_to():
    actual = simota([SQUARE] * 4, [SQUARE], predictions(FIT, [[0.5]] * 4, [0]))
    assert actual.gt_index.tolist() == [[0, 0, -1, -1]]
    assert actual.soft_scores.tolist() == [[1, 0.75, 0, 0]]
    assert actual.weights.tolist() == [[1, 1, 1, 1]]


def test_simota_weighs_class_and_place():
    # Costs: 0.69; 4.61 + 0.86; 0.11 + 2.08.
    actual = simota([SQUARE] * 4, [SQUARE], predictions(FIT, [[0.5], [0.01], [0.9], [0.9]], [0]))
    assert actual.gt_index.tolist() == [[0, -1, 0, -1]]
    assert actual.soft_scores.tolist() == [[1, 0, 0.5, 0]]


def test_simota_counts_wrong_classes():
    # Equal scores of the right class; the first prediction also believes in another one.
    actual = simota([SQUARE] * 2, [SQUARE], predictions([SQUARE, [0.0, 0.0, 4.0, 3.0]], [[0.5, 0.9], [0.5, 0.1]], [0]))
    assert actual.gt_index.tolist() == [[-1, 0]]


def test_simota_prefers_the_middle_whatever_it_costs():
    anchors = [[0.0, 0.0, 4.0, 4.0], [6.0, 6.0, 10.0, 10.0]]
    boxes = [[0.0, 0.0, 16.0, 12.0], [0.0, 0.0, 16.0, 4.0]]
    outputs = predictions(boxes, [[0.9], [0.1]], [0])
    assert simota(anchors, [[0.0, 0.0, 16.0, 16.0]], outputs, radius=0.5).gt_index.tolist() == [[-1, 0]]
    assert simota(anchors, [[0.0, 0.0, 16.0, 16.0]], outputs, radius=2.5).gt_index.tolist() == [[0, -1]]


def test_simota_resolves_by_cost_and_serves_the_loser():
    outputs = predictions([SQUARE, FAR], [[0.1, 0.9], [0.5, 0.5]], [0, 1])
    anchors = [SQUARE, [3.0, 3.0, 30.0, 30.0]]
    assert simota(anchors, [SQUARE, SQUARE], outputs).gt_index.tolist() == [[1, 0]]


def test_ties_go_to_the_lowest_anchor_and_object():
    same = predictions([SQUARE] * 20, [[0.5]] * 20, [0])
    assert simota([SQUARE] * 20, [SQUARE], same).gt_index.tolist() == [[0] * 10 + [-1] * 10]
    actual = match_task_aligned(torch.tensor([SQUARE] * 20), *yes(SQUARE), same)
    assert actual.gt_index.tolist() == [[0] * 13 + [-1] * 7]
    twins = same._replace(gt_labels=torch.tensor([[0, 0]]))
    assert simota([SQUARE] * 20, [SQUARE] * 2, twins).gt_index.tolist() == [[0] * 10 + [1] + [-1] * 9]


@pytest.mark.parametrize(
    ("beta", "expected", "soft"),
    [
        # Alignments 0.5, 0.45, 0.1, 0.225; then 0.5, 0.014, 0.1, 0.0002.
        (1, [0, 0, -1, -1], [1, 0.9, 0, 0]),
        (6, [0, -1, 0, -1], [1, 0, 0.2, 0]),
    ],
)
def test_task_aligned_by_hand(beta, expected, soft):
    boxes = [SQUARE, [0.0, 0.0, 4.0, 2.0], SQUARE, [0.0, 0.0, 4.0, 1.0]]
    outputs = predictions(boxes, [[0.5, 1.0], [0.9, 1.0], [0.1, 1.0], [0.9, 1.0]], [0])
    actual = match_task_aligned(torch.tensor([SQUARE] * 4), *yes(SQUARE), outputs, topk=2, beta=beta)
    assert actual.gt_index.tolist() == [expected]
    assert actual.soft_scores[0].tolist() == pytest.approx(soft)
    assert torch.equal(actual.weights, actual.soft_scores)


def test_task_aligned_scales_to_the_best_iou():
    # The best aligned prediction is not the best placed one; the anchor outside predictions best and does not count.
    boxes = [[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 3.0], SQUARE]
    outputs = predictions(boxes, [[0.75], [0.1], [1.0]], [0])
    actual = match_task_aligned(torch.tensor([SQUARE, SQUARE, [4.0, 0.0, 8.0, 4.0]]), *yes(SQUARE), outputs, beta=1)
    assert actual.gt_index.tolist() == [[0, 0, -1]]
    assert actual.soft_scores[0].tolist() == pytest.approx([0.75, 0.075 / 0.375 * 0.75, 0])


def test_task_aligned_takes_no_prediction_without_merit():
    # The second prediction lies elsewhere, the third does not believe in the class at all.
    outputs = predictions([SQUARE, FAR, SQUARE], [[0.5], [0.5], [0.0]], [0])
    actual = match_task_aligned(torch.tensor([SQUARE] * 3), *yes(SQUARE), outputs)
    assert actual.gt_index.tolist() == [[0, -1, -1]]
    # Where there is no better one, the anchor of largest overlap is served, for what its place is worth.
    outputs = predictions([FAR, [0.0, 0.0, 4.0, 3.0]], [[0.5], [0.0]], [0])
    actual = match_task_aligned(torch.tensor([[0.0, 0.0, 4.0, 2.0], SQUARE]), *yes(SQUARE), outputs)
    assert actual.gt_index.tolist() == [[-1, 0]]
    assert actual.soft_scores.tolist() == [[0, 0.75]]


def test_task_aligned_resolves_by_iou_and_serves_the_loser():
    # The first object is the better aligned one by its score, the second the better placed.
    objects = [SQUARE, [0.0, 0.0, 4.0, 3.0]]
    outputs = predictions([[0.0, 0.0, 4.0, 3.0], FAR], [[1.0, 0.1], [0.5, 0.5]], [0, 1])
    actual = match_task_aligned(torch.tensor([SQUARE, [3.0, 3.0, 30.0, 30.0]]), *yes(*objects), outputs)
    assert actual.gt_index.tolist() == [[1, 0]]
    # What the loser was given is placed nowhere near it.
    assert actual.soft_scores.tolist() == [[1, 0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("objects", "anchors"), [(0, 4), (3, 4), (2, 0), (0, 0)])
def test_images_without_objects_are_background(kind, objects, anchors):
    outputs = MatchInputs(
        torch.rand(2, anchors, 4), torch.rand(2, anchors, 3), torch.full((2, objects), -1, dtype=torch.long)
    )
    gt = torch.full((2, objects, 4), -1.0)
    actual = match(kind, torch.rand(anchors, 4), gt, torch.zeros((2, objects), dtype=torch.bool), outputs)
    assert bool((actual.gt_index == NEGATIVE).all()) and actual.gt_index.dtype == torch.long
    assert bool((actual.overlap == 0).all())
    assert all(part.shape == (2, anchors) for part in actual)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_without_area_or_out_of_the_image_is_left_alone(kind):
    anchors = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.0, 0.0, 1.0, 1.0]])
    gt, valid = yes([0.5, 0.5, 0.5, 0.5], [3.0, 3.0, 4.0, 4.0])
    actual = match(kind, anchors, gt, valid, predictions(anchors.tolist(), [[0.5], [0.5]], [0, 0]))
    assert actual.gt_index.tolist() == [[NEGATIVE, NEGATIVE]]


@pytest.mark.parametrize("kind", ["simota", "tal"])
def test_nan_predictions_are_poor_predictions(kind):
    anchors = torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 3)
    outputs = MatchInputs(anchors[None].clone(), torch.full((1, 3, 1), 0.9), torch.tensor([[0]]))
    outputs.boxes_xyxy[0, 0] = math.nan
    outputs.scores[0, 1] = math.nan
    actual = match(kind, anchors, *yes([0.0, 0.0, 0.5, 0.5]), outputs)
    assert actual.gt_index.tolist() == [[-1, 0, 0] if kind == "simota" else [-1, -1, 0]]
    assert bool(actual.soft_scores.isfinite().all()) and bool(actual.weights.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind):
    anchors = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 1.0, 1.0]])
    gt, valid = yes([0.0, 0.0, 0.5, 0.75])
    outputs = predictions(anchors.tolist(), [[0.5], [0.25]], [0])
    half = outputs._replace(boxes_xyxy=outputs.boxes_xyxy.bfloat16(), scores=outputs.scores.bfloat16())
    actual = match(kind, anchors.bfloat16(), gt.bfloat16(), valid, half)
    for a, b in zip(actual, match(kind, anchors, gt, valid, outputs), strict=True):
        assert torch.equal(a, b) and a.dtype in (torch.float32, torch.long)


def test_levels_must_add_up():
    gt, valid = yes(SQUARE)
    with pytest.raises(ConfigError, match=r"level_sizes \[2, 2\] add up to 4, expected the number of anchors, 3"):
        match_atss(torch.rand(3, 4), gt, valid, level_sizes=[2, 2])
    with pytest.raises(ConfigError, match="add up to 1"):
        simota([SQUARE] * 2, [SQUARE], predictions([SQUARE] * 2, [[0.5]] * 2, [0]), level_sizes=[1])


@given(scenes(), st.sampled_from(KINDS))
def test_without_a_look_at_values_the_choice_is_the_same(scene, kind):
    expected = match(kind, *scene)
    with without_reading():
        actual = match(kind, *scene)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
