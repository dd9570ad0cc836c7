"""Columns of a CSV of boxes: told by its header, or by what a table without one looks like. Only the head is read."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multibox.data.formats.text import head_lines
from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
NEEDED = ("filename", "label", *CORNERS)
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
    "depiction": ("isdepiction", "is_depiction"),
    "width": ("width", "image_width", "img_width", "imagewidth"),
    "height": ("height", "image_height", "img_height", "imageheight"),
}
"""Each role and the headings it goes by, the likeliest first."""
_NUMBER = re.compile(r"-?\d+([.,]\d+)?([eE][-+]?\d+)?")
_DECIMAL_COMMA = re.compile(r"-?(\d+,(\d{1,2}|\d{4,})|0\d*,\d+)")
"""A number whose comma cannot stand for thousands."""
_SAMPLE = 200
"""Rows looked at."""


@dataclass(frozen=True)
class Columns:
    """What each column of a table holds."""

    file: Path
    delimiter: str
    at: dict[str, int]
    """Role to place."""
    first_row: int
    """Lines before the first row."""
    fractions: bool = False
    """Open Images: corners are fractions of the image."""
    sized: bool = False
    """xmax and ymax hold the box's width and height."""
    decimal_comma: bool = False
    image_size: bool = False
    """Columns called width and height hold the image's size; they may be the box's."""
    note: str = ""
    """What was guessed, as a sentence."""


def find_columns(file: Path) -> Columns:
    """Return what the columns of a table hold.

    Raises:
        DataError: the file is empty, or names no columns that could be used.
    """
    lines = head_lines(file)
    first = next((at for at, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise DataError(f"{file} is empty; expected a header such as filename,label,xmin,ymin,xmax,ymax")
    separator = re.fullmatch(r"sep=(.)", lines[first].strip())  # Excel's
    if separator and len(lines) > first + 1:
        first += 1
    delimiter = separator[1] if separator else max("\t;,", key=lines[first].count)
    try:
        rows = list(csv.reader(lines[first : first + _SAMPLE], delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise DataError(f"{file} is no CSV ({error}); correct it") from None
    header = [cell.strip() for cell in rows[0]]
    if _is_row(header):
        return _without_header(file, delimiter, first, [row for row in rows if any(row)])
    found = [re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_") for heading in header]
    at: dict[str, int] = {}
    for role, headings in _KNOWN.items():
        place = next((found.index(heading) for heading in headings if heading in found), None)
        if place is not None and place not in at.values():
            at[role] = place
    missing = [role for role in NEEDED if role not in at]
    if missing:
        raise DataError(
            f"{file}: its header names no column for {', '.join(missing)}; expected {', '.join(NEEDED)} in any order, "
            f"found {', '.join(header[:12])}; rename the columns"
        )
    body = [row for row in rows[1:] if len(row) > max(at.values())]
    return Columns(
        file,
        delimiter,
        at,
        first + 1,
        fractions={"imageid", "labelname"} <= set(found),
        decimal_comma=_has_decimal_commas(body, at),
        image_size=_holds_image_sizes(body, at),
    )


def _is_row(cells: Sequence[str]) -> bool:
    """Return whether the first line holds an image and numbers, and so is no header."""
    numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in cells)
    return numbers >= 4 or any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in cells)


def _without_header(file: Path, delimiter: str, first: int, rows: list[list[str]]) -> Columns:
    cells = [[cell.strip() for cell in row] for row in rows]
    widths = {len(row) for row in cells}
    if widths == {6} and all(_is_retina_row(row) for row in cells):
        said = "image, xmin, ymin, xmax, ymax, class"
        note = f"{file.name} has no header; its columns were read as {said}"
        return Columns(file, delimiter, _placed("filename", *CORNERS, "label"), first, note=note)
    if widths == {8} and all(_is_makesense_row(row) for row in cells):
        said = "class, x, y, width, height, image, image's width, image's height"
        return Columns(
            file,
            delimiter,
            _placed("label", *CORNERS, "filename", "width", "height"),
            first,
            sized=True,
            image_size=True,
            note=f"{file.name} has no header; its columns were read as {said}",
        )
    raise DataError(
        f"{file} has no header: its first line is {', '.join(cells[0][:12])}; put a line that names the columns first, "
        f"such as {','.join(NEEDED)}"
    )


def _placed(*roles: str) -> dict[str, int]:
    return {role: place for place, role in enumerate(roles)}


def _is_retina_row(row: Sequence[str]) -> bool:
    """Return whether a row is keras-retinanet's: image, x1, y1, x2, y2, class; or an image and nothing."""
    image, *corners, label = row
    if not image.lower().endswith(IMAGE_SUFFIXES):
        return False
    if not any(corners):
        return not label
    values = _numbers(corners)
    return bool(label) and values is not None and values[0] < values[2] and values[1] < values[3]


def _is_makesense_row(row: Sequence[str]) -> bool:
    """Return whether a row is makesense.ai's: class, x, y, width, height, image, and the image's size around it."""
    values = _numbers([*row[1:5], *row[6:8]])
    if values is None or not row[0] or not row[5].lower().endswith(IMAGE_SUFFIXES):
        return False
    x, y, width, height, image_width, image_height = values
    return width > 0 and height > 0 and x + width <= image_width + 1 and y + height <= image_height + 1


def _numbers(cells: Sequence[str]) -> list[float] | None:
    return (
        [float(cell) for cell in cells] if all(_NUMBER.fullmatch(cell) and "," not in cell for cell in cells) else None
    )


def _has_decimal_commas(rows: list[list[str]], at: dict[str, int]) -> bool:
    """Return whether commas in numbers are decimal ones: one cannot stand for thousands, and no number has a point."""
    cells = [row[at[corner]].strip() for row in rows for corner in CORNERS]
    return any(map(_DECIMAL_COMMA.fullmatch, cells)) and not any("." in cell or cell.count(",") > 1 for cell in cells)


def _holds_image_sizes(rows: list[list[str]], at: dict[str, int]) -> bool:
    """Return whether width and height are the image's: they hold every box and are not the boxes' own."""
    if "width" not in at or "height" not in at:
        return False
    own = 0
    checked = 0
    for row in rows:
        values = _numbers([row[at[role]].strip() for role in (*CORNERS, "width", "height")])
        if values is None:
            continue
        xmin, ymin, xmax, ymax, width, height = values
        if width < xmax - xmin - 1 or height < ymax - ymin - 1:
            return False
        checked += 1
        own += abs(xmax - xmin - width) <= 1 and abs(ymax - ymin - height) <= 1
    return checked > own
