"""COCO JSON: one file a split, boxes as x, y, width, height; laid out as COCO, Roboflow, MediaPipe and others do."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder
from multibox.data.formats.index import Columns
from multibox.data.formats.text import (
    ADVICE,
    SKIP,
    ReadOptions,
    child,
    files_in,
    folders_in,
    is_split_name,
    name_splits,
    read_text,
    safe_name,
    split_in,
)
from multibox.errors import DataError
from multibox.structures import Dataset, Size

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
    """Say what makes this file or folder COCO, or None."""
    if path.is_file():
        return path.name if path.suffix.lower() == ".json" else None
    files = _split_files(path)
    return next((file.relative_to(path).as_posix() for file in files.values()), None)


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
    columns = Columns(root, "coco", split, options, shared=True)
    categories = _read_categories(content, file)
    for sentence in categories.notes:
        columns.note(sentence)
    rows = _add_images(columns, content["images"], _finder(root, file), file)
    _add_boxes(columns, content.get("annotations") or [], rows, categories, file)
    return columns.finish(categories.names, order=categories.order)


def _add_images(columns: Columns, images: list[Any], finder: ImageFinder, file: Path) -> dict[Any, int | None]:
    rows: dict[Any, int | None] = {}
    for number, image in enumerate(images, start=1):
        try:
            key, listed = image["id"], str(image["file_name"])
            hash(key)
        except (KeyError, TypeError):
            columns.bad(f"{file}, image entry {number}: expected an id and a file_name; {ADVICE}", f"image {number}")
            continue
        if key in rows:
            raise DataError(
                f"{file}, image entry {number} ({listed}): id {key} is used twice; give every image its own"
            )
        found = finder.find(listed)
        if found is None:
            columns.bad(
                f"{file}: its image {listed!r} is missing; looked in {finder.places()}; put it there, or {SKIP}",
                listed,
                "missing",
            )
            rows[key] = None
            continue
        rows[key] = columns.add_image(safe_name(listed), found, file, _size(image))
    return rows


def _add_boxes(
    columns: Columns, annotations: list[Any], rows: Mapping[Any, int | None], categories: _Categories, file: Path
) -> None:
    for number, thing in enumerate(annotations, start=1):
        try:
            image, category = thing["image_id"], thing["category_id"]
            hash((image, category))
            x, y, width, height = map(float, thing["bbox"])
        except (KeyError, TypeError, ValueError, OverflowError):
            columns.bad(
                f"{file}, annotation {_name(thing, number)}: expected image_id, category_id and bbox of four numbers; "
                f"{ADVICE}",
                f"annotation {_name(thing, number)}",
                "box",
            )
            continue
        if image not in rows:
            wrong = f"image_id {image!r} is the id of no image"
        elif category not in categories.index:
            wrong = f"category_id {category!r} is not among the categories"
        else:
            row = rows[image]
            if row is not None:
                crowd = bool(thing.get("iscrowd"))
                difficult = bool(thing.get("difficult") or (thing.get("ignore") and not crowd))
                box = (x, y, x + width, y + height)
                columns.add_box(row, box, categories.index[category], difficult=difficult, crowd=crowd)
            continue
        columns.bad(f"{file}, annotation {_name(thing, number)}: {wrong}; {ADVICE}", f"annotation {number}", "box")


def _name(thing: Any, number: int) -> str:
    return f"id {thing['id']}" if isinstance(thing, dict) and "id" in thing else f"number {number}"


def _size(image: Mapping[str, Any]) -> Size | None:
    try:
        width, height = int(image["width"]), int(image["height"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return Size(height, width) if width > 0 and height > 0 else None


def _read_categories(content: Mapping[str, Any], file: Path) -> _Categories:
    try:
        entries = sorted(content["categories"], key=lambda entry: entry["id"])
        names = [str(entry["name"]).strip() for entry in entries]
    except (KeyError, TypeError):
        raise DataError(f"{file}: expected categories with an id and a name each; add them") from None
    index = {entry["id"]: number for number, entry in enumerate(entries)}
    used = {thing.get("category_id") for thing in content.get("annotations") or [] if isinstance(thing, dict)}
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
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}); get the file again or export it anew") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
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
        file for file in files if file.name in ("labels.json", "annotations.json") or _looks_like_coco(file)
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
