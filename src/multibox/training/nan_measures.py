"""Makes one step again without changing anything, and measures what it computes, level by level and layer by layer."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn

from multibox.models.anchor_layout import anchors_per_cell
from multibox.tensors import Batch
from multibox.training.accumulating import Computed
from multibox.training.guard import copy_all, statistics_of
from multibox.training.step import Stepper

Number = float | None
"""None, null in JSON, where it is not finite."""


class Level(Struct, frozen=True):
    """What the loss of one feature map consists of."""

    cells: tuple[int, int]
    """Height and width of the map."""
    positives: int
    class_loss: Number
    """Summed over the anchors that are learnt, before any divisor and weight."""
    box_loss: Number
    """Summed over positives, before any divisor and weight."""
    not_finite: int
    """Logits and offsets of the map that are not finite."""


class Layer(Struct, frozen=True):
    """One tensor of weights or statistics."""

    name: str
    gradient: Number
    """Length of its gradient, not clipped; 0 where it has none."""
    largest: Number
    """Largest absolute value."""
    not_finite: int
    """Values of the tensor itself that are not finite."""


class Measured(Struct, frozen=True):
    """What one step computes, without the update."""

    loss: Number
    class_loss: Number
    box_loss: Number
    l2: Number
    gradient: Number
    """Length of the whole gradient, not clipped."""
    levels: tuple[Level, ...]
    layers: tuple[Layer, ...]
    first: str
    """First module of the forward pass whose output is not finite; empty if there is none."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite."""
        return self.loss is not None and self.gradient is not None


def measure(stepper: Stepper, batches: Sequence[Batch], *, precision: str | None = None) -> Measured:
    """Compute loss and gradients of a step and put everything back.

    Args:
        stepper: Of before the step.
        batches: One per process that trained together.
        precision: Number format of the forward pass; None takes the stepper's.
    """
    found: list[Computed] = []
    sums: dict[str, Tensor] = {}
    # Before the forward pass, which changes the statistics of batch norms
    weights = [_weights(name, tensor) for name, tensor in stepper.model.state_dict().items()]
    with _put_back(stepper), _first_not_finite(stepper.model) as first:
        for batch in batches:
            found.append(stepper.compute(batch, stepper.model, precision))
            for name, parameter in stepper.model.named_parameters():
                if parameter.grad is not None:
                    share = parameter.grad / (len(batches) * stepper.guard.scaler.get_scale())
                    sums[name] = sums[name] + share if name in sums else share
    parts = [parts for _, _, parts in found]
    return Measured(
        _number(torch.stack([each.total for each in parts]).mean()),
        _number(torch.stack([each.classification for each in parts]).mean()),
        _number(torch.stack([each.localization for each in parts]).mean()),
        _number(torch.stack([each.l2 for each in parts]).mean()),
        _number(nn.utils.get_total_norm(sums.values())),
        _levels(found, anchors_per_cell(stepper.config)),
        tuple(_with_gradient(layer, sums) for layer in weights if layer is not None),
        first[0] if first else "",
    )


@contextmanager
def other_weights(stepper: Stepper, weights: dict[str, Tensor]) -> Generator[None]:
    """Give the network other weights for a while."""
    own = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    stepper.model.load_state_dict(weights)
    try:
        yield
    finally:
        stepper.model.load_state_dict(own)


@contextmanager
def _put_back(stepper: Stepper) -> Generator[None]:
    statistics = statistics_of(stepper.model)
    kept = [tensor.clone() for tensor in statistics]
    stepper.optimizer.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        stepper.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            copy_all(statistics, kept)


@contextmanager
def _first_not_finite(model: nn.Module) -> Generator[list[str]]:
    """Yield a list that gets the names of modules whose output is not finite, as they are computed."""
    names: list[str] = []

    leaves: list[tuple[str, nn.Module]] = [
        (name, module) for name, module in _modules(model) if not list(module.children())
    ]
    handles = [module.register_forward_hook(_looker(name, names)) for name, module in leaves]  # pyright: ignore[reportUnknownMemberType]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from model.named_modules()  # pyright: ignore[reportUnknownMemberType]


def _looker(name: str, names: list[str]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            names.append(name)

    return look


def _weights(name: str, tensor: Tensor) -> Layer | None:
    """Return what is known of a tensor before the step; None of an empty one and of counters."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    return Layer(name, 0.0, _number(tensor.abs().max()), int((~torch.isfinite(tensor)).sum()))


def _with_gradient(layer: Layer, gradients: dict[str, Tensor]) -> Layer:
    if layer.name not in gradients:
        return layer
    return replace(layer, gradient=_number(gradients[layer.name].float().square().sum().sqrt()))


@torch.no_grad()
def _levels(found: Sequence[Computed], per_cell: Sequence[int]) -> tuple[Level, ...]:
    shapes = found[0][0].feature_shapes
    ends = list(accumulate(shape[0] * shape[1] * count for shape, count in zip(shapes, per_cell, strict=True)))
    levels: list[Level] = []
    for shape, start, end in zip(shapes, [0, *ends], ends, strict=False):
        sums = torch.zeros(4, dtype=torch.float64)
        for outputs, targets, parts in found:
            here = targets.valid & (targets.anchor >= start) & (targets.anchor < end)
            classes = torch.where(parts.selected, parts.class_losses, 0.0)[:, start:end]
            odd = (~torch.isfinite(outputs.logits[:, start:end])).sum()
            odd += (~torch.isfinite(outputs.offsets[:, start:end])).sum()
            values = [classes.sum(), torch.where(here, parts.box_losses, 0.0).sum(), here.sum(), odd]
            sums += torch.stack([value.double().cpu() for value in values])
        classes, boxes, positives, odd = sums
        levels.append(Level((shape[0], shape[1]), int(positives), _number(classes), _number(boxes), int(odd)))
    return tuple(levels)


def _number(value: Tensor) -> Number:
    number = float(value.detach())
    return number if abs(number) < float("inf") else None
