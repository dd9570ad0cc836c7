"""LabelMe: one JSON file per image, with shapes in pixels; also as X-AnyLabeling writes it."""

import base64
import binascii
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.formats.documents import (
    LabelFiles,
    around,
    around_ellipse,
    is_textual,
    items,
    json_kind,
    label_files,
    load_json,
    number,
    shown,
    size_in,
)
from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder, image_suffix, place_image, target_names
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    ReadOptions,
    is_list,
    is_mapping,
    is_yes,
    read_lines,
    safe_name,
    stem_of,
    write_lines,
)
from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.data.images import shown_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, NOT_A_BOX, OUTLINE, counted
from multibox.data.unpacking import kept_image
from multibox.errors import DataError
from multibox.structures import Dataset, Sample, Size

_PLACES = ("annotations", "labels", "json", "jsons", "labelme", "label", "images")
_CLASS_LISTS = ("labels.txt", "classes.txt")
_NO_CLASS = ("__ignore__", "_background_", "__background__")
_WITHOUT_AREA = ("line", "linestrip", "point", "points")


@dataclass(frozen=True)
class _Shape:
    label: str
    box_xyxy: tuple[float, float, float, float]
    outline: bool
    difficult: bool
    crowd: bool
    number: int


@dataclass(frozen=True)
class _Annotation:
    image: str
    """As the file calls it, with folders."""
    size: Size | None
    shapes: list[_Shape]
    embedded: str | None
    """The image itself, in base64."""


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder LabelMe, or None."""
    if path.is_file():
        return path.name if _is_labelme(path) else None
    files = [file for held in find_splits(path).values() for file in held.files[:10]]
    return next((file.relative_to(path).as_posix() for file in files if _is_labelme(file)), None)


def find_splits(path: Path) -> dict[str, LabelFiles]:
    """Return the splits: by folder, else one called "all"."""
    if path.is_file():
        return {"all": LabelFiles(path.parent, [path])}
    declared = any((path / name).is_file() for name in _CLASS_LISTS)
    return label_files(path, (".json",), _is_labelme, _PLACES, per_image=True, declared=declared)


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; outlines become the boxes around them, lines and points are passed over.

    An image that is missing is taken from `imageData`, where the file holds it. Classes come from a labels.txt beside,
    else in the order of the alphabet over all splits.

    Raises:
        DataError: for JSON that is no LabelMe, a shape without label or points, an image that is missing.
    """
    splits = find_splits(path)
    source = splits[split]
    root = path.parent if path.is_file() else path
    index = IndexBuilder(root, "labelme", split, options, shared=False)
    finder = ImageFinder(root, _image_folders(source, root), split)
    labels: dict[str, int] = {}
    passed_over: list[str] = []
    unpacked: list[str] = []
    for file in source.files:
        index.source = file
        with index.skipping(BROKEN_FILE, file.name):
            content = load_json(file, index.tell_encoding)
            if _has_shapes(content):
                _add(index, finder, source.base, file, _read_annotation(content, file, index), labels, unpacked)
            else:
                passed_over.append(file.name)
    if passed_over:
        one, many = "JSON file that is no LabelMe was passed over", "JSON files that are no LabelMe were passed over"
        index.notes.append(counted(len(passed_over), one, many, passed_over))
    if unpacked:
        one, many = "image is missing and was taken", "images are missing and were taken"
        index.notes.append(counted(len(unpacked), f"{one} from imageData", f"{many} from imageData", unpacked))
    declared = list(labels)
    others = {file for one in splits.values() for file in one.files} - set(source.files)
    used = set(declared) | _labels_in(others if options.class_names is None else ())
    return index.finish(declared, order=_order(used, root, source, index))


def _add(
    index: IndexBuilder,
    finder: ImageFinder,
    base: Path,
    file: Path,
    annotation: _Annotation,
    labels: dict[str, int],
    unpacked: list[str],
) -> None:
    found = _find(finder, file, annotation.image)
    inside = file.relative_to(base).with_suffix("").as_posix()
    name = safe_name(annotation.image).rpartition("/")[2] or file.stem
    if found is None and annotation.embedded:
        found = _unpacked(annotation.embedded, file)
        unpacked.append(file.name)
    else:
        found = index.check_found(found, finder, annotation.image or file.stem, str(file), file.name)
        name = found.name if found is not None else name
    if found is None:
        return
    if stem_of(name) == inside.rpartition("/")[2]:
        name = inside + name[len(stem_of(name)) :]
    row = index.add_image(name, found, file, annotation.size)
    if row is None:
        return
    for shape in annotation.shapes:
        label = labels.setdefault(shape.label, len(labels))
        flags = {"difficult": shape.difficult, "crowd": shape.crowd, "outline": shape.outline}
        index.add_box(row, shape.box_xyxy, label, line=shape.number, **flags)
        if shape.outline:
            index.count(OUTLINE, file.name)


def _find(finder: ImageFinder, file: Path, listed: str) -> Path | None:
    """Return the image's file: where imagePath says, else beside the JSON file under its name, else by name."""
    relative = listed.replace("\\", "/")
    if relative and not relative.startswith("/"):
        exact = Path(os.path.normpath(file.parent / relative))
        try:
            # A path that leads out of the folder may name anything, and writing a data set copies its images
            if exact.name.lower().endswith(IMAGE_SUFFIXES) and exact.is_file():
                return exact
        except (OSError, ValueError):
            pass  # no name that a file can have
    stem = file.name[: -len(file.suffix)]
    return finder.find_stem(stem, Path(relative).suffix) or (finder.find(listed) if listed else None)


def _unpacked(embedded: str, file: Path) -> Path:
    try:
        data = base64.b64decode(embedded.rpartition(",")[2], validate=False)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{file}: imageData is no base64 ({error}), and the image is missing; {ADVICE}") from None
    return kept_image(data, image_suffix(data), file)


def _read_annotation(content: Mapping[str, Any], file: Path, index: IndexBuilder) -> _Annotation:
    shapes: list[_Shape] = []
    for place, thing in enumerate(items(content, "shapes"), start=1):
        with index.skipping(BROKEN_BOX, file.name):
            shape = _read_shape(thing, f"{file}, shape {place}", place)
            if shape is None:
                index.count(NOT_A_BOX, file.name)
            else:
                shapes.append(shape)
    image, embedded = content.get("imagePath"), content.get("imageData")
    return _Annotation(
        image=str(image) if is_textual(image) else "",
        size=size_in(content, "imageHeight", "imageWidth"),
        shapes=shapes,
        embedded=str(embedded) if is_textual(embedded) else None,
    )


def _read_shape(thing: Any, where: str, place: int) -> _Shape | None:
    """Return a shape's box; None for lines and points, which have none."""
    if not is_mapping(thing):
        raise DataError(f"{where}: expected an object with label, points and shape_type, got {shown(thing, 40)}")
    kind = str(thing.get("shape_type") or "polygon").lower()
    if kind in _WITHOUT_AREA:
        return None
    label = thing.get("label")
    label = str(label).strip() if isinstance(label, (str, int, float)) else ""
    if not label:
        raise DataError(f"{where}: it has no label; {ADVICE}", kind="missing-category")
    try:
        points = [(number(x), number(y)) for x, y in thing["points"]]
        box = _circled(points) if kind == "circle" else around(points)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where} ({label[:60]}): expected points of two numbers each, got {shown(thing.get('points'))}; {ADVICE}",
            kind="not-a-number",
        ) from None
    raw_flags = thing.get("flags")
    flags: dict[str, Any] = raw_flags if is_mapping(raw_flags) else {}
    difficult = any(is_yes(str(held.get("difficult"))) for held in (thing, flags))
    return _Shape(label, box, kind != "rectangle", difficult, is_yes(str(flags.get("crowd"))), place)


def _circled(points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    (cx, cy), edge = points
    radius = math.dist((cx, cy), edge)
    return around_ellipse(cx, cy, radius, radius)


def _order(used: set[str], root: Path, source: LabelFiles, index: IndexBuilder) -> list[str]:
    """Return the classes as labels.txt orders them, else by alphabet."""
    places = dict.fromkeys((root, source.base, source.base.parent, root.parent))
    listing = next((place / name for place in places for name in _CLASS_LISTS if (place / name).is_file()), None)
    if listing is None or not used:
        return sorted(used)
    names = [name for name in dict.fromkeys(read_lines(listing)) if name in used or name not in _NO_CLASS]
    if not used & set(names):
        return sorted(used)  # of another data set
    more = sorted(used - set(names))
    if more:
        index.notes.append(f"{listing.name} lacks {', '.join(more[:5])}: put after the classes that it names")
    return names + more


def _labels_in(files: Iterable[Path]) -> set[str]:
    """Return the labels of shapes with a box in other splits' files; broken ones name none."""
    names: set[str] = set()
    for file in files:
        try:
            content = load_json(file)
        except DataError:
            continue
        for thing in items(content, "shapes"):
            if is_mapping(thing) and str(thing.get("shape_type")) not in _WITHOUT_AREA:
                names.add(str(thing.get("label") or "").strip())
    return names - {""}


def _has_shapes(content: Any) -> bool:
    return is_mapping(content) and (is_list(content.get("shapes")) or "imagePath" in content)


def _is_labelme(file: Path) -> bool:
    return file.suffix.lower() == ".json" and json_kind(file) == "labelme"


def _image_folders(source: LabelFiles, root: Path) -> list[Path]:
    beside = dict.fromkeys(file.parent for file in source.files)
    around_it = [up / name for place in beside for up in _near(place, root) for name in IMAGE_FOLDERS]
    by_split = [place.parent.parent / name / place.name for place in beside for name in IMAGE_FOLDERS if name]
    return [*beside, *by_split, *around_it]


def _near(place: Path, root: Path) -> tuple[Path, ...]:
    return (place,) if place == root else (place, place.parent)


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write SPLIT/NAME.json beside each image, without imageData, and labels.txt for the order of the classes."""
    for split, dataset in splits.items():
        (folder / split).mkdir()
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            target = folder / split / name
            place_image(sample, target, link=link)
            text = json.dumps(_content(sample, target.name, dataset.class_names), ensure_ascii=False, indent=2)
            target.with_suffix(".json").write_text(text, encoding="utf-8")
    write_lines(folder / "labels.txt", next(iter(splits.values())).class_names)
    return []


def _content(sample: Sample, name: str, class_names: tuple[str, ...]) -> dict[str, Any]:
    size = sample.size or shown_size(sample)
    shapes: list[dict[str, Any]] = []
    for row, (x1, y1, x2, y2) in enumerate(sample.boxes_xyxy.tolist()):
        marks = {"difficult": sample.difficult[row], "crowd": sample.crowd[row]}
        shapes.append(
            {
                "label": class_names[int(sample.labels[row])],
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "description": "",
                "shape_type": "rectangle",
                "flags": {flag: True for flag, is_set in marks.items() if is_set},
            }
        )
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": name,
        "imageData": None,
        "imageHeight": size.height,
        "imageWidth": size.width,
    }
