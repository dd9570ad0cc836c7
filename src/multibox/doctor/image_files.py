"""Image files of a data set, each read once: whether they can be decoded, what kind they are and what they show."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from multibox.data.images import (
    encoded_orientation,
    encoded_size,
    image_bytes,
    open_encoded,
    resize_image,
    upright_rgb,
)
from multibox.data.similar import Hashes, hash_pixels
from multibox.doctor.findings import KINDS, Finding, finding, without_path
from multibox.doctor.survey import Survey
from multibox.errors import DataError
from multibox.limits import available_cores
from multibox.structures import Sample, Size

HUGE_PIXELS, HUGE_SIDE = 50_000_000, 20_000
"""Pixels of an image, or of its longer side, from which it is called huge. Phones make 12 to 48 megapixels."""
TINY_SIDE = 20
"""Shorter side in pixels below which an image is called tiny. CIFAR's images have 32."""
_HASHED = Size(32, 32)
_CHUNK = 16
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""Endings under which files of each format go."""
_DEEP_MODES = ("I", "F")
_PNG_DEPTH, _TIFF_DEPTHS = 24, 258

Progress = Callable[[int, int], None]
Key = tuple[str, int | None]
"""File and position of an image, which may lie in a container."""


class Look(NamedTuple):
    """What one image file is."""

    path: Path
    name: str = ""
    """Of the image in its data set."""
    size: Size | None = None
    """As shown, after EXIF orientation; None where it cannot be read."""
    orientation: int = 1
    format: str = ""
    """Pillow's name, such as JPEG."""
    mode: str = ""
    """Pillow's, such as RGB."""
    bits: int = 8
    """Per channel."""
    frames: bool = False
    """Whether it holds more than one."""
    digest: bytes = b""
    """Of its bytes; empty where they cannot be read."""
    hashes: Hashes | None = None
    """[97] as of `data.similar`."""
    kind: str = ""
    """Of the problem, if it cannot be decoded."""
    problem: str = ""


Looks = Mapping[Key, Look]


def key_of(sample: Sample) -> Key:
    """Return by what `look_at_images` knows an image."""
    return str(sample.path), sample.offset


def look_at_images(
    surveys: Mapping[str, Survey], progress: Progress | None = None, *, fast: bool = False
) -> dict[Key, Look]:
    """Read and decode every image of all splits once, JPEGs at an eighth of their size, on all cores.

    Args:
        surveys: the splits.
        progress: called with the images done and all images.
        fast: only the images whose headers could not be read.
    """
    samples: dict[Key, Sample] = {}
    for survey in surveys.values():
        for row in survey.misread if fast else range(len(survey.raw.image_names)):
            sample = survey.raw.sample(row)
            samples.setdefault(key_of(sample), sample)
    chosen = list(samples.values())
    looks: list[Look] = []
    chunks = [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]
    with ThreadPoolExecutor(available_cores()) as pool:
        for part in pool.map(_look_at_all, chunks):
            looks += part
            if progress is not None:
                progress(len(looks), len(chosen))
    return dict(zip(samples, looks, strict=True))


def _look_at_all(samples: Sequence[Sample]) -> list[Look]:
    return [look_at(sample) for sample in samples]


def look_at(sample: Sample) -> Look:
    """Read and decode one image."""
    where = str(sample.path) if sample.offset is None else f"{sample.path}, image {sample.name}"
    found = Look(sample.path, sample.name)
    try:
        data = image_bytes(sample)
        found = found._replace(digest=hashlib.blake2b(data, digest_size=16).digest())
        with open_encoded(data, where) as image:
            found = found._replace(
                size=encoded_size(data, where),
                orientation=encoded_orientation(data, where),
                format=image.format or "",
                mode=image.mode,
                bits=_bits(image, data),
                frames=image.format != "MPO" and bool(getattr(image, "is_animated", False)),
            )
            image.draft(None, (_HASHED.width, _HASHED.height))
            pixels = np.asarray(resize_image(upright_rgb(image, where), _HASHED))
        return found._replace(hashes=hash_pixels(pixels))
    except DataError as error:
        kind = error.kind if error.kind in KINDS else "unreadable-image"
        return found._replace(kind=kind, problem=str(error))


def _bits(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[_PNG_DEPTH]
    depths: Sequence[int] = getattr(image, "tag_v2", {}).get(_TIFF_DEPTHS, ())
    if depths:
        return max(depths)
    return 16 if image.mode.startswith(_DEEP_MODES) else 8


def check_image_files(looks: Looks) -> Iterator[Finding]:
    """Yield what is wrong with each image file by itself."""
    for key, look in looks.items():
        inside = look.name if key[1] is not None else ""
        if look.problem:
            # A huge image that is refused is worse than one that takes long
            severity = "error" if look.kind == "huge-image" else None
            yield finding(look.kind, look.path, without_path(look.problem, look.path), inside, severity=severity)
            continue
        for kind, what in _about(look, in_file=not inside):
            yield finding(kind, look.path, f"{look.name} {what}", inside)


def _about(look: Look, *, in_file: bool) -> Iterator[tuple[str, str]]:
    assert look.size is not None
    height, width = look.size
    if in_file:
        suffix, endings = look.path.suffix.lower(), _SUFFIXES.get(look.format, ())
        # A file without an ending, or with one that is part of its name, claims nothing
        if endings and suffix not in endings and any(suffix in known for known in _SUFFIXES.values()):
            yield "wrong-extension", f"is a {look.format} file; expected an ending such as {endings[0]}"
    if height * width > HUGE_PIXELS or max(look.size) > HUGE_SIDE:
        yield "huge-image", f"has {width} x {height} pixels"
    if min(look.size) < TINY_SIDE:
        yield "tiny-image", f"has {width} x {height} pixels"
    if look.frames:
        yield "animated-image", "holds several frames or pages"
    if look.bits > 8:
        yield "deep-image", f"has {look.bits} bits per channel"
    if look.mode == "CMYK":
        yield "cmyk-image", "is stored in printing colours (CMYK)"
