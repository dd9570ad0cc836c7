"""Parameters of Apache MXNet, read from its own file format with numpy alone, and the TinySSD they may hold.

A `.params` file is a list of arrays and their names, little-endian: the number 0x112, eight reserved bytes, the count
and the arrays, the count and the names. An array is its format's number, a storage type, the shape, the device it was
on, the number of its type and the values (`NDArray::Save` in MXNet's `src/ndarray/ndarray.cc`; the formats before
storage types existed lack that field, the oldest also the number).
"""

# pyright: reportUnknownMemberType=false

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.errors import WeightsError
from multibox.importers import gluoncv
from multibox.importers.common import finish, name_classes, require
from multibox.models.checkpoint import Checkpoint
from multibox.presets import resolve

LIST = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("f4", "f8", "f2", "u1", "i4", "i1", "i8", "?", "i2", "u2", "u4", "u8")
"""NumPy's names of MXNet's types, in their order."""
MOST_AXES = 32

Array = NDArray[np.generic]


def read(file: Path, class_names: list[str]) -> Checkpoint:
    """Read GluonCV's SSD over VGG16 or a TinySSD.

    Raises:
        WeightsError: the file is broken or of another network.
    """
    return convert(file, read_params(file), class_names)


def convert(file: Path, params: Mapping[str, Array], class_names: list[str]) -> Checkpoint:
    """Return the checkpoint that the parameters of `file` make; their names tell the network."""
    if gluoncv.is_ssd(params):
        return gluoncv.convert(file, params, class_names)
    state = {name: torch.from_numpy(array) for name, array in _tinyssd(params, file).items()}
    logits, coordinates = (
        len(require(state, f"heads.{kind}.0.bias", file, "a TinySSD")) for kind in ("classification", "localization")
    )
    classes = name_classes(file, logits * 4 // max(1, coordinates) - 1, class_names)
    return finish(file, resolve("tinyssd", "d2l"), classes, state, f"MXNet parameters {file.name}")


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

    def refuse(self, what: str) -> NoReturn:
        raise WeightsError(f"{self.path} {what}; save the parameters again with MXNet's save or save_parameters")


def read_params(path: Path) -> dict[str, Array]:
    """Return the arrays of a `.params` file by name, in the file's order, without the `arg:` and `aux:` of exports.

    Raises:
        WeightsError: the file cannot be read, is of another kind or incomplete, or holds nameless or sparse arrays.
    """
    try:
        reader = _Reader(path, path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}; give the .params file that MXNet wrote") from None
    if reader.data[:8] != struct.pack("<Q", LIST):
        kind = " (it looks like an archive of NumPy, PyTorch or MXNet 2)" if reader.data[:2] == b"PK" else ""
        reader.refuse(f"is no parameter file of MXNet 1{kind}: it begins with {reader.data[:8]!r}")
    _, _, count = reader.numbers("QQQ")
    arrays = [_array(reader, number) for number in range(count)]
    (count,) = reader.numbers("Q")
    names = [_name(reader) for _ in range(count)]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        reader.refuse(f"names {len(set(names))} of its {len(arrays)} arrays, but every one needs a name of its own")
    if reader.place != len(reader.data):
        reader.refuse(f"has {len(reader.data) - reader.place} bytes after its last name, so it is damaged")
    return dict(zip(names, arrays, strict=True))


def _array(reader: _Reader, number: int) -> Array:
    """Read one array in whichever of the four formats it has."""
    (magic,) = reader.numbers("I")
    if magic in (V2, V3):
        (storage,) = reader.numbers("i")
        if storage != 0:
            reader.refuse(f"holds array {number} in storage type {storage} (sparse), but only dense arrays can be read")
    axes = reader.numbers("i")[0] if magic in (V1, V2, V3) else magic
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
    raw = reader.take(*reader.numbers("Q"))
    try:
        return re.sub("^(arg|aux):", "", raw.decode())
    except UnicodeDecodeError:
        reader.refuse(f"holds the name {raw[:40]!r}, which is no text")


BLOCKS_OF_LEVEL = (3, 1, 1, 1, 0)
"""Down-sampling blocks before each pair of heads of TinySSD."""
FIELDS = {"gamma": "weight", "beta": "bias"}


def _tinyssd(params: Mapping[str, Array], file: Path) -> dict[str, Array]:
    """Return TinySSD's parameters under our names; a name that it does not know stays as it is.

    Both of MXNet's naming schemes are understood: those of `save_parameters` (`blk_0.0.0.weight`) and those of
    `collect_params().save` (`conv0_weight`, numbered in order of creation, with any prefix and first number).

    Raises:
        WeightsError: names are numbered, but not as many layers as TinySSD has.
    """
    convs, norms = _layers("conv"), _layers("batchnorm")
    if any(name.startswith("blk_") for name in params):
        ours = convs | norms
    else:
        ours = _numbered(params, "conv", convs.values(), file)
        ours |= _numbered(params, "batchnorm", norms.values(), file)
    renamed: dict[str, Array] = {}
    for name, array in params.items():
        layer, _, field = re.sub(r"^(?:.*_)?((?:conv|batchnorm)\d+)_", r"\1.", name).rpartition(".")
        renamed[f"{ours[layer]}.{FIELDS.get(field, field)}" if layer in ours else name] = array
    return renamed


def _layers(kind: str) -> dict[str, str]:
    """Return our names of TinySSD's convolutions or batch norms by MXNet's, in the order of their creation."""
    conv = kind == "conv"
    layers: dict[str, str] = {}
    for level, blocks in enumerate(BLOCKS_OF_LEVEL):
        for block in range(blocks):
            theirs = f"blk_{level}.{block}" if level == 0 else f"blk_{level}"
            places = ((0, "conv1"), (3, "conv2")) if conv else ((1, "norm1"), (4, "norm2"))
            layers |= {f"{theirs}.{place}": f"backbone.stages.{level}.{block}.{ours}" for place, ours in places}
        if conv:
            layers |= {f"cls_{level}": f"heads.classification.{level}", f"bbox_{level}": f"heads.localization.{level}"}
    return layers


def _numbered(params: Mapping[str, Array], kind: str, ours: Iterable[str], file: Path) -> dict[str, str]:
    """Return our names of layers that are numbered in the order of their creation, by kind and number."""
    matches = (re.fullmatch(rf"(?:.*_)?{kind}(\d+)_\w+", name) for name in params)
    numbers, ours = sorted({int(match[1]) for match in matches if match}), list(ours)
    if len(numbers) != len(ours):
        holes = sorted(set(range(numbers[0], numbers[-1])) - set(numbers)) if numbers else []
        hint = f", {kind}{holes[0]} is missing" if holes else ""
        raise WeightsError(f"{file} has {len(numbers)} {kind} layers, TinySSD has {len(ours)}{hint}; give a TinySSD")
    return {f"{kind}{number}": name for number, name in zip(numbers, ours, strict=True)}
