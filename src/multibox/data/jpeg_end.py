"""JPEG files that lack their last two bytes: read if all pixels are there, told from files that are truncated."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.errors import ImageError

_START, _SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_NOISE = b"\xa5\x5a\x96\xd3\x6b" * 40
"""What a decoder takes for codes if the last ones are missing, and skips if it has them all. No byte is 0xff."""
_PADDING = 8
"""Zero bytes at the end that may belong to the last scan; more are filling."""
_COEFFICIENTS = 64
_PROGRESSIVE = (b"\xff\xc2", b"\xff\xc6")


def lacks_end(data: bytes) -> bool:
    """Return whether a JPEG file holds pixels but not the marker that should end it."""
    if not data.startswith(_START) or data.endswith(_END):
        return False
    last = data.rfind(_SCAN)
    return last >= 0 and _END not in data[last:]


def with_end(data: bytes, where: str) -> bytes:
    """Return a JPEG file that lacks its end with the end.

    libjpeg fills in whatever is missing without a word once it finds the marker. So the file is decoded twice, with
    other bytes before the marker: only if no pixel depends on them were all pixels there. Progressive files must hold
    every bit of every coefficient, too.

    Raises:
        ImageError: pixels are missing; `where` names the file.
    """
    body = data.rstrip(b"\0")
    body = (data if len(data) - len(body) <= _PADDING else body).removesuffix(b"\xff")
    first = _pixels(body + _END) if _has_all_scans(data) else None
    second = _pixels(body + _NOISE + _END)
    if first is None or second is None or not np.array_equal(first, second):
        raise ImageError(f"{where} is truncated: its last pixels are missing; copy it again", kind="truncated-image")
    return body + _END


def _pixels(data: bytes) -> NDArray[np.uint8] | None:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.asarray(image)
    except Exception:  # Pillow raises almost every kind on damaged bytes
        return None


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans of a JPEG file leave no component and no bit out."""
    missing: dict[int, list[int]] = {}
    progressive = any(marker in data for marker in _PROGRESSIVE)
    at = data.find(_SCAN)
    while 0 <= at < len(data) - 5:
        count = data[at + 4]
        end = at + 5 + 2 * count
        if end + 3 > len(data):
            return False
        first, last, bits = data[end], data[end + 1], data[end + 2] & 15
        for component in data[at + 5 : end : 2]:
            left = missing.setdefault(component, [16] * _COEFFICIENTS)
            span = range(first, min(last + 1, _COEFFICIENTS)) if progressive else range(_COEFFICIENTS)
            for place in span:
                left[place] = bits if progressive else 0
        at = data.find(_SCAN, at + 2)
    return bool(missing) and all(bit == 0 for left in missing.values() for bit in left)
