"""Our side of the training benchmarks: synthetic batches, and the product's own `Stepper`.

Nothing of the step is written down here: what is timed is what `multibox train` runs.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import multibox.training.step as product
from multibox.config import Config
from multibox.limits import keep_freed_memory
from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import Targets, make_targets
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model
from multibox.models.ssd import SSD
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch, HeadOutputs
from multibox.training.precision import autocast
from multibox.training.step import Stepper


class Facts(NamedTuple):
    """What one step computed; all sides must agree on it before a time is printed."""

    labels: Tensor
    """[B, A]; class of every anchor, 0 background."""
    losses: Tensor
    """[B]; loss of every image."""
    gradient_norms: dict[str, float]
    """Of the batch's mean loss, per parameter under our names."""
    weights: dict[str, Tensor]
    """Parameters after one step of the optimiser."""


def make_config(recipe: str, size: int) -> Config:
    """Return TinySSD's config at `size`; fitted anchors are as many as the preset's, which are used here."""
    return resolve("tinyssd", recipe, {"model.input_size": (size, size), "anchors.fit": "none"})


def make_batch(images: int, size: int, objects: int, seed: int = 0) -> Batch:
    """Return clouds with `objects` boxes an image, in the memory order in which the loader stacks images."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (images, 3, size // 16, size // 16))).float()
    clouds = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    grain = torch.from_numpy(rng.normal(0, 4, clouds.shape)).float()
    # Rows of pixels, as a decoder writes them: seen as [b, 3, h, w] that is the order "channels last"
    pixels = (clouds + grain).clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    extent = rng.uniform(0.12, 0.4, (images, objects, 2))
    corner = rng.uniform(0, 1 - extent)
    boxes = np.concatenate([corner, corner + extent], axis=2).astype(np.float32)
    labels = torch.zeros(images, objects, dtype=torch.int64)
    return Batch(pixels, torch.from_numpy(boxes), labels, ["clouds"] * images, [Size(size, size)] * images)


def make_stepper(config: Config, device: str, precision: str, weights: dict[str, Tensor] | None = None) -> Stepper:
    """Return the product's training step for one class, with `weights` if given."""
    if device == "cpu":
        keep_freed_memory(always=True)
    model = build_model(config, classes=1)
    if weights is not None:
        model.load_state_dict(weights)
    stepper = Stepper(model, config, device=device, precision=precision)
    stepper.model.train()
    return stepper


def targets_of(config: Config, batch: Batch, outputs: HeadOutputs, images: slice = slice(None)) -> Targets:
    """Return the targets of some of the batch's images."""
    device = str(batch.gt_xyxy.device)
    anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size, device)
    return make_targets(anchors, batch.gt_xyxy[images], batch.gt_labels[images], config.matching, config.model)


def image_losses(model: SSD, config: Config, batch: Batch, precision: str) -> Tensor:
    """Return the loss of every image, from one forward pass of the whole batch."""
    device = str(batch.images.device)
    with torch.no_grad(), autocast(precision, device):
        outputs = model(batch.images)
    losses: list[Tensor] = []
    for i in range(len(batch.images)):
        one = slice(i, i + 1)
        part = HeadOutputs(outputs.logits[one], outputs.offsets[one], outputs.feature_shapes)
        losses.append(multibox_loss(part, targets_of(config, batch, part, one), config.loss).total)
    return torch.stack(losses)


def facts(config: Config, batch: Batch, precision: str, weights: dict[str, Tensor], device: str = "cpu") -> Facts:
    """Return what our step computes from `weights`."""
    batch = batch.to(device)
    probe = make_stepper(config, device, precision, weights).model
    losses = image_losses(probe, config, batch, precision)
    with torch.no_grad():
        labels = targets_of(config, batch, probe(batch.images)).labels
    stepper = make_stepper(config, device, precision, weights)
    stepper.step(batch)
    parameters = dict(stepper.model.named_parameters())
    norms = {name: float(p.grad.norm()) for name, p in parameters.items() if p.grad is not None}
    after = {name: p.detach().cpu() for name, p in parameters.items()}
    return Facts(labels.cpu(), losses.cpu(), norms, after)


def time_parts(stepper: Stepper, batch: Batch, wait: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Return the seconds of each part of one step, by putting a stopwatch around what the step calls."""
    seconds: dict[str, float] = defaultdict(float)
    with contextlib.ExitStack() as stack:
        for part, owner, name in _parts(stepper):
            stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), part, seconds, wait)))
        wait()
        started = time.perf_counter()
        stepper.step(batch)
        wait()
        whole = time.perf_counter() - started
    return {**seconds, "the rest": whole - sum(seconds.values())}


def _parts(stepper: Stepper) -> Iterator[tuple[str, Any, str]]:
    yield "forward", stepper.model, "forward"
    yield "matching and coding", product, "make_targets"
    yield "loss", product, "multibox_loss"
    yield "backward", torch.Tensor, "backward"
    yield "norm and clipping of gradients", stepper.guard, "allows"
    yield "optimiser", stepper.optimizer, "step"
    if stepper.average is not None:
        yield "average of weights", stepper.average, "update"
    yield "figures of the epoch", stepper.means, "add"


def _timed(function: Any, part: str, seconds: dict[str, float], wait: Callable[[], None]) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        wait()
        started = time.perf_counter()
        result = function(*arguments, **options)
        wait()
        seconds[part] += time.perf_counter() - started
        return result

    return run
