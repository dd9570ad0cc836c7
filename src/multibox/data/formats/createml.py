"""CreateML JSON: a list of images, each with boxes as their centre and size in pixels; also as Roboflow writes it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from multibox.data.formats.documents import (
    LabelFiles,
    is_textual,
    items,
    json_kind,
    label_files,
    load_json,
    number,
    shown,
    split_of_file,
)
from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import ADVICE, ReadOptions, is_list, is_mapping, safe_name
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE
from multibox.errors import DataError
from multibox.structures import Dataset

_PLACES = ("annotations", "labels")
_IMAGE_KEYS = ("image", "imagefilename", "image_filename", "filename")


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder CreateML, or None."""
    files = (file for held in find_splits(path).values() for file in held.files)
    return next((file.name for file in files if _is_createml(file)), None)


def find_splits(path: Path) -> dict[str, LabelFiles]:
    """Return the splits: by file or folder, else one called "all"."""
    if path.is_file():
        return {split_of_file(path): LabelFiles(path.parent, [path])}
    return label_files(path, (".json",), _is_createml, _PLACES, per_image=False)


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; classes come in the order of the alphabet over all splits.

    Raises:
        DataError: for JSON that is no list of images, a box without a label or numbers, a missing image.
    """
    splits = find_splits(path)
    source = splits[split]
    root = path.parent if path.is_file() else path
    index = IndexBuilder(root, "createml", split, options, shared=True)
    places = dict.fromkeys((source.base, source.base.parent, root))
    by_split = [place / name / split for place in places for name in IMAGE_FOLDERS]
    beside = [place / name for place in places for name in IMAGE_FOLDERS]
    finder = ImageFinder(root, [source.base, *by_split, *beside], split)
    labels: dict[str, int] = {}
    for file in source.files:
        index.source = file
        for place, thing in enumerate(_entries(file, index.tell_encoding), start=1):
            with index.skipping(BROKEN_FILE, f"entry {place}"):
                _add(index, finder, thing, file, f"{file}, entry {place}", labels)
    declared = list(labels)
    others = {file for one in splits.values() for file in one.files} - set(source.files)
    return index.finish(declared, order=sorted({*declared, *_labels_in(others)}))


def _add(index: IndexBuilder, finder: ImageFinder, thing: Any, file: Path, where: str, labels: dict[str, int]) -> None:
    keys = _IMAGE_KEYS if is_mapping(thing) else ()
    listed = next((str(thing[key]).strip() for key in keys if is_textual(thing.get(key))), "")
    if not listed:
        raise DataError(f'{where}: expected an object with "image" and "annotations", got {shown(thing)}; {ADVICE}')
    found = index.find_image(finder, listed, where)
    if found is None:
        return
    name = safe_name(listed)
    row = index.add_image(name if Path(name).suffix else found.name, found, file)
    if row is None:
        return
    for place, box in enumerate(_boxes(thing), start=1):
        with index.skipping(BROKEN_BOX, listed):
            label, corners = _read_box(box, f"{where} ({listed}), box {place}")
            index.add_box(row, corners, labels.setdefault(label, len(labels)), line=place)


def _read_box(box: Any, where: str) -> tuple[str, tuple[float, float, float, float]]:
    label = str(box.get("label") or "").strip() if is_mapping(box) else ""
    if not label:
        raise DataError(f'{where}: expected an object with "label" and "coordinates", got {shown(box)}; {ADVICE}')
    try:
        held = box["coordinates"]
        x, y, width, height = (number(held[key]) for key in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where} ({label}): expected coordinates x, y, width and height in numbers, "
            f"got {shown(box.get('coordinates'))}; {ADVICE}",
            kind="not-a-number",
        ) from None
    return label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _boxes(thing: Any) -> list[Any]:
    return items(thing, "annotations") or items(thing, "annotation")


def _labels_in(files: Iterable[Path]) -> set[str]:
    """Return the labels in other splits' files; what is broken names none."""
    names: set[str] = set()
    for file in files:
        try:
            entries = _entries(file)
        except DataError:
            continue
        boxes = (box for thing in entries for box in _boxes(thing))
        names |= {str(box.get("label") or "").strip() for box in boxes if is_mapping(box)}
    return names - {""}


def _entries(file: Path, tell: Callable[[Path, str], None] | None = None) -> list[Any]:
    content = load_json(file, tell)
    if not is_list(content):
        raise DataError(f"{file} is no CreateML: expected a list of images with their annotations; export it anew")
    return content


def _is_createml(file: Path) -> bool:
    return file.suffix.lower() == ".json" and json_kind(file) == "createml"
