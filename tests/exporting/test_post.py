"""The graph's post-processing is `postprocess` and `detect`, in both runtimes."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.config import Config
from multibox.exporting.graph_parts import Limits, add_postprocess, decoding_table
from multibox.exporting.verify import match
from multibox.models.anchor_layout import anchors_for, make_anchors
from multibox.postprocess import detect
from multibox.structures import Detections, Size
from multibox.tensors import HeadOutputs

from .conftest import RUNTIMES, build, open_in

SHAPES = (Size(8, 8), Size(4, 4))
SIZES = {"anchors.sizes": ((0.2, 0.27), (0.5, 0.6)), "anchors.ratios": ((1.0, 2.0, 0.5), (1.0, 2.0, 0.5))}
NAMES = ("a", "b", "c")
SCALE = np.array([200, 100, 200, 100], np.float32)
VARIANTS = {
    "plain": {},
    "sigmoid, clipped first": {"model.score": "sigmoid", "post.clip": "before_nms"},
    "best class only": {"post.multi_label": False},
    "few": {"post.pre_nms_topk": 7, "post.max_detections": 9},
    "corners": {"model.coder": "corner"},
    "corners by size": {"model.coder": "corner_size"},
    "hikapok": {"post.max_per_class": 3, "post.min_size": 0.1, "post.clip": "before_nms"},
    "inclusive": {"post.nms_inclusive": True},
}


def config_of(variant):
    return Config().updated({"model.input_size": (64, 64), **SIZES, **VARIANTS[variant]})


def graph(config, anchors, names=NAMES):
    def add(builder):
        k = len(names) + (config.model.score == "softmax")
        inputs = {"logits": [None, len(anchors), k], "offsets": [None, len(anchors), 4], "scale": [4]}
        inputs |= {"score_threshold": [], "nms_threshold": []}
        values = {name: builder.input(name, ir.DataType.FLOAT, shape) for name, shape in inputs.items()}
        most = builder.input("max_detections", ir.DataType.INT64, [])
        limits = Limits(values["score_threshold"], values["nms_threshold"], most)
        table = decoding_table(anchors, config.model.variances, config.model.coder)
        outputs = values["logits"], values["offsets"]
        return add_postprocess(builder.op, outputs, values["scale"], limits, table, config, len(names))._asdict()

    return add


CASES = [
    pytest.param(pair, marks=[pytest.mark.slow] * (pair[0] != RUNTIMES[0] and pair[1] not in ("plain", "hikapok")))
    for pair in itertools.product(RUNTIMES, VARIANTS)
]
"""Runtimes and variants; both runtimes run the same operators, so that one of them looks at each variant in time."""


@pytest.fixture(scope="module", params=CASES, ids=lambda p: " ".join(p))
def case(request, tmp_path_factory):
    runtime, variant = request.param
    config = config_of(variant)
    anchors = make_anchors(config.anchors, SHAPES, config.model.input_size).numpy()
    run = open_in(runtime, build(graph(config, anchors)), tmp_path_factory.mktemp("post"))
    return config, runtime, run, len(anchors)


def answers(config, run, logits, offsets, names=NAMES):
    feeds = {"logits": logits, "offsets": offsets, "scale": SCALE}
    for name in ("score_threshold", "nms_threshold"):
        feeds[name] = np.array(getattr(config.post, name), np.float32)
    found = run({**feeds, "max_detections": np.array(config.post.max_detections, np.int64)})
    outputs = HeadOutputs(torch.from_numpy(logits), torch.from_numpy(offsets), SHAPES)
    return found, detect(outputs, anchors_for(outputs, config), [Size(100, 200)] * len(logits), config, names)


def check(found, wanted):
    """Compare rows in order; only equal scores may have changed places."""
    width = max(map(len, wanted))
    assert found["boxes"].shape == (len(wanted), width, 4)
    assert found["counts"].tolist() == [len(each) for each in wanted]
    for index, (want, count) in enumerate(zip(wanted, found["counts"], strict=True)):
        np.testing.assert_allclose(found["scores"][index, :count], want.scores, atol=1e-6)
        got = Detections(*(found[name][index, :count] for name in ("boxes", "scores", "labels")), want.names)
        assert match(got, want, 200).matched == count
        assert np.all(found["boxes"][index, count:] == 0)
        assert np.all(found["scores"][index, count:] == 0)
        assert np.all(found["labels"][index, count:] == -1)


@pytest.mark.slow
@given(st.integers(1, 3), st.sampled_from([-6.0, 0.0, 4.0]), st.floats(0.1, 4), st.integers(0, 1000))
def test_random_answers(case, batch, background, spread, seed):
    config, _, run, anchors = case
    rng = np.random.default_rng(seed)
    k = len(NAMES) + (config.model.score == "softmax")
    logits = rng.normal(0, spread, (batch, anchors, k)).astype(np.float32)
    logits[..., 0] += background
    logits[batch - 1] -= 8 if config.model.score == "sigmoid" else 0
    offsets = rng.normal(0, 2, (batch, anchors, 4)).astype(np.float32)
    check(*answers(config, run, logits, offsets))


def test_nothing_found(case):
    config, _, run, anchors = case
    logits = np.full((2, anchors, len(NAMES) + (config.model.score == "softmax")), -30, np.float32)
    if config.model.score == "softmax":
        logits[..., 0] = 30
    found, wanted = answers(config, run, logits, np.zeros((2, anchors, 4), np.float32))
    assert found["boxes"].shape == (2, 0, 4)
    check(found, wanted)


def test_equal_scores_go_by_class_then_anchor(case):
    config, runtime, run, anchors = case
    if config.post.pre_nms_topk < anchors:
        return  # of equals, all go into the graph's suppression
    logits = np.zeros((1, anchors, len(NAMES) + (config.model.score == "softmax")), np.float32)
    found, wanted = answers(config, run, logits, np.zeros((1, anchors, 4), np.float32))
    assert found["counts"].tolist() == [len(wanted[0])] or runtime == "openvino"
    if runtime == "onnxruntime":  # OpenVINO's TopK leaves the order open
        check(found, wanted)
        assert np.array_equal(found["labels"][0], wanted[0].labels)
        np.testing.assert_allclose(found["boxes"][0], wanted[0].boxes, atol=1e-3)


def test_boxes_clipped_to_nothing_are_dropped(case):
    config, _, run, anchors = case
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (2, anchors, len(NAMES) + (config.model.score == "softmax"))).astype(np.float32)
    offsets = rng.normal(0, 2, (2, anchors, 4)).astype(np.float32)
    offsets[:, ::2, 0] += 1000  # beyond the right border
    offsets[:, ::2, 2] += 1000 * (config.model.coder != "center_size")
    found, wanted = answers(config, run, logits, offsets)
    check(found, wanted)
    assert np.all(found["boxes"][..., 2] <= 200)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_class_and_a_image_without_detections(runtime, score, tmp_path):
    config = config_of("plain").updated({"model.score": score})
    anchors = make_anchors(config.anchors, SHAPES, config.model.input_size).numpy()
    run = open_in(runtime, build(graph(config, anchors, NAMES[:1])), tmp_path)
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (3, len(anchors), 1 + (score == "softmax"))).astype(np.float32)
    logits[1, :, -1] = -50
    offsets = rng.normal(0, 1, (3, len(anchors), 4)).astype(np.float32)
    found, wanted = answers(config, run, logits, offsets, NAMES[:1])
    assert found["counts"][1] == 0 and found["counts"][0] > 5
    check(found, wanted)
