"""What SOURCE arguments mean on a cluster: folders, patterns, lists, Parquet files and tars, as blocks."""

import csv
import glob
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from multibox.cluster.places import (
    Entry,
    is_address,
    join,
    kind_of,
    list_folder,
    matching,
    open_binary,
    parent,
    read_bytes,
    split_options,
    with_options,
)
from multibox.cluster.plan import BLOCK, Block, divide
from multibox.data.image_listing import HEIF_SUFFIXES, SUFFIXES, find_images, reads_heif
from multibox.errors import DataError, ImageError

LISTS = (".txt", ".csv", ".jsonl")
PATHS = ("path", "file", "image", "file_name", "filename", "image_path")
"""Names of the column with an image's path in lists and Parquet files; the first that is there counts."""
BYTES = ("bytes", "image", "image_bytes", "jpg", "content")
"""Names of the column with an image's bytes in Parquet files; `image` may hold both, as in Hugging Face's data sets."""
_READERS = 16
"""Footers of Parquet files read at a time."""


class Blocks(NamedTuple):
    """A job's blocks, and sentences on files passed over."""

    blocks: list[Block]
    notes: list[str]


def find_blocks(sources: Iterable[str], size: int = BLOCK) -> Blocks:
    """Return the blocks of all sources, source by source, none of their files twice.

    A folder means the images directly in it, as for `predict`; if it has none, its Parquet files, else its tars.

    Raises:
        DataError: a source does not exist, holds nothing, or cannot be read.
    """
    blocks: list[Block] = []
    notes: list[str] = []
    seen: set[str] = set()
    for source in sources:
        _, options = split_options(source)
        entries = [entry for entry in _entries(source, notes) if entry.name not in seen]
        seen.update(entry.name for entry in entries)
        for kind, group in groupby(entries, key=lambda entry: _kind(entry.name)):
            blocks += _divided(kind, list(group), options, size)
    if not blocks:
        raise ImageError(f"no image in {', '.join(sources)}")
    return Blocks(blocks, notes)


def _divided(kind: str, entries: Sequence[Entry], options: str, size: int) -> list[Block]:
    """Return the blocks of files of one kind."""
    if kind == "files":
        return divide([entry.name for entry in entries], [entry.size for entry in entries], options, size)
    one = _of_table if kind == "parquet" else _of_tar
    # Each footer of a store takes two requests
    with ThreadPoolExecutor(_READERS) as pool:
        return list(chain.from_iterable(pool.map(partial(one, options=options, size=size), entries)))


def is_image(name: str) -> bool:
    """Return whether a member of a folder or archive is an image that can be read, by its name."""
    base = name.rpartition("/")[2]
    suffix = Path(base).suffix.lower()
    return not base.startswith(".") and (suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif()))


def table_columns(names: Sequence[str], where: str) -> tuple[str | None, str | None]:
    """Return the columns of a Parquet file that hold an image's bytes and its path; one of them may be None.

    Raises:
        DataError: there is neither.
    """
    data = next((name for name in BYTES if name in names), None)
    path = next((name for name in PATHS if name in names and name != data), None)
    if data is None and path is None:
        raise DataError(
            f"{where} has the columns {', '.join(names)}, expected one with images ({', '.join(BYTES)}) or with their "
            f"paths ({', '.join(PATHS)}); rename it"
        )
    return data, path


def _kind(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return {".parquet": "parquet", ".pq": "parquet", ".tar": "tar"}.get(suffix, "files")


def _entries(source: str, notes: list[str]) -> list[Entry]:
    """Return the image files, Parquet files and tars that one source means."""
    found = kind_of(source)
    suffix = Path(split_options(source)[0]).suffix.lower()
    if found == "file" and suffix in LISTS:
        return _of_list(source)
    if found == "file" and (is_address(source) or _kind(source) != "files"):
        return [Entry(split_options(source)[0], None if is_address(source) else Path(source).stat().st_size)]
    if found == "folder":
        entries = [entry for entry in list_folder(source) if not Path(entry.name).name.startswith(".")]
    elif is_address(source):
        entries = matching(source) if set(source) & set("*[") else []
    elif glob.has_magic(source):
        paths = sorted(Path(hit) for hit in glob.glob(source, recursive=True))  # noqa: PTH207 - absolute patterns
        entries = [Entry(str(path), path.stat().st_size) for path in paths if path.is_file()]
    else:
        entries = []
    if not is_address(source) and not any(_kind(entry.name) != "files" for entry in entries):
        # One rule, one message for what `predict` takes as well
        listing = find_images([source])
        notes.extend(listing.notes)
        return [Entry(str(path), path.stat().st_size) for path in listing.paths]
    for chosen in (
        [entry for entry in entries if is_image(entry.name)],
        [entry for entry in entries if _kind(entry.name) == "parquet"],
        [entry for entry in entries if _kind(entry.name) == "tar"],
    ):
        if chosen:
            others = len(entries) - len(chosen)
            notes.extend([f"{others} other files of {split_options(source)[0]} were passed over"] if others else [])
            return chosen
    raise ImageError(
        f"{split_options(source)[0]} holds no image, Parquet file or tar"
        + ("" if found == "folder" else ", or does not exist")
        + "; give a folder, a list (.txt, .csv, .jsonl), .parquet or .tar files, or a pattern"
    )


def _of_list(source: str) -> list[Entry]:
    """Return the images of a list; relative paths start at the list's folder.

    Raises:
        DataError: the list holds no path, or its first image is not there.
    """
    where, options = split_options(source)
    text = read_bytes(source).decode("utf-8", "surrogateescape")
    suffix = Path(where).suffix.lower()
    read = {".txt": _of_lines, ".csv": _of_csv, ".jsonl": _of_json_lines}[suffix]
    folder = parent(where)
    names = list(dict.fromkeys(join(folder, name) for name in read(text, where)))
    if not names:
        raise DataError(f"{where} names no image, expected one path per line")
    first = with_options(names[:1], options)[0]
    if kind_of(first) != "file":
        raise DataError(
            f"{where}: its first image {names[0]} does not exist; relative paths start at the list's folder"
        )
    return [Entry(name, None) for name in names]


def _of_lines(text: str, where: str) -> list[str]:
    del where
    return [line.strip() for line in text.splitlines() if line.strip()]


def _of_csv(text: str, where: str) -> list[str]:
    rows = csv.reader(io.StringIO(text))
    head = [name.strip() for name in next(rows, list[str]())]
    at = next((head.index(name) for name in PATHS if name in head), None)
    if at is None:
        raise DataError(f"{where}: the first line names no column {', '.join(PATHS)}; add such a line")
    return [row[at] for row in rows if len(row) > at and row[at]]


def _of_json_lines(text: str, where: str) -> list[str]:
    names: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            names.append(str(next(row[name] for name in PATHS if name in row)))
        except (ValueError, TypeError, StopIteration):
            raise DataError(
                f"{where}, line {number}: expected an object with {', '.join(PATHS[:3])} or similar, got {line[:80]}"
            ) from None
    return names


def _of_table(entry: Entry, options: str, size: int) -> list[Block]:
    """Return blocks of rows of a Parquet file."""
    parquet, pyarrow = import_module("pyarrow.parquet"), import_module("pyarrow")
    try:
        with open_binary(with_options([entry.name], options)[0]) as file:
            found = parquet.ParquetFile(file)
            rows = int(found.metadata.num_rows)
            table_columns(found.schema_arrow.names, entry.name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{entry.name} cannot be read as Parquet: {error}") from None
    return [
        Block("parquet", (entry.name,), (entry.size,), first, min(size, rows - first), options)
        for first in range(0, rows, size)
    ]


def _of_tar(entry: Entry, options: str, size: int) -> list[Block]:
    """Return blocks of a tar's members; a tar in a store is one block, for listing it would mean reading it."""
    if is_address(entry.name):
        return [Block("tar", (entry.name,), (entry.size,), 0, None, options)]
    try:
        with tarfile.open(entry.name, "r:") as tar:
            starts = [member.offset for member in tar if member.isreg() and is_image(member.name)]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{entry.name} cannot be read as a tar: {error}; compressed ones are to be unpacked first"
        ) from None
    if not starts:
        raise ImageError(f"{entry.name} holds no image")
    return [
        Block("tar", (entry.name,), (entry.size,), starts[at], min(size, len(starts) - at))
        for at in range(0, len(starts), size)
    ]
