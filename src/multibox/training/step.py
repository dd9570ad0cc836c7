"""One training step: forward, match, loss, backward, update. The order of these lines is the algorithm."""

import dataclasses

import torch

from multibox.config import Config
from multibox.losses.multibox import multibox_loss
from multibox.losses.penalty import l2_penalty
from multibox.losses.targets import make_targets
from multibox.models.anchors import anchors_per_cell, make_anchors
from multibox.models.ssd import SSD
from multibox.tensors import Batch, LossParts
from multibox.training.average import make_average
from multibox.training.norms import freeze
from multibox.training.optimizer import make_optimizer
from multibox.training.precision import autocast
from multibox.training.records import Means


class Stepper:
    """What a step needs and changes: the network, its average, the optimiser, the running means."""

    def __init__(self, model: SSD, config: Config, *, device: str, precision: str) -> None:
        self.config = config
        self.device = device
        self.precision = precision
        self.model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        freeze(self.model, config.train.freeze)
        self.average = make_average(self.model, config.train.ema)
        self.optimizer = make_optimizer(self.model, config.train)
        self.per_cell = anchors_per_cell(config)
        self.means = Means()

    def step(self, batch: Batch) -> LossParts:
        """Learn from one batch, which must be on the device."""
        config = self.config
        with autocast(self.precision, self.device):
            outputs = self.model(batch.images)
        anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size, self.device)
        targets = make_targets(
            anchors, batch.gt_xyxy, batch.gt_labels, config.matching, config.model, outputs, self.per_cell
        )
        parts = multibox_loss(outputs, targets, config.loss, config.model)
        if config.loss.l2_penalty:
            learning = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            l2 = l2_penalty(learning, config.loss.l2_penalty)
            parts = dataclasses.replace(parts, l2=l2, total=parts.total + l2)
        self.optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        if config.train.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.train.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.means.add(outputs, targets, parts, config)
        return parts

    def weights(self) -> SSD:
        """Return the network that is validated and shipped: the average where there is one."""
        return self.model if self.average is None else self.average.module  # pyright: ignore[reportReturnType]
