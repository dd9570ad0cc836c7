"""Hugging Face's Parquet: shards with a column of images and one of objects; images are unpacked into the cache."""

import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from multibox.data.formats.documents import is_textual, size_in
from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder, image_suffix
from multibox.data.formats.hugging_face import (
    BOX_KEYS,
    CLASS_KEYS,
    OBJECT_KEYS,
    Classes,
    add_objects,
    categories_of,
    class_label_names,
    named_classes,
)
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ReadOptions,
    child,
    files_in,
    folders_in,
    in_order,
    is_mapping,
    is_split_name,
    safe_name,
    split_in,
)
from multibox.data.left_out import BROKEN_FILE, Reason
from multibox.data.unpacking import Allowance, unpacked_folder
from multibox.errors import DataError, MissingExtraError
from multibox.structures import Dataset

_IMAGE_KEYS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png")
_NAME_KEYS = ("file_name", "filename", "image_path", "image_id", "id")
_SHARD = re.compile(r"^(.+?)[-_](\d{4,6})[-_]of[-_](\d{4,6})")
_ROWS = 16
"""Rows read at once: each may hold an image of many megabytes."""
_NO_SHARD = Reason("shard of the split is not here", "shards of the split are not here")


@dataclass(frozen=True)
class _Split:
    root: Path
    files: list[Path] = field(default_factory=list[Path])


@dataclass(frozen=True)
class _Columns:
    image: str
    objects: str | None
    """None where the boxes are columns of their own."""
    rest: list[str]
    """The columns to read beside the image's bytes."""
    unpack: bool
    """Whether the image's column holds bytes; else it holds paths."""
    path: str | None
    """The column, or its field, that holds the image's name."""


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder Parquet with boxes, or None."""
    if path.is_file():
        return path.name if _is_parquet(path) else None
    for files in _files(path).values():
        return files[0].relative_to(path).as_posix() if _is_parquet(files[0]) else None
    return None


def find_splits(path: Path) -> dict[str, _Split]:
    """Return the splits: by the shards' names, such as train-00000-of-00002, else by folder."""
    files = {_split_of(path): [path]} if path.is_file() else _files(path)
    root = path.parent if path.is_file() else path
    return {name: _Split(root, files[name]) for name in in_order(files)}


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split: `bbox` is x, y, width, height in pixels; names come from the schema, else a classes.txt.

    Raises:
        DataError: for a file that is no Parquet, lacks the columns or unpacks to too much; for boxes without numbers.
        MissingExtraError: without pyarrow.
    """
    splits = find_splits(path)
    source = splits[split]
    index = IndexBuilder(source.root, "parquet", split, options, shared=True)
    declared = _declared(source, index)
    classes = Classes(declared)
    finder = ImageFinder(source.root, [source.root / name for name in IMAGE_FOLDERS], split)
    for missing in _missing_shards(source.files):
        index.guessed(_NO_SHARD, missing)
    names: set[str] = set()
    for file in source.files:
        index.source = file
        with index.skipping(BROKEN_FILE, file.name):
            _add_file(index, file, finder, classes, names)
    others = (file for one in splits.values() for file in one.files if file not in source.files)
    order = classes.order(() if declared is not None else _categories(others))
    index.notes += classes.note()
    return index.finish(classes.names, order=order)


def _add_file(index: IndexBuilder, file: Path, finder: ImageFinder, classes: Classes, names: set[str]) -> None:
    columns = _columns(file)
    held: dict[str, Path] = {}
    if columns.unpack:
        folder = unpacked_folder(file, lambda folder, allowance: _unpack(file, columns.image, folder, allowance))
        held = {path.stem: path for path in folder.iterdir()}
    for number, row in enumerate(rows_of(file, columns.rest)):
        where = f"{file}, row {number}"
        listed = _listed(row, columns)
        found = held.get(f"{number:08d}")
        if found is None:
            found = finder.find(listed) if listed else None
            found = index.check_found(found, finder, listed or f"of row {number}", where, f"row {number}")
        if found is None:
            continue
        name = safe_name(listed).rpartition("/")[2]
        name = name if Path(name).suffix else f"{name}{found.suffix}" if name else ""
        if not name or name in names:
            name = f"{file.stem}-{number:06d}{found.suffix}"
        names.add(name)
        image = index.add_image(name, found, file, size_in(row))
        if image is not None:
            objects: Any = row if columns.objects is None else row.get(columns.objects)
            add_objects(index, image, objects, classes, f"{where} ({name})", name)


def _unpack(file: Path, column: str, folder: Path, allowance: Allowance) -> None:
    """Write the images of a file into a folder, named by their rows."""
    for number, row in enumerate(rows_of(file, [column])):
        value: Any = row.get(column)
        data = value.get("bytes") if is_mapping(value) else value
        if isinstance(data, bytes):
            allowance.take(len(data))
            (folder / f"{number:08d}{image_suffix(data)}").write_bytes(data)


def rows_of(file: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, each as a mapping of the columns (all of them by default).

    Raises:
        DataError: it cannot be read. MissingExtraError without pyarrow.
    """
    with _reading(file) as opened:
        for batch in opened.iter_batches(batch_size=_ROWS, columns=columns):
            yield from batch.to_pylist()


@contextmanager
def _reading(file: Path) -> Generator[Any, None, None]:
    """Open a Parquet file; what pyarrow says about a broken one becomes a sentence."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("Reading Parquet", "hub") from None
    try:
        with parquet.ParquetFile(file, memory_map=True) as opened:
            yield opened
    except Exception as error:
        if not isinstance(error, (arrow.ArrowException, OSError, ValueError, OverflowError)):
            raise
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{file} is no Parquet file that can be read ({said}); get the file again") from None


def check_columns(file: Path) -> None:
    """Open a Parquet file and look for its columns of images and objects.

    Raises:
        DataError: it cannot be read, or they are not there. MissingExtraError without pyarrow.
    """
    _columns(file)


def _columns(file: Path) -> _Columns:
    """Find the columns of images and objects.

    Raises:
        DataError: they are not there.
    """
    with _reading(file) as opened:
        schema: Any = opened.schema_arrow
    types = import_module("pyarrow.types")
    kinds: dict[str, Any] = dict(zip(schema.names, schema.types, strict=True))

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    named = [name for name in _IMAGE_KEYS if name in kinds]
    image = next((name for name in (*named, *kinds) if holds_bytes(kinds[name])), next(iter(named), None))
    objects = next((name for name in OBJECT_KEYS if name in kinds), None)
    flat = any(name in kinds for name in BOX_KEYS) and any(name in kinds for name in CLASS_KEYS)
    if image is None or (objects is None and not flat):
        raise DataError(
            f"{file}: expected a column image and a column objects with bbox and category, found "
            f"{', '.join(kinds)[:200]}"
        )
    unpack = holds_bytes(kinds[image])
    path = f"{image}.path" if types.is_struct(kinds[image]) and kinds[image].get_field_index("path") >= 0 else None
    rest = [name for name in kinds if name != image and not holds_bytes(kinds[name])]
    return _Columns(image, objects, [*rest, *([path] if path else [] if unpack else [image])], unpack, path)


def _listed(row: Mapping[str, Any], columns: _Columns) -> str:
    """Return the name that a row gives its image; "" without one."""
    value: Any = row.get(columns.image)
    own = value.get("path") if is_mapping(value) else value
    texts = (own, *(row.get(key) for key in _NAME_KEYS))
    return next((str(text).strip() for text in texts if is_textual(text) or type(text) is int), "")


def _declared(source: _Split, index: IndexBuilder) -> list[str] | None:
    """Return the class names in the schema's description by the datasets library, else in a classes.txt or card."""
    for file in source.files:
        try:
            with _reading(file) as opened:
                metadata: Any = opened.schema_arrow.metadata or {}
            names = class_label_names(json.loads(metadata.get(b"huggingface", b"{}")))
        except (DataError, ValueError, RecursionError):
            continue  # said when its rows are read
        if names is not None:
            return names
    places = dict.fromkeys((source.root, source.root.parent))
    return next((names for place in places if (names := named_classes(place, index.tell_encoding)) is not None), None)


def _categories(files: Iterable[Path]) -> Iterator[Any]:
    """Yield the categories in other splits' files; what cannot be read holds none."""
    for file in files:
        try:
            columns = _columns(file)
            for row in rows_of(file, [name for name in columns.rest if name in (columns.objects, *CLASS_KEYS)]):
                yield from categories_of(row if columns.objects is None else row.get(columns.objects))
        except DataError:
            continue


def _missing_shards(files: list[Path]) -> list[str]:
    found = {(match[1], int(match[3])): set[int]() for file in files if (match := _SHARD.match(file.stem))}
    for file in files:
        if match := _SHARD.match(file.stem):
            found[match[1], int(match[3])].add(int(match[2]))
    return [
        f"{name}, {number} of {count}"
        for (name, count), there in found.items()
        for number in range(min(count, 10_000))
        if number not in there
    ]


def _is_parquet(file: Path) -> bool:
    """Return whether a file is Parquet with boxes; without pyarrow, whether it is Parquet."""
    if file.suffix.lower() != ".parquet" or file.name.lower() == "metadata.parquet":
        return False
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"PAR1":
                return False
        _columns(file)
    except MissingExtraError:
        return True
    except (DataError, OSError):
        return False
    return True


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the shards of each split: in the folder, in `data`, or in folders named by split."""
    for place in (folder, child(folder, "data"), child(folder, "default")):
        if place is None:
            continue
        files = files_in(place, ".parquet")
        if not files:
            files = [
                file for part in folders_in(place) if is_split_name(part.name) for file in files_in(part, ".parquet")
            ]
        splits: dict[str, list[Path]] = {}
        for file in files:
            if file.name.lower() != "metadata.parquet":
                splits.setdefault(_split_of(file), []).append(file)
        if splits:
            return splits
    return {}


def _split_of(file: Path) -> str:
    match = _SHARD.match(file.stem)
    name = match[1] if match else file.stem
    if is_split_name(split_in(name)):
        return split_in(name)
    if is_split_name(file.parent.name):
        return file.parent.name
    return name if match else "all"
