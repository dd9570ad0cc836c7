"""Images inside a page: thumbnails and crops as data URIs, and numbers packed for JavaScript."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 80
"""Of JPEG."""


def data_uri(image: Image.Image, side: int = 640, quality: int = QUALITY) -> str:
    """Return an image as a JPEG in a data URI, reduced until no side is longer than `side` pixels; never enlarged."""
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    reduced = image.convert("RGB").resize(size, Image.Resampling.LANCZOS) if scale < 1 else image.convert("RGB")
    file = io.BytesIO()
    reduced.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def heat_uri(values: NDArray[np.float32], side: int = 320) -> str:
    """Return a map of numbers from 0 to 1, [H, W], as a PNG that is transparent where the number is 0."""
    heat = np.clip(np.nan_to_num(values), 0, 1)
    pixels = np.zeros((*heat.shape, 4), np.uint8)
    pixels[..., 0], pixels[..., 1] = 255, np.rint(220 * (1 - heat))
    pixels[..., 3] = np.rint(200 * heat)
    image = Image.fromarray(pixels, "RGBA")
    scale = side / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def crop_around(image: Image.Image, box_xyxy: Sequence[float], margin: float = 0.5) -> tuple[Image.Image, list[float]]:
    """Return the part of an image around a box, and the box in pixels of that part.

    Args:
        image: The image.
        box_xyxy: [4], in its pixels.
        margin: Shown around the box on each side, in shares of its longer side; at least 8 pixels.
    """
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    room = max(8.0, margin * max(x2 - x1, y2 - y1))
    left, top = max(0, math.floor(x1 - room)), max(0, math.floor(y1 - room))
    right, bottom = min(image.width, math.ceil(x2 + room)), min(image.height, math.ceil(y2 + room))
    # A box beyond the image still gets a part of one pixel
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    part = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    return part, [x1 - left, y1 - top, x2 - left, y2 - top]
