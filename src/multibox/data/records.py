"""MXNet's RecordIO files: framed records, and in each a header, a label of floats and an encoded image."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from multibox.errors import DataError

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")  # IRHeader: count of label floats, the label where that count is 0, id, id2
_LENGTH_BITS = 29
_WHOLE, _FIRST, _LAST = 0, 1, 3  # 2 is a part in the middle


@dataclass(frozen=True)
class ImageRecord:
    """One record: its key, its label and the bytes of its image."""

    key: int
    label: NDArray[np.float32]
    image: bytes


def scan(path: Path) -> Iterator[tuple[int, ImageRecord]]:
    """Yield every record with its position, front to back.

    Raises:
        DataError: where the file is cut off or no RecordIO file.
    """
    try:
        with path.open("rb") as file:
            end = path.stat().st_size
            while (offset := file.tell()) < end:
                yield offset, _decoded(_read(file, path), f"{path}, record at byte {offset}")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check that it exists and is a file") from None


def read_record(path: Path, offset: int) -> ImageRecord:
    """Read the record at a byte position.

    Raises:
        DataError: when there is no record.
    """
    if not 0 <= offset < 1 << 63:
        raise DataError(f"{path} holds no record at byte {offset}; expected a position in the file")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return _decoded(_read(file, path), f"{path}, record at byte {offset}")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check that it exists and is a file") from None


def write_record(file: BinaryIO, record: ImageRecord) -> int:
    """Append a record and return its position.

    A payload that holds the magic number at a multiple of four bytes is split there, as dmlc-core does, so that a
    reader can find the next record after damage.
    """
    start = file.tell()
    header = _HEADER.pack(len(record.label), 0.0, record.key, 0)
    payload = header + record.label.astype("<f4").tobytes() + record.image
    cuts = [at for at in _occurrences(payload) if at % 4 == 0]
    begins = [0, *(at + 4 for at in cuts)]
    ends = [*cuts, len(payload)]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        kind = _WHOLE if not cuts else _FIRST if number == 0 else _LAST if number == len(cuts) else 2
        part = payload[begin:end]
        if len(part) >= 1 << _LENGTH_BITS:
            raise DataError(
                f"image {record.key} is larger than the 512 MiB that a RecordIO part can hold; leave it out"
            )
        file.write(_FRAME.pack(_MAGIC, kind << _LENGTH_BITS | len(part)) + part + bytes(-len(part) % 4))
    return start


def _occurrences(payload: bytes) -> Iterator[int]:
    at = payload.find(_MAGIC_BYTES)
    while at >= 0:
        yield at
        at = payload.find(_MAGIC_BYTES, at + 1)


def _read(file: BinaryIO, path: Path) -> bytes:
    parts: list[bytes] = []
    while True:
        at = file.tell()
        kind, part = _read_part(file, path, at)
        if (kind in (_WHOLE, _FIRST)) != (not parts):
            raise DataError(f"{path} is damaged at byte {at}: a record's parts are out of order; get the file again")
        parts.append(part)
        if kind in (_WHOLE, _LAST):
            return _MAGIC_BYTES.join(parts)


def _read_part(file: BinaryIO, path: Path, at: int) -> tuple[int, bytes]:
    frame = file.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        raise DataError(f"{path} is cut off at byte {at}; get the file again")
    magic, word = _FRAME.unpack(frame)
    if magic != _MAGIC:
        raise DataError(
            f"{path} holds no RecordIO record at byte {at}: expected the bytes 0a23d7ce, got {frame[:4].hex()}"
        )
    length = word & ((1 << _LENGTH_BITS) - 1)
    # Before reading, which would make room for as many bytes as the record claims
    left = os.fstat(file.fileno()).st_size - at - _FRAME.size
    if left < length:
        raise DataError(f"{path} is cut off at byte {at}: a record of {length} bytes, {left} are there; get it again")
    part = file.read(length)
    file.read(-length % 4)
    return word >> _LENGTH_BITS, part


def _decoded(payload: bytes, where: str) -> ImageRecord:
    if len(payload) < _HEADER.size:
        raise DataError(
            f"{where}: expected an image with its label, got {len(payload)} bytes; make the file with im2rec"
        )
    count, single, key, _ = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * count
    if end > len(payload):
        raise DataError(
            f"{where}: its label should have {count} numbers but the record ends before; get the file again"
        )
    label = np.frombuffer(payload, "<f4", count, _HEADER.size) if count else np.array([single], "<f4")
    return ImageRecord(key, label, payload[end:])
