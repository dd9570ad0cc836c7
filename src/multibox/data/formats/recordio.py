"""MXNet RecordIO detection sets (.rec with .idx, such as the Pikachu files), and im2rec's .lst with images beside."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.finder import ImageFinder, encoded_size
from multibox.data.formats.index import Columns
from multibox.data.formats.records import ImageRecord, read_record, scan
from multibox.data.formats.text import (
    ADVICE,
    SKIP,
    ReadOptions,
    files_in,
    name_splits,
    read_lines,
    safe_name,
)
from multibox.data.images import image_size
from multibox.errors import DataError, ImageError
from multibox.structures import Dataset, Size

_CLASS_FILES = ("classes.txt", "labels.txt", "names.txt")
_SLACK = 0.01


@dataclass(frozen=True)
class _Listed:
    key: int
    label: NDArray[np.float32]
    image: str


def recognise(path: Path) -> str | None:
    """Say what makes this file or folder a RecordIO data set, or None."""
    if path.is_file():
        return path.name if path.suffix.lower() in (".rec", ".lst") else None
    return next((file.name for file in _split_files(path).values()), None)


def find_splits(path: Path) -> dict[str, Path]:
    """Return the .rec (or .lst) file of each split."""
    return name_splits({path.stem: path}) if path.is_file() else _split_files(path)


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split: `Sample.path` is the .rec file and `Sample.offset` the position of the image's record.

    Classes come from a classes.txt or labels.txt beside, else they are "0", "1" ... over all splits.

    Raises:
        DataError: for a file that is damaged or has no detection labels, an .idx that does not fit its .rec.
    """
    splits = find_splits(path)
    file = splits[split]
    root = path.parent if path.is_file() else path
    columns = Columns(root, "recordio", split, options, shared=True)
    names, names_file = _class_names(root)
    add = _add_records if file.suffix.lower() == ".rec" else _add_listed
    highest = add(columns, file, names, names_file)
    if names is None:
        others = [one for one in splits.values() if one != file]
        highest = max([highest, *(_highest_class(one) for one in others)])
        names = [str(number) for number in range(highest + 1)]
    return columns.finish(names)


def read_record_image(path: str | Path, offset: int) -> bytes:
    """Return the encoded image (JPEG or PNG) of the record at a byte position of a .rec file.

    Raises:
        DataError: when there is no record.
    """
    return read_record(Path(path), offset).image


def _add_records(columns: Columns, file: Path, names: list[str] | None, names_file: Path | None) -> int:
    called = _names_in_list(file.with_suffix(".lst"))
    highest, seen = -1, set[str]()
    for number, (offset, record) in enumerate(_records(file)):
        name = safe_name(called.get(record.key, "")) or str(record.key)
        # Some writers give every record the key 0.
        name = name if name not in seen else f"record{number}"
        seen.add(name)
        where = f"{file}, record {name} at byte {offset}"
        try:
            rows = _objects(record.label, where)
            size = encoded_size(record.image, where)
        except DataError as error:
            columns.bad(str(error), name, "image" if isinstance(error, ImageError) else "broken")
            continue
        image = columns.add_image(name, file, file, size, offset)
        highest = max(highest, _add_objects(columns, image, rows, size, names, names_file, where))
    return highest


def _add_listed(columns: Columns, file: Path, names: list[str] | None, names_file: Path | None) -> int:
    images = ImageFinder(columns.root, [file.parent])
    highest = -1
    for row in _read_list(file):
        where = f"{file}: image {row.image}"
        found = images.find(row.image)
        if found is None:
            looked = f"looked in {images.places()}; put it there, or {SKIP}"
            columns.bad(f"{where} is missing; {looked}", row.image, "missing")
            continue
        try:
            rows, size = _objects(row.label, where), image_size(found)
        except DataError as error:
            columns.bad(str(error), row.image, "image" if isinstance(error, ImageError) else "broken")
            continue
        image = columns.add_image(safe_name(row.image), found, file, size)
        highest = max(highest, _add_objects(columns, image, rows, size, names, names_file, where))
    return highest


def _add_objects(
    columns: Columns,
    image: int | None,
    rows: NDArray[np.float32],
    size: Size,
    names: list[str] | None,
    names_file: Path | None,
    where: str,
) -> int:
    if image is None or not len(rows):
        return -1
    difficult = rows[:, 5] > 0 if rows.shape[1] > 5 else np.zeros(len(rows), np.bool_)
    boxes = _in_pixels(rows[:, 1:5], size)
    for number, (label, box, flag) in enumerate(
        zip(rows[:, 0].tolist(), boxes.tolist(), difficult, strict=True), start=1
    ):
        if label != int(label) or (names is not None and label >= len(names)):
            known = f"among the {len(names)} classes of {names_file}" if names is not None else "a whole number"
            columns.bad(f"{where}, object {number}: class {label:g} is not {known}; {ADVICE}", where, "box")
            continue
        columns.add_box(image, box, int(label), difficult=bool(flag))
    return int(rows[:, 0].max())


def _objects(label: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """Return [objects, width] of a label [header width, object width, more header ..., class, x1, y1, x2, y2, ...]."""
    header, width = (int(label[0]), int(label[1])) if len(label) >= 2 and np.isfinite(label[:2]).all() else (0, 0)
    if header < 2 or width < 5 or len(label) < header or (len(label) - header) % width:
        raise DataError(
            f"{where}: expected a detection label (header width, object width, then class, x1, y1, x2, y2 each), "
            f"got {len(label)} numbers; make the file with im2rec --pack-label"
        )
    rows = label[header:].reshape(-1, width)
    rows = rows[~(rows[:, 0] < 0)]  # -1 fills up
    corners = rows[:, 1:5][np.isfinite(rows[:, 1:5])]
    if not np.isfinite(rows[:, 0]).all():
        raise DataError(f"{where}: a class is no number; {ADVICE}")
    if len(corners) and (np.abs(corners) > 1 + _SLACK).any():
        worst = float(np.abs(corners).max())
        raise DataError(f"{where}: expected corners as fractions of the image from 0 to 1, got {worst:g}; {ADVICE}")
    return rows


def _in_pixels(fractions: NDArray[np.float32], size: Size) -> NDArray[np.float64]:
    """Turn fractions into pixels: the roundest ones that have the same fraction in 32 bits."""
    edges = np.array([size.width, size.height] * 2, dtype=np.float64)
    pixels = fractions.astype(np.float64) * edges
    for digits in (3, 2, 1, 0):
        rounder = np.round(fractions.astype(np.float64) * edges, digits)
        pixels = np.where((rounder / edges).astype(np.float32) == fractions, rounder, pixels)
    return pixels


def _records(file: Path) -> Iterator[tuple[int, ImageRecord]]:
    index = file.with_suffix(".idx")
    if not index.is_file():
        yield from scan(file)
        return
    for number, line in enumerate(read_lines(index), start=1):
        try:
            offset = int(line.split()[1])
            record = read_record(file, offset)
        except (ValueError, IndexError):
            raise DataError(
                f"{index}, line {number}: expected a key and a position, got {line!r}; delete the .idx"
            ) from None
        except DataError as error:
            raise DataError(
                f"{index} does not fit {file} ({error}); delete the .idx to have the file searched"
            ) from None
        yield offset, record


def _read_list(file: Path) -> Iterator[_Listed]:
    for number, line in enumerate(read_lines(file), start=1):
        cells = line.split("\t")
        try:
            yield _Listed(
                int(float(cells[0])), np.array([float(cell) for cell in cells[1:-1]], "<f4"), cells[-1].strip()
            )
        except (ValueError, IndexError, OverflowError):
            expected = "expected a number, the label and an image, with tabs between"
            raise DataError(f"{file}, line {number}: {expected}, got {line[:60]!r}; make it with im2rec") from None


def _names_in_list(file: Path) -> dict[int, str]:
    try:
        return {row.key: row.image for row in _read_list(file)} if file.is_file() else {}
    except DataError:
        return {}  # it only gives names to what the .rec holds


def _highest_class(file: Path) -> int:
    labels = (
        (one.label for _, one in _records(file))
        if file.suffix.lower() == ".rec"
        else (r.label for r in _read_list(file))
    )
    highest = -1
    for label in labels:
        try:
            rows = _objects(label, str(file))
        except DataError:
            continue  # opening that split says what is wrong with it
        highest = max(highest, int(rows[:, 0].max()) if len(rows) else -1)
    return highest


def _class_names(root: Path) -> tuple[list[str] | None, Path | None]:
    file = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    return (None, None) if file is None else (read_lines(file), file)


def _split_files(folder: Path) -> dict[str, Path]:
    files = files_in(folder, ".rec") or files_in(folder, ".lst")
    return name_splits({file.stem: file for file in files})
