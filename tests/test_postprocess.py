"""Post-processing against a worked case of Caffe's DetectionOutput and a plain Python reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.config import ModelConfig, PostConfig
from multibox.ops.coding import decode, encode
from multibox.postprocess import Kept, examine_candidates, postprocess
from multibox.structures import Size
from multibox.tensors import HeadOutputs

BOXES = torch.tensor(
    [
        [0.1, 0.1, 0.5, 0.5],
        [0.12, 0.1, 0.52, 0.5],
        [0.1, 0.1, 0.5, 0.3],
        [0.6, 0.6, 0.9, 0.9],
        [0.61, 0.6, 0.91, 0.9],
    ]
)
PROBABILITIES = torch.tensor(
    [[0.05, 0.9, 0.05], [0.1, 0.5, 0.4], [0.3, 0.6, 0.1], [0.2, 0.1, 0.7], [0.985, 0.01, 0.005]]
)
LOGITS = PROBABILITIES.log()
"""As logits they give the probabilities back."""
ABOVE_001 = 0.0101
"""Keeps a score of 0.01 from being above 0.01 by rounding."""
TWO = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])


def run(logits, anchors, offsets=None, score="sigmoid", model=None, **post) -> Kept:
    logits = logits if logits.ndim == 3 else logits[None]
    offsets = torch.zeros((*logits.shape[:2], 4)) if offsets is None else offsets
    outputs = HeadOutputs(logits, offsets, (Size(1, logits.shape[1]),))
    return postprocess(outputs, anchors, PostConfig(**post), model or ModelConfig(score=score))


def rows(kept: Kept, image: int = 0):
    count = int(kept.counts[image])
    assert bool((kept.labels[image, count:] == -1).all()) and bool((kept.scores[image, count:] == 0).all())
    return [
        (int(label), round(float(score), 4), [round(v, 4) for v in box.tolist()])
        for label, score, box in zip(
            kept.labels[image, :count], kept.scores[image, :count], kept.boxes_xyxy[image, :count], strict=True
        )
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 0.9, 0), (1, 0.7, 3), (1, 0.4, 1), (0, 0.1, 3)]),
        ({"max_detections": 2}, [(0, 0.9, 0), (1, 0.7, 3)]),
        ({"pre_nms_topk": 1}, [(0, 0.9, 0), (1, 0.7, 3)]),
        ({"multi_label": False}, [(0, 0.9, 0), (1, 0.7, 3)]),
        ({"max_per_class": 1}, [(0, 0.9, 0), (1, 0.7, 3)]),
    ],
)
def test_detection_output_of_caffe(options, expected):
    kept = run(LOGITS, BOXES, score="softmax", score_threshold=ABOVE_001, **options)
    assert rows(kept) == [(label, score, [round(v, 4) for v in BOXES[box].tolist()]) for label, score, box in expected]


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 0), (0.49, 2)])
def test_the_score_threshold_is_strict(threshold, count):
    kept = run(torch.zeros(1, 2, 1), BOXES[[0, 3]], score_threshold=threshold)
    assert kept.counts.tolist() == [count]


@pytest.mark.parametrize(("threshold", "inclusive", "count"), [(0.5, False, 2), (0.49, False, 1), (0.5, True, 1)])
def test_an_iou_of_the_nms_threshold_stays_unless_it_is_inclusive(threshold, inclusive, count):
    logits = torch.tensor([[[2.0], [1.0]]])
    assert run(logits, TWO, nms_threshold=threshold, nms_inclusive=inclusive).counts.tolist() == [count]


@pytest.mark.parametrize(("clip", "kept"), [("before_nms", [0.9]), ("after_nms", [0.9, 0.7])])
def test_small_boxes_are_dropped_before_anything_else(clip, kept):
    """Widths of 1, 0.25 and 0.5, the last 0.25 once it is cut to the image."""
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.0, 0.5, 1.0], [0.75, 0.0, 1.25, 1.0]])
    logits = torch.tensor([[[0.9], [0.8], [0.7]]]).logit()
    options = {"nms_threshold": 1.0, "clip": clip}
    assert run(logits, anchors, **options, min_size=0.25).scores[0].tolist() == pytest.approx(kept)
    # Small ones of higher score take no place among the best
    found = run(logits.flip(1), anchors, **options, min_size=0.5, pre_nms_topk=1)
    assert found.scores[0].tolist() == pytest.approx([0.7])


def test_boxes_are_decoded_and_clipped_in_the_end():
    anchors = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 1.1, 0.9]])
    offsets = torch.tensor([[[1.0, -1.0, 0.0, 0.0], [2.0, 0.0, 1.0, 0.0]]])
    kept = run(torch.tensor([[[2.0], [1.0]]]), anchors, offsets)
    assert [box for _, _, box in rows(kept)] == [[0.24, 0.16, 0.64, 0.56], [0.5536, 0.5, 1.0, 0.9]]


def test_equal_scores_go_by_class_then_anchor():
    anchors = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.2, 0.0, 0.3, 0.1], [0.4, 0.0, 0.5, 0.1]])
    kept = run(torch.zeros(1, 3, 2), anchors, max_detections=4)
    assert kept.labels.tolist() == [[0, 0, 0, 1]]
    assert torch.allclose(kept.boxes_xyxy[0, :, 0], torch.tensor([0.0, 0.2, 0.4, 0.0]), atol=1e-6)
    kept = run(torch.zeros(1, 3, 2), anchors, pre_nms_topk=1)
    assert torch.allclose(kept.boxes_xyxy[0, :, 0], torch.zeros(2), atol=1e-6)


def test_images_without_detections():
    logits = torch.full((2, 5, 3), -20.0)
    logits[0, 3, 1] = 20
    kept = run(logits, BOXES)
    assert kept.counts.tolist() == [1, 0]
    assert kept.labels.tolist() == [[1], [-1]]
    kept = run(logits - 40, BOXES)
    assert kept.boxes_xyxy.shape == (2, 0, 4) and kept.counts.tolist() == [0, 0]


def test_bfloat16_outputs_are_computed_in_float32():
    offsets = torch.zeros(1, 5, 4).bfloat16()
    kept = run(LOGITS.bfloat16(), BOXES, offsets, score="softmax", score_threshold=ABOVE_001)
    assert kept.boxes_xyxy.dtype == kept.scores.dtype == torch.float32
    assert kept.labels.tolist() == [[0, 1, 1, 0]]


def iou(one, other):
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared)


def reference(scores, boxes, threshold, topk, limit, per_class="none"):
    """One image, box after box; scores [a][c]."""
    picked = []
    for label in range(len(scores[0])):
        order = sorted((a for a in range(len(scores)) if scores[a][label] > threshold), key=lambda a: -scores[a][label])
        picked += [(label, a) for a in order[:topk]]
    kept = []
    for label, a in picked:
        if all(iou(boxes[a], boxes[b]) <= 0.45 for other, b in kept if other == label):
            kept.append((label, a))
    kept.sort(key=lambda pair: -scores[pair[1]][pair[0]])
    places = [sum(other[0] == label for other in kept[:i]) for i, (label, _) in enumerate(kept)]
    return [pair for pair, place in zip(kept, places, strict=True) if per_class == "none" or place < per_class][:limit]


@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([3, 10, 400]),
    st.sampled_from([4, 200]),
    st.booleans(),
    st.sampled_from(["none", 1, 3]),
)
def test_against_the_reference(seed, batch, count, topk, limit, ties, per_class):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.rand((count, 4), generator=generator) * 0.4 + 0.1
    anchors[:, 2:] += anchors[:, :2] + 0.05
    logits = torch.randn((batch, count, 3), generator=generator) * 2
    logits = logits.round() if ties else logits
    offsets = torch.randn((batch, count, 4), generator=generator) * 0.3
    options = {"pre_nms_topk": topk, "max_detections": limit, "max_per_class": per_class}
    kept = run(logits, anchors, offsets, score_threshold=0.2, **options)
    boxes = decode(offsets, anchors)
    for i in range(batch):
        scores, corners = logits[i].sigmoid().tolist(), boxes[i].double().tolist()
        pairs = reference(scores, corners, 0.2, topk, limit, per_class)
        n = int(kept.counts[i])
        assert kept.labels[i, :n].tolist() == [label for label, _ in pairs]
        assert torch.equal(kept.boxes_xyxy[i, :n], boxes[i, [a for _, a in pairs]].clamp(0, 1))


@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.sampled_from([3, 400]),
    st.sampled_from([1, 4, 200]),
    st.booleans(),
    st.sampled_from(["none", 2]),
    st.sampled_from(["softmax", "sigmoid"]),
    st.sampled_from(["before_nms", "after_nms"]),
    st.sampled_from([0.0, 0.2]),
)
def test_examined_candidates_are_what_is_kept_and_what_is_not(
    seed, count, topk, limit, ties, per_class, score, clip, size
):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand((count, 2), generator=generator) * 1.1
    anchors = torch.cat([low, low + 0.3], dim=1)
    logits = torch.randn((1, count, 4), generator=generator) * 2
    logits = logits.round() if ties else logits
    outputs = HeadOutputs(logits, torch.randn((1, count, 4), generator=generator) * 0.5, (Size(1, count),))
    post = PostConfig(
        pre_nms_topk=topk, max_detections=limit, max_per_class=per_class, clip=clip, min_size=size,
        multi_label=not ties, score_threshold=0.1,
    )  # fmt: skip
    model = ModelConfig(score=score)
    kept, seen = postprocess(outputs, anchors, post, model), examine_candidates(outputs, anchors, post, model)
    n = int(kept.counts[0])
    assert torch.equal(seen.clipped_xyxy[seen.kept], kept.boxes_xyxy[0, :n])
    assert torch.equal(seen.scores[seen.kept], kept.scores[0, :n])
    assert torch.equal(seen.labels[seen.kept], kept.labels[0, :n])
    assert bool((seen.passed | ~seen.kept).all()) and bool((seen.scores.diff() <= 0).all())
    boxes = decode(outputs.offsets[0, seen.anchors], anchors[seen.anchors])
    assert torch.equal(seen.boxes_xyxy, boxes.clamp(0, 1) if clip == "before_nms" else boxes)


@pytest.mark.parametrize(("spread", "alike"), [(0.3, 0.0), (0.3, 1.0), (0.02, 0.0)])
def test_examining_the_best_first_changes_nothing(spread, alike):
    """More candidates than a first pass takes: many survive; hardly any; and a second pass is needed."""
    generator = torch.Generator().manual_seed(11)
    low = torch.rand((120, 2), generator=generator) * spread
    anchors = torch.cat([low, low + 0.02 + 0.3 * alike], dim=1)
    logits = torch.randn((2, 120, 3), generator=generator)
    logits[1, :100] -= 9
    kept = run(logits, anchors, max_detections=5)
    boxes = decode(torch.zeros_like(anchors), anchors).double().tolist()
    for i in range(2):
        pairs = reference(logits[i].sigmoid().tolist(), boxes, 0.01, 400, 5)
        assert kept.labels[i, : int(kept.counts[i])].tolist() == [label for label, _ in pairs]
        scores = torch.tensor([logits[i, a, label] for label, a in pairs]).sigmoid()
        torch.testing.assert_close(kept.scores[i, : len(pairs)], scores)


def test_a_second_pass_is_needed_and_taken():
    """Of forty equal boxes of high scores one stays; the next best stand beyond the first pass."""
    anchors = torch.tensor([[0.0, 0.0, 0.2, 0.2]]).repeat(42, 1)
    anchors[40:] += torch.tensor([[0.3], [0.6]])
    logits = torch.cat([torch.linspace(4, 3, 40), torch.tensor([1.0, 2.0])])[None, :, None]
    kept = run(logits, anchors, max_detections=3)
    assert kept.scores[0].tolist() == pytest.approx(torch.tensor([4.0, 2.0, 1.0]).sigmoid().tolist())


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.01, 0.5, 0.995, 0.99999])
def test_no_anchor_above_the_threshold_is_passed_over(score, threshold):
    generator = torch.Generator().manual_seed(12)
    logits = torch.randn((1, 4000, 3), generator=generator) * 8
    corner = torch.rand((4000, 2), generator=generator) * 0.8
    anchors = torch.cat([corner, corner + 0.1], dim=1)
    limits = {"nms_threshold": 1.0, "pre_nms_topk": 4000, "max_detections": 20_000}
    kept = run(logits, anchors, score=score, score_threshold=threshold, **limits)
    scores = logits.softmax(2)[..., 1:] if score == "softmax" else logits.sigmoid()
    assert int(kept.counts[0]) == int((scores > threshold).sum())


def test_a_nan_score_hides_no_other_class():
    logits = torch.tensor([[[float("nan"), 2.0], [-9.0, -9.0]]])
    assert run(logits, BOXES[:2]).labels.tolist() == [[1]]


@pytest.mark.parametrize(("score", "limit"), [("softmax", 200), ("sigmoid", 2)])
def test_a_batch_is_its_images_one_by_one(score, limit):
    generator = torch.Generator().manual_seed(13)
    low = torch.rand((60, 2), generator=generator)
    anchors = torch.cat([low, low + 0.2], dim=1)
    # Many candidates, few and none; in halves, so that scores are equal
    logits = (torch.randn((3, 60, 4), generator=generator) * 2).round() / 2 - torch.tensor([0, 4, 40])[:, None, None]
    offsets = torch.randn((3, 60, 4), generator=generator)
    options = {"score": score, "score_threshold": 0.3, "max_detections": limit}
    together = run(logits, anchors, offsets, **options)
    for i in range(3):
        assert rows(together, i) == rows(run(logits[i], anchors, offsets[i : i + 1], **options))
    assert together.counts.shape == (3,) and int(together.counts.max()) == together.scores.shape[1] > 1


@pytest.mark.parametrize("coder", ["center_size", "corner", "corner_size"])
def test_every_coder(coder):
    gt = torch.tensor([[[0.2, 0.3, 0.7, 0.8]]])
    anchors = torch.tensor([[0.1, 0.3, 0.6, 0.7]])
    model = ModelConfig(score="sigmoid", coder=coder, variances=(0.2, 0.2, 0.3, 0.3))
    offsets = encode(gt, anchors, model.variances, coder)
    torch.testing.assert_close(run(torch.ones(1, 1, 1), anchors, offsets, model=model).boxes_xyxy, gt)
