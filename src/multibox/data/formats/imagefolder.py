"""Hugging Face's imagefolder: a metadata.jsonl beside the images, with `file_name` and `objects` per image."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.formats.documents import is_textual, shown, size_in, start_of
from multibox.data.formats.finder import ImageFinder, place_image, target_names
from multibox.data.formats.hugging_face import (
    OBJECT_KEYS,
    Classes,
    add_objects,
    categories_of,
    key_of,
    named_classes,
)
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    ReadOptions,
    child,
    folders_in,
    in_order,
    is_mapping,
    is_split_name,
    name_splits,
    read_text,
    safe_name,
)
from multibox.data.images import shown_size
from multibox.data.left_out import BROKEN_FILE
from multibox.errors import DataError
from multibox.structures import Dataset, Sample

_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_NAME_KEYS = ("file_name", "image_file_name", "filename")
_OBJECTS = re.compile(rf'"({"|".join(OBJECT_KEYS)})"\s*:')
_CARD = """\
---
configs:
- config_name: default
  data_files:
{files}
dataset_info:
  features:
  - name: image
    dtype: image
  - name: width
    dtype: int64
  - name: height
    dtype: int64
  - name: objects
    sequence:
    - name: bbox
      sequence: float64
      length: 4
    - name: categories
      dtype:
        class_label:
          names:
{names}
---
"""


@dataclass(frozen=True)
class _Split:
    root: Path
    file: Path
    part: str | None = None
    """The first folder of `file_name` whose images belong to the split; None for all."""


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder an imagefolder with boxes, or None."""
    if path.is_file():
        return path.name if path.name.lower() in _FILES and _holds_objects(path) else None
    return next((file.relative_to(path).as_posix() for file in _files(path).values()), None)


def find_splits(path: Path) -> dict[str, _Split]:
    """Return the splits: a folder with a metadata file each, else the first folders in the only one's names.

    Raises:
        DataError: the metadata file cannot be read.
    """
    files = {"all": path} if path.is_file() else _files(path)
    root = path.parent if path.is_file() else path
    if len(files) != 1:
        return {name: _Split(root, file) for name, file in files.items()}
    (split, file), *_ = files.items()
    firsts = dict.fromkeys(safe_name(_listed(row)).partition("/")[0] for _, row in _rows(file, quietly=True))
    if firsts and all(map(is_split_name, firsts)) and not is_split_name(file.parent.name):
        return {name: _Split(root, file, name) for name in in_order(firsts)}
    return {file.parent.name if is_split_name(file.parent.name) else split: _Split(root, file)}


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split: `bbox` is x, y, width, height in pixels, a category a name or a number.

    Numbers stand for the names in classes.txt or in the ClassLabel of README.md.

    Raises:
        DataError: for a line that is no JSON or names no image, and for boxes without numbers.
    """
    splits = find_splits(path)
    source = splits[split]
    file, folder = source.file, source.file.parent
    index = IndexBuilder(source.root, "imagefolder", split, options, shared=True)
    index.source = file
    classes = Classes(_named(source.root, file, index))
    finder = ImageFinder(source.root, [folder, *(folder / name for name in ("images", split))], split)
    for line, row in _rows(file, index=index):
        listed = _listed(row)
        where = f"{file}, line {line}"
        with index.skipping(BROKEN_FILE, f"line {line}"):
            if not listed:
                raise DataError(f"{where}: it has no file_name, got {shown(row)}; {ADVICE}")
            if source.part is not None and safe_name(listed).partition("/")[0] != source.part:
                continue
            found = index.find_image(finder, listed, where)
            if found is None:
                continue
            name = safe_name(listed).removeprefix(f"{source.part}/")
            image = index.add_image(name, found, file, size_in(row))
            if image is not None:
                add_objects(index, image, _parsed(key_of(row, OBJECT_KEYS)), classes, f"{where} ({name})", name)
    others = () if classes.declared is not None else _other_categories(splits, source)
    order = classes.order(others)
    index.notes += classes.note()
    return index.finish(classes.names, order=order)


def _named(root: Path, file: Path, index: IndexBuilder) -> list[str] | None:
    places = dict.fromkeys((root, file.parent, file.parent.parent))
    return next((names for place in places if (names := named_classes(place, index.tell_encoding)) is not None), None)


def _other_categories(splits: Mapping[str, _Split], source: _Split) -> Iterator[Any]:
    for file in dict.fromkeys(one.file for one in splits.values()):
        if file != source.file or source.part is not None:
            for _, row in _rows(file, quietly=True):
                yield from categories_of(_parsed(key_of(row, OBJECT_KEYS)))


def _listed(row: Mapping[str, Any]) -> str:
    text = key_of(row, _NAME_KEYS)
    return str(text).strip() if is_textual(text) else ""


def _parsed(objects: Any) -> Any:
    """Return objects as they are, or read from the JSON text that a CSV cell holds."""
    if not is_textual(objects):
        return None if isinstance(objects, str) else objects
    try:
        return json.loads(str(objects))
    except (ValueError, RecursionError):
        return objects  # said where the objects are read


def _rows(
    file: Path, *, index: IndexBuilder | None = None, quietly: bool = False
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line number and content of each image's line; `quietly` passes over what is broken.

    Raises:
        DataError: the file cannot be read, or a line is none.
    """
    if file.suffix.lower() == ".parquet":
        from multibox.data.formats.parquet import rows_of

        yield from enumerate(rows_of(file), start=1)
        return
    text = read_text(file, None if index is None else index.tell_encoding)
    if file.suffix.lower() == ".csv":
        try:
            yield from enumerate(csv.DictReader(text.splitlines()), start=2)
        except csv.Error as error:
            raise DataError(f"{file} is no CSV ({error}); correct it") from None
        return
    for line, content in enumerate(text.split("\n"), start=1):
        row: Any = None
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            row = error
        if is_mapping(row):
            yield line, row
        elif not quietly and index is not None:
            with index.skipping(BROKEN_FILE, f"line {line}"):
                raise DataError(f"{file}, line {line}: expected a JSON object, got {content[:40]!r}; {ADVICE}")


def _holds_objects(file: Path) -> bool:
    """Return whether a metadata file names images and holds objects, by its first lines."""
    if file.suffix.lower() == ".parquet":
        return start_of(file, 4) == "PAR1"
    head = start_of(file)
    if file.suffix.lower() == ".csv":
        header = {cell for row in csv.reader(head.splitlines()[:1]) for cell in row}
        return bool(header & {*_NAME_KEYS}) and bool(header & {*OBJECT_KEYS})
    return head.startswith("{") and any(f'"{key}"' in head for key in _NAME_KEYS) and _OBJECTS.search(head) is not None


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file() and _holds_objects(folder / name)), None)


def _files(folder: Path) -> dict[str, Path]:
    for place in (folder, child(folder, "data")):
        if place is None:
            continue
        here = _metadata(place)
        if here is not None:
            return {"all": here}
        parts = {part.name: part for part in folders_in(place) if _metadata(part) is not None}
        # The card makes the folder a data set, whatever its splits are called
        if any(map(is_split_name, parts)) or (parts and "class_label" in start_of(folder / "README.md")):
            return {name: part / (_metadata(part) or part).name for name, part in name_splits(parts).items()}
    return {}


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write SPLIT/metadata.jsonl beside the split's images, and README.md, whose head names the classes."""
    for split, dataset in splits.items():
        (folder / split).mkdir()
        lines: list[str] = []
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            place_image(sample, folder / split / name, link=link)
            lines.append(json.dumps(_row(sample, name), ensure_ascii=False) + "\n")
        (folder / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    # A string in JSON's spelling is YAML too
    spelt: Callable[[str], str] = lambda text: json.dumps(text, ensure_ascii=False)  # noqa: E731
    names = enumerate(next(iter(splits.values())).class_names)
    card = _CARD.format(
        files="\n".join(f"  - split: {spelt(split)}\n    path: {spelt(split + '/**')}" for split in splits),
        names="\n".join(f"            '{number}': {spelt(name)}" for number, name in names),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return []


def _row(sample: Sample, name: str) -> dict[str, Any]:
    size = sample.size or shown_size(sample)
    objects: dict[str, list[Any]] = {
        "bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in sample.boxes_xyxy.tolist()],
        "categories": sample.labels.tolist(),
    }
    for key, flags in (("difficult", sample.difficult), ("iscrowd", sample.crowd)):
        if flags.any():
            objects[key] = flags.astype(int).tolist()
    return {"file_name": name, "width": size.width, "height": size.height, "objects": objects}
