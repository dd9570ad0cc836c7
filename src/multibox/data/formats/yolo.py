"""YOLO: one text file a picture, each line a class number and a box as fractions of the picture."""

import math
from dataclasses import dataclass
from pathlib import Path

from multibox.data.formats.columns import Columns
from multibox.data.formats.common import (
    ADVICE,
    PICTURE_SUFFIXES,
    SKIP,
    ReadOptions,
    files_below,
    is_split_name,
    read_lines,
    read_text,
    safe_name,
    stem_of,
    tails,
)
from multibox.data.formats.finder import PictureFinder
from multibox.data.formats.yolo_layout import Layout, find_layout, is_class_file, looks_like_labels, split_order
from multibox.data.pictures import picture_size
from multibox.errors import DataError, PictureError
from multibox.structures import Dataset

_SLACK = 0.01  # tools round a box at the edge to 1.001; pixels in place of fractions are far beyond


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    label: Path
    """The label file, which need not exist: a picture without one shows no objects."""


@dataclass(frozen=True)
class _Box:
    label: int
    fractions: tuple[float, float, float, float]
    """xyxy."""
    outline: bool
    """Made of a polygon's corners."""


def recognise(path: Path) -> str | None:
    """Say what makes this file or folder a YOLO data set, or None."""
    if path.is_file():
        return path.name if path.suffix.lower() in (".yaml", ".yml", ".data") else None
    try:
        layout = find_layout(path)
    except DataError:
        return "data.yaml"  # it is one, and reading it says what is wrong
    if layout is None:
        return None
    return layout.classes_file.name if layout.classes_file is not None else "labels/*.txt"


def find_splits(path: Path) -> dict[str, list[Path]]:
    """Return each split's picture folders and list files.

    Raises:
        DataError: for a data.yaml that says nothing usable.
    """
    return split_order(_layout(path))


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; the header of every picture with objects is opened for its size.

    Raises:
        DataError: for a line that is no box, a class number without a name, a label file without a picture.
    """
    layout = _layout(path)
    columns = Columns(layout.root, "yolo", split, options, shared=False)
    entries = _entries(layout, layout.sources[split], columns)
    if entries and not any(entry.label.is_file() for entry in entries):
        raise DataError(
            f"{layout.root}: none of the {len(entries)} pictures of split {split!r} has a label file; "
            f"looked for {entries[0].label} and so on; put the labels there"
        )
    classes = layout.classes if layout.classes is not None else _numbers(layout, entries)
    index = {number: place for place, number in enumerate(classes)}
    for entry in entries:
        _add(columns, entry, index, layout)
    return columns.finish(list(classes.values()))


def _layout(path: Path) -> Layout:
    layout = find_layout(path)
    if layout is None:
        raise DataError(f"{path} is no YOLO data set; expected data.yaml, or images and labels side by side")
    return layout


def _add(columns: Columns, entry: _Entry, index: dict[int, int], layout: Layout) -> None:
    try:
        boxes = _read_label(entry.label, columns)
        size = picture_size(entry.path) if boxes else None
    except PictureError as error:
        columns.bad(str(error), entry.path.name, "picture")
        return
    except DataError as error:
        columns.bad(str(error), entry.label.name)
        return
    row = columns.add_picture(entry.name, entry.path, entry.label, size)
    if row is None or size is None:
        return
    width, height = size
    for number, box in enumerate(boxes, start=1):
        if box.label not in index:
            columns.bad(
                f"{entry.label}, object {number}: class {box.label} is not among the {len(index)} classes of "
                f"{layout.classes_file}; {ADVICE}",
                entry.label.name,
                "box",
            )
            continue
        x1, y1, x2, y2 = box.fractions
        # A millionth of a pixel is below what fractions hold, and whole pixels come back whole.
        corners = (x1 * width, y1 * height, x2 * width, y2 * height)
        columns.add_box(row, [round(value, 6) for value in corners], index[box.label])
        if box.outline:
            columns.count(
                entry.label.name,
                "outline was replaced by the box around it",
                "outlines were replaced by the boxes around them",
            )


def _read_label(path: Path, columns: Columns) -> list[_Box]:
    """Return the boxes of a label file; none where there is no such file."""
    if not path.is_file():
        return []
    boxes: list[_Box] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        tokens = line.split()
        if not tokens:
            continue
        where = f"{path}, line {number}"
        try:
            boxes.append(_read_line(tokens, where))
        except DataError as error:
            columns.bad(str(error), path.name, "box")
    return boxes


def _read_line(tokens: list[str], where: str) -> _Box:
    try:
        values = [float(token) for token in tokens]
        if not values[0].is_integer():
            raise ValueError
    except ValueError:
        raise DataError(
            f"{where}: expected a class number and fractions, got {' '.join(tokens)[:60]!r}; {ADVICE}"
        ) from None
    label, place = int(values[0]), values[1:]
    if len(place) != 4 and (len(place) < 6 or len(place) % 2):
        raise DataError(f"{where}: expected class cx cy w h, got {len(tokens)} values; {ADVICE}")
    wild = [value for value in place if value > 1 + _SLACK or (value < -_SLACK and len(place) > 4)]
    if wild:
        raise DataError(
            f"{where}: expected fractions of the picture from 0 to 1, got {wild[0]:g}; divide pixels by its size"
        )
    if len(place) == 4:
        cx, cy, width, height = place
        return _Box(label, (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), False)
    if not all(map(math.isfinite, place)):
        return _Box(label, (math.nan, math.nan, math.nan, math.nan), False)
    xs, ys = place[0::2], place[1::2]
    return _Box(label, (min(xs), min(ys), max(xs), max(ys)), True)


def _numbers(layout: Layout, entries: list[_Entry]) -> dict[int, str]:
    """Return "0", "1" ... up to the highest class number of all splits, where no file names the classes."""
    quiet = Columns(layout.root, "yolo", "", ReadOptions(on_bad="skip"), shared=False)
    labels = {entry.label for entry in entries}
    for sources in layout.sources.values():
        labels |= {entry.label for entry in _entries(layout, sources, quiet)}
    highest = max((box.label for label in labels for box in _read_label(label, quiet)), default=-1)
    return {number: str(number) for number in range(highest + 1)}


def _entries(layout: Layout, sources: list[Path], columns: Columns) -> list[_Entry]:
    entries: list[_Entry] = []
    for source in sources:
        entries += _listed(layout, source, columns) if source.is_file() else _in_folder(source, columns)
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        whole = [_Entry(safe_name(str(_relative(one.path, layout.root))), one.path, one.label) for one in entries]
        return list({entry.name: entry for entry in whole}.values())
    return entries


def _in_folder(folder: Path, columns: Columns) -> list[_Entry]:
    labels = Path(_twin(str(folder) + "/")[:-1])
    names = files_below(folder, *PICTURE_SUFFIXES)
    texts = set(files_below(labels, ".txt")) if labels != folder else set()
    beside = set(files_below(folder, ".txt"))
    entries: list[_Entry] = []
    for name in names:
        text = stem_of(name) + ".txt"
        place = folder if text in beside and text not in texts else labels
        entries.append(_Entry(name, folder / name, place / text))
    used = {entry.label for entry in entries}
    for place, held in ((labels, texts), (folder, beside)):
        for text in sorted(held):
            orphan = place / text
            if orphan not in used and not is_class_file(orphan.name) and looks_like_labels(orphan):
                columns.bad(f"{orphan}: its picture is missing from {folder}; put it there, or {SKIP}", text, "missing")
    return entries


def _listed(layout: Layout, source: Path, columns: Columns) -> list[_Entry]:
    pictures = PictureFinder(layout.root, [source.parent, layout.root])
    texts = {name.rpartition("/")[2]: name for name in files_below(layout.root, ".txt")}
    known = set(texts.values())
    entries: dict[str, _Entry] = {}
    for line in read_lines(source):
        found = pictures.find(line)
        name = _short_name(safe_name(line))
        if found is None:
            columns.bad(
                f"{source} lists {line!r}, but the picture is missing; looked in {pictures.places()}; "
                f"put it there, or {SKIP}",
                name,
                "missing",
            )
        elif name in entries and entries[name].path == found:
            columns.count(
                name, "picture is listed twice and was taken once", "pictures are listed twice and were taken once"
            )
        else:
            key = name if name not in entries else safe_name(line)
            entries[key] = _Entry(key, found, layout.root / _listed_label(line, known, texts, found, layout.root))
    return list(entries.values())


def _listed_label(line: str, known: set[str], texts: dict[str, str], found: Path, root: Path) -> str | Path:
    twin = Path(_twin(stem_of(str(found)) + ".txt"))
    if twin.is_file() or not known:
        return twin
    stem = stem_of(safe_name(line)) + ".txt"
    for tail in (*tails(_twin("/" + stem)[1:]), *tails(stem)):
        if tail in known:
            return root / tail
    return texts.get(stem.rpartition("/")[2], twin)


def _twin(path: str) -> str:
    """Replace the last folder called images by labels, as every YOLO does."""
    for name, twin in (("/images/", "/labels/"), ("/Images/", "/Labels/")):
        head, found, tail = path.rpartition(name)
        if found:
            return head + twin + tail
    return path


def _short_name(name: str) -> str:
    for folder in ("images/", "Images/", "obj_train_data/"):
        name = name.rpartition(folder)[2]
    head, _, tail = name.partition("/")
    return tail if tail and is_split_name(head) else name


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
