"""COCO JSON: one file per split, boxes as x, y, width, height; laid out as COCO, Roboflow, MediaPipe and others do."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.formats.documents import json_kind
from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder, place_image, target_names
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    ReadOptions,
    child,
    files_in,
    folders_in,
    is_mapping,
    is_split_name,
    name_splits,
    read_text,
    safe_name,
    split_in,
)
from multibox.data.images import shown_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE
from multibox.errors import DataError
from multibox.structures import Dataset, Sample, Size

_COCO_KEY = re.compile(rb'^\s*\{.*?"(images|annotations|categories)"\s*:', re.DOTALL)
_NOT_BOXES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")


@dataclass(frozen=True)
class _Categories:
    names: list[str]
    index: dict[Any, int]
    """Category id to its place in `names`."""
    order: list[str]
    """The data set's classes: those of `names` that are meant as classes."""
    notes: list[str]


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
    content = _load(file)
    index = IndexBuilder(root, "coco", split, options, shared=True)
    index.source = file
    categories = _read_categories(content, file)
    index.notes += categories.notes
    rows = _add_images(index, content["images"], _finder(root, file), file)
    for number, thing in enumerate(content.get("annotations") or [], start=1):
        _add_box(index, thing, number, rows, categories, file)
    return index.finish(categories.names, order=categories.order)


def _add_images(index: IndexBuilder, images: list[Any], finder: ImageFinder, file: Path) -> dict[Any, int | None]:
    """Add the images that are there, and return the row of each id; None where it is skipped."""
    rows: dict[Any, int | None] = {}
    entries: list[tuple[int, Any, str]] = []
    names: dict[Any, list[str]] = {}
    for number, image in enumerate(images, start=1):
        with index.skipping(BROKEN_FILE, f"image {number}"):
            key, listed = _image_entry(image, f"{file}, image entry {number}")
            entries.append((number, key, listed))
            names.setdefault(key, []).append(listed)
    for number, key, listed in entries:
        if len(names[key]) > 1 and (key in rows or len(set(names[key])) > 1):
            twice = DataError(
                f"{file}, image entry {number} ({listed}): id {key} is used twice; give every image its own",
                kind="duplicate-id",
            )
            if index.options.raw is None:
                raise twice  # nothing tells whose the boxes are
            rows.setdefault(key, None)
            with index.skipping(BROKEN_FILE, listed):
                raise twice
            continue
        found = index.find_image(finder, listed, str(file))
        rows[key] = (
            None if found is None else index.add_image(safe_name(listed), found, file, _size(images[number - 1]))
        )
    return rows


def _image_entry(image: Any, where: str) -> tuple[Any, str]:
    try:
        key, listed = image["id"], str(image["file_name"])
        hash(key)
    except (KeyError, TypeError):
        raise DataError(f"{where}: expected an id and a file_name; {ADVICE}") from None
    return key, listed


def _add_box(
    index: IndexBuilder, thing: Any, number: int, rows: Mapping[Any, int | None], categories: _Categories, file: Path
) -> None:
    name = f"id {thing['id']}" if is_mapping(thing) and "id" in thing else f"number {number}"
    with index.skipping(BROKEN_BOX, f"annotation {name}"):
        image, category, (x, y, width, height) = _read_annotation(thing, f"{file}, annotation {name}")
        if image not in rows:
            raise DataError(
                f"{file}, annotation {name}: image_id {image!r} is the id of no image; {ADVICE}", kind="dangling-id"
            )
        if category not in categories.index:
            raise DataError(
                f"{file}, annotation {name}: category_id {category!r} is not among the categories; {ADVICE}",
                kind="dangling-id",
            )
        row = rows[image]
        if row is not None:
            crowd = bool(thing.get("iscrowd"))
            difficult = bool(thing.get("difficult") or (thing.get("ignore") and not crowd))
            box = (x, y, x + width, y + height)
            line = thing.get("id")
            line = line if isinstance(line, int) and 0 < line < 1 << 62 else number
            index.add_box(row, box, categories.index[category], difficult=difficult, crowd=crowd, line=line)


def _read_annotation(thing: Any, where: str) -> tuple[Any, Any, tuple[float, ...]]:
    """Return the image's id, the category's id and the four numbers of the box."""
    for key, kind in (("image_id", "dangling-id"), ("category_id", "missing-category"), ("bbox", "unreadable-label")):
        if not is_mapping(thing) or key not in thing:
            raise DataError(f"{where}: expected image_id, category_id and bbox of four numbers; {ADVICE}", kind=kind)
    try:
        hash((thing["image_id"], thing["category_id"]))
        box = tuple(map(float, thing["bbox"]))
        if len(box) != 4:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where}: expected image_id, category_id and bbox of four numbers; {ADVICE}", kind="not-a-number"
        ) from None
    return thing["image_id"], thing["category_id"], box


def _size(image: Mapping[str, Any]) -> Size | None:
    try:
        size = Size(int(image["height"]), int(image["width"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _read_categories(content: Mapping[str, Any], file: Path) -> _Categories:
    try:
        entries = sorted(content["categories"], key=lambda entry: entry["id"])
        names = [str(entry["name"]).strip() for entry in entries]
    except (KeyError, TypeError):
        raise DataError(f"{file}: expected categories with an id and a name each; add them") from None
    index = {entry["id"]: number for number, entry in enumerate(entries)}
    things: list[Any] = content.get("annotations") or []
    used: set[Any] = {thing.get("category_id") for thing in things if is_mapping(thing)}
    no_class = [name for entry, name in zip(entries, names, strict=True) if _is_no_class(entry, name, entries, used)]
    notes = [f"category {name!r} (id 0) has no boxes and was not taken for a class" for name in no_class]
    twice = sorted({name for name in names if names.count(name) > 1})
    notes += [f"category {name!r} stands in the file more than once; its boxes were joined" for name in twice]
    return _Categories(names, index, [name for name in names if name not in no_class], notes)


def _is_no_class(entry: Mapping[str, Any], name: str, entries: list[Any], used: set[Any]) -> bool:
    """Recognise id 0 that stands for the background (MediaPipe) or for the group of all others (Roboflow)."""
    if entry["id"] != 0 or 0 in used:
        return False
    others = [other for other in entries if other is not entry]
    group = bool(others) and all(other.get("supercategory") == name for other in others)
    return group or name.lower() in ("background", "__background__")


def _load(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}); get the file again or export it anew") from None
    if not is_mapping(content) or not isinstance(content.get("images"), list):
        raise DataError(
            f"{file} is JSON but not COCO's: expected an object with a list of images, annotations, categories"
        )
    return content


def _finder(root: Path, file: Path) -> ImageFinder:
    split = re.sub(r"^instances_", "", file.stem)
    names = list(dict.fromkeys((split, split_in(split))))
    places = [root / name for name in names] + [root / up / name for up in ("images", "Images") for name in names]
    # Roboflow and MediaPipe put the file into its split's folder: that folder's images come before other splits'.
    beside = [file.parent, *(file.parent / name for name in IMAGE_FOLDERS)] if file.parent != root else []
    return ImageFinder(root, [*(place for place in places if place.is_dir()), *beside])


def _split_files(folder: Path) -> dict[str, Path]:
    annotations = child(folder, "annotations")
    for place in (annotations, folder):
        files = _label_files(place) if place is not None else []
        if files:
            named = {re.sub(r"^instances_", "", file.stem): file for file in files}
            return name_splits(named) if len(named) > 1 else {_single_name(folder, files[0]): files[0]}
    parts: dict[str, Path] = {}
    for part in folders_in(folder):
        files = _label_files(part) if is_split_name(part.name) else []
        if len(files) == 1:
            parts[part.name] = files[0]
    return name_splits(parts)


def _single_name(folder: Path, file: Path) -> str:
    split = split_in(re.sub(r"^instances_", "", file.stem))
    if is_split_name(split):
        return split
    return split_in(folder.name) if is_split_name(folder.name) else "all"


def _label_files(folder: Path) -> list[Path]:
    files = [file for file in files_in(folder, ".json") if not file.name.startswith(_NOT_BOXES)]
    known = [file for file in files if file.name.startswith("instances_") or file.name.endswith(".coco.json")]
    return known or [
        file
        for file in files
        if (file.name in ("labels.json", "annotations.json") and json_kind(file) in ("coco", ""))
        or _looks_like_coco(file)
    ]


def _looks_like_coco(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(4096).removeprefix(b"\xef\xbb\xbf")
            if not _COCO_KEY.match(start):
                return False
            # A file of categories alone (Label Studio's notes.json) is none; the lists may come after many categories.
            return b'"images"' in start or b'"images"' in stream.read()
    except OSError:
        return False


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write annotations/instances_SPLIT.json, and the images in a folder for each split."""
    (folder / "annotations").mkdir()
    for split, dataset in splits.items():
        categories = [{"id": number, "name": name} for number, name in enumerate(dataset.class_names, start=1)]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, sample) in enumerate(
            zip(target_names(dataset, share_stems=True), dataset, strict=True), start=1
        ):
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
