"""The operations and one training step on a device, against the same on the CPU; used by `gpu.py`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from ours import facts, make_batch, make_config
from torch import Tensor

import multibox.ops
from multibox.config import ModelConfig, PostConfig
from multibox.models.build import build_model
from multibox.ops import boxes, coding, matching, mining
from multibox.ops.nms import nms
from multibox.postprocess import postprocess
from multibox.tensors import HeadOutputs


class Check(NamedTuple):
    """How far the device is from the CPU."""

    name: str
    distance: float
    most: float
    unit: str

    def line(self) -> str:
        """Return the check as a line of the report."""
        verdict = "ok" if self.distance <= self.most else "WRONG"
        return f"  {self.name}: {self.distance:.1e} {self.unit} (at most {self.most:.0e}) {verdict}"


def all_checks(device: str, size: int, images: int) -> Iterator[Check]:
    """Compare every operation and one float32 step; random input, seed fixed."""
    torch.manual_seed(0)
    yield from _check_boxes(device)
    yield from _check_matching(device, images)
    yield from _check_detection(device, images)
    yield from _check_operators(device, images)
    yield from _check_step(device, size, images)


def random_boxes(*shape: int) -> Tensor:
    """Return boxes as corners inside 0 to 1."""
    low = torch.rand(*shape, 2) * 0.7
    return torch.cat([low, low + 0.05 + torch.rand(*shape, 2) * 0.25], dim=-1)


def _both(function: Callable[..., Tensor], device: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `function` makes of the inputs on the CPU and on the device."""
    return function(*inputs), function(*(x.to(device) for x in inputs)).cpu()


def _apart(name: str, most: float, pair: tuple[Tensor, Tensor]) -> Check:
    here, there = pair
    if here.shape != there.shape:
        return Check(f"{name}: shapes {list(here.shape)} and {list(there.shape)}", float("inf"), most, "apart")
    return Check(name, float((here - there).abs().max()) if here.numel() else 0.0, most, "apart")


def _differing(name: str, pair: tuple[Tensor, Tensor], most: float = 1e-4) -> Check:
    """Count integers and flags that differ; an IoU on a threshold may be rounded to either side of it."""
    here, there = pair
    share = float((here != there).double().mean()) if here.shape == there.shape else 1.0
    return Check(name, share, most, "of them differ")


def _check_boxes(device: str) -> Iterator[Check]:
    one, other = random_boxes(300), random_boxes(5000)
    yield _apart("IoU of all pairs", 1e-6, _both(boxes.pairwise_iou, device, one, other))
    kinds: tuple[boxes.IouKind, ...] = ("iou", "giou", "diou", "ciou")
    for kind in kinds:
        pair = _both(partial(boxes.paired_iou, kind=kind), device, one, other[:300])
        yield _apart(f"{kind} of pairs", 1e-5, pair)
    valid = torch.rand(8, 6) > 0.3
    yield _apart("IoU of anchors", 1e-6, _both(matching.anchor_overlaps, device, other, random_boxes(8, 6), valid))
    codes: tuple[coding.BoxCode, ...] = ("center_size", "corner", "corner_size")
    for code in codes:
        encoded = _both(partial(coding.encode, code=code), device, one, other[:300])
        decoded = _both(partial(coding.decode, code=code), device, encoded[0], other[:300])
        yield _apart(f"encode, {code}", 1e-4, encoded)
        yield _apart(f"decode, {code}", 1e-5, decoded)


def _check_matching(device: str, images: int) -> Iterator[Check]:
    anchors, gt, valid = random_boxes(5000), random_boxes(images, 12), torch.rand(images, 12) > 0.4
    for name in ("match_bipartite", "match_dual_max"):
        matcher = getattr(matching, name)
        pair = _both(lambda a, g, v, f=matcher: f(a, g, v).gt_index, device, anchors, gt, valid)
        yield _differing(name, pair)
    positive = matching.match_bipartite(anchors, gt, valid).gt_index >= 0
    loss = torch.rand(positive.shape)
    yield _differing("mining", _both(mining.mine_hard_negatives, device, loss, positive, ~positive), 0.0)


def _check_detection(device: str, images: int) -> Iterator[Check]:
    several, scores, groups = random_boxes(4000), torch.rand(4000), torch.randint(0, 20, (4000,))
    yield _differing("NMS in 20 groups", _both(_survivors, device, several, scores, groups), 1e-3)
    anchors = random_boxes(3000)
    logits, offsets = torch.randn(images, 3000, 5) * 2, torch.randn(images, 3000, 4)

    def found(logits: Tensor, offsets: Tensor, anchors: Tensor, *, field: str) -> Tensor:
        return getattr(postprocess(HeadOutputs(logits, offsets, ()), anchors, PostConfig(), ModelConfig()), field)

    given = logits, offsets, anchors
    yield _differing("detections: counts", _both(partial(found, field="counts"), device, *given), 0.0)
    yield _apart("detections: scores", 1e-5, _both(partial(found, field="scores"), device, *given))


def _survivors(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """Return which boxes survive, as flags, so that two results can be compared even if one box differs."""
    kept = nms(boxes_xyxy, scores, 0.45, groups)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, kept, True)


def _check_operators(device: str, images: int) -> Iterator[Check]:
    data = torch.zeros(1, 3, 20, 30)
    prior = _both(lambda x: multibox.ops.multibox_prior(x, (0.3, 0.4), (1.0, 2.0, 0.5)), device, data)
    yield _apart("multibox_prior", 1e-6, prior)
    anchors = prior[0]
    labels = torch.cat([torch.randint(0, 3, (images, 4, 1)).float(), random_boxes(images, 4)], dim=2)
    labels[:, 3] = -1
    logits = torch.randn(images, 4, anchors.shape[1])
    for index, name in enumerate(("offsets", "mask", "classes")):

        def wanted(anchors: Tensor, labels: Tensor, logits: Tensor, *, field: int = index) -> Tensor:
            targets = multibox.ops.multibox_target(anchors, labels, logits, negative_mining_ratio=3.0)
            return targets[field].round(decimals=2)

        yield _differing(f"multibox_target: {name}", _both(wanted, device, anchors, labels, logits), 2e-3)
    offsets = torch.randn(images, anchors.shape[1] * 4)
    pair = _both(multibox.ops.multibox_detection, device, logits.softmax(1), offsets, anchors)
    yield _differing("multibox_detection: classes", (pair[0][..., 0], pair[1][..., 0]), 1e-3)


def _check_step(device: str, size: int, images: int) -> Iterator[Check]:
    """One step of each recipe in true float32; see `train_step.py` for what is compared."""
    batch = make_batch(images, size, objects=3)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    for recipe in ("d2l", "default"):
        config = make_config(recipe, size)
        weights = {name: tensor.clone() for name, tensor in build_model(config, classes=1).state_dict().items()}
        here = facts(config, batch, "float32", weights)
        there = facts(config, batch, "float32", weights, device)
        yield _differing(f"step, {recipe}: class targets", (here.labels, there.labels))
        yield Check(f"step, {recipe}: losses", float((there.losses / here.losses - 1).abs().max()), 1e-4, "relative")
        norms = torch.tensor([(norm, there.gradient_norms[name]) for name, norm in here.gradient_norms.items()])
        distance = float((norms[:, 1] - norms[:, 0]).norm() / norms[:, 0].norm())
        yield Check(f"step, {recipe}: gradient norms", distance, 2e-2, "relative")
        moved = max(float((there.weights[name] - weight).abs().max()) for name, weight in here.weights.items())
        yield Check(f"step, {recipe}: weights after it", moved, 5e-3, "apart")
    torch.backends.cudnn.allow_tf32 = tf32
