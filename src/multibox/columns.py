"""Columns of a million rows without an object per row: texts, paths and numbers over a few arrays.

The arrays may lie in a memory-mapped file. Pickled, such an array is a place in that file and no content, so that the
worker processes of a run share one copy in the system's file cache.
"""

import mmap
import os
import weakref
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from multibox.errors import DataError

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_BLOCK = 1 << 16
"""Rows handled at once, so that working memory stays small."""
_START = 4096
"""Bytes by which a mapped file is known again; a column file has the checksum of its header there."""
_ENCODING = ("utf-8", "surrogatepass")
"""Any text of Python and back, file names that are no UTF-8 included."""


class Texts(Sequence[str]):
    """Texts as one blob of UTF-8 with the places where each begins."""

    __slots__ = ("blob", "starts")

    def __init__(self, blob: Bytes, starts: Integers) -> None:
        """Take text i from the bytes starts[i] .. starts[i + 1] of `blob`."""
        self.blob, self.starts = blob, starts

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Return `texts` as a column; a column is returned as it is."""
        if isinstance(texts, Texts):
            return texts
        growing = GrowingTexts()
        for text in texts:
            growing.append(text)
        return growing.column()

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: "int | slice") -> "str | Texts":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = _row(index, len(self))
        return self.blob[self.starts[row] : self.starts[row + 1]].tobytes().decode(*_ENCODING)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            places: list[int] = self.starts[first : first + _BLOCK + 1].tolist()
            data = self.blob[places[0] : places[-1]].tobytes()
            base = places[0]
            for row in range(len(places) - 1):
                yield data[places[row] - base : places[row + 1] - base].decode(*_ENCODING)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return np.array_equal(np.diff(self.starts), np.diff(other.starts)) and np.array_equal(
                self.blob[self.starts[0] : self.starts[-1]], other.blob[other.starts[0] : other.starts[-1]]
            )
        return same_rows(self, other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return _shown(self)

    def __getstate__(self) -> tuple[Any, Any]:
        return portable(self.blob), portable(self.starts)

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self.blob, self.starts = local(state[0]), local(state[1])

    def arrays(self) -> tuple[Bytes, Integers]:
        """Return blob and starts without what other rows left in the blob."""
        first, last = int(self.starts[0]), int(self.starts[-1])
        return (self.blob[first:last], self.starts - first) if first else (self.blob[:last], self.starts)

    def take(self, rows: Integers) -> "Texts":
        """Return the texts of these rows, in this order."""
        if (part := as_slice(rows)) is not None:
            return Texts(self.blob, self.starts[part.start : part.stop + 1])
        starts, _ = ragged(self.starts, rows)
        blob = np.empty(int(starts[-1]), np.uint8)
        for first in range(0, len(rows), _BLOCK):
            stop = min(first + _BLOCK, len(rows))
            blob[starts[first] : starts[stop]] = self.blob[ragged(self.starts, rows[first:stop])[1]]
        return Texts(blob, starts)


class GrowingTexts:
    """Texts on their way into a column."""

    def __init__(self) -> None:
        self._blob, self._starts = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Add a text at the end."""
        self._blob += text.encode(*_ENCODING)
        self._starts.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> str:
        return self._blob[self._starts[row] : self._starts[row + 1]].decode(*_ENCODING)

    def column(self) -> Texts:
        """Return the column, which takes the memory over: nothing can be added any more."""
        return Texts(np.frombuffer(self._blob, np.uint8), np.frombuffer(self._starts, np.int64))


class Paths(Sequence[Path]):
    """Paths as a table of folders, the place of each path's folder in it, and file names."""

    __slots__ = ("folders", "names", "places")

    def __init__(self, folders: Texts, places: NDArray[np.int32], names: Texts) -> None:
        self.folders, self.places, self.names = folders, places, names

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Paths":
        """Return `paths` as a column; a column is returned as it is."""
        if isinstance(paths, Paths):
            return paths
        growing = GrowingPaths()
        for path in paths:
            growing.append(path)
        return growing.column()

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "Paths": ...
    def __getitem__(self, index: "int | slice") -> "Path | Paths":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = _row(index, len(self))
        return Path(self.folders[int(self.places[row])], self.names[row])

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Paths):
            return len(self) == len(other) and all(a == b for a, b in zip(self.texts(), other.texts(), strict=True))
        return same_rows(self, other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return _shown(self)

    def __getstate__(self) -> tuple[Texts, Any, Texts]:
        return self.folders, portable(self.places), self.names

    def __setstate__(self, state: tuple[Texts, Any, Texts]) -> None:
        self.folders, self.places, self.names = state[0], local(state[1]), state[2]

    def take(self, rows: Integers) -> "Paths":
        """Return the paths of these rows, in this order."""
        return Paths(self.folders, self.places[as_slice(rows) or rows], self.names.take(rows))

    def texts(self) -> Iterator[str]:
        """Yield each path as text: a tenth of the time that `Path` objects take."""
        folders = [os.path.join(folder, "") for folder in self.folders]  # noqa: PTH118 (ends it with a separator)
        for first in range(0, len(self), _BLOCK):
            names = self.names[first : first + _BLOCK]
            for place, name in zip(self.places[first : first + _BLOCK].tolist(), names, strict=True):
                yield folders[place] + name


class GrowingPaths:
    """Paths on their way into a column."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._table: list[str] = []
        self._places, self._names = array("i"), GrowingTexts()

    def append(self, path: Path) -> None:
        """Add a path at the end."""
        self.append_text(*os.path.split(path))

    def append_text(self, folder: str, name: str) -> None:
        """Add a path at the end, given as its folder and the name in it."""
        if folder not in self._folders:
            self._folders[folder] = len(self._table)
            self._table.append(folder)
        self._places.append(self._folders[folder])
        self._names.append(name)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> Path:
        return Path(self._table[self._places[row]], self._names[row])

    def column(self) -> Paths:
        """Return the column, which takes the memory over: nothing can be added any more."""
        return Paths(Texts.of(self._table), np.frombuffer(self._places, np.int32), self._names.column())


class Numbers(Sequence[int | None]):
    """Whole numbers from 0, or None, as one array with -1 for None."""

    __slots__ = ("array",)

    def __init__(self, array: Integers) -> None:
        self.array = array

    @classmethod
    def of(cls, numbers: Iterable[int | None]) -> "Numbers":
        """Return `numbers` as a column; a column is returned as it is."""
        if isinstance(numbers, Numbers):
            return numbers
        return cls(np.fromiter((-1 if number is None else number for number in numbers), np.int64))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> int | None: ...
    @overload
    def __getitem__(self, index: slice) -> "Numbers": ...
    def __getitem__(self, index: "int | slice") -> "int | Numbers | None":
        if isinstance(index, slice):
            return Numbers(self.array[index])
        number = int(self.array[index])
        return None if number < 0 else number

    def __eq__(self, other: object) -> bool:
        return same_rows(self, other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return _shown(self)

    def __getstate__(self) -> Any:
        return (portable(self.array),)

    def __setstate__(self, state: Any) -> None:
        self.array = local(state[0])

    def take(self, rows: Integers) -> "Numbers":
        """Return the numbers of these rows, in this order."""
        return Numbers(self.array[as_slice(rows) or rows])


class MappedFile(mmap.mmap):
    """A file mapped into memory for reading, which knows where it lies."""

    path: str
    stamp: tuple[int, int]
    """Its size and the CRC-32 of its start, which tell whether another process sees the same file."""


class Segment(NamedTuple):
    """An array as a place in a mapped file: what is pickled instead of the content."""

    path: str
    stamp: tuple[int, int]
    offset: int
    dtype: str
    shape: tuple[int, ...]


_mapped: "weakref.WeakValueDictionary[str, MappedFile]" = weakref.WeakValueDictionary()


def map_file(path: str | Path) -> MappedFile:
    """Map a whole file for reading; the mapping ends when no array needs it any more.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is empty.
    """
    with open(path, "rb") as file:  # noqa: PTH123 (also takes text)
        mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.path, mapped.stamp = os.path.abspath(path), (len(mapped), zlib.crc32(file.read(_START)))  # noqa: PTH100
    return mapped


def portable(values: NDArray[Any]) -> "NDArray[Any] | Segment":
    """Return what to pickle for an array: its place in the mapped file that holds it, or else the array itself."""
    owner: Any = values
    while isinstance(owner, np.ndarray):
        owner = owner.base  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    mapped = owner.obj if isinstance(owner, memoryview) else None
    if not isinstance(mapped, MappedFile) or not values.flags.c_contiguous or not values.size:
        return values
    start = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    offset = values.__array_interface__["data"][0] - start
    return Segment(mapped.path, mapped.stamp, offset, values.dtype.str, values.shape)


def local(pickled: "NDArray[Any] | Segment") -> NDArray[Any]:
    """Return the array that `portable` turned into `pickled`, in this process.

    Raises:
        DataError: the mapped file vanished or is another one now.
    """
    if not isinstance(pickled, Segment):
        return pickled
    mapped = _mapped.get(pickled.path)
    try:
        mapped = _mapped[pickled.path] = map_file(pickled.path) if mapped is None else mapped
    except (OSError, ValueError) as error:
        raise DataError(
            f"{pickled.path}, the cache of a data set in use, cannot be read ({error}); start again"
        ) from None
    if mapped.stamp != pickled.stamp:
        raise DataError(f"{pickled.path}, the cache of a data set in use, was written anew; start again")
    count = int(np.prod(pickled.shape))
    return np.frombuffer(mapped, np.dtype(pickled.dtype), count, pickled.offset).reshape(pickled.shape)


def as_slice(rows: Integers) -> slice | None:
    """Return rows that follow each other as a slice, which copies nothing; None for others."""
    if not len(rows):
        return slice(0, 0)
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all()) else None


def ragged(starts: Integers, rows: Integers) -> tuple[Integers, Integers]:
    """Return where each of the chosen rows starts when put one after the other, and the old places of their items.

    Args:
        starts: [n + 1]; row i owns the items starts[i] .. starts[i + 1].
        rows: [m]; the rows chosen.

    Returns:
        New starts [m + 1], and the places of the items [new starts[m]].
    """
    counts = starts[rows + 1] - starts[rows]
    after = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places = np.repeat(starts[rows] - after[:-1], counts)
    places += np.arange(len(places))
    return after, places


def _row(index: int, length: int) -> int:
    row = index + length if index < 0 else index
    if not 0 <= row < length:
        raise IndexError(f"row {index} of {length}")
    return row


def same_rows(column: Sequence[Any], other: Any) -> bool:
    """Return whether another sequence holds the same; for `__eq__`."""
    rows: Any = other
    if not isinstance(other, Sequence) or isinstance(other, str):
        return NotImplemented
    return len(column) == len(rows) and all(one == two for one, two in zip(column, rows, strict=True))


def _shown(column: Sequence[Any]) -> str:
    rest = f", ... {len(column) - 3} more" if len(column) > 3 else ""
    return f"{type(column).__name__}([{', '.join(map(repr, column[:3]))}{rest}])"
