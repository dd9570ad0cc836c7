"""Which files are images: the one list of endings, first bytes, and the files that sources of `predict` mean."""

import glob
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from multibox.errors import ImageError

SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jif", ".jp2", ".jpc", ".jpe", ".jpeg"}
    | {".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, of images that are always read."""
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Endings of images that are read if the extra `heic` is installed."""
IMAGE_SUFFIXES = tuple(sorted(SUFFIXES | HEIF_SUFFIXES))
"""Endings of the images of a data set."""
_VIDEOS = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"})
_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".rec", ".tar", ".tgz", ".xz", ".zip", ".zst"})
_SOURCES = "give image files, folders of images or glob patterns"

_SIGNATURES = (
    *((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp")),
    *((b"II*\0", ".tif"), (b"MM\0*", ".tif"), (b"II+\0", ".tif"), (b"MM\0+", ".tif")),
    *((b"P1", ".pbm"), (b"P4", ".pbm"), (b"P2", ".pgm"), (b"P5", ".pgm"), (b"P3", ".ppm"), (b"P6", ".ppm")),
    *((b"Pf", ".pfm"), (b"\0\0\0\x0cjP", ".jp2"), (b"\xff\x4f\xff\x51", ".j2k")),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Bytes 8 to 12 of a HEIF file, after `ftyp`; the last two may be AVIF as well."""


def suffix_by_content(head: bytes) -> str | None:
    """Return the usual file name ending for an image that begins with these bytes, 32 or more; None for no image."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:8] == b"ftyp" and (head[8:12] in (b"avif", b"avis") or b"avif" in head[16:32]):
        return ".avif"
    if may_be_heif(head):
        return ".heic"
    return next((suffix for signature, suffix in _SIGNATURES if head.startswith(signature)), None)


def may_be_heif(head: bytes) -> bool:
    """Return whether a file with these first 12 bytes is HEIF, or AVIF under one of its brands."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


@cache
def reads_heif() -> bool:
    """Return whether HEIC images can be read; the first call registers their reader with Pillow."""
    try:
        import_module("pi_heif").register_heif_opener()
    except ImportError:
        return False
    return True


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
