"""COCO JSON: one file per split, boxes as x, y, width, height; laid out as COCO, Roboflow, MediaPipe and others do."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from multibox.data.formats.documents import NO_SIZE, around, json_kind
from multibox.data.formats.finder import (
    IMAGE_FOLDERS,
    ImageFinder,
    folders_of_split,
    own_places,
    place_image,
    target_names,
)
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    ReadOptions,
    child,
    decoded,
    files_in,
    folders_in,
    is_list,
    is_mapping,
    is_set,
    is_split_name,
    name_splits,
    read_bytes,
    safe_name,
    split_folders,
    split_in,
)
from multibox.data.images import shown_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, LABELLED_TWICE, OUTLINE, Reason
from multibox.errors import DataError
from multibox.structures import Dataset, Sample, Size

_PREFIX = re.compile(r"^(instances|person_keypoints)_")
_NOT_BOXES = ("captions_", "panoptic_", "stuff_", "image_info_")
_KEYPOINTS = "person_keypoints_"
_TEXT_IDS = Reason(
    "list has ids that are text, compared as they are", "lists have ids that are text, compared as they are"
)
_NAMELESS = Reason(
    "category has no name and is called by its id", "categories have no name and are called by their ids"
)
_UNUSED_NAMELESS = Reason(
    "category without name and boxes was not taken for a class",
    "categories without name and boxes were not taken for classes",
)


class _Image(msgspec.Struct):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Annotation(msgspec.Struct):
    id: Any = None
    image_id: Any = msgspec.UNSET
    category_id: Any = msgspec.UNSET
    bbox: Any = None
    iscrowd: Any = None
    difficult: Any = None
    ignore: Any = None
    segmentation: msgspec.Raw = msgspec.Raw()
    """Not decoded until a box is wanted of it: outlines are most of a file."""


class _File(msgspec.Struct):
    images: list[_Image | None]
    """None stands for an entry that is no object."""
    annotations: list[_Annotation | None] | None = None
    categories: Any = None


@dataclass(frozen=True)
class _Categories:
    names: list[str]
    index: dict[Any, int]
    """Category id to its place in `names`."""
    order: list[str]
    """The data set's classes: those of `names` that are meant as classes."""


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder COCO, or None."""
    if path.is_file():
        return path.name if path.suffix.lower() == ".json" and json_kind(path) in ("coco", "") else None
    return next((file.relative_to(path).as_posix() for file in _split_files(path).values()), None)


def find_splits(path: Path) -> dict[str, Path]:
    """Return the JSON file of each split; a file that names no split holds one called "all"."""
    return {_single_name(path.parent, path): path} if path.is_file() else _split_files(path)


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split: classes by category id, crowds flagged, images without annotations kept.

    Raises:
        DataError: for JSON that is none, or an entry that refers to an image or category that is not there.
    """
    file = find_splits(path)[split]
    root = path
    if path.is_file():
        root = path.parent.parent if path.parent.name.lower() == "annotations" else path.parent
    index = IndexBuilder(root, "coco", split, options, shared=True)
    index.source = file
    content = _load(file, index)
    annotations = content.annotations or []
    categories = _read_categories(content.categories, annotations, file, index)
    rows = _add_images(index, content.images, _finder(root, file, split), file)
    for kind, ids in (
        ("images", rows),
        ("annotations", (thing.image_id for thing in annotations if thing is not None)),
        ("categories", categories.index),
    ):
        if any(isinstance(key, str) for key in ids):
            index.guessed(_TEXT_IDS, kind)
    for number, thing in enumerate(annotations, start=1):
        called = f"id {thing.id}" if thing is not None and thing.id is not None else f"number {number}"
        with index.skipping(BROKEN_BOX, f"annotation {called}"):
            _add_box(index, thing, number, rows, categories, f"{file}, annotation {called}")
    return index.finish(categories.names, order=categories.order)


def _add_images(
    index: IndexBuilder, images: list[_Image | None], finder: ImageFinder, file: Path
) -> dict[Any, int | None]:
    """Add the images that are there, and return the row of each id; None where it is skipped."""
    rows: dict[Any, int | None] = {}
    names: dict[Any, set[str]] = {}
    for image in images:
        if image is not None and _is_named(image):
            names.setdefault(image.id, set()).add(str(image.file_name))
    for number, image in enumerate(images, start=1):
        if image is None or not _is_named(image):
            with index.skipping(BROKEN_FILE, f"image {number}"):
                raise DataError(f"{file}, image entry {number}: expected an id and a file_name; {ADVICE}")
            continue
        key, listed = image.id, str(image.file_name)
        if key in rows or len(names[key]) > 1:
            # Nothing tells whose the boxes are; where the name is the same, the first entry has them.
            rows.setdefault(key, None)
            with index.skipping(LABELLED_TWICE if len(names[key]) == 1 else BROKEN_FILE, listed):
                raise DataError(
                    f"{file}, image entry {number} ({listed}): id {key} is used twice; give every image its own",
                    kind="duplicate-id",
                )
            continue
        found = index.find_image(finder, listed, str(file))
        size = _size(image)
        rows[key] = None if found is None else index.add_image(safe_name(listed), found, file, size)
        if size is None and (image.width, image.height) != (None, None):
            index.guessed(NO_SIZE, listed)
    return rows


def _is_named(image: _Image) -> bool:
    return isinstance(image.id, int | float | str) and isinstance(image.file_name, int | str)


def _add_box(
    index: IndexBuilder,
    thing: _Annotation | None,
    number: int,
    rows: Mapping[Any, int | None],
    categories: _Categories,
    where: str,
) -> None:
    if thing is None:
        raise DataError(f"{where}: expected an object, with image_id, category_id and bbox; {ADVICE}")
    try:
        row, label = rows.get(thing.image_id, -1), categories.index.get(thing.category_id)
    except TypeError:
        row, label = -1, None
    index.image = -1 if row is None else row
    box, outline = _box(thing, where)
    if row == -1:
        raise DataError(f"{where}: image_id {thing.image_id!r} is the id of no image; {ADVICE}", kind="dangling-id")
    if label is None:
        raise DataError(
            f"{where}: category_id {thing.category_id!r} is not among the categories; {ADVICE}", kind="dangling-id"
        )
    if row is not None:
        crowd = is_set(thing.iscrowd)
        difficult = is_set(thing.difficult) or (is_set(thing.ignore) and not crowd)
        line = thing.id if isinstance(thing.id, int) and 0 < thing.id < 1 << 62 else number
        index.add_box(row, box, label, difficult=difficult, crowd=crowd, outline=outline, line=line)
        if outline:
            index.count(OUTLINE, f"annotation {thing.id or number}")
    else:
        message = f"{where}: image {thing.image_id!r}, whose object it is, is left out"
        index.report(BROKEN_BOX, "dangling-id", f"annotation {thing.id or number}", message, "left out")


def _box(thing: _Annotation, where: str) -> tuple[tuple[float, float, float, float], bool]:
    """Return an annotation's box xyxy, and whether it was made of its segmentation for want of a bbox."""
    expected = f"{where}: expected image_id, category_id and bbox of four numbers; {ADVICE}"
    for value, kind in ((thing.image_id, "dangling-id"), (thing.category_id, "missing-category")):
        if value is msgspec.UNSET:
            raise DataError(expected, kind=kind)
    if thing.bbox is None or thing.bbox == []:
        made = _around_segmentation(bytes(thing.segmentation))
        if made is None:
            raise DataError(expected, kind="unreadable-label")
        return made, True
    try:
        x, y, width, height = map(float, thing.bbox)
    except (TypeError, ValueError, OverflowError):
        raise DataError(expected, kind="not-a-number") from None
    return (x, y, x + width, y + height), False


def _around_segmentation(text: bytes) -> tuple[float, float, float, float] | None:
    """Return the box around outlines [x, y, x, y, ...] or a mask of run lengths; None if there is neither."""
    try:
        shape: Any = json.loads(text)
        if is_mapping(shape):
            return _around_runs(shape["counts"], *shape["size"])
        if is_list(shape) and shape:
            outlines: list[list[Any]] = shape if is_list(shape[0]) else [shape]
            pairs = [pair for one in outlines for pair in zip(one[::2], one[1::2], strict=True)]
            return around([(float(x), float(y)) for x, y in pairs])
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, RecursionError):
        pass
    return None


def _around_runs(counts: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """Return the box around the pixels of a mask, whose run lengths of 0 and 1 go down its columns.

    Raises:
        ValueError, TypeError, IndexError or OverflowError: it is no mask of this size, or an empty one.
    """
    runs = np.array(_run_lengths(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    ends = np.cumsum(runs)
    if (runs < 0).any() or height < 1 or width < 1 or ends[-1] != height * width:
        raise ValueError
    starts, ends = (ends - runs)[1::2][runs[1::2] > 0], ends[1::2][runs[1::2] > 0] - 1
    across = bool((starts // height != ends // height).any())  # such a run reaches from the bottom to the top
    top = 0 if across else int((starts % height).min())
    bottom = height if across else int((ends % height).max()) + 1
    return float((starts // height).min()), float(top), float((ends // height).max() + 1), float(bottom)


def _run_lengths(text: str) -> list[int]:
    """Return the run lengths that COCO packs: 5 bits a character, and differences to the last but one."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise ValueError
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def _size(image: _Image) -> Size | None:
    try:
        size = Size(int(image.height), int(image.width))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _read_categories(
    content: Any, annotations: Iterable[_Annotation | None], file: Path, index: IndexBuilder
) -> _Categories:
    if not is_list(content):
        raise DataError(f"{file}: expected categories with an id and a name each; add them", kind="missing-category")
    entries: list[Any] = []
    for entry in content:
        with index.skipping(BROKEN_FILE, f"category {len(entries) + 1}"):
            entries.append(_category(entry, entries, file))
    entries.sort(key=partial(_by_id, numeric=all(str(entry["id"]).isdecimal() for entry in entries)))
    used = Counter(key for thing in annotations if thing and isinstance(key := thing.category_id, int | float | str))
    names = [str(entry["name"] if entry["name"] not in (None, "") else entry["id"]).strip() for entry in entries]
    no_class = {name for entry, name in zip(entries, names, strict=True) if _is_no_class(entry, name, entries, used)}
    index.notes += [f"category {name!r} (id 0) has no boxes and was not taken for a class" for name in no_class]
    for entry, name in zip(entries, names, strict=True):
        if entry["name"] in (None, "") and name not in no_class:
            index.guessed(_NAMELESS if used[entry["id"]] else _UNUSED_NAMELESS, f"id {entry['id']}")
            became = f"class {name!r}" if used[entry["id"]] else "left out"
            subject = f"category id {entry['id']}"
            index.report(BROKEN_FILE, "missing-category", subject, f"{file}: {subject} has no name", became)
            no_class |= set() if used[entry["id"]] else {name}
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    index.notes += [f"category {name!r} stands in the file more than once; its boxes were joined" for name in twice]
    places = {entry["id"]: number for number, entry in enumerate(entries)}
    return _Categories(names, places, [name for name in names if name not in no_class])


def _category(entry: Any, others: list[Any], file: Path) -> Any:
    """Return an entry of the categories if it has a name, which may be null, and an id of its own."""
    known = is_mapping(entry) and "name" in entry and isinstance(entry.get("id"), int | float | str)
    if not known:
        raise DataError(f"{file}: expected categories with an id and a name each; add them", kind="missing-category")
    if any(other["id"] == entry["id"] and other["name"] != entry["name"] for other in others):
        raise DataError(
            f"{file}: category {entry['name']!r} has the id {entry['id']!r} of another; give each its own",
            kind="duplicate-id",
        )
    return entry


def _by_id(entry: Mapping[str, Any], *, numeric: bool) -> tuple[bool, Any]:
    key = int(entry["id"]) if numeric else entry["id"]
    return isinstance(key, str), key


def _is_no_class(entry: Mapping[str, Any], name: str, entries: list[Any], used: Mapping[Any, int]) -> bool:
    """Recognise id 0 that stands for the background (MediaPipe) or for the group of all others (Roboflow)."""
    if entry["id"] != 0 or used.get(0):
        return False
    others = [other for other in entries if other is not entry]
    group = bool(others) and all(other.get("supercategory") == name for other in others)
    return group or name.lower() in ("background", "__background__")


def _load(file: Path, index: IndexBuilder) -> _File:
    data = read_bytes(file)
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_File)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass  # another encoding, NaN, or entries of other types: rare, and read more slowly
    text, guess = decoded(data, file)
    if guess:
        index.tell_encoding(file, guess)
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}); get the file again or export it anew") from None
    if not is_mapping(content) or not is_list(content.get("images")):
        raise DataError(
            f"{file} is JSON but not COCO's: expected an object with a list of images, annotations, categories"
        )
    held: Any = content.get("annotations")
    things: list[Any] = held if is_list(held) else []
    return _File(
        [_Image(*_fields(one, _Image)) if is_mapping(one) else None for one in content["images"]],
        [_annotation_of(one) if is_mapping(one) else None for one in things],
        content.get("categories"),
    )


def _fields(entry: Mapping[str, Any], kind: type[msgspec.Struct]) -> list[Any]:
    defaults = zip(kind.__struct_fields__, kind.__struct_defaults__, strict=True)
    return [entry.get(name, default) for name, default in defaults if name != "segmentation"]


def _annotation_of(entry: Mapping[str, Any]) -> _Annotation:
    made = _Annotation(*_fields(entry, _Annotation))
    if not made.bbox and "segmentation" in entry:
        made.segmentation = msgspec.Raw(json.dumps(entry["segmentation"]).encode())
    return made


def _finder(root: Path, file: Path, split: str) -> ImageFinder:
    name = _PREFIX.sub("", file.stem)
    ups = [root, *([file.parent.parent] if file.parent.parent.is_relative_to(root) else [])]
    words = dict.fromkeys((name, split_in(name)))
    places = [up / inside / one for one in words for up in dict.fromkeys(ups) for inside in ("", "images")]
    # Roboflow and MediaPipe put the file into its split's folder: that folder's images come before other splits'.
    beside = [file.parent, *(file.parent / name for name in IMAGE_FOLDERS)] if file.parent != root else []
    beside += [up / name for up in ups[1:] for name in IMAGE_FOLDERS]
    usual = [place for place in places if place.is_dir()]
    return ImageFinder(root, [*usual, *folders_of_split([root], split), *beside], split)


def _split_files(folder: Path) -> dict[str, Path]:
    annotations = child(folder, "annotations")
    for place in (annotations, folder):
        files = _label_files(place) if place is not None else []
        if files:
            named = {_PREFIX.sub("", file.stem): file for file in files}
            return name_splits(named) if len(named) > 1 else {_single_name(folder, files[0]): files[0]}
    parts: dict[str, Path] = {}
    for part in {*split_folders(folder).values(), *(one for one in folders_in(folder) if is_split_name(one.name))}:
        files = _label_files(part) or _label_files(part / "annotations")
        if len(files) == 1:
            parts[part.name] = files[0]
    return name_splits(parts)


def _single_name(folder: Path, file: Path) -> str:
    split = split_in(_PREFIX.sub("", file.stem))
    if is_split_name(split):
        return split
    return split_in(folder.name) if is_split_name(folder.name) else "all"


def _label_files(folder: Path) -> list[Path]:
    found = [file for file in files_in(folder, ".json") if not file.name.startswith(_NOT_BOXES)]
    files = [file for file in found if not file.name.startswith(_KEYPOINTS)] or found
    known = [file for file in files if file.name.startswith("instances_") or file.name.endswith(".coco.json")]
    return known or [
        file
        for file in files
        if (file.name in ("labels.json", "annotations.json") and json_kind(file) in ("coco", ""))
        or _looks_like_coco(file)
    ]


def _looks_like_coco(file: Path) -> bool:
    """Return whether a file has a list of images, which may come after many categories or all annotations.

    A file of categories alone, such as Label Studio's notes.json, is none.
    """
    if json_kind(file) != "coco":
        return False
    tail = b""
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                if b'"images"' in tail + block.replace(b"\0", b""):
                    return True
                tail = block[-16:].replace(b"\0", b"")
    except OSError:
        pass
    return False


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool, refer: bool = False) -> list[str]:
    """Write annotations/instances_SPLIT.json, and the images in a folder for each split unless `refer` is set."""
    (folder / "annotations").mkdir()
    for split, dataset in splits.items():
        categories = [{"id": number, "name": name} for number, name in enumerate(dataset.class_names, start=1)]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        names = own_places(dataset) if refer else target_names(dataset, share_stems=True)
        for number, (name, sample) in enumerate(zip(names, dataset, strict=True), start=1):
            if not refer:
                place_image(sample, folder / split / name, link=link)
            size = sample.size or shown_size(sample)
            images.append({"id": number, "file_name": name, "width": size.width, "height": size.height})
            for row in range(len(sample.labels)):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **_annotation(sample, row)})
        content = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(content, ensure_ascii=False)
        (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return []


def _annotation(sample: Sample, row: int) -> dict[str, Any]:
    x1, y1, x2, y2 = sample.boxes_xyxy[row].tolist()
    width, height = _extent(x1, x2), _extent(y1, y2)
    flags = {"difficult": 1} if sample.difficult[row] else {}
    return {
        "category_id": int(sample.labels[row]) + 1,
        "bbox": [_plain(value) for value in (x1, y1, width, height)],
        "area": _plain(width * height),
        "iscrowd": int(sample.crowd[row]),
        **flags,
    }


def _extent(low: float, high: float) -> float:
    """Return the width that leads back from `low` to `high` exactly, where floats have one."""
    width = high - low
    near = (width, math.nextafter(width, math.inf), math.nextafter(width, 0.0))
    return next((one for one in near if low + one == high), width)


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value
