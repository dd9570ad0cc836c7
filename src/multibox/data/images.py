"""The only image decoder and the only resize of the project: any image file to 8-bit RGB as a person sees it.

Transparent pixels show the background. Of several frames the first is taken. Colour profiles are not applied. Values
deeper than 8 bits are scaled by the range they use (see `grey_to_8_bit`). A truncated file is an error.
"""

import io
import math
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, TiffImagePlugin

from multibox.data.image_listing import may_be_heif, reads_heif, suffix_by_content
from multibox.data.jpeg_end import lacks_end, with_end
from multibox.data.pixels import WHITE, Colour, ask_for_low_bytes, deep_colour, join_bytes, mend_tiff, to_rgb
from multibox.data.records import read_record
from multibox.errors import ImageError
from multibox.structures import Sample, Size

# No EPS: Pillow passes it to Ghostscript, and images may come from strangers
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})

MOST_BYTES = 1_000_000_000
"""Memory that one image may take while it is decoded."""
_BYTES_PER_PIXEL = {"JPEG2000": 20, "WEBP": 16, "HEIF": 12, "AVIF": 10}
"""Memory of decoding by format, measured on 40 megapixels (Pillow 13.0); other formats depend on the mode alone."""
_IN_RGB, _CONVERTED, _DEEP, _DEEP_COLOUR, _PROGRESSIVE = 4, 10, 16, 25, 6
_ALWAYS_READ = 50_000_000
_MOST_PER_BYTE = 100
"""Pixels per byte of a file, above `_ALWAYS_READ` pixels. Photographs have under 50, a blank colour PNG 344."""
_MOST_PASSES = 20_000_000_000
"""Pixels times scans of a progressive JPEG: libjpeg passes once per scan, over 5 billion pixels a second."""

# On truncated and flipped bytes Pillow raises almost every kind of exception, warnings among them. Only calls of
# Pillow on such bytes stand in a `try` with this; our own mistakes must not be called a damaged file
_BROKEN = Exception


def read_image(path: str | Path, background: Colour = WHITE) -> Image.Image:
    """Read an image file as 8-bit RGB, turned as its EXIF orientation says; `background` shows where it is transparent.

    Raises:
        ImageError: the file is missing, empty, truncated, no image, or too large to be decoded safely.
    """
    return decode_image(_read_bytes(Path(path)), str(path), background)


def decode_image(data: bytes, where: str, background: Colour = WHITE) -> Image.Image:
    """Decode the bytes of an image file as `read_image` does; `where` names them in errors."""
    data = _with_end(data, where)
    with _open(data, where) as image:
        deep = deep_colour(image)
        _load(image, where)
        if not deep:
            return _upright(image, image, where, background)
        with _open(data, where) as low:
            ask_for_low_bytes(low)
            _load(low, where)
            return _upright(join_bytes(image, low, where), image, where, background)


def upright_rgb(image: Image.Image, where: str = "the image", background: Colour = WHITE) -> Image.Image:
    """Return a copy of an opened image of any mode as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        ImageError: its pixels cannot be decoded; `where` names it.
    """
    _load(image, where)
    turned = _upright(image, image, where, background)
    return turned.copy() if turned is image else turned


def _load(image: Image.Image, where: str) -> None:
    """Decode the pixels of an opened image.

    Raises:
        ImageError: they cannot be decoded.
    """
    try:
        image.load()
    except MemoryError as error:
        raise ImageError(
            f"{where} does not fit into memory with its {image.width} x {image.height} pixels; make it smaller",
            kind="huge-image",
        ) from error
    except _BROKEN as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ImageError(
            f"{where} is truncated or damaged ({reason}): save or copy it again", kind="truncated-image"
        ) from error


def _upright(pixels: Image.Image, image: Image.Image, where: str, background: Colour) -> Image.Image:
    """Return decoded pixels as RGB, turned as the EXIF data of `image` says, without anything that turns them again."""
    orientation = _orientation(image)
    rgb = to_rgb(pixels, where, background)
    if orientation not in _UPRIGHT:
        return rgb
    if rgb.width * rgb.height * 2 * _IN_RGB > MOST_BYTES:
        raise _too_large(rgb, where)
    turned = rgb.transpose(_UPRIGHT[orientation])
    turned.info.clear()
    return turned


def image_size(path: str | Path) -> Size:
    """Return the size as shown (after EXIF orientation), from the header alone.

    Raises:
        ImageError: the file is missing, empty, no image, or too large to be decoded safely.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, _open(file, str(path)) as image:
            return _size_as_shown(image, lambda: path.open("rb"))
    except OSError as error:
        raise _unreadable(path, error) from error


def encoded_size(data: bytes, where: str) -> Size:
    """Return the size as shown of the bytes of an image file, as `image_size` does; `where` names them in errors."""
    with _open(data, where) as image:
        return _size_as_shown(image, lambda: io.BytesIO(data))


def _size_as_shown(image: Image.Image, reopen: Callable[[], IO[bytes]]) -> Size:
    size = size_of(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow versions differ in whether they turn a TIFF's size before loading it
        size = Size(int(image.tag_v2[257]), int(image.tag_v2[256]))
    return Size(size.width, size.height) if _orientation_in_header(image, reopen) in _SIDEWAYS else size


def size_of(image: Image.Image) -> Size:
    """Return the size of an opened image; Pillow's own `.size` is (width, height)."""
    return Size(image.height, image.width)


def resize_image(image: Image.Image, size: Size, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """Resize to `size`: bilinear, half-pixel centres, antialiased when shrinking.

    `box` (x1, y1, x2, y2), in source pixels and not necessarily whole, is the part to take. Pillow raises ValueError
    unless it lies inside the image and has an area. Training, evaluation and prediction call this function, and
    exported graphs repeat it to within one grey level.
    """
    return image.resize((size.width, size.height), Image.Resampling.BILINEAR, box=box)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{path}: there is no such image")
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return ImageError(f"{path} is a folder, expected one image file")
    return ImageError(f"{path} cannot be read: {error.strerror or error}")


@cache
def _known_formats(heif: bool) -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in (*_FORMATS, *(("HEIF",) if heif else ())) if name in Image.OPEN)


def _open(source: bytes | io.BufferedReader, where: str) -> ImageFile.ImageFile:
    """Open an image file without decoding its pixels.

    Raises:
        ImageError: it is empty, no image, or too large.
    """
    head = source[:32] if isinstance(source, bytes) else source.peek(32)[:32]
    if not head:
        raise ImageError(f"{where} is empty (0 bytes), expected an image", kind="empty-file")
    heif = may_be_heif(head)
    try:
        formats = _known_formats(heif and reads_heif())
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{where} says it is larger than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which may be an attack; "
            "make it smaller",
            kind="huge-image",
        ) from error
    except _BROKEN as error:
        raise _unknown(head, heif, where) from error
    if min(image.size) < 1:
        raise ImageError(f"{where} has no pixels: {image.size[0]} x {image.size[1]}")
    _check_size(image, len(source) if isinstance(source, bytes) else os.fstat(source.fileno()).st_size, where)
    if isinstance(source, bytes):
        _check_scans(image, source, where)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        mend_tiff(image)
    return image


def _with_end(data: bytes, where: str) -> bytes:
    """Return an image file as it is, but a JPEG that lacks its last two bytes with them.

    Raises:
        ImageError: pixels are missing, too.
    """
    return with_end(data, where) if lacks_end(data) else data


def _unknown(head: bytes, heif: bool, where: str) -> ImageError:
    """Return the error of a file that Pillow cannot open, given its first bytes."""
    if heif and not reads_heif():
        return ImageError(f"{where} is a HEIC image: pip install 'multibox[heic]' reads it")
    suffix = suffix_by_content(head)
    if suffix is None:
        return ImageError(f"{where} is no image that can be read: expected JPEG, PNG or the like")
    return ImageError(
        f"{where} begins like a {suffix} file but is no image that can be read: it is damaged or of a rare kind; "
        "save it again as JPEG or PNG"
    )


def _check_size(image: ImageFile.ImageFile, size: int, where: str) -> None:
    """Refuse an image that takes more memory than `MOST_BYTES`, or unpacks to far more than its file's `size`."""
    pixels = image.width * image.height
    if pixels * _memory_per_pixel(image) > MOST_BYTES:
        raise _too_large(image, where)
    if pixels > _ALWAYS_READ and pixels > _MOST_PER_BYTE * size:
        raise ImageError(
            f"{where} says that its {size} bytes are {image.width} x {image.height} pixels, which may be an attack; "
            "make it smaller",
            kind="huge-image",
        )


def _memory_per_pixel(image: ImageFile.ImageFile) -> int:
    plain = _IN_RGB if image.mode == "RGB" else _CONVERTED
    deep = image.mode.startswith("I") or image.mode == "F"
    depth = _DEEP_COLOUR if deep_colour(image) else _DEEP if deep else plain
    progressive = _PROGRESSIVE if image.info.get("progressive") else 0
    return _BYTES_PER_PIXEL.get(image.format or "", depth) + progressive


def _too_large(image: Image.Image, where: str) -> ImageError:
    return ImageError(
        f"{where} has {image.width} x {image.height} pixels, which take more than {MOST_BYTES / 1e9:g} GB to decode; "
        "make it smaller",
        kind="huge-image",
    )


def _check_scans(image: Image.Image, data: bytes, where: str) -> None:
    """Refuse a progressive JPEG whose scans would keep the decoder busy for minutes."""
    scans = data.count(b"\xff\xda") if image.info.get("progressive") else 0
    if scans * image.width * image.height > _MOST_PASSES:
        raise ImageError(f"{where} has {scans} scans, which may be an attack; save it again", kind="huge-image")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:  # the pixels may be fine although the EXIF data is damaged
        return 1


def _orientation_in_header(image: Image.Image, reopen: Callable[[], IO[bytes]]) -> int:
    return 1 if image.format == "PNG" and not _png_may_be_turned(reopen) else _orientation(image)


def _png_may_be_turned(reopen: Callable[[], IO[bytes]]) -> bool:
    """Tell whether a chunk may hold an orientation; Pillow would decode the whole image to see that none does."""
    with reopen() as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"eXIf", b"zTXt", b"iTXt"):
                return True
            if kind == b"IEND":
                return False
            file.seek(length + 4, io.SEEK_CUR)
    return False


def load_image(sample: Sample, background: Colour = WHITE) -> Image.Image:
    """Return the sample's image as 8-bit RGB, from its file or its record, as `read_image` does.

    Raises:
        ImageError: the image is missing, truncated or no image.
    """
    if sample.offset is None:
        return read_image(sample.path, background)
    return decode_image(image_bytes(sample), f"{sample.path}, record {sample.name}", background)


def load_small(sample: Sample, least: Size) -> Image.Image:
    """Return the sample's image as `load_image` does, but a JPEG decoded at the smallest scale not below `least`.

    The scales are 1/8, 1/4, 1/2 and 1, so the image may be of any size above `least`.

    Raises:
        DataError: as `image_bytes`. ImageError if it is truncated or no image.
    """
    where = str(sample.path) if sample.offset is None else f"{sample.path}, record {sample.name}"
    data = image_bytes(sample)
    with _open(_with_end(data, where), where) as image:
        image.draft(None, (least.width, least.height))
        return upright_rgb(image, where)


def load_at_most(sample: Sample, pixels: int, background: Colour = WHITE) -> tuple[Image.Image, Size]:
    """Return the sample's image with at most `pixels` pixels, and the size of the original as shown.

    A larger image is shrunk to `shrunk_size`. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that is still
    larger, which takes a fraction of the time and differs by a few grey levels from shrinking all of it.

    Raises:
        DataError: as `image_bytes`. ImageError if it is truncated or no image.
    """
    where = str(sample.path) if sample.offset is None else f"{sample.path}, record {sample.name}"
    data = image_bytes(sample)
    if not data.startswith(b"\xff\xd8"):
        image = decode_image(data, where, background)
        original = size_of(image)
    else:
        with _open(_with_end(data, where), where) as opened:
            original = _size_as_shown(opened, lambda: io.BytesIO(data))
            height, width = wanted = shrunk_size(original, pixels)
            if wanted != original:
                # The file may lie on its side
                opened.draft(None, (width, height) if size_of(opened) == original else (height, width))
            image = upright_rgb(opened, where)
    wanted = shrunk_size(original, pixels)
    return image if size_of(image) == wanted else resize_image(image, wanted), original


def shrunk_size(size: Size, pixels: int) -> Size:
    """Return the largest size of nearly the same aspect with at most `pixels` pixels; a smaller size stays."""
    if size.height * size.width <= pixels:
        return size
    scale = math.sqrt(pixels / (size.height * size.width))
    # A side of a very long image stays at least 1
    height = min(max(1, int(size.height * scale)), pixels)
    return Size(height, min(max(1, int(size.width * scale)), pixels // height))


def image_bytes(sample: Sample) -> bytes:
    """Return the sample's image as it is encoded in its file or its record.

    Raises:
        DataError: there is no such record. ImageError if the file cannot be read.
    """
    if sample.offset is None:
        return _read_bytes(sample.path)
    if sample.length is None:
        return read_record(sample.path, sample.offset).image
    try:
        with sample.path.open("rb") as file:
            file.seek(sample.offset)
            return file.read(sample.length)
    except OSError as error:
        raise _unreadable(sample.path, error) from error


def image_head(sample: Sample, size: int = 64) -> bytes:
    """Return the first bytes of the sample's image, which tell its kind; errors are those of `image_bytes`."""
    if sample.offset is not None:
        return image_bytes(sample)[:size]
    try:
        with sample.path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable(sample.path, error) from error


def sample_size(sample: Sample) -> Size:
    """Return the size of the sample's image: from its label, else from the image's header."""
    return sample.size or shown_size(sample)


def shown_size(sample: Sample) -> Size:
    """Return the size that the image itself has, whatever its label file says."""
    if sample.offset is None:
        return image_size(sample.path)
    return encoded_size(image_bytes(sample), f"{sample.path}, record {sample.name}")


def orientation_of(sample: Sample) -> int:
    """Return the EXIF orientation of the sample's image, 1 to 8; 1 where it has none.

    Raises:
        ImageError: the image is missing or no image.
    """
    path = sample.path
    if sample.offset is not None:
        return encoded_orientation(image_bytes(sample), str(path))
    try:
        with path.open("rb") as file, _open(file, str(path)) as image:
            return _orientation_in_header(image, lambda: path.open("rb"))
    except OSError as error:
        raise _unreadable(path, error) from error


def encoded_orientation(data: bytes, where: str) -> int:
    """Return the EXIF orientation in the bytes of an image file, as `orientation_of` does."""
    with _open(data, where) as image:
        return _orientation_in_header(image, lambda: io.BytesIO(data))


def open_encoded(data: bytes, where: str) -> Image.Image:
    """Open the bytes of an image file without decoding its pixels, to ask what kind of image it is.

    Raises:
        ImageError: they are empty, no image, or too large to be decoded safely.
    """
    return _open(_with_end(data, where), where)
