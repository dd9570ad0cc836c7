"""What identifies the label files of a data set: its folders and files, with their sizes and times.

A folder's time changes when a file in it is added, removed or renamed, so its files are listed once. Only the files
that are no images are looked at again one by one, since a label file may be edited in place.
"""

import hashlib
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multibox.columns import Bytes, GrowingPaths, GrowingTexts, Integers, Paths, Texts
from multibox.data.image_listing import IMAGE_SUFFIXES

_TICK_NS = 50_000_000
"""A file system's clock may stand still for so long; a second change in that time looks like the first."""
_COARSE_NS, _SECOND_NS = 2_000_000_000, 1_000_000_000
"""FAT counts in steps of two seconds; a time of whole seconds gives such a clock away."""
_HOLDS_MANY = (".yaml", ".yml", ".data", ".txt", ".lst")
"""A file of these endings describes the folders around it; another one holds all labels itself."""
_DIGEST = 16


@dataclass(frozen=True, eq=False)
class Footprint:
    """Folders and files as they were at one moment."""

    folders: Texts
    times: Integers
    """[folders]; of their last change, in nanoseconds."""
    listings: Bytes
    """[folders, 16]; a digest of the names in each."""
    files: Paths
    """All files in them that are no images."""
    stamps: Integers
    """[files, 2]; size and time of last change in nanoseconds."""
    ignored: str
    """A folder that does not count; empty for none."""

    def is_current(self) -> bool:
        """Return whether nothing was added, removed or changed since."""
        for row, (folder, changed) in enumerate(zip(self.folders, self.times.tolist(), strict=True)):
            # Time alone may change, as when a run folder appears that does not count
            if stamp_of(folder)[1] != changed and _look(folder, self.ignored).digest != self.listings[row].tobytes():
                return False
        return bool(np.array_equal(stamps_of(self.files), self.stamps))

    def newest(self) -> int:
        """Return the time of the last change, in nanoseconds."""
        return max(int(self.times.max(initial=0)), int(self.stamps[:, 1].max(initial=0)))

    def extended(self, folders: Iterable[str]) -> "Footprint":
        """Return a footprint that holds these folders, without those below them, as well."""
        known = {os.path.realpath(folder) for folder in self.folders}
        more = [folder for folder in dict.fromkeys(folders) if os.path.realpath(folder) not in known]
        return _footprint([*self.folders, *more], self.ignored) if more else self


def take_footprint(paths: Sequence[Path], cache: Path) -> Footprint:
    """Return what identifies the label files at `paths` now.

    The folder that holds `cache` does not count if it lies below one of them: it holds runs.

    Waits up to two seconds if something was changed this very moment: a further change in the same tick of the file
    system's clock would not be noticed.
    """
    starts = [path if path.is_dir() else path.parent for path in paths]
    runs = os.path.realpath(cache.parent)
    ignored = runs if any(Path(os.path.realpath(start)) in Path(runs).parents for start in starts) else ""

    def take() -> Footprint:
        folders: dict[str, None] = {}
        for path, start in zip(paths, starts, strict=True):
            several = path.is_dir() or path.suffix.lower() in _HOLDS_MANY
            folders |= dict.fromkeys(_folders_below(str(start), ignored) if several else [str(start)])
        return _footprint(folders, ignored)

    found = take()
    newest = found.newest()
    age = time.time_ns() - newest
    tick = _COARSE_NS if newest % _SECOND_NS == 0 else _TICK_NS
    if not 0 <= age < tick:
        return found
    time.sleep((tick - age) / _SECOND_NS)
    return take()


def stamp_of(path: str | Path) -> tuple[int, int]:
    """Return size and time of last change in nanoseconds of a file or folder; -1 for what is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a million of them: no Path objects)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def stamps_of(paths: Paths) -> Integers:
    """Return size and time of last change in nanoseconds of each file, [N, 2]; -1 for files that are not there."""
    stamps = array("q")
    for path in paths.texts():
        stamps.extend(stamp_of(path))
    return np.frombuffer(stamps, np.int64).reshape(-1, 2)


class _Look(NamedTuple):
    """What a folder holds, without hidden entries."""

    digest: bytes
    """Of all names."""
    folders: list[str]
    files: list[str]
    """Those that are no images."""


def _look(folder: str, ignored: str) -> _Look:
    try:
        with os.scandir(folder) as entries:
            held = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name[0] != ".")
    except OSError:
        return _Look(bytes(_DIGEST), [], [])
    if ignored:
        place = os.path.realpath(folder)
        held = [one for one in held if os.path.join(place, one[0]) != ignored]  # noqa: PTH118
    names = "\0".join(name for name, _ in held).encode("utf-8", "surrogatepass")
    folders = [name for name, is_folder in held if is_folder]
    files = [name for name, is_folder in held if not is_folder and not name.lower().endswith(IMAGE_SUFFIXES)]
    return _Look(hashlib.blake2b(names, digest_size=_DIGEST).digest(), folders, files)


def _folders_below(start: str, ignored: str) -> Iterator[str]:
    """Yield a folder and all below it, links included, each once: a link may lead in a circle."""
    waiting, seen = [start], set[str]()
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real not in seen and (not ignored or real != ignored):
            seen.add(real)
            yield folder
            waiting += [os.path.join(folder, name) for name in reversed(_look(folder, ignored).folders)]  # noqa: PTH118


def _footprint(folders: Iterable[str], ignored: str) -> Footprint:
    names, files = GrowingTexts(), GrowingPaths()
    times, listings = array("q"), bytearray()
    for folder in folders:
        # Time first: what changes after it was read is noticed later
        times.append(stamp_of(folder)[1])
        look = _look(folder, ignored)
        names.append(folder)
        listings += look.digest
        for name in look.files:
            files.append_text(folder, name)
    held = files.column()
    return Footprint(
        folders=names.column(),
        times=np.frombuffer(times, np.int64),
        listings=np.frombuffer(listings, np.uint8).reshape(-1, _DIGEST),
        files=held,
        stamps=stamps_of(held),
        ignored=ignored,
    )
