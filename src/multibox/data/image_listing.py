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
VIDEOS = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm"}
    | {".wmv"}
)
"""File name endings, in lower case, of videos."""
_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".rec", ".tar", ".tgz", ".xz", ".zip", ".zst"})
_SHARED_ENDINGS = frozenset({".ts"})
"""Endings of videos that other kinds of files have, too, such as TypeScript's."""
_TRANSPORT_PACKET = 188
"""Bytes of each packet of a transport stream (.ts); each begins with the letter G."""
_VIDEO_STARTS = (b"\x1aE\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba", b"0&\xb2u\x8ef\xcf\x11")
"""First bytes of Matroska and WebM, FLV, MPEG program streams and ASF (WMV)."""
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
    """Image files, sentences that count the files passed over, and video files."""

    paths: list[Path]
    notes: list[str]
    videos: list[Path]


class _Source(NamedTuple):
    images: list[Path]
    videos: list[Path]
    others: Counter[str]
    """Number of files passed over, by ending."""


def find_images(sources: Iterable[str | Path], *, videos: bool = False) -> Listing:
    """List the images meant by files, folders and glob patterns: source by source, each sorted by path, none twice.

    A file is taken whatever its name; of a folder, the files directly in it that end like images. `folder/**/*` reaches
    deeper. Hidden files are ignored; other files are counted in the notes.

    Args:
        sources: files, folders and glob patterns.
        videos: list videos, too, which are passed over or refused otherwise.

    Raises:
        ImageError: a source does not exist, holds no image, or is of a kind that cannot be read.
    """
    listed = [_list_source(source, videos) for source in sources]
    paths = dict.fromkeys(path for source in listed for path in source.images)
    films = dict.fromkeys(path for source in listed for path in source.videos)
    others = sum((source.others for source in listed), Counter[str]())
    return Listing(list(paths), _notes(others), list(films))


def list_images(source: str | Path) -> list[Path]:
    """List the images meant by one file, folder or glob pattern, as `find_images` does.

    Raises:
        ImageError: there is nothing there, or no image among it.
    """
    return find_images([source]).paths


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its ending, or by its first bytes where the ending says nothing."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES | HEIF_SUFFIXES | _ARCHIVES or suffix in VIDEOS - _SHARED_ENDINGS:
        return suffix in VIDEOS
    try:
        with path.open("rb") as file:
            head = file.read(_TRANSPORT_PACKET + 1)
    except OSError:
        return False
    if head[4:8] == b"ftyp":
        return suffix_by_content(head) is None and head[8:11] not in (b"M4A", b"M4B")
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    return head[:1] + head[_TRANSPORT_PACKET:] == b"GG" or head.startswith(_VIDEO_STARTS)


def _list_source(source: str | Path, videos: bool) -> _Source:
    path = Path(source)
    if path.is_file():
        if videos and is_video(path):
            return _Source([], [path], Counter())
        if path.suffix.lower() in VIDEOS | _ARCHIVES:
            raise _not_yet(str(source), videos)
        return _Source([path], [], Counter())
    if path.is_dir():
        hits, where = path.iterdir(), f"in folder {path}"
        hint = f"; for images in folders below it write '{path}/**/*'"
    elif glob.has_magic(str(source)):
        hits = (Path(hit) for hit in glob.glob(str(source), recursive=True))  # noqa: PTH207 - absolute patterns
        where, hint = f"matches {source}", ""
    else:
        raise _not_yet(str(source), videos)
    files = sorted(hit for hit in hits if not hit.name.startswith(".") and hit.is_file())
    films = [file for file in files if videos and file.suffix.lower() in VIDEOS and is_video(file)]
    files = [file for file in files if file not in films] if films else files
    suffixes = Counter(file.suffix.lower() for file in files)
    wanted = SUFFIXES | HEIF_SUFFIXES if suffixes.keys() & HEIF_SUFFIXES and reads_heif() else SUFFIXES
    images = [file for file in files if file.suffix.lower() in wanted]
    others = Counter({suffix: count for suffix, count in suffixes.items() if suffix not in wanted})
    if not images and not films:
        notes = "".join(f"; {note}" for note in _notes(others))
        kinds = "image or video" if videos else "image"
        raise ImageError(f"no {kinds} {where}: expected files ending in {', '.join(sorted(SUFFIXES))}{notes}{hint}")
    return _Source(images, films, others)


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


def _not_yet(source: str, videos: bool = False) -> ImageError:
    """Return the error of a source that does not exist, or is no image, folder or pattern."""
    scheme, _, rest = source.partition("://")
    suffix = Path(source).suffix.lower()
    if rest and scheme.isalnum():
        return ImageError(f"{source} is an address, and nothing is downloaded: fetch it and {_SOURCES}")
    if source.isdigit() or source.startswith("/dev/video"):
        number = source.removeprefix("/dev/video")
        return ImageError(f"{source} names a camera: write camera:{number} (multibox predict reads it), or {_SOURCES}")
    if Path(source).is_file() and suffix in VIDEOS:
        return ImageError(
            f"{source} is a video, which only multibox predict reads: write its frames as images "
            f"(ffmpeg -i {source} frames/%05d.png) and give their folder"
        )
    if Path(source).is_file() and suffix in _ARCHIVES:
        return ImageError(f"{source} is an archive, which is not opened: unpack it and {_SOURCES}")
    sources = (
        _SOURCES.replace("image files, folders of images", "image or video files, folders") if videos else _SOURCES
    )
    return ImageError(f"{source} does not exist: {sources}")
