"""Scores that tie where post-processing stops counting: any choice among the tied is right, and nothing else is."""

import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch

from multibox import api
from multibox.exporting import ExportOptions, VerificationError, export
from multibox.exporting.graph_parts import Limits, add_postprocess, decoding_table
from multibox.exporting.verify import Cuts, Report, compare_detections, match, run_onnx
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.backbones import make_backbone
from multibox.presets import PRESETS, RECIPES, fitting, resolve
from multibox.structures import Detections, Size
from multibox.tensors import HeadOutputs

from .conftest import build

CLASSES = 20
CASES = [
    pytest.param(p, r, marks=[pytest.mark.slow] * (number > 0))
    for r in RECIPES
    if r != "d2l-focal"
    for number, p in enumerate(fitting(r))
]
"""That one has the post-processing of d2l."""
MOST = 400
"""Without it two recipes keep thousands, which takes long and ties no other way."""


@functools.cache
def shapes_of(backbone, width, levels, size):
    with torch.device("meta"):
        maps = make_backbone(backbone, width, levels).eval()(torch.zeros(1, 3, *size))
    return tuple(Size(each.shape[2], each.shape[3]) for each in maps)


def saturated(preset, recipe):
    """Return config and outputs of a network whose logits are in the hundreds, at its full size."""
    config = resolve(preset, recipe, {"anchors.fit": "none"})
    limits = {name: min(MOST, getattr(config.post, name)) for name in ("pre_nms_topk", "max_detections")}
    config = config.updated({f"post.{name}": value for name, value in limits.items()})
    model = config.model
    shapes = shapes_of(model.backbone, model.width, len(anchors_per_cell(config)), model.input_size)
    generator = torch.Generator().manual_seed(3)
    anchors = make_anchors(config.anchors, shapes, model.input_size)
    columns = CLASSES + (model.score == "softmax")
    logits = torch.randn(2, len(anchors), columns, generator=generator) * 200
    offsets = torch.randn(2, len(anchors), 4, generator=generator)
    return config, anchors.numpy(), HeadOutputs(logits, offsets, shapes)


def run_post(config, anchors, outputs, size, **changed):
    """Return what the exported post-processing finds, in onnxruntime."""
    post = config.post

    def add(builder):
        sizes = {"logits": outputs.logits.shape, "offsets": outputs.offsets.shape}
        values = {name: builder.input(name, ir.DataType.FLOAT, list(shape)) for name, shape in sizes.items()}
        limits = Limits(
            builder.op.Constant(value_float=changed.get("score_threshold", post.score_threshold)),
            builder.op.Constant(value_float=changed.get("nms_threshold", post.nms_threshold)),
            builder.op.Constant(value_int=changed.get("max_detections", post.max_detections)),
        )
        scale = builder.op.Constant(value=ir.tensor(np.array([size.width, size.height] * 2, np.float32)))
        table = decoding_table(anchors, config.model.variances, config.model.coder)
        return add_postprocess(builder.op, tuple(values.values()), scale, limits, table, config, CLASSES)._asdict()

    answer = run_onnx(build(add))({"logits": outputs.logits.numpy(), "offsets": outputs.offsets.numpy()})
    names = tuple(f"class {i}" for i in range(CLASSES))
    columns = zip(*(answer[name] for name in ("boxes", "scores", "labels", "counts")), strict=True)
    return [Detections(b[:n], s[:n], k[:n], names) for b, s, k, n in columns]


@pytest.mark.parametrize(("preset", "recipe"), CASES)
def test_saturated_scores_do_not_fail_any_preset(preset, recipe):
    config, anchors, outputs = saturated(preset, recipe)
    found = run_post(config, anchors, outputs, Size(320, 240))
    report = compare_detections(found, outputs, config, Size(320, 240), Report())
    assert report.detections > 50


@pytest.mark.parametrize("changed", [{"nms_threshold": 0.95}, {"nms_threshold": 0.1}, {"max_detections": 30}])
def test_a_wrong_suppression_is_still_found(changed):
    config, anchors, outputs = saturated("tinyssd", "default")
    # Scores of all kinds, and of one class, so that neighbours meet
    logits = outputs.logits / 100
    logits[..., 2:] = -20
    outputs = HeadOutputs(logits, outputs.offsets, outputs.feature_shapes)
    compare_detections(run_post(config, anchors, outputs, Size(320, 240)), outputs, config, Size(320, 240), Report())
    wrong = run_post(config, anchors, outputs, Size(320, 240), **changed)
    with pytest.raises(VerificationError, match="NMS"):
        compare_detections(wrong, outputs, config, Size(320, 240), Report())


def detections(*rows):
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), ("a", "b"))


LEFT, RIGHT = (0, 0, 10, 10, 0.9, 0), (2, 0, 12, 10, 0.9, 0)
LOWER, FAR = (2, 0, 12, 10, 0.5, 0), (50, 50, 60, 60, 0.4, 1)


@pytest.mark.parametrize(
    ("found", "wanted", "unexplained"),
    [
        ([LEFT], [RIGHT], 0),  # equal scores, either suppresses the other
        ([LEFT], [LOWER], 1),  # the file kept a better box: eager would have suppressed its own
        ([LEFT, FAR], [LEFT], 1),
        ([LEFT], [LEFT, FAR], 1),
        ([LEFT, RIGHT], [LEFT], 1),  # the neighbour should have been suppressed by a box that both have
    ],
)
def test_what_explains_a_difference(found, wanted, unexplained):
    assert match(detections(*found), detections(*wanted), 100).unexplained == unexplained


def test_cuts_explain_ties_only():
    cuts = Cuts(np.array([0.9, -np.inf]), 0, 2)
    one, other = (0, 0, 10, 10, 0.9, 0), (30, 30, 40, 40, 0.9, 0)
    assert match(detections(one), detections(other), 100, cuts).unexplained == 0
    better = (30, 30, 40, 40, 0.95, 0)
    assert match(detections(one), detections(better), 100, cuts).unexplained == 1
    # Two of two: what scores no more than the last may have been the third
    last = (70, 70, 80, 80, 0.4, 1)
    assert match(detections(one, FAR), detections(one, last), 100, cuts).unexplained == 0
    assert match(detections(one, FAR), detections(one, last), 100, Cuts(cuts.candidates, 0, 5)).unexplained == 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_fresh_network_with_saturated_logits_is_exported(preset, tmp_path):
    detector = api.create(preset, [f"class {i}" for i in range(CLASSES)])
    size = 64 if "vgg" in preset else 128
    detector.config = detector.config.updated({"model.input_size": (size, size)})
    # Drawn anew each time, one in many networks would differ by 0.00103 where 0.001 is allowed
    torch.manual_seed(0)
    with torch.no_grad():
        layers = [layer for _, layer in detector.model.heads.class_layers()]
        for layer in layers:
            layer.weight.normal_(0, 1)
        noise = torch.randint(0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(0))
        spread = detector.model.eval()(noise).logits.std()
        for layer in layers:
            # In float32 probabilities are 1 from logits of 17 on
            layer.weight *= 100 / max(float(spread), 1.0)
    report = export(detector, tmp_path / "model.onnx", ExportOptions())
    assert report["detections"] > 0
