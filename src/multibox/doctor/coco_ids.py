"""Ids of COCO files: duplicate, dangling or text, and what its annotations lack for other tools."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from multibox.data.formats.text import is_list, is_mapping, is_set, read_text
from multibox.data.left_out import counted
from multibox.doctor.findings import Finding, finding
from multibox.doctor.survey import Survey
from multibox.errors import DataError

COCO_KINDS = ("duplicate-id", "dangling-id", "missing-category")
"""Kinds that `check_coco` yields for all that the reader could not use because of them."""
_LISTS = ("images", "annotations", "categories")
_ONE = {"images": "image", "annotations": "annotation", "categories": "category"}


def check_coco(survey: Survey) -> Iterator[Finding]:
    """Yield what is wrong with the ids and fields of the JSON file of a split; nothing for other formats."""
    raw = survey.raw
    if raw.format != "coco":
        return
    files = dict.fromkeys([*raw.sources, *(problem.source for problem in raw.problems)])
    for file in (one for one in files if one.suffix.lower() == ".json"):
        yield from check_coco_file(file)


def check_coco_file(file: Path) -> Iterator[Finding]:
    """Yield what is wrong with the ids and fields of one JSON file; nothing if it is not COCO's."""
    try:
        content: Any = json.loads(read_text(file))
    except (DataError, ValueError, RecursionError):
        return  # the reader says it
    if not is_mapping(content):
        return
    lists = {name: _entries(content, name) for name in _LISTS}
    for name, entries in lists.items():
        yield from _duplicates(file, name, entries)
        yield from _texts(file, name, entries)
    yield from _categories(file, content, lists["categories"], lists["annotations"])
    yield from _dangling(file, lists)
    yield from _crowds(file, lists["annotations"])
    yield from _areas(file, lists["annotations"])


def _entries(content: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    entries: Any = content.get(name)
    return [entry for entry in entries if is_mapping(entry)] if is_list(entries) else []


def _known(value: Any) -> bool:
    """Return whether a value can be an id: a number or text."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _called(name: str, entry: Mapping[str, Any]) -> str:
    words = {"images": entry.get("file_name"), "categories": entry.get("name")}.get(name)
    return f"{_ONE[name]} id {entry.get('id')!r}" + (f" ({words})" if words else "")


def _duplicates(file: Path, name: str, entries: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    held = list(entries)
    counts = Counter(entry["id"] for entry in held if _known(entry.get("id")))
    twice = {key: count for key, count in counts.items() if count > 1}
    first: dict[Any, str] = {}
    for number, entry in enumerate(held, start=1):
        key = entry.get("id") if _known(entry.get("id")) else None
        if key not in twice:
            continue
        if key not in first:
            first[key] = f"entry {number}"
            continue
        what = f"{_called(name, entry)} is that of {first[key]} of {name}, too"
        yield finding("duplicate-id", file, what, f"{name}, entry {number}")


def _texts(file: Path, name: str, entries: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield one finding for the ids of a list that are text."""
    fields = {"annotations": ("id", "image_id", "category_id")}.get(name, ("id",))
    held = list(entries)
    for field in fields:
        texts = [entry[field] for entry in held if isinstance(entry.get(field), str)]
        if texts:
            what = f"{len(texts)} of {len(held)} {name} have text as {field}, such as {texts[0]!r}"
            yield finding("text-id", file, what, f"{name}, {field}")


def _categories(
    file: Path, content: Mapping[str, Any], categories: list[Mapping[str, Any]], annotations: list[Mapping[str, Any]]
) -> Iterator[Finding]:
    if not is_list(content.get("categories")) or not content["categories"]:
        yield finding("missing-category", file, "the file has no list of categories", severity="error")
        return
    for number, entry in enumerate(content["categories"], start=1):
        lacks = [name for name in ("id", "name") if not is_mapping(entry) or entry.get(name) in (None, "")]
        if lacks:
            what = f"category entry {number} has no {' and no '.join(lacks)}"
            yield finding("missing-category", file, what, f"categories, entry {number}")
    used = {entry.get("category_id") for entry in annotations if _known(entry.get("category_id"))}
    zero = next((entry for entry in categories if entry.get("id") in (0, "0")), None)
    if zero is not None and zero["id"] in used:
        what = f"categories count from 0 ({zero.get('name')!r}); COCO counts from 1"
        why = "Tools that keep 0 for the background lose this class. multibox reads it by its name."
        yield finding("category-zero", file, what, "categories", why=why)


def _dangling(file: Path, lists: Mapping[str, list[Mapping[str, Any]]]) -> Iterator[Finding]:
    known = {
        field: {entry["id"] for entry in lists[name] if _known(entry.get("id"))}
        for field, name in (("image_id", "images"), ("category_id", "categories"))
    }
    used = Counter(entry["category_id"] for entry in lists["annotations"] if _known(entry.get("category_id")))
    for category, count in used.items():
        if category not in known["category_id"] and lists["categories"]:
            what = (
                f"{counted(count, 'annotation has', 'annotations have')} category_id {category!r}, which is no category"
            )
            yield finding("missing-category", file, what, f"category {category!r}")
    for number, entry in enumerate(lists["annotations"], start=1):
        for field, ids in known.items():
            value = entry.get(field)
            if _known(value) and value in ids:
                continue
            kind = "missing-category" if field == "category_id" and field not in entry else "dangling-id"
            alike = f", though the {field[:-3]} {_other_type(value)!r} is" if _other_type(value) in ids else ""
            what = f"{_called('annotations', entry)} has {field} {value!r}, which no {field[:-3]} has{alike}"
            yield finding(kind, file, what, f"annotation {entry.get('id', number)}")


def _other_type(value: Any) -> Any:
    """Return 7 for "7" and "7" for 7, which many exports mix up."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _crowds(file: Path, annotations: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    for number, entry in enumerate(annotations, start=1):
        if not is_set(entry.get("iscrowd")):
            continue
        mask: Any = entry.get("segmentation")
        if is_mapping(mask) and mask.get("counts") is not None:
            continue
        held = "outlines" if is_list(mask) and mask else "no segmentation"
        what = f"{_called('annotations', entry)} is a crowd with {held} instead of run lengths"
        yield finding("crowd-without-rle", file, what, f"annotation {entry.get('id', number)}")


def _areas(file: Path, annotations: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield one finding for all annotations without area."""
    lacking = [entry for entry in annotations if not isinstance(entry.get("area"), int | float)]
    if lacking:
        what = f"{len(lacking)} of {len(annotations)} annotations have no area, such as id {lacking[0].get('id')!r}"
        yield finding("missing-area", file, what, "annotations")
