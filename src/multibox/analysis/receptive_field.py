"""Which part of an image a cell can see at all: its theoretical receptive field, found by following every layer.

Along each axis, cell i of a map sees the pixels low + i * step to high + i * step of the network's input. A convolution
or pool widens that by its kernel and multiplies the step by its stride; where branches join, both fields together are
seen. (Dumoulin and Visin 2016, arXiv:1603.07285; Araujo et al. 2019, distill.pub/2019/computing-receptive-fields.)
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from multibox.config import Config
from multibox.models.build import build_model
from multibox.structures import Size

_ATEN: Any = torch.ops.aten
_WHOLE_MAP = (_ATEN.adaptive_max_pool2d, _ATEN._adaptive_avg_pool2d, _ATEN.bmm, _ATEN.mm)
"""Operations after which every cell has seen the whole map."""
_REDUCTIONS = (_ATEN.mean, _ATEN.sum, _ATEN.amax)
"""These too, if they go over rows or columns."""


class Field(NamedTuple):
    """What the cells of a map see along one axis, in pixels of the network's input: low to high for the first cell."""

    low: float
    high: float
    step: float
    """Pixels from one cell to the next."""

    def at(self, cell: int) -> tuple[float, float]:
        """Return where the field of a cell begins and ends; it may reach over the image's border."""
        return self.low + cell * self.step, self.high + cell * self.step


class LevelField(NamedTuple):
    """The receptive field of a feature map's class logits."""

    y: Field
    x: Field

    def size(self, limit: Size) -> tuple[float, float]:
        """Return width and height in pixels of the input; the input's own where every cell sees all of it."""
        width, height = self.x.high - self.x.low, self.y.high - self.y.low
        return (
            width if math.isfinite(width) else float(limit.width),
            height if math.isfinite(height) else float(limit.height),
        )

    def box(self, row: int, column: int, limit: Size) -> tuple[float, float, float, float]:
        """Return the field of a cell as xyxy in pixels of the input, cut at its border."""
        (top, bottom), (left, right) = self.y.at(row), self.x.at(column)
        return (max(0.0, left), max(0.0, top), min(float(limit.width), right), min(float(limit.height), bottom))


@cache
@torch.inference_mode(False)  # in which convolutions are called by another name
def receptive_fields(config: Config) -> tuple[LevelField, ...]:
    """Return the receptive field of each feature map's class logits.

    Nothing is computed: the network runs on tensors without numbers. Whatever the trained weights make of it, a cell
    cannot see more than this.
    """
    with torch.device("meta"):
        model = build_model(config, 1).eval()
        image = torch.zeros(1, 3, *config.model.input_size)
    heads: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        heads.append(output)

    for head in model.heads.classification:
        head.register_forward_hook(keep)
    with torch.no_grad(), _Walk(image) as walk:
        model(image)
    return tuple(walk.field_of(output) for output in heads)


class _Walk(TorchDispatchMode):
    """Follows the receptive field through every operation of a forward pass."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        pixel = Field(0.0, 1.0, 1.0)
        self.fields = {id(image): LevelField(pixel, pixel)}
        self.alive: list[Tensor] = [image]
        """Kept, so that no other tensor gets the id of one that is gone."""

    def field_of(self, tensor: Tensor) -> LevelField:
        return self.fields[id(tensor)]

    def __torch_dispatch__(  # pyright: ignore[reportImplicitOverride]
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        known = [self.fields[id(tensor)] for tensor in _tensors(args) if id(tensor) in self.fields]
        if known:
            field = LevelField(_union(each.y for each in known), _union(each.x for each in known))
            field = _after(func.overloadpacket, args, field, output)
            for tensor in _tensors((output,)):
                self.fields[id(tensor)] = field
                self.alive.append(tensor)
        return output


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(cast("Iterable[Any]", value))


def _union(fields: Iterable[Field]) -> Field:
    fields = list(fields)
    return Field(min(each.low for each in fields), max(each.high for each in fields), fields[0].step)


def _after(operation: Any, args: tuple[Any, ...], field: LevelField, output: Any) -> LevelField:
    """Return the field after an operation on tensors that have `field`."""
    if operation is _ATEN.convolution:
        kernel, stride, padding, dilation = args[1].shape[2:], args[3], args[4], args[5]
        return _per_axis(_slide, field, kernel, stride, padding, dilation)
    if operation in (_ATEN.max_pool2d_with_indices, _ATEN.avg_pool2d):
        given: list[Any] = [*args[1:5]]
        # Trailing arguments that have their usual value are left out
        given += [given[0], 0, 1][len(given) - 1 :]
        if operation is _ATEN.avg_pool2d:
            given[3] = 1
        return _per_axis(_slide, field, given[0], given[1] or given[0], *given[2:])
    if operation is _ATEN.constant_pad_nd:
        left, top = args[1][0], args[1][2] if len(args[1]) > 2 else 0
        return LevelField(*(_shift(each, by) for each, by in zip(field, (top, left), strict=True)))
    if operation in (_ATEN.upsample_nearest2d, _ATEN.upsample_bilinear2d):
        beside = 0 if operation is _ATEN.upsample_nearest2d else 1
        return _per_axis(_enlarge, field, args[0].shape[2:], output.shape[2:], beside)
    spatial = operation in _REDUCTIONS and {int(axis) % args[0].dim() for axis in args[1]} & {2, 3}
    return _EVERYTHING if spatial or operation in _WHOLE_MAP else field


_EVERYTHING = LevelField(*(Field(-math.inf, math.inf, 0.0) for _ in range(2)))


def _per_axis(change: Any, field: LevelField, *options: Any) -> LevelField:
    """Apply `change` to both axes, with the options of each."""
    return LevelField(*(change(each, *(_at(value, axis) for value in options)) for axis, each in enumerate(field)))


def _at(value: int | Sequence[int], axis: int) -> int:
    return value if isinstance(value, int) else value[axis % len(value)]


def _slide(field: Field, kernel: int, stride: int, padding: int, dilation: int) -> Field:
    moved = _shift(field, padding)
    return Field(moved.low, moved.high + (kernel - 1) * dilation * field.step, field.step * stride)


def _shift(field: Field, cells: int) -> Field:
    """Return the field after so many cells of padding were put before the first one."""
    return Field(field.low - cells * field.step, field.high - cells * field.step, field.step)


def _enlarge(field: Field, before: int, after: int, beside: int) -> Field:
    """Return the field of an enlarged map, whose cells lie inside those of the smaller one."""
    step = field.step * before / after
    return Field(field.low - (field.step - step) - beside * field.step, field.high + beside * field.step, step)
