"""WebDataset: tar shards in which KEY.jpg lies beside KEY.json, KEY.txt or KEY.xml; images are read in place."""

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from multibox.data.formats.documents import around, number, parse_xml, shown, size_in
from multibox.data.formats.hugging_face import (
    BOX_KEYS,
    CLASS_KEYS,
    CORNER_KEYS,
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
    SKIP,
    ReadOptions,
    decoded,
    files_in,
    folders_in,
    in_order,
    is_list,
    is_mapping,
    is_split_name,
    safe_name,
    split_in,
)
from multibox.data.formats.voc import add_boxes
from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.data.images import encoded_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, MISSING_IMAGE, OUTLINE, UNREADABLE_IMAGE, Reason
from multibox.data.unpacking import Allowance, unpacked_folder
from multibox.errors import DataError, ImageError
from multibox.structures import Dataset, Size

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LABELS = ("json", "txt", "xml")
_NUMBERING = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")
_HEADER = 512
_LOOK = 24
"""Members of a shard that are looked at to recognise it."""
_MOST_LABEL_BYTES = 64 << 20
_BACKGROUND = Reason("image has no label beside it and shows no objects", "images have no label and show no objects")
_DIALECTS = (
    'expected {"objects": {"bbox": [[x, y, w, h]], "category": [...]}}, {"annotations": [{"bbox": [x, y, w, h], '
    '"category": ...}]}, or "bbox" (or "boxes": corners) and "category" at the top'
)


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


@dataclass
class _Item:
    """What a shard holds under one key."""

    key: str
    images: list[_Member] = field(default_factory=list[_Member])
    labels: dict[str, _Member] = field(default_factory=dict[str, _Member])
    others: list[str] = field(default_factory=list[str])


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder WebDataset shards with boxes, or None."""
    if path.is_file():
        # A broken one, given by itself, is meant to be read, and reading it says what is wrong
        return path.name if path.name.lower().endswith(_SUFFIXES) and _is_shard(path) is not False else None
    for files in _files(path).values():
        return files[0].relative_to(path).as_posix() if _is_shard(files[0]) else None
    return None


def find_splits(path: Path) -> dict[str, list[Path]]:
    """Return the shards of each split, by what stands before their numbers, else by folder."""
    files = {_split_of(path, path.parent): [path]} if path.is_file() else _files(path)
    return {name: files[name] for name in in_order(files)}


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; a shard that is compressed is unpacked once, any other is read where it is.

    JSON holds `objects` or `annotations` with `bbox` (x, y, width, height) and `category`, a text file lines of YOLO,
    XML an <annotation> of VOC. Numbers stand for the names in a classes.txt beside the shards.

    Raises:
        DataError: for a shard that is no tar file, and for labels that are none of these.
    """
    splits = find_splits(path)
    root = path.parent if path.is_file() else path
    index = IndexBuilder(root, "webdataset", split, options, shared=True)
    places = dict.fromkeys((splits[split][0].parent, root))
    declared = next((names for one in places if (names := named_classes(one, index.tell_encoding)) is not None), None)
    classes = Classes(declared)
    for shard in splits[split]:
        index.source = shard
        with index.skipping(BROKEN_FILE, shard.name):
            _add_shard(index, shard, classes)
    others = (shard for shards in splits.values() for shard in shards if shard not in splits[split])
    order = classes.order(() if declared is not None else _categories(others))
    index.notes += classes.note()
    return index.finish(classes.names, order=order)


def _add_shard(index: IndexBuilder, shard: Path, classes: Classes) -> None:
    tar = _plain(shard)
    with tar.open("rb") as file:
        for item in _items(tar, shard).values():
            with index.skipping(BROKEN_FILE, item.key):
                _add_item(index, file, tar, shard, item, classes)


def _add_item(index: IndexBuilder, file: BinaryIO, tar: Path, shard: Path, item: _Item, classes: Classes) -> None:
    where = f"{shard}, {item.key}"
    if not item.images:
        if item.labels:
            with index.skipping(MISSING_IMAGE, item.key):
                raise ImageError(
                    f"{where}: its image is missing, beside {', '.join(item.labels)}; add it, or {SKIP}",
                    kind="label-without-image",
                )
        return
    if len(item.images) > 1:
        held = ", ".join(member.name for member in item.images[:3])
        raise DataError(f"{where}: expected one image, got {held}; {ADVICE}")
    if "cls" in item.others and not item.labels:
        raise DataError(f"{where}: .cls is a class of the whole image; boxes are expected in .json, .txt or .xml")
    image = item.images[0]
    kind = next((kind for kind in _LABELS if kind in item.labels), "")
    data = _bytes(file, item.labels[kind], where) if kind else b""
    content = _json(data, where) if kind == "json" else None
    size = size_in(content)
    if kind == "txt" and data.strip():
        with index.skipping(UNREADABLE_IMAGE, item.key):
            size = encoded_size(_bytes(file, image, where), where)
        if size is None:
            return
    name = safe_name(image.name)
    row = index.add_image(name, tar, shard, size, image.offset, image.size)
    if row is None:
        return
    if kind == "json":
        add_objects(index, row, _objects(content, where), classes, where, name)
    elif kind == "txt":
        _add_lines(index, row, data, size, classes, where, name)
    elif kind == "xml":
        tree = parse_xml(data, where)
        if tree.tag != "annotation":
            raise DataError(f"{where}: expected <annotation> in its XML, got <{tree.tag}>; {ADVICE}")
        _add_xml(index, row, tree, classes, where, name)
    else:
        index.guessed(_BACKGROUND, name)


def _add_xml(index: IndexBuilder, row: int, tree: Any, classes: Classes, where: str, subject: str) -> None:
    names = {(thing.findtext("name") or "").strip() for thing in tree.findall("object")} - {""}
    labels = {name: classes.place(name, where) for name in sorted(names)}
    add_boxes(index, row, tree, where, subject, labels)


def _add_lines(
    index: IndexBuilder, row: int, data: bytes, size: Size | None, classes: Classes, where: str, subject: str
) -> None:
    """Add the boxes of YOLO's lines: a class number, then centre and size or an outline, as fractions."""
    text, _ = decoded(data, where)
    width, height = (size.width, size.height) if size is not None else (1, 1)
    for place, line in enumerate(text.splitlines(), start=1):
        tokens = line.split()
        if not tokens:
            continue
        with index.skipping(BROKEN_BOX, subject):
            at = f"{where}, line {place} of its .txt"
            try:
                values = [number(token) for token in tokens[1:]]
                if len(values) == 4:
                    cx, cy, wide, high = values
                    box = (cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2)
                elif len(values) >= 6 and len(values) % 2 == 0:
                    box = around(zip(values[0::2], values[1::2], strict=True))
                else:
                    raise ValueError
            except (ValueError, OverflowError):
                raise DataError(
                    f"{at}: expected class cx cy w h in fractions, got {line[:60]!r}; {ADVICE}", kind="not-a-number"
                ) from None
            category: int | str = int(tokens[0]) if tokens[0].isdecimal() and len(tokens[0]) < 10 else tokens[0]
            pixels = [round(value * edge, 6) for value, edge in zip(box, (width, height) * 2, strict=True)]
            index.add_box(row, pixels, classes.place(category, at), outline=len(values) > 4, line=place)
            if len(values) > 4:
                index.count(OUTLINE, subject)


def _objects(content: Any, where: str) -> Any:
    """Return the objects in a JSON member.

    Raises:
        DataError: it is none of the dialects.
    """
    if is_list(content):
        return content
    if is_mapping(content):
        if any(key in content for key in OBJECT_KEYS):
            return key_of(content, OBJECT_KEYS)
        if any(key in content for key in (*BOX_KEYS, *CORNER_KEYS)) and any(key in content for key in CLASS_KEYS):
            return content
    held = shown(list(content) if is_mapping(content) else content, 80)
    raise DataError(f"{where}: {_DIALECTS}, got {held}; {ADVICE}", kind="unreadable-label")


def _json(data: bytes, where: str) -> Any:
    text, _ = decoded(data, where)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: its .json is no JSON ({error}); {ADVICE}") from None


def _bytes(file: BinaryIO, member: _Member, where: str) -> bytes:
    if member.size > _MOST_LABEL_BYTES:
        raise DataError(f"{where}: {member.name} has {member.size >> 20} MiB, expected a label or an image; {ADVICE}")
    file.seek(member.offset)
    return file.read(member.size)


def _items(tar: Path, shard: Path, most: int | None = None) -> dict[str, _Item]:
    """Return what a shard holds, by key: a name up to the first dot behind its folders.

    Raises:
        DataError: it is no tar file.
    """
    items: dict[str, _Item] = {}
    for member in _members(tar, shard, most):
        head, slash, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        if base.startswith(".") or "__MACOSX" in head or not suffix:
            continue
        item = items.setdefault(head + slash + stem, _Item(head + slash + stem))
        if f".{suffix}" in IMAGE_SUFFIXES:
            item.images.append(member)
        elif suffix in _LABELS:
            item.labels[suffix] = member
        elif suffix.endswith(".json"):
            item.labels.setdefault("json", member)  # such as KEY.objects.json
        else:
            item.others.append(suffix)
    return items


def _members(tar: Path, shard: Path, most: int | None) -> Iterator[_Member]:
    try:
        end = tar.stat().st_size
        with tarfile.open(tar, "r:") as opened:
            for count, member in enumerate(opened):
                if most is not None and count >= most:
                    return
                if not member.isreg() or member.issparse():
                    continue  # folders and links; of these nothing is unpacked
                if member.offset_data + member.size > end:
                    raise DataError(f"{shard} is cut off in {member.name[:80]}; copy it again")
                yield _Member(member.name, member.offset_data, member.size)
                opened.members = []  # type: ignore[attr-defined]  # tarfile would keep a million of them
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        raise DataError(f"{shard} is no tar file that can be read ({error}); get it again") from None


def _plain(shard: Path) -> Path:
    """Return the shard itself, or what it unpacks to if it is compressed."""
    if shard.name.lower().endswith(".tar"):
        return shard
    return unpacked_folder(shard, lambda folder, allowance: _decompress(shard, folder, allowance)) / "shard.tar"


def _decompress(shard: Path, folder: Path, allowance: Allowance) -> None:
    try:
        with gzip.open(shard) as source, (folder / "shard.tar").open("wb") as target:
            while block := source.read(1 << 20):
                allowance.take(len(block))
                target.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{shard} is no gzip file that can be read ({error}); get it again") from None


def _categories(shards: Iterator[Path]) -> Iterator[Any]:
    """Yield the categories in other splits' shards; what cannot be read holds none."""
    for shard in shards:
        try:
            tar = _plain(shard)
            with tar.open("rb") as file:
                for item in _items(tar, shard).values():
                    for kind in _LABELS:
                        if kind in item.labels:
                            yield from _categories_in(kind, _bytes(file, item.labels[kind], item.key), item.key)
                            break
        except (DataError, OSError):
            continue


def _categories_in(kind: str, data: bytes, where: str) -> list[Any]:
    try:
        if kind == "json":
            return categories_of(_objects(_json(data, where), where))
        if kind == "xml":
            return [(thing.findtext("name") or "").strip() for thing in parse_xml(data, where).findall("object")]
        return [int(line.split()[0]) for line in decoded(data, where)[0].splitlines() if line[:1].isdecimal()]
    except (DataError, ValueError):
        return []


def check_start(file: Path) -> None:
    """Read the first members of a tar file.

    Raises:
        DataError: it is none, or is cut off there.
    """
    _items(file, file, _LOOK)


def _is_shard(file: Path) -> bool | None:
    """Return whether a tar file begins with an image and its label; None if it is broken.

    Of a compressed one, whether it is a tar file.
    """
    try:
        if not file.name.lower().endswith(".tar"):
            with gzip.open(file) as opened:
                return opened.read(_HEADER)[257:262] == b"ustar"
        items = _items(file, file, _LOOK).values()
    except (DataError, OSError, EOFError, zlib.error):
        return None
    return any(item.images and item.labels for item in items)


def _files(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in files_in(folder, *_SUFFIXES):
        splits.setdefault(_split_of(file, folder), []).append(file)
    for part in folders_in(folder) if not splits else ():
        if is_split_name(part.name) and (files := files_in(part, *_SUFFIXES)):
            splits[part.name] = files
    return splits


def _split_of(file: Path, folder: Path) -> str:
    stem = re.sub(r"\.(tar|tar\.gz|tgz)$", "", file.name, flags=re.IGNORECASE)
    names = (split_in(_NUMBERING.sub("", stem)), folder.name)
    return next((name for name in names if is_split_name(name)), "all")
