"""A picture as encoded bytes, wherever it lies: in a file of its own or in a record."""

import io
from pathlib import Path

from PIL import Image

from multibox.data.formats.common import PICTURE_SUFFIXES, safe_name
from multibox.data.formats.records import read_record
from multibox.data.pictures import picture_size
from multibox.errors import PictureError
from multibox.structures import Sample

_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_SIGNATURES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"RIFF", ".webp"))


def encoded_size(data: bytes, where: str) -> tuple[int, int]:
    """Return width and height as shown (after EXIF orientation) of a picture file's bytes, from its header.

    Raises:
        PictureError: when the bytes are no picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            # Asking a PNG without EXIF for it would decode all of it.
            has_exif = image.format != "PNG" or b"eXIf" in data
            sideways = has_exif and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception as error:  # Pillow raises whatever its plugins do
        raise PictureError(
            f"{where}: its bytes are no picture ({type(error).__name__}); make the record anew"
        ) from None
    return (height, width) if sideways else (width, height)


def bytes_of(sample: Sample) -> bytes:
    """Return a sample's picture as it is encoded.

    Raises:
        PictureError: when its file cannot be read.
    """
    if sample.offset is not None:
        return read_record(sample.path, sample.offset).picture
    try:
        return sample.path.read_bytes()
    except OSError as error:
        raise PictureError(f"{sample.path} cannot be read ({error.strerror}); check that it exists") from None


def shown_size(sample: Sample) -> tuple[int, int]:
    """Return the size that the picture itself has, whatever its label file says."""
    if sample.offset is None:
        return picture_size(sample.path)
    return encoded_size(bytes_of(sample), f"{sample.path}, record at byte {sample.offset}")


def file_name(sample: Sample) -> str:
    """Return the sample's name as a relative file name with the suffix of a picture."""
    name = safe_name(sample.name)
    if Path(name).suffix.lower() in PICTURE_SUFFIXES:
        return name
    if sample.offset is None:
        return name + sample.path.suffix
    start = bytes_of(sample)[:8]
    return name + next((suffix for signature, suffix in _SIGNATURES if start.startswith(signature)), ".jpg")
