"""What imagefolder, Parquet and WebDataset share: `objects` with lists of boxes and categories, and class names."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from multibox.data.formats.documents import number, shown
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import ADVICE, is_list, is_mapping, is_set, read_lines, read_text
from multibox.data.left_out import BROKEN_BOX, Reason
from multibox.errors import DataError, MissingExtraError

OBJECT_KEYS = ("objects", "annotations", "annotation")
BOX_KEYS = ("bbox", "bboxes")
CORNER_KEYS = ("boxes",)
CLASS_KEYS = (
    *("categories", "category", "category_id", "category_ids", "labels", "label", "class_labels", "class_label"),
    *("classes", "class", "class_id", "class_ids", "name", "names", "category_name"),
)
_CORNER_FIELDS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
_CROWD_KEYS = ("iscrowd", "is_crowd", "crowd")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?\n)---\s*(\n|\Z)", re.DOTALL)


_CORNERS = Reason("box was read as corners x1, y1, x2, y2", "boxes were read as corners x1, y1, x2, y2")


class _Object(NamedTuple):
    """An object as written."""

    box: Any
    category: Any
    corners: bool
    """Whether the box is x1, y1, x2, y2 instead of COCO's x, y, width, height."""
    difficult: bool
    crowd: bool


class Classes:
    """Class names of a data set: declared ones, which numbers index, and those that its objects bring."""

    def __init__(self, declared: Iterable[str] | None) -> None:
        self.declared = None if declared is None else list(declared)
        self.names = list(self.declared or ())
        self._places = {name: place for place, name in enumerate(self.names)}

    def place(self, category: Any, where: str) -> int:
        """Return the index of a category: a number counts the declared names, a text is a name.

        A text of digits counts them too where no declared name is one of digits.

        Raises:
            DataError: it is neither, or a number beyond the declared names.
        """
        if isinstance(category, float) and category.is_integer():
            category = int(category)
        if isinstance(category, bool) or not isinstance(category, (int, str)) or not str(category).strip():
            what = shown(category, 40)
            raise DataError(
                f"{where}: expected a category's name or number, got {what}; {ADVICE}", kind="missing-category"
            )
        name = str(category).strip()
        counts = self.declared is not None and isinstance(category, int)  # even where a class is called "1"
        if not counts and name in self._places:
            return self._places[name]
        if self.declared is not None and (counts or re.fullmatch(r"-?\d{1,18}", name)):
            sure = counts or not any(map(str.isdecimal, self.declared))
            if sure and 0 <= int(name) < len(self.declared):
                return int(name)
            raise DataError(
                f"{where}: category {category!r} is not among the {len(self.declared)} named classes (0 to "
                f"{len(self.declared) - 1}); {ADVICE}",
                kind="class-out-of-range",
            )
        self._places[name] = len(self.names)
        self.names.append(name)
        return self._places[name]

    def order(self, others: Iterable[Any] = ()) -> list[str]:
        """Return the classes as declared; those that are not, of other splits too, by number or alphabet."""
        for category in others:
            try:
                self.place(category, "")
            except DataError:
                continue  # said when that split is read
        declared = self.declared or []
        more = self.names[len(declared) :]
        numeric = all(re.fullmatch(r"\d{1,18}", name) for name in more)
        return declared + sorted(more, key=int if numeric else None)

    def note(self) -> list[str]:
        """Return a sentence if the classes are known by number alone."""
        if self.declared is None and self.names and all(re.fullmatch(r"\d{1,18}", name) for name in self.names):
            return [
                "nothing names the classes, so their numbers are their names; a classes.txt with a name per line does"
            ]
        return []


def add_objects(index: IndexBuilder, row: int, objects: Any, classes: Classes, where: str, subject: str) -> None:
    """Add the boxes of one image.

    Args:
        index: gets the boxes.
        row: of the image.
        objects: a mapping of lists, or a list of mappings, with a category and either `bbox`, COCO's x, y, width and
            height, or `boxes` or xmin, ymin, xmax, ymax, which are corners and noted. None means no objects.
        classes: names of the categories.
        where: file and line, for errors.
        subject: the image, for counts.
    """
    with index.skipping(BROKEN_BOX, subject):
        for place, thing in enumerate(_listed(objects, where), start=1):
            with index.skipping(BROKEN_BOX, subject):
                at = f"{where}, object {place}"
                try:
                    x, y, right, bottom = (number(value) for value in thing.box)
                except (TypeError, ValueError, OverflowError):
                    raise DataError(
                        f"{at}: expected four numbers for its box, got {shown(thing.box)}; {ADVICE}",
                        kind="not-a-number",
                    ) from None
                label = classes.place(thing.category, at)
                if thing.corners:
                    index.guessed(_CORNERS, subject)
                pixels = (x, y, right, bottom) if thing.corners else (x, y, x + right, y + bottom)
                index.add_box(row, pixels, label, difficult=thing.difficult, crowd=thing.crowd, line=place)


def _listed(objects: Any, where: str) -> Iterator[_Object]:
    """Yield each object as written.

    Raises:
        DataError: the lists differ in length, or are none.
    """
    if objects is None:
        return
    if is_list(objects):
        for thing in objects:
            if not is_mapping(thing):
                raise DataError(f"{where}: expected objects with bbox and category, got {shown(thing)}; {ADVICE}")
            category: Any = key_of(thing, CLASS_KEYS)
            flags = (is_set(thing.get("difficult")), is_set(key_of(thing, _CROWD_KEYS)))
            corners = next((keys for keys in _CORNER_FIELDS if all(key in thing for key in keys)), None)
            if corners is not None and not _has(thing, (*BOX_KEYS, *CORNER_KEYS)):
                yield _Object([thing[key] for key in corners], category, True, *flags)
                continue
            yield _Object(key_of(thing, (*BOX_KEYS, *CORNER_KEYS)), category, not _has(thing, BOX_KEYS), *flags)
        return
    if not is_mapping(objects):
        raise DataError(f"{where}: expected objects with bbox and categories, got {shown(objects)}; {ADVICE}")
    boxes: Any = key_of(objects, (*BOX_KEYS, *CORNER_KEYS))
    categories: Any = key_of(objects, CLASS_KEYS)
    boxes = [] if boxes is None and not categories else boxes
    categories = [] if categories is None and not boxes else categories
    if not is_list(boxes) or not is_list(categories) or len(boxes) != len(categories):
        held = ", ".join(f"{key}: {shown(value, 30)}" for key, value in list(objects.items())[:6])
        raise DataError(
            f"{where}: expected as many categories as bbox, each in a list, got {held}; {ADVICE}",
            kind="unreadable-label",
        )
    difficult = _column(objects, ("difficult",), len(boxes))
    crowd = _column(objects, _CROWD_KEYS, len(boxes))
    corners = not _has(objects, BOX_KEYS)
    for place, box in enumerate(boxes):
        yield _Object(box, categories[place], corners, difficult[place], crowd[place])


def _has(held: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return any(key in held for key in keys)


def key_of(held: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """Return what a mapping holds under the first of the keys that it has; None without one."""
    return next((held[key] for key in keys if key in held), None)


def categories_of(objects: Any) -> list[Any]:
    """Return the categories of an image's objects, as written; those of broken objects may be among them."""
    if is_list(objects):
        return [key_of(thing, CLASS_KEYS) for thing in objects if is_mapping(thing)]
    held: Any = key_of(objects, CLASS_KEYS) if is_mapping(objects) else None
    return held if is_list(held) else []


def _column(objects: Mapping[str, Any], keys: Iterable[str], count: int) -> list[bool]:
    held: Any = key_of(objects, keys)
    return [is_set(value) for value in held] if is_list(held) and len(held) == count else [False] * count


def named_classes(root: Path, tell: Callable[[Path, str], None] | None = None) -> list[str] | None:
    """Return the class names of a data set's folder: of classes.txt, else of its card, README.md; None without them."""
    if (root / "classes.txt").is_file():
        return read_lines(root / "classes.txt", tell)
    card = root / "README.md"
    match = _FRONT_MATTER.match(read_text(card, tell).replace("\r\n", "\n")) if card.is_file() else None
    if match is None or "class_label" not in match[1]:
        return None
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("Reading the class names in README.md", "train") from None
    try:
        # Plain strings: YAML would make the class "no" False and the class "007" 7.
        content: Any = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{card}: its head is no YAML ({' '.join(str(error).split())[:200]}); correct it") from None
    info: Any = content.get("dataset_info") if is_mapping(content) else None
    infos: list[Any] = info if is_list(info) else [info]
    return next((names for one in infos if (names := class_label_names(one)) is not None), None)


def class_label_names(features: Any) -> list[str] | None:
    """Return the names of the first ClassLabel with a name like a category in features, of a card or a schema."""
    found = [names for key, names in _labels_below(features, "", 0) if key in CLASS_KEYS]
    return found[0] if found else None


def _labels_below(value: Any, key: str, depth: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the column's name and the names of every ClassLabel, those inside `objects` first."""
    if depth > 12:
        return
    if is_list(value):
        for one in value:
            yield from _labels_below(one, key, depth + 1)
    if not is_mapping(value):
        return
    label: Any = value.get("class_label", value if value.get("_type") == "ClassLabel" else None)
    names = _names_in(label)
    own = str(value["name"]) if isinstance(value.get("name"), str) else key
    if names is not None:
        yield own, names
        return
    for inner in sorted(value, key=lambda one: one not in OBJECT_KEYS):
        # A list's or a struct's own description keeps the column's name
        keeps = inner in ("feature", "dtype", "sequence", "struct", "list", "class_label", "features", "info")
        yield from _labels_below(value[inner], own if keeps else str(inner), depth + 1)


def _names_in(label: Any) -> list[str] | None:
    names: Any = label.get("names") if is_mapping(label) else None
    if is_mapping(names) and all(re.fullmatch(r"\d{1,9}", str(place)) for place in names):
        return [str(names[place]).strip() for place in sorted(names, key=int)]
    return [str(name).strip() for name in names] if is_list(names) else None
