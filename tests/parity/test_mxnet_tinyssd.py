"""One whole training step of Dive into Deep Learning's TinySSD, as Apache MXNet 1.9.1 computed it on a CPU.

MXNet sums batch statistics in plain float32: its first variances are off by 4e-5 of their size. That moves logits of
scale 6.5 by 7e-4 and the first layer's weights after the step by up to 2e-4 (the same perturbation of our own network
does), while the last layers agree to 1e-6. Our results in float64 differ from MXNet's by as much as those in float32.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import multibox.ops
from multibox.importers.mxnet_params import read
from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model
from multibox.models.checkpoint import Checkpoint
from multibox.models.ssd import SSD
from multibox.presets import resolve
from multibox.tensors import HeadOutputs
from multibox.training.optimizer import make_optimizer

GOLDEN = Path(__file__).parents[1] / "golden" / "mxnet_tinyssd"
STEPS = [("ce_l1", "d2l"), ("focal_smoothl1", "d2l-focal")]
AFTER = {
    "blk_0.0.0.weight": ("backbone.stages.0.0.conv1.weight", 3e-4),
    "blk_1.0.weight": ("backbone.stages.1.0.conv1.weight", 5e-5),
    "cls_0.weight": ("heads.classification.0.weight", 1e-6),
    "bbox_4.bias": ("heads.localization.4.bias", 1e-6),
    "blk_3.4.gamma": ("backbone.stages.3.0.norm2.weight", 1e-6),
    "blk_0.0.1.running_mean": ("backbone.stages.0.0.norm1.running_mean", 2e-4),
    "blk_0.0.1.running_var": ("backbone.stages.0.0.norm1.running_var", 4e-3),
}
"""MXNet's name, ours, and the tolerance: absolute; the two statistics have the scales 17 and 58."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN / "step.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def weights() -> Checkpoint:
    return read(GOLDEN / "ssd.params", [])


def fresh(weights, recipe):
    config = resolve("tinyssd", recipe)
    model = build_model(config, len(weights.class_names))
    model.load_state_dict(weights.state)
    return model, config


def step_targets(golden, outputs, config):
    labels = torch.from_numpy(golden["labels"])
    anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size)
    return make_targets(anchors, labels[..., 1:], labels[..., 0].long(), config.matching, config.model)


def run(model: SSD, golden) -> HeadOutputs:
    return model(torch.from_numpy(golden["X"]))


def test_outputs_in_evaluation_mode(golden, weights):
    model, _ = fresh(weights, "d2l")
    with torch.inference_mode():
        outputs = run(model.eval(), golden)
    np.testing.assert_allclose(outputs.logits, golden["eval_cls_preds"], atol=5e-5)
    np.testing.assert_allclose(outputs.offsets.flatten(1), golden["eval_bbox_preds"], atol=5e-5)


def test_outputs_in_training_mode(golden, weights):
    model, config = fresh(weights, "d2l")
    outputs = run(model.train(), golden)
    np.testing.assert_allclose(outputs.logits.detach(), golden["cls_preds"], atol=1.5e-3)
    np.testing.assert_allclose(outputs.offsets.detach().flatten(1), golden["bbox_preds"], atol=1.5e-3)
    anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size)
    np.testing.assert_allclose(anchors, golden["anchors"][0], atol=1e-6)


def test_targets(golden, weights):
    model, config = fresh(weights, "d2l")
    with torch.inference_mode():
        targets = step_targets(golden, run(model, golden), config)
    np.testing.assert_array_equal(targets.labels, golden["cls_target"])
    offsets = torch.zeros(*targets.labels.shape, 4)
    offsets[targets.image, targets.anchor] = targets.offsets
    np.testing.assert_allclose(offsets.flatten(1), golden["bbox_target"], atol=1e-5)
    mask = (targets.labels > 0)[..., None].expand(-1, -1, 4).flatten(1)
    np.testing.assert_array_equal(mask, golden["bbox_mask"])


@pytest.mark.parametrize(("name", "recipe"), STEPS)
def test_losses_of_the_same_outputs(golden, weights, name, recipe):
    model, config = fresh(weights, recipe)
    shapes = run(model.eval(), golden).feature_shapes
    logits = torch.from_numpy(golden["cls_preds"])
    outputs = HeadOutputs(logits, torch.from_numpy(golden["bbox_preds"]).view(4, -1, 4), shapes)
    labels = torch.from_numpy(golden["labels"])
    anchors = make_anchors(config.anchors, shapes, config.model.input_size)
    for image in range(4):
        one = HeadOutputs(outputs.logits[image : image + 1], outputs.offsets[image : image + 1], shapes)
        gt = labels[image : image + 1]
        targets = make_targets(anchors, gt[..., 1:], gt[..., 0].long(), config.matching, config.model)
        total = multibox_loss(one, targets, config.loss).total
        assert float(total) == pytest.approx(float(golden[f"{name}/loss"][image]), abs=1e-6)


def ours(name: str) -> str:
    """Return our name of an MXNet parameter."""
    layer, field = name.rsplit(".", 1)
    field = {"gamma": "weight", "beta": "bias"}.get(field, field)
    kind, place = layer.split("_")
    if kind in ("cls", "bbox"):
        return f"heads.{'classification' if kind == 'cls' else 'localization'}.{place}.{field}"
    stage, *block, number = place.split(".")
    part = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}[number]
    return f"backbone.stages.{stage}.{block[0] if block else 0}.{part}.{field}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), STEPS)
def test_gradients_and_one_step(golden, weights, name, recipe):
    model, config = fresh(weights, recipe)
    outputs = run(model.train(), golden)
    loss = multibox_loss(outputs, step_targets(golden, outputs, config), config.loss).total
    assert float(loss.detach()) == pytest.approx(float(golden[f"{name}/loss"].mean()), abs=5e-6)
    loss.backward()
    parameters = dict(model.named_parameters())
    norms = {key.split("/")[2]: float(value) for key, value in golden.items() if key.startswith(f"{name}/grad_norm/")}
    assert {ours(key) for key in norms} == set(parameters)
    for key, norm in norms.items():
        # A bias before a batch norm has no gradient but rounding, hence the absolute part
        actual = 4 * float(parameters[ours(key)].grad.norm())
        assert actual == pytest.approx(norm, rel=5e-3, abs=2e-5), key
    make_optimizer(model, config.train).step()
    state = model.state_dict()
    for key, (our_name, tolerance) in AFTER.items():
        np.testing.assert_allclose(state[our_name], golden[f"{name}/after/{key}"], rtol=0, atol=tolerance, err_msg=key)


def test_detections(golden, weights):
    """MXNet's rows in any order: these scores, 0.999999 and above, tie by the dozen, and rounding decides the rest."""
    model, _ = fresh(weights, "d2l")
    with torch.inference_mode():
        outputs = run(model.eval(), golden)
        probabilities = outputs.logits.softmax(-1).transpose(1, 2)
        anchors = torch.from_numpy(golden["anchors"])
        rows = multibox.ops.multibox_detection(probabilities, outputs.offsets.flatten(1), anchors)[:, :300]
    for our_rows, mxnet_rows in zip(rows.numpy(), golden["eval_detection_first_300_rows"], strict=True):
        our_rows, mxnet_rows = our_rows[our_rows[:, 0] >= 0], mxnet_rows[mxnet_rows[:, 0] >= 0]
        assert len(our_rows) == pytest.approx(len(mxnet_rows), abs=2)
        distance = np.abs(mxnet_rows[:, None] - our_rows).max(-1).min(1)
        assert (distance < 1e-4).mean() >= 0.98
