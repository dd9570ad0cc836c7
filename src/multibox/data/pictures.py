"""The one decoder and the one resize of the project: any picture file to 8-bit RGB as a person would see it.

Decisions: transparent pixels are laid over white; the first frame of several is taken; colour profiles are not applied;
grey values deeper than 8 bit are scaled by the range they use (see `grey_to_8_bit`); a truncated file is an error.
"""

import glob
import io
import struct
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.errors import PictureError

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, that `list_pictures` takes for pictures."""

# No EPS: Pillow hands it to Ghostscript, and pictures may come from strangers.
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

_FULL_SCALES = (255, 4095, 65535)

# What Pillow raises on broken files, found by feeding it truncated and flipped bytes.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Warning,
    Image.DecompressionBombError,
)


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture file as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        PictureError: the file is missing, empty, truncated, no picture, or too large to be decoded safely.
    """
    return decode_picture(_read_bytes(Path(path)), str(path))


def decode_picture(data: bytes, where: str) -> Image.Image:
    """Decode the bytes of a picture file as `read_picture` does; `where` names them in errors."""
    with _open(data, where) as image:
        return upright_rgb(image, where)


def upright_rgb(image: Image.Image, where: str = "the picture") -> Image.Image:
    """Return an opened picture of any mode as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        PictureError: its pixels cannot be decoded; `where` names it.
    """
    try:
        image.load()
        return _to_rgb(_turned(image, _orientation(image)), where)
    except PictureError:
        raise
    except _BROKEN as error:
        raise _broken(where, error) from error


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return width and height as shown (after EXIF orientation), from the header alone.

    Raises:
        PictureError: the file is missing, empty, no picture, or too large to be decoded safely.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, _open(file, str(path)) as image:
            width, height = image.size
            if image.format == "TIFF":
                # Pillow versions differ in whether they turn a TIFF's size before loading it.
                width, height = int(image.tag_v2[256]), int(image.tag_v2[257])  # pyright: ignore[reportAttributeAccessIssue]
            if image.format == "PNG" and not _png_may_be_turned(path):
                return width, height
            sideways = _orientation(image) in _SIDEWAYS
            return (height, width) if sideways else (width, height)
    except OSError as error:
        raise _unreadable(path, error) from error


def resize_picture(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Resize to `size` = (height, width): bilinear, half-pixel centres, antialiased when shrinking.

    `box` (x1, y1, x2, y2), in source pixels and not necessarily whole, is the part to take; it must lie inside the
    picture and have an area, else Pillow raises ValueError. This is the only resize of the project: training,
    evaluation and prediction call it, and exported graphs repeat it to within one grey level.
    """
    height, width = size
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def list_pictures(source: str | Path) -> list[Path]:
    """List the pictures meant by a file, a folder or a glob pattern, sorted by path.

    A file is taken whatever its name. Of a folder the picture files directly in it are taken, by their endings;
    `folder/**/*` reaches deeper. Hidden files are passed over.

    Raises:
        PictureError: there is nothing there, or no picture among it.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _only_pictures(path.iterdir())
        hint = f"; for pictures in folders below it write '{path}/**/*'"
        what = f"no picture in folder {path}: expected files ending in {', '.join(sorted(SUFFIXES))}{hint}"
    elif glob.has_magic(str(source)):
        found = _only_pictures(Path(hit) for hit in glob.glob(str(source), recursive=True))  # noqa: PTH207 - absolute patterns
        what = f"no picture matches {source}: expected files ending in {', '.join(sorted(SUFFIXES))}"
    else:
        raise PictureError(f"{source} does not exist: give a picture file, a folder of pictures or a glob pattern")
    if not found:
        raise PictureError(what)
    return found


def grey_to_8_bit(values: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    """Scale grey values deeper than 8 bit to 0 to 255, by the smallest full scale that holds the picture's values.

    The scales are 255, 4095 and 65535, and for floating point also 1. So a 16-bit picture that uses its range is scaled
    by 1/257, 12-bit data in a 16-bit file (X-ray, microscopes) by 1/16, and 8-bit data in one stays as it is: neither
    clipped nor black. Depends on this picture alone, not on its data set.

    Raises:
        PictureError: values are negative, above 65535 or not finite, so that no convention says what is white.
    """
    low, high = float(values.min()), float(values.max())
    scales = (1, *_FULL_SCALES) if values.dtype.kind == "f" else _FULL_SCALES
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    if full is None:
        raise PictureError(
            f"{where}: grey values run from {low:g} to {high:g}, expected 0 to 65535; "
            "save it as an 8-bit or 16-bit picture"
        )
    return np.rint(values.astype(np.float64) * (255 / full)).astype(np.uint8)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> PictureError:
    if isinstance(error, FileNotFoundError):
        return PictureError(f"{path}: there is no such picture")
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return PictureError(f"{path} is a folder, expected one picture file")
    return PictureError(f"{path} cannot be read: {error.strerror or error}")


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(source: bytes | io.BufferedReader, where: str) -> Image.Image:
    empty = not source if isinstance(source, bytes) else not source.peek(1)
    if empty:
        raise PictureError(f"{where} is empty (0 bytes), expected a picture")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_known_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(
            f"{where} says it is larger than {Image.MAX_IMAGE_PIXELS or 0} pixels, which may be an attack; "
            "make it smaller"
        ) from error
    except _BROKEN as error:
        raise PictureError(f"{where} is no picture that can be read: expected JPEG, PNG or the like") from error
    if min(image.size) < 1:
        raise PictureError(f"{where} has no pixels: {image.size[0]} x {image.size[1]}")
    return image


def _broken(where: str, error: BaseException) -> PictureError:
    reason = str(error).strip().rstrip(".") or type(error).__name__
    return PictureError(f"{where} is truncated or damaged ({reason}): save or copy it again")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:  # damaged EXIF data says nothing; the pixels are what they are
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return _bare(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(grey_to_8_bit(np.asarray(image), where)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return _bare(image.convert("RGB"))


def _bare(image: Image.Image) -> Image.Image:
    """Drop the file's class and metadata, so that nothing downstream turns the picture a second time."""
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare


def _only_pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def _png_may_be_turned(path: Path) -> bool:
    """Look for chunks that can hold an orientation; Pillow would decode the whole picture to find none."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"eXIf", b"zTXt", b"iTXt"):
                return True
            if kind == b"IEND":
                return False
            file.seek(length + 4, io.SEEK_CUR)
    return False
