"""Finding a picture's file from what a label file calls it, without asking the disk once per picture."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from multibox.data.formats.common import PICTURE_SUFFIXES, files_below, safe_name, stem_of, tails

PICTURE_FOLDERS = ("JPEGImages", "images", "Images", "img", "imgs", "")


class PictureFinder:
    """Looks a picture up in a row of folders, each listed once.

    Exact path first, then its last parts, then other capitals or another suffix, and last its full name anywhere below
    the root, if it is there once.
    """

    def __init__(self, root: Path, folders: Iterable[Path] = ()) -> None:
        nearby = [root / name for name in PICTURE_FOLDERS]
        above = [up / name for up in (root.parent, root.parent.parent) for name in ("JPEGImages", "images")]
        self.root = root
        self.folders = list(dict.fromkeys(str(path) for path in (*folders, *nearby, *above)))
        self._listings: dict[str, frozenset[str]] = {}
        self._loose: dict[str, dict[str, list[str]]] = {}
        self._below: dict[str, list[str]] | None = None

    def find(self, listed: str) -> Path | None:
        """Return the file of the picture that a label file calls `listed`, or None."""
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
        """Return the picture with this path less its suffix, one that ends in `prefer` first, or None."""
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
            for name in files_below(self.root, *PICTURE_SUFFIXES):
                self._below.setdefault(_key(name.rpartition("/")[2]), []).append(name)
        # With its suffix: VOC's SegmentationClass holds a .png of the same stem, which is no photograph.
        hits = self._below.get(_key(base), [])
        return self.root / hits[0] if len(hits) == 1 else None


def _by_key(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(PICTURE_SUFFIXES):
            found.setdefault(_key(stem_of(name.rpartition("/")[2])), []).append(name)
    return found


def _key(name: str) -> str:
    # macOS writes accents decomposed, everything else composed; Windows forgets capitals.
    return unicodedata.normalize("NFC", name).casefold()
