"""Decoded images of a run in one file that all its threads and processes map: decoded once, held once.

The file lies in memory that the system frees with the last process (Linux), in the system's folder for temporary files,
or in a folder of the user's, where later runs find it again. It has room for as many images as a limit allows; the
others are decoded each time. Pixels are written by `pwrite`, never through the map: on a full disk that is an error and
not a signal that ends the process. Each image has a checksum, and whoever did not write it checks it once.
"""

import contextlib
import hashlib
import mmap
import os
import sys
import tempfile
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.files import write_bytes_whole
from multibox.structures import Sample, Size

Table = NDArray[np.int64]
_COLUMNS = 11
"""Of the table: offset, room, height, width, original height, original width, checksum, filled, key (2), version."""
_OFFSET, _ROOM, _HEIGHT, _FILLED, _KEY, _VERSION = 0, 1, 2, 7, 8, 10
_LAYOUT = 1
"""Version of the files' layout; a file of another one is begun anew."""
_ALIGN = 64


class Decoded(NamedTuple):
    """The pixels of an image, perhaps shrunk, and the size of the original."""

    pixels: NDArray[np.uint8]
    """[h, w, 3], RGB; not to be written to."""
    original: Size


class ImageStore:
    """Pixels by row number, in a file with a table beside it, both mapped.

    Any thread or process may read and write any row at any time: what is written to a row is always the same. A copy in
    another process (`pickle`) opens the same files, and holds nothing if it cannot.

    Args:
        pixels: path of the file of pixels, which exists.
        table: path of the table, [rows, 11] as int64.
        files: open descriptors of both where the paths lead nowhere without this process.
        hold: descriptors to keep open as long, such as that of a lock.
    """

    _files: tuple[int, ...] = ()
    _hold: tuple[int, ...] = ()

    def __init__(self, pixels: str, table: str, files: tuple[int, ...] = (), hold: tuple[int, ...] = ()) -> None:
        self.paths = (pixels, table)
        self.full = False
        self._lock = threading.Lock()
        self._hold = hold
        self._files = files or (open_shared(pixels), open_shared(table))
        self._table: Table = np.frombuffer(map_file(self._files[1]), np.int64).reshape(-1, _COLUMNS)
        self._pixels = np.frombuffer(map_file(self._files[0]), np.uint8)
        self._trusted = np.zeros(len(self._table), np.bool_)

    def __len__(self) -> int:
        """Return the number of rows, of images with room and without."""
        return len(self._table)

    @property
    def rooms(self) -> int:
        """Number of images that have room."""
        return int((self._table[:, _ROOM] > 0).sum())

    @property
    def filled(self) -> int:
        """Number of images that are there."""
        return int((self._table[:, _FILLED] > 0).sum())

    def close(self) -> None:
        """Let the files go; from now on no image is there, and none is kept. Images that are in use stay valid."""
        self.full = True
        self._table, self._trusted = np.zeros((0, _COLUMNS), np.int64), np.zeros(0, np.bool_)
        self._pixels = np.zeros(0, np.uint8)
        files, self._files, self._hold = (*self._files, *self._hold), (), ()
        for file in files:
            os.close(file)

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> tuple[str, str]:
        return self.paths

    def __setstate__(self, paths: tuple[str, str]) -> None:
        try:
            self.__init__(*paths)
        except OSError:
            self.close()

    def get(self, row: int) -> Decoded | None:
        """Return the image of a row; None if it is not there."""
        if row >= len(self._table):
            return None
        offset, _, height, width, original_height, original_width, checksum, filled, *_ = self._table[row].tolist()
        if not filled:
            return None
        pixels = self._pixels[offset : offset + 3 * height * width]
        if not self._trusted[row]:
            if len(pixels) != 3 * height * width or zlib.crc32(pixels.data) != checksum:
                return None
            self._trusted[row] = True
        return Decoded(pixels.reshape(height, width, 3), Size(original_height, original_width))

    def holds(self, row: int) -> bool:
        """Return whether the image of a row is there; its checksum is not looked at."""
        return row < len(self._table) and bool(self._table[row, _FILLED])

    def put(self, row: int, image: Decoded) -> None:
        """Keep the image of a row, if it has room and the disk has."""
        pixels = np.ascontiguousarray(image.pixels)
        if self.full or row >= len(self._table) or pixels.nbytes > self._table[row, _ROOM]:
            return
        values = (*pixels.shape[:2], *image.original, zlib.crc32(pixels.data), 1)
        try:
            self._write(0, pixels, int(self._table[row, _OFFSET]))
            self._write(1, np.array(values, np.int64), 8 * (row * _COLUMNS + _HEIGHT))
        except OSError:
            # A full disk, most likely: what is there stays
            self.full = True
            return
        self._trusted[row] = True

    def _write(self, file: int, values: NDArray[Any], offset: int) -> None:
        left = values.data.cast("B")
        while len(left):
            done = self._write_some(self._files[file], left, offset)
            left, offset = left[done:], offset + done

    def _write_some(self, file: int, data: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(file, data, offset)
        with self._lock:
            os.lseek(file, offset, os.SEEK_SET)
            return os.write(file, data)


class Room(NamedTuple):
    """What an image needs in a store."""

    size: int
    """Bytes of its pixels at most."""
    key: bytes = bytes(16)
    """Tells it from all others, and from itself before it was changed."""


def image_key(sample: Sample, kind: str) -> bytes:
    """Return 16 bytes that change with path, size and time of the sample's file, its place in it, and `kind`."""
    try:
        found = sample.path.stat()
        state = (found.st_size, found.st_mtime_ns)
    except OSError:
        state = (-1, -1)
    text = "\0".join(map(str, (sample.path.absolute(), *state, sample.offset, sample.length, kind)))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def memory_store(rooms: Sequence[Room], most: int) -> ImageStore:
    """Return an empty store of at most `most` bytes in memory, or in a temporary file where memory has no files.

    Raises:
        OSError: neither can be made.
    """
    table, length = _lay_out(rooms, most)
    files = shared_file("multibox-pixels", max(1, length)), shared_file("multibox-table", table.nbytes)
    map_file(files[1])[:] = table.tobytes()
    return ImageStore(shared_path(files[0]), shared_path(files[1]), files)


def folder_store(folder: Path, name: str, rooms: Sequence[Room], most: int) -> ImageStore:
    """Return a store of at most `most` bytes in files of a folder, with what is there from earlier runs.

    An image is found again by its key.

    Raises:
        OSError: the folder cannot be written to. BlockingIOError if another run uses these files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels, path = folder / f"{name}.pixels", folder / f"{name}.table"
    hold = _lock(folder / f"{name}.lock")
    table, length = _lay_out(rooms, most, _read_table(path, pixels))
    with pixels.open("ab"):
        pass
    os.truncate(pixels, max(1, length))
    write_bytes_whole(path, table.tobytes())
    return ImageStore(str(pixels), str(path), hold=hold)


def _lock(path: Path) -> tuple[int, ...]:
    """Return the descriptor of a lock that ends with this process or its store; none on Windows, which has no such."""
    if sys.platform == "win32":
        return ()
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise
    except OSError:
        # A file system without locks
        pass
    return (file,)


def _read_table(path: Path, pixels: Path) -> Table:
    """Return the table of an earlier run; an empty one if there is none that can be used."""
    with contextlib.suppress(OSError, ValueError):
        table = np.frombuffer(path.read_bytes(), np.int64).reshape(-1, _COLUMNS)
        sound = (table[:, _VERSION] == _LAYOUT).all() and (table >= 0)[:, :_KEY].all()
        if sound and (table[:, _OFFSET] + table[:, _ROOM] <= pixels.stat().st_size).all():
            return table
    return np.zeros((0, _COLUMNS), np.int64)


def _lay_out(rooms: Sequence[Room], most: int, old: Table | None = None) -> tuple[Table, int]:
    """Return the table and the length of the file: known images keep their place, others follow in order.

    If the places that are no longer used leave no room for all, everything begins anew.
    """
    # A file without rows could not be mapped
    table = np.zeros((max(1, len(rooms)), _COLUMNS), np.int64)
    table[:, _VERSION] = _LAYOUT
    if not len(rooms):
        return table, 0
    wanted = np.array([-(-room.size // _ALIGN) * _ALIGN for room in rooms], np.int64)
    table[:, _KEY : _KEY + 2] = np.frombuffer(b"".join(room.key for room in rooms), np.int64).reshape(-1, 2)
    end = 0
    if old is not None and len(old):
        end = int((old[:, _OFFSET] + old[:, _ROOM]).max())
        place = {key.tobytes(): row for row, key in enumerate(old[:, _KEY : _KEY + 2])}
        at = np.array([place.get(room.key, -1) for room in rooms])
        known = (at >= 0) & (old[at, _ROOM] >= wanted)
        table[known, :_KEY] = old[at[known], :_KEY]
        wanted[known] = 0
        if (end + wanted.sum() > most and end > table[:, _ROOM].sum()) or end > most:
            return _lay_out(rooms, most)
    ends = end + np.cumsum(wanted)
    fits = (wanted > 0) & (ends <= most)
    table[fits, _OFFSET], table[fits, _ROOM] = (ends - wanted)[fits], wanted[fits]
    return table, int((table[:, _OFFSET] + table[:, _ROOM]).max())


def open_shared(path: str) -> int:
    """Return the descriptor of a file to read and write; raises OSError."""
    return os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))


def map_file(file: int) -> mmap.mmap:
    """Return the content of an opened file that is not empty as memory."""
    return mmap.mmap(file, 0)


def shared_path(file: int) -> str:
    """Return where processes of the same user find a file that this process has open; Linux alone has such paths."""
    return f"/proc/{os.getpid()}/fd/{file}"


def shared_file(name: str, length: int) -> int:
    """Return the descriptor of a file of zeros that vanishes with the last process that has it open.

    In memory on Linux, where it needs no /dev/shm; elsewhere among the temporary files.
    """
    file = -1
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            file = os.memfd_create(name)
    if file < 0:
        file, path = tempfile.mkstemp(prefix=f"{name}-")
        with contextlib.suppress(OSError):
            # Windows refuses: there the file stays until temporary files are cleared
            os.unlink(path)  # noqa: PTH108 - a path from tempfile
    os.ftruncate(file, length)
    return file
