"""One training step: forward, match, loss, backward, update. The order of these lines is the algorithm."""

import dataclasses

import msgspec
import torch
from torch import Tensor

from multibox.config import Config
from multibox.losses.multibox import multibox_loss
from multibox.losses.penalty import l2_penalty
from multibox.losses.targets import make_targets
from multibox.models.anchors import FeatureShapes, anchors_per_cell, make_anchors
from multibox.models.ssd import SSD
from multibox.tensors import Batch, LossParts
from multibox.training.average import make_average
from multibox.training.norms import freeze, thaw, train_mode, without_norms
from multibox.training.optimizer import decay_penalty, make_optimizer
from multibox.training.precision import autocast
from multibox.training.records import Means


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
        """Learn from one batch, which must be on the device; its pictures may have any size."""
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
    """Return the anchors of feature maps of `shapes`, made from pictures of `size` (height, width).

    At another size than the config's an anchor keeps its share of the picture, so that it keeps its objects; centres
    divide the picture evenly there, because steps in pixels belong to the config's size.
    """
    anchors = config.anchors
    if size != config.model.input_size:
        anchors = msgspec.structs.replace(anchors, steps=())
    return make_anchors(anchors, shapes, config.model.input_size, device)
