"""Post-processing against the worked case of Caffe's DetectionOutput and a plain Python reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.ops.coding import decode, encode
from multibox.postprocess import Found, postprocess
from multibox.tensors import HeadOutputs

# Facts 17.8.
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


def heads(logits, offsets=None):
    logits = logits if logits.ndim == 3 else logits[None]
    offsets = torch.zeros((*logits.shape[:2], 4)) if offsets is None else offsets
    return HeadOutputs(logits, offsets, ((1, logits.shape[1]),))


def rows(found: Found, image: int = 0):
    count = int(found.counts[image])
    assert bool((found.labels[image, count:] == -1).all()) and bool((found.scores[image, count:] == 0).all())
    return [
        (int(label), round(float(score), 4), [round(v, 4) for v in box.tolist()])
        for label, score, box in zip(
            found.labels[image, :count], found.scores[image, :count], found.boxes_xyxy[image, :count], strict=True
        )
    ]


def expected(*pairs):
    return [(label, score, [round(v, 4) for v in BOXES[box].tolist()]) for label, score, box in pairs]


# log(p) as logits gives p back; .01 is kept from being above .01 by rounding.
LOGITS = PROBABILITIES.log()
SETTINGS = {"score": "softmax", "score_threshold": 0.0101}


def test_detection_output():
    found = postprocess(heads(LOGITS), BOXES, **SETTINGS)
    assert rows(found) == expected((0, 0.9, 0), (1, 0.7, 3), (1, 0.4, 1), (0, 0.1, 3))


def test_keep_top_k():
    found = postprocess(heads(LOGITS), BOXES, **SETTINGS, max_detections=2)
    assert rows(found) == expected((0, 0.9, 0), (1, 0.7, 3))


def test_top_k_counts_per_class_before_nms():
    found = postprocess(heads(LOGITS), BOXES, **SETTINGS, pre_nms_topk=1)
    assert rows(found) == expected((0, 0.9, 0), (1, 0.7, 3))


def test_one_class_an_anchor():
    found = postprocess(heads(LOGITS), BOXES, **SETTINGS, multi_label=False)
    assert rows(found) == expected((0, 0.9, 0), (1, 0.7, 3))


def test_class_agnostic():
    found = postprocess(heads(LOGITS), BOXES, **SETTINGS, class_agnostic=True)
    assert rows(found) == expected((0, 0.9, 0), (1, 0.7, 3))


def test_the_score_threshold_is_strict():
    logits = torch.zeros(1, 2, 1)
    assert postprocess(heads(logits), BOXES[:2], score="sigmoid", score_threshold=0.5).counts.tolist() == [0]
    assert postprocess(heads(logits), BOXES[:2], score="sigmoid", score_threshold=0.49).counts.tolist() == [1]


def test_an_iou_of_the_nms_threshold_stays():
    logits = torch.tensor([[[2.0], [1.0]]])
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    assert postprocess(heads(logits), anchors, score="sigmoid", nms_threshold=0.5).counts.tolist() == [2]
    assert postprocess(heads(logits), anchors, score="sigmoid", nms_threshold=0.49).counts.tolist() == [1]
    both = postprocess(heads(logits), anchors, score="sigmoid", nms_threshold=0.5, nms_inclusive=True)
    assert both.counts.tolist() == [1]


@pytest.mark.parametrize(("clip", "kept"), [("before_nms", [0.9]), ("after_nms", [0.9, 0.7]), ("never", [0.9, 0.7])])
def test_small_boxes_are_dropped_before_anything_else(clip, kept):
    """Widths of 1, 0.25 and 0.5, the last 0.25 once it is cut to the image."""
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.0, 0.5, 1.0], [0.75, 0.0, 1.25, 1.0]])
    logits = torch.tensor([[[0.9], [0.8], [0.7]]]).logit()
    settings = {"score": "sigmoid", "nms_threshold": 1.0, "clip": clip}
    found = postprocess(heads(logits), anchors, **settings, min_size=0.25)
    assert found.scores[0].tolist() == pytest.approx(kept)
    # Small ones of higher score take no place among the best
    found = postprocess(heads(logits.flip(1)), anchors, **settings, min_size=0.5, pre_nms_topk=1)
    assert found.scores[0].tolist() == pytest.approx([0.7])


def test_a_cap_for_each_class():
    found = postprocess(heads(LOGITS), BOXES, **SETTINGS, max_per_class=1)
    assert rows(found) == expected((0, 0.9, 0), (1, 0.7, 3))


def test_boxes_are_decoded_and_clipped_in_the_end():
    anchors = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 1.1, 0.9]])
    offsets = torch.tensor([[[1.0, -1.0, 0.0, 0.0], [2.0, 0.0, 1.0, 0.0]]])
    logits = torch.tensor([[[2.0], [1.0]]])
    found = postprocess(heads(logits, offsets), anchors, score="sigmoid")
    assert rows(found)[0][2] == [0.24, 0.16, 0.64, 0.56]
    assert rows(found)[1][2] == [0.5536, 0.5, 1.0, 0.9]
    found = postprocess(heads(logits, offsets), anchors, score="sigmoid", clip="never")
    assert rows(found)[1][2] == [0.5536, 0.5, 1.2864, 0.9]


def test_equal_scores_go_by_class_then_anchor():
    anchors = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.2, 0.0, 0.3, 0.1], [0.4, 0.0, 0.5, 0.1]])
    found = postprocess(heads(torch.zeros(1, 3, 2)), anchors, score="sigmoid", max_detections=4)
    assert found.labels.tolist() == [[0, 0, 0, 1]]
    assert torch.allclose(found.boxes_xyxy[0, :, 0], torch.tensor([0.0, 0.2, 0.4, 0.0]), atol=1e-6)
    found = postprocess(heads(torch.zeros(1, 3, 2)), anchors, score="sigmoid", pre_nms_topk=1)
    assert torch.allclose(found.boxes_xyxy[0, :, 0], torch.zeros(2), atol=1e-6)


def test_nothing_found():
    logits = torch.full((2, 5, 3), -20.0)
    logits[0, 3, 1] = 20
    found = postprocess(heads(logits), BOXES, score="sigmoid")
    assert found.counts.tolist() == [1, 0]
    assert found.labels.tolist() == [[1], [-1]]
    found = postprocess(heads(logits - 40), BOXES, score="sigmoid")
    assert found.boxes_xyxy.shape == (2, 0, 4) and found.counts.tolist() == [0, 0]


def test_bfloat16_outputs_are_computed_in_float32():
    found = postprocess(
        HeadOutputs(LOGITS[None].bfloat16(), torch.zeros(1, 5, 4).bfloat16(), ((1, 5),)), BOXES, **SETTINGS
    )
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert found.labels.tolist() == [[0, 1, 1, 0]]


def iou(one, other):
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared)


def reference(scores, boxes, threshold, nms_threshold, topk, most, agnostic, per_class):
    """One image, box after box; scores [a][c]."""
    picked = []
    for label in range(len(scores[0])):
        order = sorted((a for a in range(len(scores)) if scores[a][label] > threshold), key=lambda a: -scores[a][label])
        picked += [(label, a) for a in order[:topk]]
    if agnostic:
        picked.sort(key=lambda pair: -scores[pair[1]][pair[0]])
    kept = []
    for label, a in picked:
        rivals = [b for other, b in kept if agnostic or other == label]
        if all(iou(boxes[a], boxes[b]) <= nms_threshold for b in rivals):
            kept.append((label, a))
    kept.sort(key=lambda pair: -scores[pair[1]][pair[0]])
    places = [sum(other[0] == label for other in kept[:i]) for i, (label, _) in enumerate(kept)]
    return [pair for pair, place in zip(kept, places, strict=True) if not per_class or place < per_class][:most]


@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([3, 10, 400]),
    st.sampled_from([4, 200]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)
def test_against_the_reference(seed, batch, count, topk, most, agnostic, ties, per_class):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.rand((count, 4), generator=generator) * 0.5
    anchors[:, 2:] += anchors[:, :2] + 0.05
    logits = torch.randn((batch, count, 3), generator=generator) * 2
    logits = logits.round() if ties else logits
    offsets = torch.randn((batch, count, 4), generator=generator)
    found = postprocess(
        heads(logits, offsets),
        anchors,
        score="sigmoid",
        score_threshold=0.2,
        pre_nms_topk=topk,
        max_detections=most,
        max_per_class=per_class,
        class_agnostic=agnostic,
        clip="never",
    )
    boxes = decode(offsets, anchors)
    for i in range(batch):
        scores, corners = logits[i].sigmoid().tolist(), boxes[i].double().tolist()
        pairs = reference(scores, corners, 0.2, 0.45, topk, most, agnostic, per_class)
        n = int(found.counts[i])
        assert found.labels[i, :n].tolist() == [label for label, _ in pairs]
        assert torch.equal(found.boxes_xyxy[i, :n], boxes[i, [a for _, a in pairs]])


@pytest.mark.parametrize(("spread", "alike"), [(0.3, 0.0), (0.3, 1.0), (0.02, 0.0)])
@pytest.mark.parametrize("agnostic", [False, True])
def test_looking_at_the_best_first_changes_nothing(spread, alike, agnostic):
    """More candidates than a first look takes: many survive; hardly any; and a second look settles it."""
    generator = torch.Generator().manual_seed(11)
    low = torch.rand((120, 2), generator=generator) * spread
    anchors = torch.cat([low, low + 0.02 + 0.3 * alike], dim=1)
    logits = torch.randn((2, 120, 3), generator=generator)
    logits[1, :100] -= 9
    found = postprocess(
        heads(logits), anchors, score="sigmoid", max_detections=5, class_agnostic=agnostic, clip="never"
    )
    boxes = decode(torch.zeros_like(anchors), anchors).double().tolist()
    for i in range(2):
        pairs = reference(logits[i].sigmoid().tolist(), boxes, 0.01, 0.45, 400, 5, agnostic, 0)
        assert found.labels[i, : int(found.counts[i])].tolist() == [label for label, _ in pairs]
        scores = torch.tensor([logits[i, a, label] for label, a in pairs]).sigmoid()
        torch.testing.assert_close(found.scores[i, : len(pairs)], scores)


def test_a_second_look_is_needed_and_taken():
    """Forty equal boxes of high scores fall to one; the next best stand beyond the first look of four."""
    anchors = torch.tensor([[0.0, 0.0, 0.2, 0.2]]).repeat(42, 1)
    anchors[40:] += torch.tensor([[0.3], [0.6]])
    logits = torch.cat([torch.linspace(4, 3, 40), torch.tensor([1.0, 2.0])])[None, :, None]
    found = postprocess(heads(logits), anchors, score="sigmoid", max_detections=3)
    assert found.scores[0].tolist() == pytest.approx(torch.tensor([4.0, 2.0, 1.0]).sigmoid().tolist())


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.01, 0.5, 0.995, 0.99999])
def test_no_anchor_above_the_threshold_is_passed_over(score, threshold):
    generator = torch.Generator().manual_seed(12)
    logits = torch.randn((1, 4000, 3), generator=generator) * 8
    corner = torch.rand((4000, 2), generator=generator) * 0.8
    found = postprocess(
        heads(logits),
        torch.cat([corner, corner + 0.1], dim=1),
        score=score,
        score_threshold=threshold,
        nms_threshold=1.0,
        pre_nms_topk=4000,
        max_detections=20_000,
    )
    scores = logits.softmax(2)[..., 1:] if score == "softmax" else logits.sigmoid()
    assert int(found.counts[0]) == int((scores > threshold).sum())


def test_a_class_that_is_no_number_hides_no_other():
    logits = torch.tensor([[[float("nan"), 2.0], [-9.0, -9.0]]])
    found = postprocess(heads(logits), BOXES[:2], score="sigmoid")
    assert found.labels.tolist() == [[1]]


@pytest.mark.parametrize(("score", "most"), [("softmax", 200), ("sigmoid", 2)])
def test_a_batch_is_its_images_one_by_one(score, most):
    generator = torch.Generator().manual_seed(13)
    low = torch.rand((60, 2), generator=generator)
    anchors = torch.cat([low, low + 0.2], dim=1)
    # Many candidates, few and none; in halves, so that scores are equal
    logits = (torch.randn((3, 60, 4), generator=generator) * 2).round() / 2 - torch.tensor([0, 4, 40])[:, None, None]
    offsets = torch.randn((3, 60, 4), generator=generator)
    together = postprocess(heads(logits, offsets), anchors, score=score, score_threshold=0.3, max_detections=most)
    for i in range(3):
        alone = postprocess(
            heads(logits[i], offsets[i : i + 1]), anchors, score=score, score_threshold=0.3, max_detections=most
        )
        assert rows(together, i) == rows(alone)
    assert together.counts.shape == (3,) and int(together.counts.max()) == together.scores.shape[1] > 1


@pytest.mark.parametrize("code", ["center_size", "corner", "corner_size"])
def test_every_code(code):
    gt = torch.tensor([[[0.2, 0.3, 0.7, 0.8]]])
    anchors = torch.tensor([[0.1, 0.3, 0.6, 0.7]])
    variances = (0.2, 0.2, 0.3, 0.3)
    offsets = encode(gt, anchors, variances, code)
    found = postprocess(heads(torch.ones(1, 1, 1), offsets), anchors, score="sigmoid", variances=variances, code=code)
    torch.testing.assert_close(found.boxes_xyxy, gt)
