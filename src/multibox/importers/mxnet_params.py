"""Parameters of Apache MXNet, read from its own file format with numpy alone, and the TinySSD they may hold.

A `.params` file is a list of arrays and their names, little-endian: the number 0x112, eight reserved bytes, the count
and the arrays, the count and the names. An array is its format's number, a storage type, the shape, the device it was
on, the number of its type and the values (`NDArray::Save` in MXNet's `src/ndarray/ndarray.cc`; the formats before
storage types existed lack that field, the oldest also the number).
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.errors import WeightsError
from multibox.importers import gluoncv
from multibox.importers.common import class_names, finish
from multibox.models.checkpoint import Checkpoint
from multibox.presets import resolve

LIST = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("f4", "f8", "f2", "u1", "i4", "i1", "i8", "?", "i2", "u2", "u4", "u8")
MOST_AXES = 32

Array = NDArray[np.generic]


@dataclass
class _Reader:
    """A file's bytes and how far they are read."""

    path: Path
    data: bytes
    place: int = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            self.refuse(f"ends after {len(self.data)} bytes where {count} more were expected at byte {self.place}")
        self.place += count
        return self.data[self.place - count : self.place]

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def number(self, layout: str) -> int:
        return self.numbers(layout)[0]

    def refuse(self, what: str) -> NoReturn:
        raise WeightsError(f"{self.path} {what}; save the parameters again with MXNet's save or save_parameters")


def read_params(path: str | Path) -> dict[str, Array]:
    """Return the arrays of a `.params` file by name, in the file's order, without the `arg:` and `aux:` of exports.

    Raises:
        WeightsError: If the file cannot be read, is of another kind, incomplete, or holds nameless or sparse arrays.
    """
    path = Path(path)
    try:
        reader = _Reader(path, path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}; give the .params file that MXNet wrote") from None
    if reader.data[:8] != struct.pack("<Q", LIST):
        kind = " (it looks like an archive of NumPy, PyTorch or MXNet 2)" if reader.data[:2] == b"PK" else ""
        reader.refuse(f"is no parameter file of MXNet 1{kind}: it begins with {reader.data[:8]!r}")
    reader.take(16)
    arrays = [_array(reader, number) for number in range(reader.number("Q"))]
    names = [_name(reader) for _ in range(reader.number("Q"))]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        reader.refuse(f"names {len(set(names))} of its {len(arrays)} arrays, but every one needs a name of its own")
    if reader.place != len(reader.data):
        reader.refuse(f"has {len(reader.data) - reader.place} bytes after its last name, so it is damaged")
    return dict(zip(names, arrays, strict=True))


def _array(reader: _Reader, number: int) -> Array:
    """Read one array in whichever of the four formats it has."""
    magic = reader.number("I")
    if magic in (V2, V3) and (storage := reader.number("i")) != 0:
        reader.refuse(f"holds array {number} in storage type {storage} (sparse), but only dense arrays can be read")
    axes = reader.number("i") if magic in (V1, V2, V3) else magic
    if not 0 <= axes <= MOST_AXES:
        reader.refuse(
            f"holds array {number} in an unknown format ({axes:#x} axes), so it is damaged or of another kind"
        )
    shape = reader.numbers(f"{axes}{'q' if magic in (V1, V2, V3) else 'I'}")
    if (axes == 0 and magic != V3) or min(shape, default=0) < 0:
        reader.refuse(f"holds array {number} without values, so the network was saved before its first run")
    _, _, flag = reader.numbers("iii")
    if not 0 <= flag < len(DTYPES):
        reader.refuse(f"holds array {number} of MXNet's type {flag}, which NumPy lacks; cast the network to float32")
    dtype = np.dtype(f"<{DTYPES[flag]}")
    values = np.frombuffer(reader.take(math.prod(shape) * dtype.itemsize), dtype)
    return values.reshape(shape).astype(dtype.newbyteorder("="))


def _name(reader: _Reader) -> str:
    """Read one name."""
    raw = reader.take(reader.number("Q"))
    try:
        return re.sub("^(arg|aux):", "", raw.decode())
    except UnicodeDecodeError:
        reader.refuse(f"holds the name {raw[:40]!r}, which is no text")


WIDTHS = ((3, 16), (16, 32), (32, 64)), ((64, 128),), ((128, 128),), ((128, 128),)
"""Channels in and out of the down-sampling blocks of each stage."""
HEADS = (64, 128, 128, 128, 128)
"""Channels that the heads of each level read."""
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
CONVOLUTION = {"weight": "weight", "bias": "bias"}


@dataclass(frozen=True)
class _Layer:
    """One layer under its two names, with what its arrays must look like."""

    ours: str
    theirs: str
    """As `save_parameters` has it."""
    shape: tuple[int, ...]
    """Of `weight`; -1 for any."""

    @property
    def norm(self) -> bool:
        return len(self.shape) == 1


def tinyssd_state_dict(params: Mapping[str, Array], source: str = "the parameters") -> dict[str, Array]:
    """Return TinySSD's parameters under the names of our network.

    Both of MXNet's naming schemes are understood: those of `save_parameters` (`blk_0.0.0.weight`) and those of
    `collect_params().save` (`conv0_weight`, numbered in order of creation, with any prefix and first number).

    Args:
        params: What `read_params` returned.
        source: How to call them in a message: the file.

    Raises:
        WeightsError: If a layer is missing, superfluous or of another shape.
    """
    layers = list(_layers())
    if not any(name.startswith("blk_") for name in params):
        params = _structural(params, layers, source)
    wanted = {f"{layer.theirs}.{theirs}" for layer in layers for theirs in _fields(layer).values()}
    if missing := sorted(wanted - set(params)):
        raise WeightsError(f"{source} lacks {missing[0]} ({len(missing)} missing in all); give a whole TinySSD")
    if extra := sorted(set(params) - wanted):
        raise WeightsError(
            f"{source} has {extra[0]}, which TinySSD has not ({len(extra)} such in all); give a TinySSD with "
            "four stages of blocks, a global pool and five heads"
        )
    state: dict[str, Array] = {}
    for layer in layers:
        for ours, theirs in _fields(layer).items():
            shape = layer.shape if ours == "weight" else layer.shape[:1]
            state[f"{layer.ours}.{ours}"] = _checked(params[f"{layer.theirs}.{theirs}"], shape, layer, theirs, source)
        if layer.norm:
            state[f"{layer.ours}.num_batches_tracked"] = np.zeros((), np.int64)
        elif len(state[f"{layer.ours}.bias"]) != len(state[f"{layer.ours}.weight"]):
            raise WeightsError(f"{source}: {layer.theirs}.bias does not fit {layer.theirs}.weight; give a TinySSD")
    tinyssd_heads(state, source)
    return state


def tinyssd_heads(state: Mapping[str, Array], source: str = "the parameters") -> tuple[int, tuple[int, ...]]:
    """Return the number of classes, background not counted, and the anchors of a cell on each level.

    Args:
        state: What `tinyssd_state_dict` returned.
        source: How to call it in a message.

    Raises:
        WeightsError: If the levels disagree.
    """
    offsets = [len(state[f"heads.localization.{level}.bias"]) for level in range(len(HEADS))]
    scores = [len(state[f"heads.classification.{level}.bias"]) for level in range(len(HEADS))]
    logits = scores[0] * 4 // max(1, offsets[0])
    for level, (coordinates, logit_count) in enumerate(zip(offsets, scores, strict=True)):
        if coordinates % 4 or logits < 2 or logit_count != coordinates // 4 * logits:
            raise WeightsError(
                f"{source}: heads of level {level} have {logit_count} class and {coordinates} box channels, expected "
                f"{logits} and 4 for each anchor; the five levels must share their classes"
            )
    return logits - 1, tuple(count // 4 for count in offsets)


def _layers() -> Iterator[_Layer]:
    """Yield the layers in the order in which the original creates them."""
    for level, channels in enumerate(HEADS):
        for block, (before, after) in enumerate(WIDTHS[level] if level < len(WIDTHS) else ()):
            ours = f"backbone.stages.{level}.{block}"
            theirs = f"blk_{level}.{block}" if level == 0 else f"blk_{level}"
            yield _Layer(f"{ours}.conv1", f"{theirs}.0", (after, before, 3, 3))
            yield _Layer(f"{ours}.norm1", f"{theirs}.1", (after,))
            yield _Layer(f"{ours}.conv2", f"{theirs}.3", (after, after, 3, 3))
            yield _Layer(f"{ours}.norm2", f"{theirs}.4", (after,))
        yield _Layer(f"heads.classification.{level}", f"cls_{level}", (-1, channels, 3, 3))
        yield _Layer(f"heads.localization.{level}", f"bbox_{level}", (-1, channels, 3, 3))


def _fields(layer: _Layer) -> dict[str, str]:
    """Return our names of a layer's arrays with MXNet's."""
    return NORM if layer.norm else CONVOLUTION


def _structural(params: Mapping[str, Array], layers: list[_Layer], source: str) -> dict[str, Array]:
    """Turn names numbered in order of creation into those of `save_parameters`."""
    renamed: dict[str, Array] = {}
    for kind, norm in (("conv", False), ("batchnorm", True)):
        mine = [layer for layer in layers if layer.norm == norm]
        parsed = [(re.fullmatch(rf"(?:.*_)?{kind}(\d+)_(\w+)", name), name) for name in params]
        numbered = [(int(match[1]), match[2], name) for match, name in parsed if match]
        found = sorted({number for number, _, _ in numbered})
        if len(found) != len(mine):
            holes = sorted(set(range(found[0], found[-1])) - set(found)) if found else []
            hint = f", {kind}{holes[0]} is missing" if holes else ""
            raise WeightsError(
                f"{source} has {len(found)} {kind} layers, TinySSD has {len(mine)}{hint}; give a TinySSD"
            )
        place = {number: layer.theirs for number, layer in zip(found, mine, strict=True)}
        renamed |= {f"{place[number]}.{field}": params[name] for number, field, name in numbered}
    taken = len(renamed)
    if taken != len(params):
        raise WeightsError(f"{source} has {len(params)} arrays, {taken} of them TinySSD's; give a TinySSD alone")
    return renamed


def _checked(array: Array, shape: tuple[int, ...], layer: _Layer, field: str, source: str) -> Array:
    """Return the array as float32, or say that its shape is wrong."""
    fits = array.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = str(list(shape)).replace("-1", "any")
        raise WeightsError(
            f"{source}: {layer.theirs}.{field} ({layer.ours}) has shape {list(array.shape)}, expected {wanted}; "
            "give a TinySSD"
        )
    return array.astype(np.float32)


def read(file: Path, names: list[str]) -> Checkpoint:
    """Read GluonCV's SSD over VGG16, or a TinySSD with the anchors of post B; which one is told by the names."""
    params = read_params(file)
    if gluoncv.is_ssd(params):
        return gluoncv.read(file, params, names)
    state = tinyssd_state_dict(params, str(file))
    classes, per_cell = tinyssd_heads(state, str(file))
    if set(per_cell) != {4}:
        raise WeightsError(f"{file}: {per_cell} anchors per cell, but TinySSD's sizes and ratios give 4 on every map")
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    known = class_names(file, classes, names)
    return finish(file, resolve("tinyssd", "d2l"), known, tensors, f"MXNet parameters {file.name}")
