"""A batch in several parts, computed one after the other, for a step with less memory; one update follows them all.

The gradient is that of the whole batch: the parts are weighted by what divides their losses. Batch norms alone see one
part at a time.
"""

import itertools
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from multibox.config import LossConfig
from multibox.losses.targets import Targets
from multibox.tensors import Batch, HeadOutputs, LossParts
from multibox.training.ranks import Ranks

Computed = tuple[HeadOutputs, Targets, LossParts]
"""What the loss of a batch is computed with, and the loss."""


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Return the batch in `parts` parts of nearly equal size, at most one per image; views, not copies."""
    images = len(batch.images)
    parts = min(parts, images)
    if parts == 1:
        return [batch]
    ends = [images * part // parts for part in range(parts + 1)]
    return [_some_images(batch, slice(a, b)) for a, b in itertools.pairwise(ends)]


def _some_images(batch: Batch, rows: slice) -> Batch:
    return replace(
        batch,
        images=batch.images[rows],
        gt_xyxy=batch.gt_xyxy[rows],
        gt_labels=batch.gt_labels[rows],
        image_names=batch.image_names[rows],
        sizes=batch.sizes[rows],
        gt_rows=None if batch.gt_rows is None else batch.gt_rows[rows],
        image_rows=None if batch.image_rows is None else batch.image_rows[rows],
    )


class Accumulation:
    """The parts of one batch so far, and the gradient of their common loss.

    The loss of a part is a sum over a divisor: its positives, or its images (`loss.normalizer`). In the common loss the
    divisors are added, so a part's weight is its share of them. The positives of later parts are not known yet, so
    earlier gradients are scaled down when a part joins them.

    With the normalizer `selected` this is exact as long as the mined negatives are `loss.negative_ratio` times the
    positives in each part; where an image has fewer, the parts' classification losses are averaged by positives.

    Args:
        parts: How many parts there will be.
        config: Says what divides the loss.
        ranks: The processes that train together. Divisors are per process, so at least 1 over their number.
    """

    def __init__(self, parts: int, config: LossConfig, ranks: Ranks) -> None:
        self.parts = parts
        self.config = config
        self.mean = ranks.mean
        self.least = 1 / ranks.count
        self.counts: list[Tensor] = []
        """What divides the loss of each part so far."""
        self.done: list[Computed] = []

    def add(self, computed: Computed, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Take the next part, scale the gradients of those before it, and return what to differentiate now."""
        outputs, targets, parts = computed
        if self.parts == 1:
            self.done = [computed]
            return parts.total
        self.done.append((outputs.detach(), targets, parts))
        before = self._divisor()
        self.counts.append(self._count(outputs, parts))
        divisor = self._divisor()
        if len(self.done) > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, before / divisor)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
        return (parts.total - parts.l2) * (self.counts[-1].clamp(min=self.least) / divisor) + parts.l2

    def _divisor(self) -> Tensor:
        """Return what divides the loss of all parts so far."""
        return sum(self.counts, torch.zeros(())).clamp(min=self.least)

    def _count(self, outputs: HeadOutputs, parts: LossParts) -> Tensor:
        if self.config.normalizer in ("positives", "selected"):
            return self.mean(parts.positives.to(parts.total.dtype))
        return self.mean(torch.full_like(parts.total, len(outputs.logits)).detach())

    def whole(self) -> Computed:
        """Return the outputs, targets and loss of all parts as those of one batch; of several, without a history."""
        if self.parts == 1:
            return self.done[0]
        outputs, targets, parts = zip(*self.done, strict=True)
        return _join_outputs(outputs), _join_targets(targets), self._join_parts(parts)

    def _join_parts(self, parts: tuple[LossParts, ...]) -> LossParts:
        weights = torch.stack(self.counts).clamp(min=self.least) / self._divisor()
        classification, localization = (
            (torch.stack([getattr(part, name).detach() for part in parts]) * weights).sum()
            for name in ("classification", "localization")
        )
        l2 = torch.stack([part.l2.detach() for part in parts]).sum()
        return LossParts(
            classification + localization + l2,
            classification,
            localization,
            l2,
            torch.stack([part.positives for part in parts]).sum(),
            torch.cat([part.selected for part in parts]),
            torch.cat([part.class_losses for part in parts]),
            torch.cat([part.box_losses for part in parts]),
        )


def _join_outputs(outputs: tuple[HeadOutputs, ...]) -> HeadOutputs:
    logits, offsets = (torch.cat([getattr(part, name) for part in outputs]) for name in ("logits", "offsets"))
    return HeadOutputs(logits, offsets, outputs[0].feature_shapes)


def _join_targets(targets: tuple[Targets, ...]) -> Targets:
    """Return the targets of all parts; rows of positives name the image within the whole batch."""
    joined = [torch.cat(field) for field in zip(*targets, strict=True)]
    joined[Targets._fields.index("image")] = torch.cat(_shifted(targets))
    return Targets(*joined)


def _shifted(targets: tuple[Targets, ...]) -> list[Tensor]:
    images = [len(part.labels) for part in targets]
    return [part.image + sum(images[:place]) for place, part in enumerate(targets)]
