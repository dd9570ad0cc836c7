"""CSV: one box per line under a header that names the columns, such as Dive into Deep Learning's bananas."""

import csv
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder, place_image, target_names
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    ReadOptions,
    files_in,
    folders_in,
    in_order,
    is_split_name,
    is_yes,
    name_splits,
    number_text,
    read_lines,
    read_text,
    safe_name,
    split_in,
    write_lines,
)
from multibox.data.images import image_size
from multibox.data.left_out import BROKEN_BOX, UNREADABLE_IMAGE
from multibox.errors import DataError
from multibox.structures import Dataset, Size

_SUFFIXES = (".csv", ".tsv")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KNOWN: dict[str, tuple[str, ...]] = {
    "filename": (
        *("filename", "file_name", "img_name", "image_name", "image_filename", "image_path", "img_path", "filepath"),
        *("file_path", "path", "image", "img", "file", "image_file", "imageid", "image_id", "img_id"),
    ),
    "label": (
        *("label", "class", "class_name", "classname", "cell_type", "category", "category_name", "labelname"),
        *("label_name", "class_label", "object", "species", "type", "class_id", "category_id", "name"),
    ),
    "xmin": ("xmin", "x_min", "x1", "left", "xtl", "bbox_xmin", "bbox_x1"),
    "ymin": ("ymin", "y_min", "y1", "top", "ytl", "bbox_ymin", "bbox_y1"),
    "xmax": ("xmax", "x_max", "x2", "right", "xbr", "bbox_xmax", "bbox_x2"),
    "ymax": ("ymax", "y_max", "y2", "bottom", "ybr", "bbox_ymax", "bbox_y2"),
    "split": ("split", "set", "subset", "partition", "usage"),
    "difficult": ("difficult", "is_difficult"),
    "crowd": ("crowd", "iscrowd", "is_crowd", "isgroupof", "is_group_of"),
}
"""Each role and the headings it goes by, the likeliest first."""
_NEEDED = ("filename", "label", *_CORNERS)


@dataclass(frozen=True)
class _Source:
    file: Path
    split: str | None = None
    """The value of the split column, where that tells the splits apart."""


@dataclass(frozen=True)
class _Row:
    where: str
    """File and line."""
    line: int
    filename: str
    label: str
    corners: tuple[str, ...]
    rest: Mapping[str, str]


@dataclass(frozen=True)
class _Table:
    file: Path
    columns: dict[str, int]
    rows: list[tuple[int, list[str]]]
    fractions: bool
    """OpenImages: corners are fractions of the image."""

    def __iter__(self) -> Iterator[_Row]:
        width = max(self.columns[role] for role in _NEEDED)
        for line, cells in self.rows:
            # An image without objects may stand alone on its line.
            padded = cells + [""] * (width + 1 - len(cells))
            rest = {
                role: padded[at].strip()
                for role, at in self.columns.items()
                if role not in _NEEDED and at < len(padded)
            }
            name, label, *corners = (padded[self.columns[role]].strip() for role in _NEEDED)
            yield _Row(f"{self.file}, line {line}", line, name, label, tuple(corners), rest)


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder a CSV data set, or None."""
    if path.is_file():
        is_metadata = path.name.lower() == "metadata.csv"  # of an imagefolder
        return path.name if path.suffix.lower() in _SUFFIXES and not (is_metadata and explain(path)) else None
    files = _split_files(path)
    return next((file.relative_to(path).as_posix() for file in files.values()), None)


def explain(path: Path) -> str | None:
    """Return why a CSV file is not read as a data set; None if it is."""
    try:
        _header(path, _cells(path, only_header=True))
    except DataError as error:
        return str(error)
    return None


def find_splits(path: Path) -> dict[str, _Source]:
    """Return the splits: by the split column of the only file, else by file, else by folder."""
    files = {"all": path} if path.is_file() else _split_files(path)
    if len(files) != 1:
        return {name: _Source(file) for name, file in files.items()}
    file = next(iter(files.values()))
    table = _table(file)
    if "split" in table.columns:
        values = dict.fromkeys(row.rest.get("split", "") for row in table)
        return {value: _Source(file, value) for value in in_order(values) if value}
    return {_single_name(file): _Source(file)}


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; a line with an image's name alone is an image without objects.

    Classes come from a classes.txt beside, else in the order of the alphabet (of numbers, if all are numbers)
    over all splits.

    Raises:
        DataError: for a header that does not name the columns, a line that is no box, corners given as fractions.
    """
    splits = find_splits(path)
    source = splits[split]
    root = path.parent if path.is_file() else path
    table = _table(source.file)
    if not table.fractions and table.rows and options.raw is None:
        _refuse_fractions(table)
    index = IndexBuilder(root, "csv", split, options, shared=True, fractions=table.fractions)
    index.source = source.file
    others = {one.file for one in splits.values()} - {source.file}
    used = {row.label for one in (table, *map(_table, others)) for row in one if row.label and any(row.corners)}
    classes, meaning = _classes(used, root, source.file)
    finder = _finder(root, source.file)
    images: dict[str, int | None] = {}
    for row in table:
        if source.split is None or row.rest.get("split") == source.split:
            with index.skipping(BROKEN_BOX, f"line {row.line}"):
                _add_row(index, row, table, images, finder, meaning)
    return index.finish(classes)


def _add_row(
    index: IndexBuilder,
    row: _Row,
    table: _Table,
    images: dict[str, int | None],
    finder: ImageFinder,
    meaning: Mapping[str, int],
) -> None:
    if not row.filename:
        raise DataError(f"{row.where}: no file name; {ADVICE}")
    if row.filename not in images:
        images[row.filename] = None
        images[row.filename] = _add_image(index, row, table, finder)
    image = images[row.filename]
    if image is None or not any(row.corners):
        return
    if row.label not in meaning:
        raise DataError(f"{row.where}: class {row.label!r} is not in classes.txt; {ADVICE}", kind="class-out-of-range")
    box = _box(row, table, index.sizes[image])
    difficult, crowd = (is_yes(row.rest.get(name)) for name in ("difficult", "crowd"))
    index.add_box(image, box, meaning[row.label], difficult=difficult, crowd=crowd, line=row.line)


def _add_image(index: IndexBuilder, row: _Row, table: _Table, finder: ImageFinder) -> int | None:
    found = index.find_image(finder, row.filename, row.where)
    if found is None:
        return None
    name = safe_name(row.filename)
    name = name if Path(name).suffix else found.name
    if not table.fractions:
        # Columns called width and height may be the box's, so they are not trusted.
        return index.add_image(name, found, table.file)
    size: Size | None = None
    with index.skipping(UNREADABLE_IMAGE, row.filename):
        size = image_size(found)
    return None if size is None else index.add_image(name, found, table.file, size)


def _box(row: _Row, table: _Table, size: Size | None) -> list[float]:
    try:
        corners = [float(text.replace(",", ".")) for text in row.corners]
    except ValueError:
        raise DataError(
            f"{row.where}: xmin, ymin, xmax, ymax should be numbers, got {', '.join(row.corners)!r}; {ADVICE}",
            kind="not-a-number",
        ) from None
    if table.fractions and size is not None:
        edges = (size.width, size.height) * 2
        return [round(value * edge, 6) for value, edge in zip(corners, edges, strict=True)]
    return corners


def _classes(used: set[str], root: Path, file: Path) -> tuple[list[str], dict[str, int]]:
    """Return the class names, and the place among them of each label as the file writes it."""
    listing = next((place / "classes.txt" for place in (file.parent, root) if (place / "classes.txt").is_file()), None)
    numeric = all(re.fullmatch(r"\d+", label) for label in used)
    names = read_lines(listing) if listing is not None else sorted(used, key=int if numeric else None)
    meaning = {name: place for place, name in enumerate(names)}
    if listing is not None and numeric and not used <= set(names):
        meaning = {label: int(label) for label in used if int(label) < len(names)}
    return names, meaning


def _finder(root: Path, file: Path) -> ImageFinder:
    split = split_in(file.stem)
    by_split = [place / split for place in (file.parent, *(file.parent / name for name in IMAGE_FOLDERS if name))]
    return ImageFinder(root, [*by_split, *(file.parent / name for name in IMAGE_FOLDERS)])


def _split_files(folder: Path) -> dict[str, Path]:
    files = [file for file in files_in(folder, *_SUFFIXES) if explain(file) is None]
    if files:
        return (
            name_splits({file.stem: file for file in files}) if len(files) > 1 else {_single_name(files[0]): files[0]}
        )
    parts: dict[str, Path] = {}
    for part in folders_in(folder):
        held = [file for file in files_in(part, *_SUFFIXES) if explain(file) is None]
        if len(held) == 1 and (is_split_name(split_in(part.name)) or held[0].stem.lower() in ("label", "labels")):
            parts[part.name] = held[0]
    several = len(parts) > 1 or any(is_split_name(split_in(name)) for name in parts)
    return name_splits(parts) if several else {}


def _single_name(file: Path) -> str:
    names = (split_in(file.stem), split_in(file.parent.name))
    return next((name for name in names if is_split_name(name)), "all")


def _table(file: Path) -> _Table:
    cells = _cells(file)
    columns, fractions = _header(file, cells[:1])
    return _Table(file, columns, cells[1:], fractions)


def _cells(file: Path, *, only_header: bool = False) -> list[tuple[int, list[str]]]:
    lines = read_text(file).splitlines()
    first = next((at for at, line in enumerate(lines) if line.strip()), 0)
    delimiter = max("\t;,", key="".join(lines[first : first + 1]).count)
    reader = csv.reader(lines[: first + 1] if only_header else lines, delimiter=delimiter, skipinitialspace=True)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num} is no CSV ({error}); correct it") from None


def _header(file: Path, first: list[tuple[int, list[str]]]) -> tuple[dict[str, int], bool]:
    if not first:
        raise DataError(f"{file} is empty; expected a header such as filename,label,xmin,ymin,xmax,ymax")
    found = [re.sub(r"[^a-z0-9]+", "_", heading.strip().lower()).strip("_") for heading in first[0][1]]
    columns: dict[str, int] = {}
    for role, headings in _KNOWN.items():
        at = next((found.index(heading) for heading in headings if heading in found), None)
        if at is not None and at not in columns.values():
            columns[role] = at
    missing = [role for role in _NEEDED if role not in columns]
    if missing:
        raise DataError(
            f"{file}: its header names no column for {', '.join(missing)}; expected {', '.join(_NEEDED)} in any order, "
            f"found {', '.join(first[0][1][:12])}; rename the columns"
        )
    return columns, {"imageid", "labelname"} <= set(found)


def _refuse_fractions(table: _Table) -> None:
    values = [_number(text) for row in itertools.islice(table, 100) for text in row.corners]
    if any(0.0 < value < 1.0 for value in values) and max(values) <= 1.0:
        raise DataError(
            f"{table.file}: the corners are fractions of the image, expected pixels; multiply them by its size",
            kind="normalised-boxes",
        )


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return 0.0


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write SPLIT/label.csv and SPLIT/images, as the d2l bananas are, and classes.txt for the order of the classes."""
    flags = [
        name for name in ("difficult", "crowd") if any(getattr(dataset, name).any() for dataset in splits.values())
    ]
    for split, dataset in splits.items():
        (folder / split).mkdir()
        with (folder / split / "label.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img_name", "label", *_CORNERS, *flags])
            for name, sample in zip(target_names(dataset, share_stems=True), dataset, strict=True):
                place_image(sample, folder / split / "images" / name, link=link)
                if not len(sample.labels):
                    table.writerow([name, *[""] * (5 + len(flags))])
                for row, label in enumerate(sample.labels):
                    corners = [number_text(value) for value in sample.boxes_xyxy[row]]
                    marks = [int(getattr(sample, flag)[row]) for flag in flags]
                    table.writerow([name, dataset.class_names[label], *corners, *marks])
    write_lines(folder / "classes.txt", next(iter(splits.values())).class_names)
    return []
