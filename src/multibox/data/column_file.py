"""Arrays in one file that is mapped into memory, with a header in JSON; damage of any byte is noticed.

The layout: 16 bytes that say what it is, the length of the header (8 bytes, little-endian) and its SHA-256 (32), the
header, and the arrays, each at a multiple of 64 bytes. The header holds for each array its type, shape, place and
CRC-32. Numbers are little-endian. No pickle: reading it runs no code.
"""

import contextlib
import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from multibox.columns import map_file
from multibox.files import whole_file

Arrays = Mapping[str, NDArray[Any]]

_MAGIC = b"multibox-columns"
_FRONT = struct.Struct("<16sQ32s")
_ALIGNMENT = 64
_BLOCK = 1 << 22
_TYPES = ("<f8", "<i8", "<i4", "|u1", "|b1")
_LONGEST_HEADER = 1 << 28


@dataclass(frozen=True)
class ColumnFile:
    """What a file of columns holds."""

    about: dict[str, Any]
    """What its writer said of it."""
    arrays: dict[str, NDArray[Any]]
    """Mapped, read-only."""


def write_columns(folder: Path, stem: str, about: Mapping[str, Any], arrays: Arrays) -> Path:
    """Write arrays as FOLDER/STEM-DIGEST.columns and return its path; equal content has the same name.

    The name follows the content, so that a file is never replaced by another while a process has it mapped.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, values in arrays.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + values.nbytes
        kind = values.dtype.newbyteorder("<").str
        entries[name] = {"type": kind, "shape": values.shape, "start": start, "crc": _crc(_parts(values))}
    header = json.dumps({"about": about, "arrays": entries, "end": end}).encode()
    digest = hashlib.sha256(header).digest()
    path = folder / f"{stem}-{digest[:8].hex()}.columns"
    if path.is_file() and read_columns(path) is not None:
        return path
    # Another process that has the same content mapped keeps Windows from replacing it
    with contextlib.suppress(PermissionError), whole_file(path) as file:
        file.write(_FRONT.pack(_MAGIC, len(header), digest) + header)
        base = _aligned(file.tell())
        for name, values in arrays.items():
            file.write(bytes(base + entries[name]["start"] - file.tell()))
            for part in _parts(values):
                file.write(part)
    return path


def read_columns(path: Path) -> ColumnFile | None:
    """Return what a file of columns holds; None where there is none, or where it is damaged or of another version.

    Every byte that counts is compared with its checksum, by reading, so that no page of the mapping is touched.
    """
    try:
        with path.open("rb") as file:
            header, base = _read_header(file)
            if os.fstat(file.fileno()).st_size != max(base + header["end"], file.tell()):
                return None
            if not all(_is_sound(file, base, entry) for entry in header["arrays"].values()):
                return None
        mapped = map_file(path)
        arrays: dict[str, NDArray[Any]] = {}
        for name, entry in header["arrays"].items():
            kind, shape = np.dtype(entry["type"]), tuple(map(int, entry["shape"]))
            count = math.prod(shape)
            flat = np.frombuffer(mapped, kind, count, base + entry["start"]) if count else np.zeros(0, kind)
            arrays[name] = flat.reshape(shape)
        return ColumnFile(header["about"], arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Whatever stands there is no such file; the caller makes another
        return None


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header and where the arrays begin.

    Raises:
        ValueError: it is no header, or damaged.
    """
    front = file.read(_FRONT.size)
    if len(front) != _FRONT.size:
        raise ValueError("too short")
    magic, length, digest = _FRONT.unpack(front)
    if magic != _MAGIC or length > _LONGEST_HEADER:
        raise ValueError("another kind of file")
    header = file.read(length)
    if hashlib.sha256(header).digest() != digest:
        raise ValueError("damaged")
    return json.loads(header), _aligned(_FRONT.size + length)


def _is_sound(file: BinaryIO, base: int, entry: dict[str, Any]) -> bool:
    if entry["type"] not in _TYPES:
        return False
    left = np.dtype(entry["type"]).itemsize * math.prod(entry["shape"])
    file.seek(base + entry["start"])

    def parts() -> Iterator[bytes]:
        nonlocal left
        while left > 0 and (part := file.read(min(left, _BLOCK))):
            left -= len(part)
            yield part

    return _crc(parts()) == entry["crc"] and left == 0


def _parts(values: NDArray[Any]) -> Iterator[bytes]:
    """Yield the bytes of an array, little-endian, in blocks."""
    flat = values.reshape(-1)
    rows = max(1, _BLOCK // max(1, flat.itemsize))
    for first in range(0, len(flat), rows):
        part = np.ascontiguousarray(flat[first : first + rows])
        yield part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes()


def _crc(parts: Iterator[bytes]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
