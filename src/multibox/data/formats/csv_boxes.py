"""CSV: one box per line under a header that names the columns, such as Dive into Deep Learning's bananas."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TextIO

from multibox.data.formats.csv_columns import CORNERS, Columns, find_columns
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
    files_in,
    folders_in,
    in_order,
    is_split_name,
    is_yes,
    name_splits,
    number_text,
    open_text,
    read_lines,
    safe_name,
    split_folders,
    split_in,
    write_lines,
)
from multibox.data.images import image_size
from multibox.data.left_out import BROKEN_BOX, UNREADABLE_IMAGE, Reason
from multibox.errors import DataError
from multibox.structures import Dataset, Size

_SUFFIXES = (".csv", ".tsv")
_TABLE_FOLDERS = ("annotations", "annotation", "labels", "data", "csv", "metadata", "images", "image", "imgs", "img")
"""Folders of a data set that may hold its tables."""
_NOTHING = frozenset(("", "nan", "none", "null", "na", "n/a", "<na>"))
"""What programs write into an empty cell."""
_NO_FINDING = frozenset((*_NOTHING, "no finding", "no_finding", "nofinding", "background", "negative"))
"""Classes that say there is no object, as VinBigData's with the box 0, 0, 1, 1."""
_EMPTY = Reason("line names an image without objects", "lines name images without objects")
_DEPICTION = Reason("depiction was kept as an object", "depictions were kept as objects")
_UNDESCRIBED = Reason("class is in no class-descriptions file", "classes are in no class-descriptions file")


@dataclass(frozen=True)
class _Source:
    file: Path
    split: str | None = None
    """The value of the split column, where that tells the splits apart."""


class _Row(NamedTuple):
    line: int
    filename: str
    label: str
    corners: tuple[str, ...]
    cells: list[str]


@dataclass(frozen=True)
class _Classes:
    """What the labels of a table mean."""

    listed: list[str] | None
    """Names of a classes.txt beside."""
    described: dict[str, str]
    """Open Images: name of each id."""
    met: dict[str, int]
    """Place of each label, as the file writes it: in `listed`, else in the order met; of lines that hold a box."""
    broken: set[str]
    """Labels of other lines, which are no classes unless they are met as well."""


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
        find_columns(path)
    except DataError as error:
        return str(error)
    return None


def find_splits(path: Path) -> dict[str, _Source]:
    """Return the splits: by the split column of the only file, else by file, else by folder."""
    files = {_single_name(path): path} if path.is_file() else _split_files(path)
    if len(files) != 1:
        return {name: _Source(file) for name, file in files.items()}
    file = next(iter(files.values()))
    if "split" in find_columns(file).at:
        about = file.stat()
        return {value: _Source(file, value) for value in _split_values(file, about.st_mtime_ns, about.st_size)}
    return {_single_name(file): _Source(file)}


@lru_cache(maxsize=8)
def _split_values(file: Path, _time: int, _size: int) -> list[str]:
    columns = find_columns(file)
    values = dict.fromkeys(_cell(row, columns, "split") for row in _rows(columns, None))
    return [value for value in in_order(values) if value]


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; a line with an image's name alone is an image without objects.

    Classes come from a classes.txt beside, else in the order of the alphabet (of numbers, if all are numbers)
    over all splits. Ids of Open Images are named by its class-descriptions file, in that file's order.

    Raises:
        DataError: for a header that does not name the columns, a line that is no box, corners given as fractions.
    """
    splits = find_splits(path)
    source = splits[split]
    root = _root_of(path) if path.is_file() else path
    columns = find_columns(source.file)
    index = IndexBuilder(root, "csv", split, options, shared=True, fractions=columns.fractions)
    index.source = source.file
    index.notes += [columns.note] if columns.note else []
    if columns.decimal_comma:
        index.notes.append(f"numbers of {source.file.name} such as 0,5 were read with a decimal comma")
    if options.raw is None:
        _refuse_fractions(columns)
    classes = _Classes(_listed_classes(root, source.file), _descriptions(root, source.file, columns), {}, set())
    finder = _finder(root, source.file, split)
    images: dict[str, int | None] = {}
    for row in _rows(columns, index):
        with index.skipping(BROKEN_BOX, f"line {row.line}"):
            if source.split is None or _cell(row, columns, "split") == source.split:
                _add_row(index, row, columns, images, finder, classes)
            else:
                _meet(row, columns, classes)
    for file in {one.file for one in splits.values()} - {source.file} if classes.listed is None else ():
        other = find_columns(file)
        for row in _rows(other, None):
            _meet(row, other, classes)
    if ghosts := sorted(classes.broken - classes.met.keys()):
        index.notes.append(f"names that only broken lines have were not taken for classes: {', '.join(ghosts)}")
    names = [classes.described.get(label, label) for label in classes.met]
    if classes.listed is not None:
        return index.finish(classes.listed)
    return index.finish(names, order=_order(names, classes, index))


def _rows(columns: Columns, index: IndexBuilder | None) -> Iterator[_Row]:
    """Yield the rows of a table; an image without objects may stand alone on its line.

    Without `index`, lines that are no CSV are passed over.
    """
    name, label, *corners = (columns.at[role] for role in ("filename", "label", *CORNERS))
    width = max(columns.at.values()) + 1
    with open_text(columns.file, None if index is None else index.tell_encoding) as file:
        _skip_lines(file, columns)
        reader = csv.reader(file, delimiter=columns.delimiter, skipinitialspace=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeError) as error:
                problem = DataError(f"{columns.file}, line {columns.first_row + reader.line_num} is no CSV ({error})")
                if index is None:
                    continue
                index.image = -1
                with index.skipping(BROKEN_BOX, f"line {columns.first_row + reader.line_num}"):
                    raise problem from None
                continue
            if len(cells) < width:
                cells += [""] * (width - len(cells))
            if any(cells):
                place = tuple(cells[at].strip() for at in corners)
                line = columns.first_row + reader.line_num
                yield _Row(line, cells[name].strip(), cells[label].strip(), place, cells)


def _skip_lines(file: TextIO, columns: Columns) -> None:
    """Pass over the header and what stands before it.

    Raises:
        DataError: they are no text in the file's encoding, as in UTF-16 that a byte is missing of.
    """
    try:
        for _ in range(columns.first_row):
            file.readline()
    except UnicodeError as error:
        raise DataError(
            f"{columns.file} is damaged text ({error}); save it as UTF-8", kind="unknown-encoding"
        ) from None


def _cell(row: _Row, columns: Columns, role: str) -> str:
    at = columns.at.get(role)
    return "" if at is None else row.cells[at].strip()


def _add_row(
    index: IndexBuilder,
    row: _Row,
    columns: Columns,
    images: dict[str, int | None],
    finder: ImageFinder,
    classes: _Classes,
) -> None:
    index.image = -1
    if not row.filename:
        raise DataError(f"{columns.file}, line {row.line}: no file name; {ADVICE}", kind="unreadable-label")
    if row.filename not in images:
        images[row.filename] = None
        images[row.filename] = _add_image(index, row, columns, finder)
    if _is_empty(row):
        if any(row.corners):
            index.guessed(_EMPTY, f"line {row.line}")
        return
    image = images[row.filename]
    if image is None:
        _meet(row, columns, classes)
        return
    index.image = image
    try:
        box = _box(row, columns)
    except DataError:
        classes.broken.add(row.label)
        raise
    label = _place(row, columns, classes, sound=_is_sound(box) or index.options.raw is not None)
    if columns.fractions:
        size = index.sizes[image]
        edges = (size.width, size.height) * 2 if size is not None else (1, 1, 1, 1)
        box = [round(value * edge, 6) for value, edge in zip(box, edges, strict=True)]
    difficult, crowd = (is_yes(_cell(row, columns, name)) for name in ("difficult", "crowd"))
    index.add_box(image, box, label, difficult=difficult, crowd=crowd, line=row.line)
    if is_yes(_cell(row, columns, "depiction")):
        index.guessed(_DEPICTION, f"line {row.line}")


def _is_empty(row: _Row) -> bool:
    """Return whether a row says that its image shows no object."""
    if not any(row.corners):
        return True
    if row.label.lower() not in _NO_FINDING:
        return False
    corners = [corner.lower() for corner in row.corners]
    return all(corner in _NOTHING for corner in corners) or [*map(_number, corners)] == [0, 0, 1, 1]


def _add_image(index: IndexBuilder, row: _Row, columns: Columns, finder: ImageFinder) -> int | None:
    found = index.find_image(finder, row.filename, f"{columns.file}, line {row.line}")
    if found is None:
        return None
    name = safe_name(row.filename)
    name = name if Path(name).suffix else found.name
    size: Size | None = None
    if columns.fractions:
        with index.skipping(UNREADABLE_IMAGE, row.filename, found):
            size = image_size(found)
        if size is None:
            return None
    elif columns.image_size:
        height, width = _number(_cell(row, columns, "height")), _number(_cell(row, columns, "width"))
        size = Size(int(height), int(width)) if height >= 1 and width >= 1 else None
    return index.add_image(name, found, columns.file, size)


def _box(row: _Row, columns: Columns) -> list[float]:
    try:
        values = [float(text.replace(",", ".") if columns.decimal_comma else text) for text in row.corners]
    except ValueError:
        where, expected = f"{columns.file}, line {row.line}", "xmin, ymin, xmax, ymax should be numbers"
        comma = next((text for text in row.corners if "," in text), None)
        why = f" ({comma!r} may mean thousands or a fraction)" if comma else ""
        raise DataError(
            f"{where}: {expected}, got {', '.join(row.corners)!r}{why}; {ADVICE}", kind="not-a-number"
        ) from None
    if columns.sized:
        x, y, width, height = values
        return [x, y, x + width, y + height]
    return values


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and abs(value) < 1e9 else 0.0


def _place(row: _Row, columns: Columns, classes: _Classes, *, sound: bool) -> int:
    """Return the place of a row's label among those met; a label whose boxes are all broken is no class."""
    if row.label in classes.met:
        return classes.met[row.label]
    where, listed = f"{columns.file}, line {row.line}", classes.listed
    if row.label.lower() in ("", "nan"):
        raise DataError(f"{where}: no class; {ADVICE}", kind="unreadable-label")
    place = len(classes.met)
    if listed is not None:
        # Beside a class called "1" a number that is no class's name may count from 0 or from 1
        counts = row.label.isdecimal() and not any(map(str.isdecimal, listed))
        place = listed.index(row.label) if row.label in listed else int(row.label) if counts else -1
        if not 0 <= place < len(listed):
            known = f"classes.txt, which names {len(listed)} classes"
            raise DataError(f"{where}: class {row.label!r} is not in {known}; {ADVICE}", kind="class-out-of-range")
    if sound or listed is not None:
        return classes.met.setdefault(row.label, place)
    classes.broken.add(row.label)
    return 0  # the box is dropped when the index is finished


def _meet(row: _Row, columns: Columns, classes: _Classes) -> None:
    """Take note of a label in a row that is not read, if the row holds a box; a classes.txt leaves nothing to note."""
    if classes.listed is not None or _is_empty(row):
        return
    try:
        box = _box(row, columns)
    except DataError:
        return  # opening that split says what is wrong with it
    if _is_sound(box):
        classes.met.setdefault(row.label, len(classes.met))


def _is_sound(box: list[float]) -> bool:
    return all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]


def _order(names: list[str], classes: _Classes, index: IndexBuilder) -> list[str]:
    if not classes.described:
        numeric = all(name.isdecimal() for name in names)
        return sorted(names, key=int if numeric else None)
    unknown = sorted(label for label in classes.met if label not in classes.described)
    for label in unknown:
        index.guessed(_UNDESCRIBED, label)
    return [name for name in dict.fromkeys(classes.described.values()) if name in set(names)] + unknown


def _listed_classes(root: Path, file: Path) -> list[str] | None:
    listing = next((place / "classes.txt" for place in (file.parent, root) if (place / "classes.txt").is_file()), None)
    return None if listing is None else read_lines(listing)


def _descriptions(root: Path, file: Path, columns: Columns) -> dict[str, str]:
    """Return the name of each class id that an Open Images *class-descriptions*.csv beside or above gives."""
    if not columns.fractions:
        return {}
    near = [file.parent, root, *(folder for name in ("metadata", "annotations") if (folder := child(root, name)))]
    for place in dict.fromkeys((*near, file.parent.parent, root.parent)):
        for table in files_in(place, ".csv"):
            if "class-descriptions" in table.name.lower() or "class_descriptions" in table.name.lower():
                lines = csv.reader(read_lines(table))
                pairs = [(cells[0].strip(), cells[1].strip()) for cells in lines if len(cells) >= 2]
                return {label: name for label, name in pairs if label and name and label != "LabelName"}
    return {}


def _finder(root: Path, file: Path, split: str) -> ImageFinder:
    bases = (file.parent, root)
    return ImageFinder(
        root, [*folders_of_split(bases, split), *(base / name for base in bases for name in IMAGE_FOLDERS)], split
    )


def _root_of(file: Path) -> Path:
    """Return the data set's folder of a table that is given by itself, such as annotations/train.csv."""
    folder = file.parent
    if folder.name.lower() not in _TABLE_FOLDERS or any(child(folder, name) for name in IMAGE_FOLDERS if name):
        return folder
    return folder.parent if any(child(folder.parent, name) for name in IMAGE_FOLDERS if name) else folder


def _split_files(folder: Path) -> dict[str, Path]:
    for place in (folder, *(place for name in _TABLE_FOLDERS if (place := child(folder, name)) is not None)):
        files = [file for file in files_in(place, *_SUFFIXES) if explain(file) is None]
        if len(files) > 1:
            return name_splits({file.stem: file for file in files})
        if files:
            return {_single_name(files[0]): files[0]}
    parts: dict[str, Path] = {}
    for part in {*folders_in(folder), *split_folders(folder).values()}:
        held = [file for file in files_in(part, *_SUFFIXES) if explain(file) is None]
        if len(held) == 1 and (is_split_name(split_in(part.name)) or held[0].stem.lower() in ("label", "labels")):
            parts[part.name] = held[0]
    several = len(parts) > 1 or any(is_split_name(split_in(name)) for name in parts)
    return name_splits(parts) if several else {}


def _single_name(file: Path) -> str:
    names = (split_in(file.stem), split_in(file.parent.name))
    return next((name for name in names if is_split_name(name)), "all")


def _refuse_fractions(columns: Columns) -> None:
    """Refuse a table of pixels whose first 100 boxes lie between 0 and 1.

    Raises:
        DataError: they do.
    """
    if columns.fractions:
        return
    values = [_number(text) for _, row in zip(range(100), _rows(columns, None), strict=False) for text in row.corners]
    if any(0.0 < value < 1.0 for value in values) and max(values) <= 1.0:
        raise DataError(
            f"{columns.file}: the corners are fractions of the image, expected pixels; multiply them by its size",
            kind="normalised-boxes",
        )


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool, refer: bool = False) -> list[str]:
    """Write SPLIT/label.csv and SPLIT/images, as the d2l bananas are, and classes.txt for the order of the classes.

    With `refer` the tables name the images where they are.
    """
    flags = [
        name for name in ("difficult", "crowd") if any(getattr(dataset, name).any() for dataset in splits.values())
    ]
    for split, dataset in splits.items():
        (folder / split).mkdir()
        with (folder / split / "label.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img_name", "label", *CORNERS, *flags])
            names = own_places(dataset) if refer else target_names(dataset, share_stems=True)
            for name, sample in zip(names, dataset, strict=True):
                if not refer:
                    place_image(sample, folder / split / "images" / name, link=link)
                if not len(sample.labels):
                    table.writerow([name, *[""] * (5 + len(flags))])
                for row, label in enumerate(sample.labels):
                    corners = [number_text(value) for value in sample.boxes_xyxy[row]]
                    marks = [int(getattr(sample, flag)[row]) for flag in flags]
                    table.writerow([name, dataset.class_names[label], *corners, *marks])
    write_lines(folder / "classes.txt", next(iter(splits.values())).class_names)
    return []
