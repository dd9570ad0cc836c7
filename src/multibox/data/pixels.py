"""Pixels of any kind to 8-bit RGB: deep values scaled, transparency over a background, CMYK and Lab converted."""

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from multibox.errors import ImageError

Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""
WHITE: Colour = (255, 255, 255)

_FULL_SCALES = (255, 4095, 65535)
_OVERSHOOT = 1 / 16
"""Share of the full scale by which floating-point values may leave it, as filters make them do; they are clipped."""
_ROWS = 256
"""Rows converted at a time, so that a large image is not held several times over."""
_WHITE_IS_ZERO = 0
_PHOTOMETRIC, _BITS = 262, 258
_SWAPPED = re.compile(r"^([IF];\d+)B")

# Kinds of TIFF that Pillow can decode, but does not know: byte order, photometric, sample format, fill order, bits
_KINDS: dict[tuple[Any, ...], tuple[str, str]] = {
    (TiffImagePlugin.MM, 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (TiffImagePlugin.MM, 1, (1,), 1, (32,), ()): ("I", "I;32B"),
    (TiffImagePlugin.II, 1, (3,), 1, (64,), ()): ("F", "F;64F"),
    (TiffImagePlugin.MM, 1, (3,), 1, (64,), ()): ("F", "F;64BF"),
}
cast(Any, TiffImagePlugin).OPEN_INFO.update(_KINDS)


def as_colour(values: Sequence[float]) -> Colour:
    """Return three numbers from 0 to 255, such as the setting `model.background`, as a colour."""
    red, green, blue = (round(value) for value in values)
    return red, green, blue


def to_rgb(image: Image.Image, where: str, background: Colour = WHITE) -> Image.Image:
    """Return a loaded image of any mode as 8-bit RGB; an image that is RGB already is returned itself.

    Args:
        image: upright or not.
        where: names the image in errors.
        background: what shows through transparent pixels.

    Raises:
        ImageError: its values fit none of the scales of `grey_to_8_bit`.
    """
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and transparent is None:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = grey_to_8_bit(values, where)
        drawn = Image.fromarray(255 - grey if _white_is_zero(image) else grey).convert("RGB")
        if isinstance(transparent, int):
            drawn.paste(background, mask=Image.fromarray(values == transparent))
        return drawn
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or transparent is not None:
        return _over(image, background)
    return image.convert("RGB")


def grey_to_8_bit(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Scale values deeper than 8 bits to 0 to 255, by the smallest full scale that holds the image's values.

    The scales are 255, 4095 and 65535, and for floating point also 1. So 16-bit data is scaled by 1/257, 12-bit data in
    a 16-bit file (X-ray, microscopes) by 1/16, and 8-bit data in one stays as it is. Floating-point values up to a
    sixteenth beyond a scale are clipped.

    Raises:
        ImageError: values are negative, above 65535 or not finite.
    """
    low, high = float(values.min()), float(values.max())
    floating = values.dtype.kind == "f"
    slack = _OVERSHOOT if floating else 0.0
    scales = (1, *_FULL_SCALES) if floating else _FULL_SCALES
    full = next((scale for scale in scales if high <= scale * (1 + slack)), 0)
    if not full or not low >= -full * slack:
        raise ImageError(
            f"{where}: grey values run from {low:g} to {high:g}, expected 0 to 65535; "
            "save it as an 8-bit or 16-bit image"
        )
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        part = values[top : top + _ROWS].astype(np.float64) * (255 / full)
        scaled[top : top + _ROWS] = np.rint(np.clip(part, 0, 255))
    return scaled


def deep_colour(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened image has 16 bits per colour, of which Pillow keeps the high byte only."""
    raw = {_raw_mode(tile) for tile in image.tile}
    return len(raw) == 1 and raw.pop()[:-1] in ("RGB;16", "RGBX;16", "RGBA;16")


def ask_for_low_bytes(image: ImageFile.ImageFile) -> None:
    """Make an opened image with 16 bits per colour decode the low bytes, by naming the other byte order."""
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    raw = [_raw_mode(tile) for tile in image.tile]
    _set_raw_modes(image, [mode[:-1] + other[mode[-1]] for mode in raw])


def join_bytes(high: Image.Image, low: Image.Image, where: str) -> Image.Image:
    """Return an image with 16 bits per colour in 8 bits, colours and alpha scaled as `grey_to_8_bit` does."""
    values = np.asarray(high).astype(np.uint16) * np.uint16(256) + np.asarray(low)
    colours = grey_to_8_bit(values[..., :3], where)
    if values.shape[-1] == 3:
        return Image.fromarray(colours)
    return Image.fromarray(np.dstack([colours, grey_to_8_bit(values[..., 3], where)]))


def mend_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Correct two mistakes of Pillow about the byte order of an opened TIFF.

    It takes each byte of 16-bit colours in separate planes for a value. And it swaps the bytes of compressed numbers of
    32 and 64 bits, which libtiff has swapped already.
    """
    raw = [_raw_mode(tile) for tile in image.tile]
    if set(image.tag_v2.get(_BITS, (1,))) == {16} and all(mode in ("R", "G", "B", "A") for mode in raw):
        order = "L" if image.tag_v2.prefix == b"II" else "B"
        _set_raw_modes(image, [f"{mode};16{order}" for mode in raw])
    elif any(tile[0] == "libtiff" for tile in image.tile):
        _set_raw_modes(image, [_SWAPPED.sub(r"\1N", mode) for mode in raw])


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    raw = args if isinstance(args, str) else args[0] if args else ""
    return raw if isinstance(raw, str) else ""


def _set_raw_modes(image: ImageFile.ImageFile, modes: list[str]) -> None:
    tiles: list[Any] = image.tile
    for place, (tile, mode) in enumerate(zip(tiles, modes, strict=True)):
        args = mode if isinstance(tile[3], str) else (mode, *tile[3][1:])
        # Plain tuples before Pillow 11.1
        tiles[place] = tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _white_is_zero(image: Image.Image) -> bool:
    """Return whether a deep TIFF counts from white to black; Pillow turns such values round up to 8 bits only."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _over(image: Image.Image, background: Colour) -> Image.Image:
    """Return an image with transparency drawn over a colour, part by part."""
    drawn = Image.new("RGB", image.size)
    for box in _parts(image):
        part = image.crop(box)
        whole = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")
        drawn.paste(Image.alpha_composite(Image.new("RGBA", part.size, (*background, 255)), whole).convert("RGB"), box)
    return drawn


def _parts(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, image.height, _ROWS):
        yield 0, top, image.width, min(top + _ROWS, image.height)
