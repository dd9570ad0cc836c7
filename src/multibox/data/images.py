"""The only image decoder and the only resize of the project: any image file to 8-bit RGB as a person sees it.

Transparent pixels become white. Of several frames the first is taken. Colour profiles are not applied. Grey values
deeper than 8 bits are scaled by the range they use (see `grey_to_8_bit`). A truncated file is an error.
"""

import glob
import io
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from multibox.data.records import read_record
from multibox.errors import ImageError
from multibox.structures import Sample, Size

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, that `find_images` takes for images."""
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Endings of images that are read if the extra `heic` is installed."""
_VIDEOS = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"})
_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".rec", ".tar", ".tgz", ".xz", ".zip", ".zst"})
_SOURCES = "give image files, folders of images or glob patterns"

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
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Bytes 8 to 12 of a HEIF file, after `ftyp`; the last two may be AVIF as well."""

_FULL_SCALES = (255, 4095, 65535)

# On truncated and flipped bytes Pillow raises almost every kind of exception, warnings among them
_BROKEN = Exception


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        ImageError: the file is missing, empty, truncated, no image, or too large to be decoded safely.
    """
    return decode_image(_read_bytes(Path(path)), str(path))


def decode_image(data: bytes, where: str) -> Image.Image:
    """Decode the bytes of an image file as `read_image` does; `where` names them in errors."""
    with _open(data, where) as image:
        return upright_rgb(image, where)


def upright_rgb(image: Image.Image, where: str = "the image") -> Image.Image:
    """Return an opened image of any mode as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        ImageError: its pixels cannot be decoded; `where` names it.
    """
    try:
        image.load()
        orientation = _orientation(image)
        return _to_rgb(image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image, where)
    except ImageError:
        raise
    except _BROKEN as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ImageError(f"{where} is truncated or damaged ({reason}): save or copy it again") from error


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


class Listing(NamedTuple):
    """Image files, and sentences that count the files passed over."""

    paths: list[Path]
    notes: list[str]


def find_images(sources: Iterable[str | Path]) -> Listing:
    """List the images meant by files, folders and glob patterns: source by source, each sorted by path, none twice.

    A file is taken whatever its name; of a folder, the files directly in it that end like images. `folder/**/*` reaches
    deeper. Hidden files are ignored; other files are counted in the notes.

    Raises:
        ImageError: a source does not exist, holds no image, or is of a kind that cannot be read.
    """
    listed = [_list_source(source) for source in sources]
    paths = dict.fromkeys(path for images, _ in listed for path in images)
    return Listing(list(paths), _notes(sum((others for _, others in listed), Counter[str]())))


def list_images(source: str | Path) -> list[Path]:
    """List the images meant by one file, folder or glob pattern, as `find_images` does.

    Raises:
        ImageError: there is nothing there, or no image among it.
    """
    return find_images([source]).paths


def _list_source(source: str | Path) -> tuple[list[Path], Counter[str]]:
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() in _VIDEOS | _ARCHIVES:
            raise _not_yet(str(source))
        return [path], Counter()
    if path.is_dir():
        hits, where = path.iterdir(), f"in folder {path}"
        hint = f"; for images in folders below it write '{path}/**/*'"
    elif glob.has_magic(str(source)):
        hits = (Path(hit) for hit in glob.glob(str(source), recursive=True))  # noqa: PTH207 - absolute patterns
        where, hint = f"matches {source}", ""
    else:
        raise _not_yet(str(source))
    files = sorted(hit for hit in hits if not hit.name.startswith(".") and hit.is_file())
    suffixes = Counter(file.suffix.lower() for file in files)
    wanted = SUFFIXES | HEIF_SUFFIXES if suffixes.keys() & HEIF_SUFFIXES and reads_heif() else SUFFIXES
    images = [file for file in files if file.suffix.lower() in wanted]
    others = Counter({suffix: count for suffix, count in suffixes.items() if suffix not in wanted})
    if not images:
        notes = "".join(f"; {note}" for note in _notes(others))
        raise ImageError(f"no image {where}: expected files ending in {', '.join(sorted(SUFFIXES))}{notes}{hint}")
    return images, others


def _notes(others: Mapping[str, int]) -> list[str]:
    """Return sentences on files passed over, given their number by ending."""
    heif = sum(count for suffix, count in others.items() if suffix in HEIF_SUFFIXES)
    notes = [f"{_counted(heif, 'HEIC image')} passed over; pip install 'multibox[heic]' reads them"] if heif else []
    rest = {suffix: count for suffix, count in sorted(others.items()) if suffix not in HEIF_SUFFIXES}
    if rest:
        kinds = ", ".join(f"{count} {suffix or 'without an ending'}" for suffix, count in rest.items())
        notes.append(f"{_counted(sum(rest.values()), 'other file')} passed over: {kinds}")
    return notes


def _counted(count: int, what: str) -> str:
    return f"1 {what} was" if count == 1 else f"{count} {what}s were"


def _not_yet(source: str) -> ImageError:
    """Return the error of a source that does not exist, or is no image, folder or pattern."""
    scheme, _, rest = source.partition("://")
    suffix = Path(source).suffix.lower()
    if rest and scheme.isalnum():
        return ImageError(f"{source} is an address, and nothing is downloaded: fetch it and {_SOURCES}")
    if source.isdigit() or source.startswith("/dev/video"):
        return ImageError(f"{source} names a camera, which cannot be read yet: {_SOURCES}")
    if Path(source).is_file() and suffix in _VIDEOS:
        return ImageError(
            f"{source} is a video, which cannot be read yet: write its frames as images "
            f"(ffmpeg -i {source} frames/%05d.png) and give their folder"
        )
    if Path(source).is_file() and suffix in _ARCHIVES:
        return ImageError(f"{source} is an archive, which is not opened: unpack it and {_SOURCES}")
    return ImageError(f"{source} does not exist: {_SOURCES}")


@cache
def reads_heif() -> bool:
    """Return whether HEIC images can be read; the first call registers their reader with Pillow."""
    try:
        import_module("pi_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def grey_to_8_bit(values: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    """Scale grey values deeper than 8 bits to 0 to 255, by the smallest full scale that holds the image's values.

    The scales are 255, 4095 and 65535, and for floating point also 1. So 16-bit data is scaled by 1/257, 12-bit data in
    a 16-bit file (X-ray, microscopes) by 1/16, and 8-bit data in one stays as it is.

    Raises:
        ImageError: values are negative, above 65535 or not finite.
    """
    low, high = float(values.min()), float(values.max())
    scales = (1, *_FULL_SCALES) if values.dtype.kind == "f" else _FULL_SCALES
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    if full is None:
        raise ImageError(
            f"{where}: grey values run from {low:g} to {high:g}, expected 0 to 65535; "
            "save it as an 8-bit or 16-bit image"
        )
    return np.rint(values.astype(np.float64) * (255 / full)).astype(np.uint8)


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


def _open(source: bytes | io.BufferedReader, where: str) -> Image.Image:
    head = source[:12] if isinstance(source, bytes) else source.peek(12)[:12]
    if not head:
        raise ImageError(f"{where} is empty (0 bytes), expected an image")
    heif = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
    try:
        formats = _known_formats(heif and reads_heif())
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{where} says it is larger than {Image.MAX_IMAGE_PIXELS or 0} pixels, which may be an attack; "
            "make it smaller"
        ) from error
    except _BROKEN as error:
        if heif and not reads_heif():
            raise ImageError(f"{where} is a HEIC image: pip install 'multibox[heic]' reads it") from error
        raise ImageError(f"{where} is no image that can be read: expected JPEG, PNG or the like") from error
    if min(image.size) < 1:
        raise ImageError(f"{where} has no pixels: {image.size[0]} x {image.size[1]}")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:  # the pixels may be fine although the EXIF data is damaged
        return 1


def _orientation_in_header(image: Image.Image, reopen: Callable[[], IO[bytes]]) -> int:
    return 1 if image.format == "PNG" and not _png_may_be_turned(reopen) else _orientation(image)


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
    """Drop the file's class and metadata, so that no later code turns the image a second time."""
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare


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


def load_image(sample: Sample) -> Image.Image:
    """Return the sample's image as 8-bit RGB, from its file or its record.

    Raises:
        ImageError: the image is missing, truncated or no image.
    """
    if sample.offset is None:
        return read_image(sample.path)
    return decode_image(image_bytes(sample), f"{sample.path}, record {sample.name}")


def load_small(sample: Sample, least: Size) -> Image.Image:
    """Return the sample's image as `load_image` does, but a JPEG decoded at the smallest scale not below `least`.

    The scales are 1/8, 1/4, 1/2 and 1, so the image may be of any size above `least`.

    Raises:
        DataError: as `image_bytes`. ImageError if it is truncated or no image.
    """
    where = str(sample.path) if sample.offset is None else f"{sample.path}, record {sample.name}"
    with _open(image_bytes(sample), where) as image:
        image.draft(None, (least.width, least.height))
        return upright_rgb(image, where)


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
    path, where = sample.path, str(sample.path)
    if sample.offset is not None:
        data = image_bytes(sample)
        with _open(data, where) as image:
            return _orientation_in_header(image, lambda: io.BytesIO(data))
    try:
        with path.open("rb") as file, _open(file, where) as image:
            return _orientation_in_header(image, lambda: path.open("rb"))
    except OSError as error:
        raise _unreadable(path, error) from error
