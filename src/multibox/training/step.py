"""One training step: forward pass, matching, loss, backward pass, update. The order of these lines is the algorithm."""

import contextlib
import dataclasses
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from multibox.config import Config
from multibox.losses.multibox_loss import alone, l2_penalty, multibox_loss
from multibox.losses.targets import Targets, make_targets
from multibox.models.anchor_layout import FeatureShapes, anchors_per_cell, make_anchors
from multibox.models.ssd import SSD
from multibox.structures import Size
from multibox.tensors import Batch, HeadOutputs, LossParts
from multibox.training.accumulating import Accumulation, Computed, split_batch
from multibox.training.guard import Guard, Step, copy_all, statistics_of
from multibox.training.norms import freeze, thaw, train_mode, with_common_norms, without_norms
from multibox.training.optimizer import decay_penalty, make_average, make_optimizer
from multibox.training.precision import autocast
from multibox.training.ranks import ALONE, Ranks, connected
from multibox.training.reporter import Means
from multibox.training.spans import Spans, no_spans

MULTIPLE = 32
"""Drawn sides are multiples of this, the stride that backbones share, so that no feature map loses a row."""

Watch = Callable[[HeadOutputs, Targets, LossParts, Batch], None]
"""Takes what a step computed."""


Network = Callable[[Tensor], HeadOutputs]
"""Computes outputs from images."""


def compute_loss(
    model: Network,
    batch: Batch,
    config: Config,
    precision: str = "float32",
    spans: Spans = no_spans,
    across: Callable[[Tensor], Tensor] = alone,
    processes: int = 1,
    *,
    anchors: Tensor | None = None,
) -> Computed:
    """Run the forward pass, match anchors to labels and compute the loss, for training and validation alike.

    The batch is on the network's device; its images may have any size. A compiler gives the anchors, for it cannot
    look them up, and gets a row of targets for every anchor. `across` and `processes` go to `multibox_loss`.
    """
    device = str(batch.images.device)
    with spans("forward"), autocast(precision, device):
        outputs = model(batch.images)
    with spans("targets"):
        fixed = anchors is not None
        if anchors is None:
            anchors = anchors_at(config, outputs.feature_shapes, Size(*batch.images.shape[2:]), device)
        per_cell = anchors_per_cell(config)
        targets = make_targets(
            anchors, batch.gt_xyxy, batch.gt_labels, config.matching, config.model, outputs, per_cell, fixed
        )
    with spans("loss"):
        return outputs, targets, multibox_loss(outputs, targets, config.loss, config.model, across, processes)


class Stepper:
    """Everything that a step changes: the network, its average, the optimiser, the running means."""

    def __init__(self, model: SSD, config: Config, *, device: str, precision: str, ranks: Ranks = ALONE) -> None:
        self.config = config
        self.ranks = ranks
        self.device = device
        self.precision = precision
        self.model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.train.freeze_until >= 1:
            # Frozen for good: the optimiser need not hold them. Otherwise it skips what has no gradient
            freeze(self.model, config.train.freeze)
        self.network: Network = self.model
        """What computes the outputs: the network, or what wraps it for many processes."""
        self.loss_of: Callable[..., Computed] = compute_loss
        """What computes the loss of a batch in the run's precision, plain or compiled."""
        self.spans: Spans = no_spans
        self.average = make_average(self.model, config.train.ema)
        self.optimizer = make_optimizer(self.model, config.train)
        self.frozen = freeze(self.model, config.train.freeze)
        self.guard = Guard(
            self.model, self.average, self.optimizer, config.train, device=device, precision=precision, ranks=ranks
        )
        self.means = Means()
        self.watch: Watch | None = None
        """Told of every step."""

    def join(self) -> None:
        """Average the gradients of all processes from now on, of those parameters that learn now."""
        if self.ranks.count > 1:
            # The one before must be gone, since it would go on with the same gradients
            self.network = self.model
            network = with_common_norms(self.model) if self.config.train.sync_batch_norm else self.model
            with warnings.catch_warnings():
                # Its new name is not known to the older versions of torch that we take
                warnings.simplefilter("ignore", FutureWarning)
                self.network = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Give all processes the mean of their batch norms' statistics, so that any of them may save or validate.

        After each step, not when the clock saves: another sum would be another last digit.
        """
        if self.ranks.count == 1:
            return
        buffers = [buffer for buffer in statistics_of(self.model) if buffer.is_floating_point()]
        if buffers:
            mean = self.ranks.mean(torch.cat([buffer.flatten() for buffer in buffers]))
            parts = torch.split(mean, [buffer.numel() for buffer in buffers])
            copy_all(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])

    def step(self, batch: Batch) -> LossParts:
        """Learn from one batch, which must be on the device; its images may have any size.

        Where loss or gradient are not finite nothing is learnt; `look_back` tells.
        """
        self.guard.begin(batch, self.means.sums)
        with connected():
            outputs, targets, parts = self.compute(batch, self.network)
        self._share_statistics()
        with self.spans("optimizer"):
            if self.guard.allows(parts.total):
                self.optimizer.step()
                if self.average is not None:
                    self.average.update(self.model, self.guard.held)
        if self.guard.bad:
            return parts
        sums = self.means.add(outputs, targets, parts, self.config, self.ranks.sum)
        if self.watch is not None:
            self.watch(outputs, targets, parts, batch)
        return parts if self.ranks.count == 1 else _of_all(parts, sums)

    def compute(self, batch: Batch, network: Callable[[Tensor], HeadOutputs], precision: str | None = None) -> Computed:
        """Compute a batch's loss and its gradients, which float16 has scaled, in `train.accumulate` parts.

        Args:
            batch: On the device.
            network: The network, or what wraps it.
            precision: Number format of the forward pass; None takes the run's.
        """
        config, spans = self.config, self.spans
        self.optimizer.zero_grad(set_to_none=True)
        pieces = split_batch(batch, config.train.accumulate)
        # A step that is repeated for a report is this process's own
        ranks = self.ranks if network is self.network else ALONE
        so_far = Accumulation(len(pieces), config.loss, ranks)
        loss_of = self.loss_of if precision is None else compute_loss
        across: tuple[Any, ...] = () if ranks.count == 1 else (ranks.mean, ranks.count)
        for piece in pieces:
            with _own_gradients(network, last=piece is pieces[-1]):
                outputs, targets, parts = loss_of(network, piece, config, precision or self.precision, spans, *across)
                if config.loss.l2_penalty and piece is pieces[-1]:
                    l2 = l2_penalty(without_norms(self.model), config.loss.l2_penalty)
                    parts = dataclasses.replace(parts, l2=l2, total=parts.total + l2)
                with spans("backward"):
                    loss = so_far.add((outputs, targets, parts), self.model.parameters())
                    self.guard.scaler.scale(loss).backward()  # pyright: ignore[reportUnknownMemberType]
        return so_far.whole()

    def look_back(self, *, wait: bool = False) -> tuple[Step, list[Step]] | None:
        """Return the first bad step that the host knows of and those after it, all taken back; None if there is none.

        Args:
            wait: Look at every step so far, for which the host waits for the device.
        """
        found = self.guard.read(wait=wait)
        if found is not None:
            self.means.sums = found[0].sums
        return found

    def make_again(self, steps: Sequence[Step]) -> None:
        """Make steps that were taken back, each at its own learning rates, up to the first that is bad."""
        for step in steps:
            for group, rate in zip(self.optimizer.param_groups, step.rates, strict=True):
                group["lr"] = rate
            self.step(step.batch)

    def thaw(self) -> None:
        """Let frozen parameters learn and frozen batch norms update their statistics from now on."""
        if not self.frozen:
            return
        thaw(self.model, self.frozen)
        self.frozen = []
        train_mode(self.model)
        self.join()
        # torch's fused SGD fails where only some parameters of a group have a momentum; it starts from 0 anyway
        for group in self.optimizer.param_groups:
            if group.get("momentum"):
                for parameter in group["params"]:
                    self.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))

    @torch.no_grad()
    def penalty(self) -> float:
        """Return the L2 penalty: the loss's own, or what SGD's weight decay amounts to.

        0 for AdamW, which decays weights apart from the loss.
        """
        if self.config.loss.l2_penalty:
            return l2_penalty(without_norms(self.model), self.config.loss.l2_penalty).item()
        return decay_penalty(self.optimizer) if self.config.train.optimizer == "sgd" else 0.0

    def weights(self) -> SSD:
        """Return the network that is validated and shipped: the average if there is one."""
        return self.model if self.average is None else self.average.module


def _own_gradients(network: Callable[[Tensor], HeadOutputs], *, last: bool) -> AbstractContextManager[None]:
    """Return the context of a part of a batch: gradients go to the other processes with its last part."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


def _of_all(parts: LossParts, sums: Mapping[str, Tensor]) -> LossParts:
    """Return the losses and positives of the whole batch, from sums over the processes that share it."""
    total, classification, localization = (
        sums[name] / sums["steps"] for name in ("total", "classification", "localization")
    )
    return dataclasses.replace(
        parts,
        total=total,
        classification=classification,
        localization=localization,
        positives=sums["positives"].long(),
    )


def draw_size(config: Config, step: int) -> Size:
    """Return the input size of this step, a function of `train.seed` and `step` alone.

    Both sides follow one scale of `train.scales`, each rounded to a multiple of 32. Without a range it is the config's
    input size, which need not be such a multiple.
    """
    low, high = config.train.scales
    if low == high == 1:
        return Size(*config.model.input_size)
    return _scaled(config, random.Random(f"scale {config.train.seed} {step}").uniform(low, high))


def sizes_between(config: Config) -> tuple[Size, Size]:
    """Return the smallest and the largest input size that a step may have."""
    low, high = config.train.scales
    if low == high == 1:
        return Size(*config.model.input_size), Size(*config.model.input_size)
    return _scaled(config, low), _scaled(config, high)


def _scaled(config: Config, scale: float) -> Size:
    height, width = (max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in config.model.input_size)
    return Size(height, width)


def resize_batch(batch: Batch, size: Size) -> Batch:
    """Return the batch at another size (bilinear, antialiased); boxes are fractions and stay."""
    if tuple(batch.images.shape[2:]) == size:
        return batch
    # CUDA has no kernel for bytes
    images = functional.interpolate(batch.images.float(), size, mode="bilinear", antialias=True)
    return dataclasses.replace(batch, images=images.round().clamp(0, 255).byte())


def anchors_at(config: Config, shapes: FeatureShapes, size: Size, device: str) -> Tensor:
    """Return the anchors of feature maps of `shapes`, made from images of `size`.

    At another size than the config's an anchor keeps its share of the image. Its centres divide the image evenly
    there, because `anchors.steps` are pixels of the config's size.
    """
    anchors = config.anchors
    if size != config.model.input_size:
        anchors = msgspec.structs.replace(anchors, steps=())
    return make_anchors(anchors, shapes, config.model.input_size, device)
