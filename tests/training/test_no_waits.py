"""A step never makes the host wait for the device: nothing looks at a value, and no shape depends on one.

On a CPU a dispatch mode refuses every operation that would wait on a GPU, while the code computes as it does there. On
CUDA the driver itself tells.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.build import build_model, measure
from multibox.ops.rows import without_reading
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch, HeadOutputs
from multibox.training.guard import Guard
from multibox.training.reporter import Means
from multibox.training.step import Stepper
from multibox.training.tally import Tally

WAITS = (
    "aten._local_scalar_dense", "aten.is_nonzero", "aten.item", "aten.equal", "aten.nonzero", "aten.nonzero_numpy",
    "aten.masked_select", "aten.unique_dim", "aten._unique", "aten._unique2", "aten.unique_consecutive",
    "aten.bincount", "aten.argwhere",
)  # fmt: skip
MATCHERS = ("bipartite", "dual_max", "atss", "simota", "task_aligned")
LOSSES = ("cross_entropy", "focal", "sigmoid_focal", "sigmoid_cross_entropy", "quality_focal", "varifocal")


class WouldWait(Exception):
    """An operation makes the host wait on a GPU."""


class RefuseWaits(TorchDispatchMode):
    """Refuses operations whose result the host has to know."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = f"aten.{func._schema.name.removeprefix('aten::')}"
        indexed = name in ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")
        by_flags = indexed and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        # The sum of the counts is the length of the result, unless it is given
        by_counts = name == "aten.repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITS or by_flags or by_counts:
            raise WouldWait(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def refusing(monkeypatch, host=()):
    """Compute as on a GPU and refuse waits; `host` are tensors that lie on the host there too."""

    def refuse(tensor, *arguments, **options):
        if not any(tensor is one for one in host):
            raise WouldWait("the tensor is read")
        return read(tensor, *arguments, **options)

    read = torch.Tensor.numpy
    with monkeypatch.context() as patch, without_reading(), RefuseWaits():
        for name in ("numpy", "tolist", "cpu", "__array__"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


@contextlib.contextmanager
def refusing_on_cuda():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def some_batch(device="cpu"):
    """Two images at 64 x 64: three objects, of which two crowd, and none."""
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    gt = torch.full((2, 3, 4), -1.0)
    gt[0] = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.52], [0.5, 0.4, 0.9, 0.9]])
    labels = torch.tensor([[0, 1, 1], [-1, -1, -1]])
    rows = torch.tensor([[0, 1, 2], [-1, -1, -1]])
    batch = Batch(pixels.permute(0, 3, 1, 2), gt, labels, ["a", "b"], [Size(64, 64)] * 2, 0, rows, torch.arange(2))
    return batch.to(device)


def scene(matcher="bipartite", loss="cross_entropy", device="cpu"):
    """Return what targets and loss are made of, and the settings."""
    score = "sigmoid" if loss in LOSSES[2:] else "softmax"
    changes = {"model.input_size": [64, 64], "anchors.fit": "none", "matching.matcher": matcher, "model.score": score}
    changes |= {"loss.classification": loss, "loss.negative_ratio": 3.0, "loss.normalizer": "positives"}
    config = resolve("tinyssd", changes=changes)
    shapes = measure(config, 1).feature_shapes
    anchors = make_anchors(config.anchors, shapes, config.model.input_size, device)
    source = torch.Generator().manual_seed(1)
    columns = 3 if score == "softmax" else 2
    logits = torch.randn(2, len(anchors), columns, generator=source).to(device).requires_grad_()
    offsets = torch.randn(2, len(anchors), 4, generator=source).to(device).requires_grad_()
    return config, anchors, HeadOutputs(logits, offsets, shapes)


def targets_of(config, anchors, outputs, batch):
    return make_targets(
        anchors, batch.gt_xyxy, batch.gt_labels, config.matching, config.model, outputs, anchors_per_cell(config)
    )


@pytest.mark.parametrize("matcher", MATCHERS)
def test_targets_are_the_same_without_a_look_at_values(monkeypatch, matcher):
    config, anchors, outputs = scene(matcher)
    expected = targets_of(config, anchors, outputs, some_batch())
    assert 0 < len(expected.anchor) < expected.labels.numel()
    with refusing(monkeypatch):
        actual = targets_of(config, anchors, outputs, some_batch())
    assert len(actual.anchor) == actual.labels.numel()
    for one, other in zip(actual.positives(), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "changes",
    [{"normalizer": "positives"}, {"normalizer": "selected"}, {"normalizer": "anchors"}, {"normalizer": "images"},
     {"hard_examples": 8}, {"localization": "ciou"}, {"negative_ratio": "all"}],
    ids=str,
)  # fmt: skip
def test_losses_and_their_gradients(monkeypatch, loss, changes):
    config, anchors, outputs = scene(loss=loss)
    config = config.updated({f"loss.{name}": value for name, value in changes.items()})
    expected = multibox_loss(outputs, targets_of(config, anchors, outputs, some_batch()), config.loss, config.model)
    expected.total.backward()
    gradients = [outputs.logits.grad, outputs.offsets.grad]
    outputs.logits.grad = outputs.offsets.grad = None
    with refusing(monkeypatch):
        targets = targets_of(config, anchors, outputs, some_batch())
        actual = multibox_loss(outputs, targets, config.loss, config.model)
        actual.total.backward()
        means = Means()
        means.add(outputs, targets, actual, config)
    assert torch.allclose(actual.total, expected.total)
    for one, other in zip([outputs.logits.grad, outputs.offsets.grad], gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_figures_and_ledger(monkeypatch, tmp_path, squares, score):
    config, anchors, outputs = scene(loss="cross_entropy" if score == "softmax" else "sigmoid_focal")
    batch = some_batch()
    rows = batch.gt_rows, batch.image_rows

    def figures():
        targets = targets_of(config, anchors, outputs, batch)
        parts = multibox_loss(outputs, targets, config.loss, config.model)
        means = Means()
        means.add(outputs, targets, parts, config)
        tally = Tally(tmp_path, no_data, score)
        tally.add(outputs, targets, parts, batch)
        return means, tally

    no_data = type("NoData", (), {"labels": range(3), "__len__": lambda self: 2})()
    expected_means, expected_tally = figures()
    with refusing(monkeypatch, rows):
        means, tally = figures()
    assert means.row() == pytest.approx(expected_means.row())
    assert torch.allclose(tally.state()["ledger"], expected_tally.state()["ledger"], equal_nan=True)


def make_stepper(device="cpu", **changes):
    settings = {"model.input_size": [64, 64], "anchors.fit": "none", "train.batch_size": 2}
    config = resolve("tinyssd", changes=settings | changes)
    stepper = Stepper(build_model(config, 2, 0), config, device=device, precision="float32")
    # Judges a step as on a GPU, where the outcome is read some steps later
    stepper.guard = Guard(
        stepper.model, stepper.average, stepper.optimizer, config.train, device=device, precision="float32", late=True
    )
    return stepper


STEPS = [
    {},
    {"train.optimizer": "sgd", "train.clip_norm": 1.0},
    {"train.accumulate": 2, "train.ema": 0.99},
    {"loss.l2_penalty": 0.001, "matching.matcher": "task_aligned"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", STEPS, ids=str)
def test_a_whole_step(monkeypatch, changes):
    stepper = make_stepper(**changes)
    batch = some_batch()
    stepper.step(batch)
    with refusing(monkeypatch):
        stepper.step(batch)
    assert all(parameter.isfinite().all() for parameter in stepper.model.parameters())


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(), lambda t: bool(t.any()), lambda t: t.nonzero(), lambda t: t[t > 0],
        lambda t: t.masked_select(t > 0), lambda t: t.unique(), lambda t: torch.equal(t, t), lambda t: t.tolist(),
        lambda t: t.numpy(), lambda t: t.cpu(), lambda t: int(t.max()), lambda t: torch.where(t > 0),
        lambda t: t.long().bincount(), lambda t: t.repeat_interleave(t.long()),
    ],
)  # fmt: skip
def test_the_test_itself_refuses_what_waits(monkeypatch, wait):
    def flags_set(tensor):
        tensor[tensor > 1] = tensor[:1]

    values = torch.arange(3.0)
    with refusing(monkeypatch), pytest.raises(WouldWait):
        wait(values)
    with refusing(monkeypatch), pytest.raises(WouldWait):
        flags_set(values)
    with RefuseWaits(), pytest.raises(WouldWait):
        # A CPU that may look at its own memory does
        mined = scene()
        multibox_loss(mined[2], targets_of(*mined, some_batch()), mined[0].loss, mined[0].model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("matcher", MATCHERS)
def test_targets_and_loss_on_a_gpu(matcher):
    config, anchors, outputs = scene(matcher, device="cuda")
    batch = some_batch("cuda")
    targets_of(config, anchors, outputs, batch)
    with refusing_on_cuda():
        targets = targets_of(config, anchors, outputs, batch)
        parts = multibox_loss(outputs, targets, config.loss, config.model)
        parts.total.backward()
    config, anchors, outputs = scene(matcher)
    expected = targets_of(config, anchors, outputs, some_batch())
    assert torch.equal(targets.labels.cpu(), expected.labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", STEPS, ids=str)
def test_a_whole_step_on_a_gpu(changes):
    stepper = make_stepper("cuda", **changes)
    batch = some_batch("cuda")
    for _ in range(3):
        stepper.step(batch)
    with refusing_on_cuda():
        stepper.step(batch)
