"""One training step: forward, match, loss, backward, update. The order of these lines is the algorithm."""

import contextlib
import dataclasses
import random
from contextlib import AbstractContextManager

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from multibox.config import Config, TrainConfig
from multibox.losses.multibox_loss import l2_penalty, multibox_loss
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import FeatureShapes, anchors_per_cell, make_anchors
from multibox.models.ssd import SSD
from multibox.tensors import Batch, LossParts
from multibox.training.norms import freeze, thaw, train_mode, without_norms
from multibox.training.optimizer import decay_penalty, make_average, make_optimizer
from multibox.training.reporter import Means


def choose_precision(config: TrainConfig, device: str) -> str:
    """Return float32 or bfloat16: the latter where the hardware multiplies it (AMX, AVX-512 BF16, recent GPUs)."""
    if config.precision != "auto":
        return config.precision
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    flags = cpu_flags()
    return "bfloat16" if flags & {"amx_bf16", "avx512_bf16"} else "float32"


def autocast(precision: str, device: str) -> AbstractContextManager[None]:
    """Return the context of the forward pass."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)  # pyright: ignore[reportReturnType]


def cpu_flags() -> set[str]:
    """Return the processor's feature flags where the system lists them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device file, not a path
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())


MULTIPLE = 32
"""Sides are multiples of this, the stride that bodies share, so that no map loses a row."""


def draw_size(config: Config, step: int) -> tuple[int, int]:
    """Return height and width of the input in this step, a function of seed and step alone.

    Both sides follow one scale, each to the nearest multiple of 32: a side that is none itself (300) does not occur,
    and the image's aspect changes by what rounding takes. Without a range it is the config's input size.
    """
    low, high = config.train.scales
    height, width = config.model.input_size
    if low == high == 1:
        return height, width
    scale = random.Random(f"scale {config.train.seed} {step}").uniform(low, high)
    return _nearest(height * scale), _nearest(width * scale)


def largest_size(config: Config) -> tuple[int, int]:
    """Return the largest height and width that a step may have."""
    low, high = config.train.scales
    height, width = config.model.input_size
    return (height, width) if low == high == 1 else (_nearest(height * high), _nearest(width * high))


def resize_batch(batch: Batch, size: tuple[int, int]) -> Batch:
    """Return the batch at another size (bilinear, antialiased); boxes are fractions and stay."""
    if tuple(batch.images.shape[2:]) == size:
        return batch
    # CUDA has no kernel for bytes
    images = functional.interpolate(batch.images.float(), size, mode="bilinear", antialias=True)
    return Batch(images.round().clamp(0, 255).byte(), batch.gt_xyxy, batch.gt_labels, batch.names, batch.sizes)


def _nearest(side: float) -> int:
    return max(1, round(side / MULTIPLE)) * MULTIPLE


class Stepper:
    """What a step needs and changes: the network, its average, the optimiser, the running means."""

    def __init__(self, model: SSD, config: Config, *, device: str, precision: str) -> None:
        self.config = config
        self.device = device
        self.precision = precision
        self.model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.train.freeze_until >= 1:
            # For good: the optimiser need not know them. Else it holds them, and passes over what has no gradient
            freeze(self.model, config.train.freeze)
        self.average = make_average(self.model, config.train.ema)
        self.optimizer = make_optimizer(self.model, config.train)
        self.frozen = freeze(self.model, config.train.freeze)
        self.per_cell = anchors_per_cell(config)
        self.means = Means()

    def step(self, batch: Batch) -> LossParts:
        """Learn from one batch, which must be on the device; its images may have any size."""
        config = self.config
        with autocast(self.precision, self.device):
            outputs = self.model(batch.images)
        anchors = anchors_at(config, outputs.feature_shapes, tuple(batch.images.shape[2:]), self.device)
        targets = make_targets(
            anchors, batch.gt_xyxy, batch.gt_labels, config.matching, config.model, outputs, self.per_cell
        )
        parts = multibox_loss(outputs, targets, config.loss, config.model)
        if config.loss.l2_penalty:
            l2 = l2_penalty(without_norms(self.model), config.loss.l2_penalty)
            parts = dataclasses.replace(parts, l2=l2, total=parts.total + l2)
        self.optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        if config.train.clip_norm != "none":
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.train.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.means.add(outputs, targets, parts, config)
        return parts

    def thaw(self) -> None:
        """Let the frozen parameters learn from now on, and frozen batch norms measure again."""
        if self.frozen:
            thaw(self.model, self.frozen)
            self.frozen = []
            train_mode(self.model)
            self._start_momentum()

    def _start_momentum(self) -> None:
        # torch's fused SGD fails where only some parameters of a group have a momentum; from 0 is how it begins anyway
        for group in self.optimizer.param_groups:
            if group.get("momentum"):
                for parameter in group["params"]:
                    self.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))

    @torch.no_grad()
    def penalty(self) -> float:
        """Return the L2 penalty as it stands: the loss's own, or what SGD's decay amounts to.

        AdamW shrinks weights apart from the loss: nothing of it is a penalty.
        """
        if self.config.loss.l2_penalty:
            return l2_penalty(without_norms(self.model), self.config.loss.l2_penalty).item()
        return decay_penalty(self.optimizer) if self.config.train.optimizer == "sgd" else 0.0

    def weights(self) -> SSD:
        """Return the network that is validated and shipped: the average where there is one."""
        return self.model if self.average is None else self.average.module  # pyright: ignore[reportReturnType]


def anchors_at(config: Config, shapes: FeatureShapes, size: tuple[int, ...], device: str) -> Tensor:
    """Return the anchors of feature maps of `shapes`, made from images of `size` (height, width).

    At another size than the config's an anchor keeps its share of the image, so that it keeps its objects; centres
    divide the image evenly there, because steps in pixels belong to the config's size.
    """
    anchors = config.anchors
    if size != config.model.input_size:
        anchors = msgspec.structs.replace(anchors, steps=())
    return make_anchors(anchors, shapes, config.model.input_size, device)
