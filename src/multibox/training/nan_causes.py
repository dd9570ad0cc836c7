"""Why a step's loss or gradient is not finite: found by making the step again with one thing changed at a time."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct
from torch import Tensor

from multibox.tensors import Batch
from multibox.training.nan_measures import Layer, Measured, measure, other_weights
from multibox.training.optimizer import known_rate
from multibox.training.step import Stepper

Kind = Literal["box", "class index", "learning rate", "precision", "weights", "unknown"]
ENORMOUS = 4.0
"""Images' widths or heights beside the image from which a coordinate is called enormous."""
TINY = 1e-5
"""Share of the image's width or height below which a box is called tiny."""
LOWER = 4.0
"""The learning rate that is advised is so many times lower."""
MOST_RATE, USUAL_RATE = 1.0, 1e-3
GREW = 10.0
"""The loss has grown if it is so many times the lowest one."""
SMOOTH = 5
"""Losses whose mean is looked at where there are more: they differ from batch to batch."""


class Cause(Struct, frozen=True):
    """Why, in words."""

    kind: Kind
    sentence: str
    advice: str


class Odd(Struct, frozen=True):
    """A label that no step can learn from."""

    image: str
    row: int
    """Among the image's labels, from 0."""
    what: str


class Evidence(Struct, frozen=True):
    """What is known beside the batch and the network."""

    history: tuple[tuple[int, float, float], ...] = ()
    """Number, loss and gradient norm of the steps before."""
    earlier_step: int | None = None
    """Step of the weights saved last; None if they were not tried."""
    earlier_loss: float | None = None
    """Loss of the batch with them; None if it was not finite or not tried."""
    grown: tuple[str, float] | None = None
    """The layer that grew most since, and how many times."""


def odd_boxes(batches: Sequence[Batch]) -> list[Odd]:
    """Return boxes that are not finite, without area, enormous or tiny."""
    odd: list[Odd] = []
    for batch in batches:
        for name, row, box, label in _rows(batch):
            if label >= 0 and (what := _what_is_odd(box)):
                odd.append(Odd(name, row, f"the box {_box(box)} {what}"))
    return odd


def odd_classes(batches: Sequence[Batch], classes: int) -> list[Odd]:
    """Return class indices that the network does not have."""
    return [
        Odd(name, row, f"the class index {label}, expected 0 to {classes - 1}")
        for batch in batches
        for name, row, _, label in _rows(batch)
        if label >= classes or label < -1
    ]


def without(batch: Batch, odd: Sequence[Odd]) -> Batch:
    """Return the batch without some of its labels."""
    boxes, labels = batch.gt_xyxy.clone(), batch.gt_labels.clone()
    for one in odd:
        for place, name in enumerate(batch.image_names):
            if name == one.image and one.row < labels.shape[1]:
                boxes[place, one.row], labels[place, one.row] = -1.0, -1
    return dataclasses.replace(batch, gt_xyxy=boxes, gt_labels=labels)


def try_earlier(stepper: Stepper, batches: Sequence[Batch], step: int, weights: dict[str, Tensor]) -> Evidence:
    """Return what the weights of an earlier step would have computed of the batch, and what has grown since."""
    grown = _largest_growth(weights, stepper.model.state_dict())
    with other_weights(stepper, weights):
        measured = measure(stepper, batches)
    return Evidence(earlier_step=step, earlier_loss=measured.loss if measured.finite else None, grown=grown)


def find_cause(stepper: Stepper, batches: Sequence[Batch], measured: Measured, evidence: Evidence) -> Cause:
    """Return the likely cause of a step that was measured; the network is of before the step.

    A part is called the cause where the step is finite without it.
    """
    grew, rate = growth(evidence), known_rate(stepper.config.train)
    if damaged := [layer for layer in measured.layers if layer.not_finite]:
        return _damaged(damaged, evidence, grew, rate)
    odd = odd_boxes(batches)
    if odd and measure(stepper, [without(batch, odd) for batch in batches]).finite:
        return _labels("box", odd)
    low = stepper.precision != "float32"
    if low and not grew and measure(stepper, batches, precision="float32").finite:
        return Cause(
            "precision",
            f"{stepper.precision} overflows{_at(measured)}; in float32 the same step is finite",
            "--set train.precision=float32"
            + ("" if stepper.precision == "bfloat16" else " or bfloat16 where the machine has it"),
        )
    if grew or evidence.earlier_loss is not None:
        return Cause("learning rate", _rate_words(evidence, grew, rate), f"lower it, {_lower(rate)}")
    return Cause(
        "unknown",
        f"no single cause was found: labels and weights are finite{_at(measured)}",
        f"try a lower learning rate, {_lower(rate)}",
    )


def class_cause(odd: Sequence[Odd]) -> Cause:
    """Return the cause that `odd_classes` found."""
    return _labels("class index", odd)


def growth(evidence: Evidence) -> tuple[float, float] | None:
    """Return the lowest and the last mean loss where the loss grew tenfold or more before the step."""
    losses = [loss for _, loss, _ in evidence.history]
    if len(losses) < 2:
        return None
    wide = SMOOTH if len(losses) > SMOOTH else 1
    means = [sum(losses[i : i + wide]) / wide for i in range(len(losses) - wide + 1)]
    lowest, last = min(means), losses[-1]
    return (lowest, last) if not last <= GREW * lowest else None


def _rows(batch: Batch) -> Iterator[tuple[str, int, list[float], int]]:
    """Yield image name, row, box and label of everything in a batch, padding too."""
    boxes, labels = batch.gt_xyxy.cpu().numpy(), batch.gt_labels.cpu().numpy()
    for place, name in enumerate(batch.image_names):
        for row, label in enumerate(labels[place]):
            yield name, row, [float(value) for value in boxes[place, row]], int(label)


def _what_is_odd(box: Sequence[float]) -> str:
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box):
        return "is not finite"
    if x2 <= x1 or y2 <= y1:
        return "has no area"
    if min(box) < -ENORMOUS or max(box) > 1 + ENORMOUS:
        return "is enormous"
    return "is tiny" if min(x2 - x1, y2 - y1) < TINY else ""


def _labels(kind: Kind, odd: Sequence[Odd]) -> Cause:
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return Cause(
        kind,
        f"{odd[0].image}, label {odd[0].row + 1}: {odd[0].what}{more} (boxes as shares of the image, x1 y1 x2 y2)"
        if kind == "box"
        else f"{odd[0].image}, label {odd[0].row + 1}: {odd[0].what}{more}",
        "correct the label; multibox doctor DATA finds others of its kind",
    )


def _damaged(damaged: Sequence[Layer], evidence: Evidence, grew: tuple[float, float] | None, rate: float) -> Cause:
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    values = f"{damaged[0].not_finite} values of {damaged[0].name} are not finite{more}"
    if grew:
        return Cause("learning rate", f"{_rate_words(evidence, grew, rate)}, {values}", f"lower it, {_lower(rate)}")
    return Cause(
        "weights",
        f"the weights were damaged before this step: {values}",
        f"look at the file that train.weights names; if training made them, lower the learning rate, {_lower(rate)}",
    )


def _rate_words(evidence: Evidence, grew: tuple[float, float] | None, rate: float) -> str:
    words = [f"the learning rate {rate:g} is too high"]
    if grew:
        words.append(f"the loss grew from {grew[0]:.3g} to {grew[1]:.3g}")
    if evidence.grown and evidence.grown[1] > 2:
        words.append(f"the weights of {evidence.grown[0]} grew {evidence.grown[1]:.3g}-fold")
    if evidence.earlier_loss is not None:
        words.append(
            f"with the weights of step {evidence.earlier_step} the loss of this batch is {evidence.earlier_loss:.3g}"
        )
    return ", ".join(words)


def lower_rate(rate: float) -> float:
    """Return the rate to try: a quarter, of one that is beyond all reason a usual one."""
    return rate / LOWER if rate <= MOST_RATE else USUAL_RATE


def _lower(rate: float) -> str:
    return f"in another run, such as --set train.lr={lower_rate(rate):g}, or auto, which looks for one"


def _at(measured: Measured) -> str:
    if measured.first:
        return f", first in the output of {measured.first}"
    bad = next((layer.name for layer in measured.layers if layer.gradient is None), "")
    return f", first in the gradient of {bad}" if bad else ""


def _box(box: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in box)


def _largest_growth(before: dict[str, Tensor], now: dict[str, Tensor]) -> tuple[str, float] | None:
    """Return the layer whose weights grew most between two states, and how many times."""
    grown: tuple[str, float] | None = None
    for name, tensor in before.items():
        length = float(tensor.double().square().sum().sqrt())
        if tensor.dim() > 1 and length > 0:
            ratio = float(now[name].double().square().sum().sqrt()) / length
            if math.isfinite(ratio) and (grown is None or ratio > grown[1]):
                grown = name, ratio
    return grown
