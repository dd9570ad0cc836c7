"""Images and archives that are unpacked once, into the user's cache folder, with a limit on what may come out."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from multibox.errors import DataError
from multibox.files import whole_folder, write_bytes_whole

MOST_TIMES_LARGER = 100
"""How much larger than its file the content of an archive may be; images hardly shrink in one, labels twentyfold."""
_ALWAYS_ALLOWED = 64 << 20
_LEFT_FREE = 1 << 30


class Allowance:
    """Bytes that one file may still unpack to: a hundred times its size, and what the disk has."""

    def __init__(self, source: Path, limit: int) -> None:
        self.source, self.limit, self.used = source, limit, 0

    def take(self, count: int) -> None:
        """Count bytes before they are written.

        Raises:
            DataError: that is more than the file may unpack to.
        """
        self.used += count
        if self.used > self.limit:
            raise DataError(
                f"{self.source} unpacks to more than {self.limit / (1 << 20):,.0f} MiB, which is {MOST_TIMES_LARGER} "
                "times its size or all the room on the disk; unpack it yourself if it is trusted, and give the folder"
            )


def cache_folder() -> Path:
    """Return the user's cache folder of this program: $XDG_CACHE_HOME/multibox, else ~/.cache/multibox."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()) / "multibox"  # noqa: PTH117


def unpacked_folder(source: Path, fill: Callable[[Path, Allowance], None]) -> Path:
    """Return the folder that holds what a file unpacks to; `fill` writes it the first time.

    The folder is keyed by the file's path, size and time. It appears when it is complete, so that two programs may
    unpack the same file at once.

    Args:
        source: the file.
        fill: writes into the empty folder it gets, and counts each byte with the allowance before.

    Raises:
        DataError: the file cannot be read, unpacks to too much, or the cache folder cannot be written to.
    """
    try:
        state = source.stat()
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror})") from None
    key = f"{source.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
    name = f"{source.stem[:40]}-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:20]}"
    target = cache_folder() / "unpacked" / name
    try:
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(target.parent).free - _LEFT_FREE
        allowance = Allowance(source, max(0, min(MOST_TIMES_LARGER * state.st_size + _ALWAYS_ALLOWED, room)))
        with whole_folder(target) as folder:
            fill(folder, allowance)
    except OSError as error:
        if target.is_dir():
            return target  # another program was quicker
        raise DataError(f"{source} cannot be unpacked to {cache_folder()} ({error.strerror or error})") from None
    return target


def kept_image(data: bytes, suffix: str, source: Path) -> Path:
    """Return a file in the cache folder that holds the bytes of an image, written once.

    Its name follows from the bytes and from `source`, the label file that embeds them, so that two label files with
    the same image keep an image each.

    Raises:
        DataError: the cache folder cannot be written to.
    """
    name = hashlib.sha256(os.fsencode(source.resolve()) + b"\0" + data).hexdigest()
    path = cache_folder() / "images" / name[:2] / (name + suffix)
    try:
        if not path.is_file():
            write_bytes_whole(path, data)
    except OSError as error:
        raise DataError(f"an embedded image cannot be written to {path} ({error.strerror or error})") from None
    return path
