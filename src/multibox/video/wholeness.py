"""Whether the end of a video file is missing, by the lengths that its own parts name; frames need not be decoded.

FFmpeg reads a file that was cut off up to the cut and reports nothing. MP4 and MOV, Matroska and WebM, and AVI begin
each part with its length, so a part that reaches beyond the end of the file is incomplete. Transport streams, MPEG
program streams and FLV name no lengths.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

OWN_MARK = "multibox"
"""Comment in our own files. They end with an index (`mfra`), which those of other programs need not have."""
_MEDIA = frozenset({b"moof", b"mdat", b"moov", b"mfra"})
"""Boxes of MP4 that matter. What follows the last box may be anything, such as a camera's own data."""
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def missing_end(path: Path, comment: str = "") -> str:
    """Return what is missing at the end of a video file; empty if nothing is known to be.

    Args:
        path: the file.
        comment: that the file holds about itself.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(12)
            if start[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return _of_boxes(file, size, comment)
            ends = _riff_ends(file, size) if start[:4] == b"RIFF" and start[8:] == b"AVI " else ()
            ends = _matroska_ends(file) if start[:4] == _EBML else ends
            return _missing(max(ends, default=0) - size)
    except OSError:
        return ""


def _missing(number: int) -> str:
    return f"its last {number:,} bytes are missing: was it cut off?" if number > 0 else ""


def _of_boxes(file: BinaryIO, size: int, comment: str) -> str:
    """Return what is missing of an MP4 or MOV file; its boxes are length, kind and content."""
    kinds: list[bytes] = []
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif not length:
            # The last box may leave its length open
            length = size - place
        if length < 8:
            break
        kinds.append(kind)
        place += length
    if kinds and kinds[-1] in _MEDIA and place > size:
        return _missing(place - size)
    unfinished = kinds[-1:] == [b"moof"]
    if unfinished or (comment == OWN_MARK and b"moof" in kinds and b"mfra" not in kinds):
        return "its end is missing: was it cut off, or the program that wrote it killed?"
    return ""


def _riff_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Yield where each part of an AVI file ends; long ones have several."""
    place = 0
    while place + 12 <= size:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        # A program that was killed leaves the length at 0 or at its greatest value
        if head[:4] != b"RIFF" or length in (0, 2**32 - 1):
            return
        yield place + 8 + length
        place += 8 + length + length % 2


def _matroska_ends(file: BinaryIO) -> Iterator[int]:
    """Yield where the segment of a Matroska or WebM file ends, unless it leaves its length open."""
    file.seek(4)
    place = 4 + sum(_number(file))
    file.seek(place)
    if file.read(4) != _SEGMENT:
        return
    width, length = _number(file)
    if length != 2 ** (7 * width) - 1:
        yield place + 4 + width + length


def _number(file: BinaryIO) -> tuple[int, int]:
    """Read a number of Matroska; return its width in bytes, told by the zero bits before the first 1, and its value."""
    first = file.read(1)
    width = 9 - first[0].bit_length() if first else 1
    if not first or width > 8:
        return 1, 127
    value = int.from_bytes(first + file.read(width - 1), "big")
    return width, value & (2 ** (7 * width) - 1)
