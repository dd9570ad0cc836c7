"""Finding an image's file from what a label file calls it, without asking the disk once per image."""

import io
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from multibox.data.formats.records import read_record
from multibox.data.formats.text import IMAGE_SUFFIXES, files_below, safe_name, stem_of, tails
from multibox.data.images import image_size
from multibox.errors import ImageError
from multibox.structures import Sample, Size

IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "img", "imgs", "")


class ImageFinder:
    """Looks an image up in a row of folders, each listed once.

    Exact path first, then its last parts, then other capitals or another suffix, and last its full name anywhere below
    the root, if it is there once.
    """

    def __init__(self, root: Path, folders: Iterable[Path] = ()) -> None:
        nearby = [root / name for name in IMAGE_FOLDERS]
        above = [up / name for up in (root.parent, root.parent.parent) for name in ("JPEGImages", "images")]
        self.root = root
        self.folders = list(dict.fromkeys(str(path) for path in (*folders, *nearby, *above)))
        self._listings: dict[str, frozenset[str]] = {}
        self._loose: dict[str, dict[str, list[str]]] = {}
        self._below: dict[str, list[str]] | None = None

    def find(self, listed: str) -> Path | None:
        """Return the file of the image that a label file calls `listed`, or None."""
        name = safe_name(listed)
        if not name:
            return None
        base = name.rpartition("/")[2]
        if os.path.isabs(listed) and os.path.isfile(listed):  # noqa: PTH113, PTH117
            return Path(listed)
        for wanted in tails(name):
            for folder in self.folders:
                if self._holds(folder, wanted):
                    return Path(folder, wanted)
        loose = self.find_stem(stem_of(name)) or (self.find_stem(stem_of(base)) if base != name else None)
        return loose or self._find_below(base)

    def find_stem(self, stem: str, prefer: str = "") -> Path | None:
        """Return the image with this path less its suffix, one that ends in `prefer` first, or None."""
        head, _, tail = stem.rpartition("/")
        for folder in self.folders:
            place = os.path.join(folder, head) if head else folder  # noqa: PTH118
            if prefer and self._holds(place, tail + prefer):
                return Path(place, tail + prefer)
        for folder in self.folders:
            place = os.path.join(folder, head) if head else folder  # noqa: PTH118
            hits = self._alike(place).get(_key(tail), [])
            exact = [hit for hit in hits if stem_of(hit) == tail]
            if exact or len(hits) == 1:
                return Path(place, (exact or hits)[0])
        return None

    def places(self) -> str:
        """Return the existing folders that were looked through, for an error message."""
        return ", ".join(folder for folder in self.folders if os.path.isdir(folder))  # noqa: PTH112

    def _holds(self, folder: str, name: str) -> bool:
        head, _, tail = name.rpartition("/")
        return tail in self._listing(os.path.join(folder, head) if head else folder)  # noqa: PTH118

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder))  # noqa: PTH208
            except OSError:
                self._listings[folder] = frozenset()
        return self._listings[folder]

    def _alike(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._loose:
            self._loose[folder] = _by_key(self._listing(folder))
        return self._loose[folder]

    def _find_below(self, base: str) -> Path | None:
        if self._below is None:
            self._below = {}
            for name in files_below(self.root, *IMAGE_SUFFIXES):
                self._below.setdefault(_key(name.rpartition("/")[2]), []).append(name)
        # With its suffix: VOC's SegmentationClass holds a .png of the same stem, which is no photograph.
        hits = self._below.get(_key(base), [])
        return self.root / hits[0] if len(hits) == 1 else None


def _by_key(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(IMAGE_SUFFIXES):
            found.setdefault(_key(stem_of(name.rpartition("/")[2])), []).append(name)
    return found


def _key(name: str) -> str:
    # macOS writes accents decomposed, everything else composed; Windows forgets capitals.
    return unicodedata.normalize("NFC", name).casefold()


_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_SIGNATURES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"RIFF", ".webp"))


def encoded_size(data: bytes, where: str) -> Size:
    """Return the size as shown (after EXIF orientation) of an image file's bytes, from its header.

    Raises:
        ImageError: when the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            # Asking a PNG without EXIF for it would decode all of it.
            has_exif = image.format != "PNG" or b"eXIf" in data
            sideways = has_exif and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception as error:  # Pillow raises whatever its plugins do
        raise ImageError(f"{where}: its bytes are no image ({type(error).__name__}); make the record anew") from None
    return Size(width, height) if sideways else Size(height, width)


def bytes_of(sample: Sample) -> bytes:
    """Return a sample's image as it is encoded.

    Raises:
        ImageError: when its file cannot be read.
    """
    if sample.offset is not None:
        return read_record(sample.path, sample.offset).image
    try:
        return sample.path.read_bytes()
    except OSError as error:
        raise ImageError(f"{sample.path} cannot be read ({error.strerror}); check that it exists") from None


def shown_size(sample: Sample) -> Size:
    """Return the size that the image itself has, whatever its label file says."""
    if sample.offset is None:
        return image_size(sample.path)
    return encoded_size(bytes_of(sample), f"{sample.path}, record at byte {sample.offset}")


def file_name(sample: Sample) -> str:
    """Return the sample's name as a relative file name with the suffix of an image."""
    name = safe_name(sample.name)
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        return name
    if sample.offset is None:
        return name + sample.path.suffix
    start = bytes_of(sample)[:8]
    return name + next((suffix for signature, suffix in _SIGNATURES if start.startswith(signature)), ".jpg")
