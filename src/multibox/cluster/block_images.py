"""The images of one block, one after the other, from wherever they lie."""

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from multibox.cluster.image_sources import is_image, table_columns
from multibox.cluster.places import is_address, join, open_binary, parent, read_bytes, split_options, with_options
from multibox.cluster.plan import Block
from multibox.errors import DataError, ImageError
from multibox.inference.streaming import Encoded

_ROWS = 64
"""Rows of a Parquet file in memory at a time."""


class Named(NamedTuple):
    """An image, and its name in the results."""

    name: str
    source: Path | Encoded


def images_of(block: Block, base: str) -> Iterator[Named]:
    """Yield the images of a block, in its order.

    Args:
        block: the block.
        base: folder at which relative local paths start; workers run elsewhere than the command.

    Raises:
        DataError: the block's Parquet file or tar cannot be read, or has changed since it was listed.
    """
    if block.kind == "files":
        for name, place in zip(block.files, with_options(block.files, block.options), strict=True):
            yield _named(name, place, base)
        return
    (name,) = block.files
    place = with_options(block.files, block.options)[0]
    pyarrow = import_module("pyarrow")
    try:
        with open_binary(place if is_address(place) else str(Path(base, place))) as file:
            yield from _of_rows(block, name, file, base) if block.kind == "parquet" else _of_members(block, name, file)
    except (OSError, EOFError, tarfile.TarError, pyarrow.ArrowException) as error:
        raise DataError(f"{name} cannot be read: {error}; workers on all nodes need to reach it") from None


def _named(name: str, place: str, base: str) -> Named:
    if not is_address(place):
        return Named(name, Path(base, place))
    return Named(name, Encoded(name, partial(_fetch, place)))


def _fetch(place: str) -> bytes:
    """Return an image from a store.

    Raises:
        ImageError: it is not there any more.
        DataError: the store cannot be reached or refuses.
    """
    where, _ = split_options(place)
    try:
        return read_bytes(place)
    except FileNotFoundError:
        raise ImageError(f"{where}: there is no such image") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error}; workers on all nodes need to reach it") from None


def _of_members(block: Block, name: str, file: Any) -> Iterator[Named]:
    """Yield images of a tar from a position on; members are read one after the other, as from a tape."""
    file.seek(block.first)
    found = 0
    with tarfile.open(fileobj=_AsFile(file.read), mode="r|") as tar:
        images = (member for member in tar if member.isreg() and is_image(member.name))
        for member in islice(images, block.images):
            content = tar.extractfile(member)
            data = content.read() if content is not None else b""
            found += 1
            yield Named(f"{name}/{member.name}", Encoded(f"{name}/{member.name}", partial(bytes, data)))
    if block.images is not None and found < block.images:
        raise DataError(
            f"{name} holds {found} images from byte {block.first} on, expected {block.images}: it has changed"
        )


class _AsFile(io.RawIOBase):
    """The one method that `tarfile` wants of a stream; pyarrow's files have others besides, which differ."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""
        return self._read(size)


def _of_rows(block: Block, name: str, file: Any, base: str) -> Iterator[Named]:
    """Yield images of rows of a Parquet file; row groups outside of them are not read."""
    parquet = import_module("pyarrow.parquet")
    table = parquet.ParquetFile(file)
    data, path = table_columns(table.schema_arrow.names, name)
    groups: list[int] = []
    start = end = 0
    stop = block.first + (block.images or 0)
    for number in range(table.num_row_groups):
        rows = table.metadata.row_group(number).num_rows
        if end + rows > block.first and end < stop:
            start = start if groups else end
            groups.append(number)
        end += rows
    if stop > end:
        raise DataError(f"{name} has {end} rows, expected {stop} or more: it has changed since it was listed")
    columns = [column for column in (data, path) if column is not None]
    row, folder = start, parent(with_options([name], block.options)[0])
    for batch in table.iter_batches(_ROWS, row_groups=groups, columns=columns):
        for values in batch.to_pylist():
            if block.first <= row < stop:
                yield _of_row(values, data, path, f"{name}#{row}", folder, base)
            row += 1


def _of_row(values: dict[str, Any], data: str | None, path: str | None, row: str, folder: str, base: str) -> Named:
    content = values[data] if data is not None else None
    label = values[path] if path is not None else None
    if isinstance(content, dict):
        both = cast("dict[str, Any]", content)
        label, content = label or both.get("path"), both.get("bytes")
    if isinstance(content, bytes):
        name = str(label or row)
        return Named(name, Encoded(name, partial(bytes, content)))
    # Of a data set with bytes, `image` may be a text: the path
    label = label or (content if isinstance(content, str) else None)
    if label:
        place = join(folder, str(label))
        return _named(split_options(place)[0], place, base)
    return Named(row, Encoded(row, bytes))
