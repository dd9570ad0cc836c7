"""MXNet RecordIO detection sets (.rec with .idx, such as the Pikachu files), and im2rec's .lst with images beside."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.finder import Fractions, ImageFinder, folders_of_split, target_names
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    ReadOptions,
    files_in,
    name_splits,
    read_lines,
    safe_name,
    write_lines,
)
from multibox.data.images import encoded_size, image_bytes, image_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, UNREADABLE_IMAGE
from multibox.data.records import ImageRecord, read_record, scan, write_record
from multibox.errors import DataError
from multibox.structures import Dataset, Size

_CLASS_FILES = ("classes.txt", "labels.txt", "names.txt")
_SLACK = 0.01


_Objects = NDArray[np.float32]
"""[objects, width]: class, corners as fractions, and what else the file holds."""
_NONE: _Objects = np.zeros((0, 5), np.float32)


@dataclass(frozen=True)
class _Listed:
    key: int
    label: NDArray[np.float32]
    image: str


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder a RecordIO data set, or None."""
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
    index = IndexBuilder(root, "recordio", split, options, shared=True, fractions=True)
    index.source = file
    names, names_file = _class_names(root)
    images = _from_records(index, file) if file.suffix.lower() == ".rec" else _from_list(index, file, split)
    highest = -1
    for image, objects, where in images:
        _add_boxes(index, image, objects, None if names is None else len(names), names_file, where)
        highest = max(highest, _highest(objects))
    if names is None:
        others = [one for one in splits.values() if one != file]
        highest = max([highest, *(_highest_class(one) for one in others)])
        names = [str(number) for number in range(highest + 1)]
    return index.finish(names)


def _from_records(index: IndexBuilder, file: Path) -> Iterator[tuple[int, _Objects, str]]:
    """Add the images of a .rec file; yield each one's row, its objects and where it is."""
    called = _names_in_list(file.with_suffix(".lst"))
    seen: set[str] = set()
    for number, (offset, record) in enumerate(_records(file, index)):
        name = safe_name(called.get(record.key, "")) or str(record.key)
        # Some writers give every record the key 0.
        name = name if name not in seen else f"record{number}"
        seen.add(name)
        where = f"{file}, record {name} at byte {offset}"
        size_of = partial(encoded_size, record.image, where)
        image, objects = _add_image(index, record.label, name, (name, file, file), offset, size_of, where)
        if image is not None:
            yield image, objects, where


def _from_list(index: IndexBuilder, file: Path, split: str) -> Iterator[tuple[int, _Objects, str]]:
    """Add the images of a .lst file, as `_from_records` does."""
    finder = ImageFinder(index.root, [file.parent, *folders_of_split([index.root], split)], split)
    for listed in _read_list(file, index):
        found = finder.find(listed.image)
        found = index.check_found(found, finder, listed.image, str(file), listed.image, "list-names-missing-file")
        if found is None:
            continue
        where, name = f"{file}: image {listed.image}", safe_name(listed.image)
        size_of = partial(image_size, found)
        image, objects = _add_image(index, listed.label, listed.image, (name, found, file), None, size_of, where)
        if image is not None:
            yield image, objects, where


def _add_image(
    index: IndexBuilder,
    label: NDArray[np.float32],
    subject: str,
    name_path_source: tuple[str, Path, Path],
    offset: int | None,
    size_of: Callable[[], Size],
    where: str,
) -> tuple[int | None, _Objects]:
    """Return the row of an image, None if it is skipped, and its objects."""
    objects, size = None, None
    with index.skipping(BROKEN_FILE, subject):
        objects = _objects(label, where)
    if objects is None:
        return None, _NONE
    with index.skipping(UNREADABLE_IMAGE, subject):
        size = size_of()
    return (None, _NONE) if size is None else (index.add_image(*name_path_source, size, offset), objects)


def _add_boxes(
    index: IndexBuilder, image: int, objects: _Objects, classes: int | None, names_file: Path | None, where: str
) -> None:
    size = index.sizes[image]
    assert size is not None
    index.image = image
    boxes = _in_pixels(objects[:, 1:5], size)
    difficult = objects[:, 5] > 0 if objects.shape[1] > 5 else np.zeros(len(objects), np.bool_)
    worst: list[float] = np.abs(np.nan_to_num(objects[:, 1:5], posinf=0, neginf=0)).max(axis=1, initial=0).tolist()
    rows = zip(objects[:, 0].tolist(), boxes.tolist(), difficult.tolist(), worst, strict=True)
    for number, (label, box, flag, far) in enumerate(rows, start=1):
        with index.skipping(BROKEN_BOX, where):
            if not math.isfinite(label):
                raise DataError(f"{where}, object {number}: its class is not a number; {ADVICE}", kind="not-a-number")
            if far > 1 + _SLACK and index.options.raw is None:
                expected = "expected corners as fractions of the image from 0 to 1"
                raise DataError(f"{where}, object {number}: {expected}, got {far:g}; {ADVICE}", kind="pixel-boxes")
            if label != int(label) or (classes is not None and label >= classes):
                known = f"among the {classes} classes of {names_file}" if classes is not None else "a whole number"
                raise DataError(
                    f"{where}, object {number}: class {label:g} is not {known}; {ADVICE}", kind="class-out-of-range"
                )
            index.add_box(image, box, int(label), difficult=flag, line=number)


def _objects(label: NDArray[np.float32], where: str) -> _Objects:
    """Return [objects, width] of a label [header width, object width, more header ..., class, x1, y1, x2, y2, ...]."""
    header, width = (int(label[0]), int(label[1])) if len(label) >= 2 and np.isfinite(label[:2]).all() else (0, 0)
    if header < 2 or width < 5 or len(label) < header or (len(label) - header) % width:
        raise DataError(
            f"{where}: expected a detection label (header width, object width, then class, x1, y1, x2, y2 each), "
            f"got {len(label)} numbers; make the file with im2rec --pack-label"
        )
    rows = label[header:].reshape(-1, width)
    return rows[~(rows[:, 0] < 0)]  # -1 fills up


def _in_pixels(fractions: NDArray[np.float32], size: Size) -> NDArray[np.float64]:
    """Turn fractions into pixels: the roundest ones that have the same fraction in 32 bits."""
    edges = np.array([size.width, size.height] * 2, dtype=np.float64)
    pixels = fractions.astype(np.float64) * edges
    for digits in (3, 2, 1, 0):
        rounder = np.round(fractions.astype(np.float64) * edges, digits)
        pixels = np.where((rounder / edges).astype(np.float32) == fractions, rounder, pixels)
    return pixels


def _records(file: Path, index: IndexBuilder) -> Iterator[tuple[int, ImageRecord]]:
    """Yield the records with their positions; one that is damaged is skipped if an .idx tells where the next begins."""
    positions = file.with_suffix(".idx")
    if not positions.is_file():
        with index.skipping(BROKEN_FILE, file.name):
            yield from scan(file)
        return
    for number, line in enumerate(read_lines(positions), start=1):
        with index.skipping(BROKEN_FILE, f"{positions.name}, line {number}"):
            yield _record_at(file, positions, number, line)


def _record_at(file: Path, positions: Path, number: int, line: str) -> tuple[int, ImageRecord]:
    try:
        offset = int(line.split()[1])
        return offset, read_record(file, offset)
    except (ValueError, IndexError, OverflowError):
        raise DataError(
            f"{positions}, line {number}: expected a key and a position, got {line[:60]!r}; delete the .idx"
        ) from None
    except DataError as error:
        raise DataError(
            f"{positions} does not fit {file} ({error}); delete the .idx to have the file searched"
        ) from None


def _read_list(file: Path, index: IndexBuilder) -> Iterator[_Listed]:
    for number, line in enumerate(read_lines(file, index.tell_encoding), start=1):
        cells = line.split("\t")
        with index.skipping(BROKEN_FILE, f"line {number}"):
            try:
                numbers = np.array([float(cell) for cell in cells[1:-1]], "<f4")
                listed = _Listed(int(float(cells[0])), numbers, cells[-1].strip())
            except (ValueError, IndexError, OverflowError):
                expected = "expected a number, the label and an image, with tabs between"
                raise DataError(f"{file}, line {number}: {expected}, got {line[:60]!r}; make it with im2rec") from None
            yield listed


def _names_in_list(file: Path) -> dict[int, str]:
    # It only gives names to what the .rec holds, so nothing depends on its broken lines.
    return {row.key: row.image for row in _read_list(file, _quiet(file))} if file.is_file() else {}


def _quiet(file: Path) -> IndexBuilder:
    """Return an index for a file that is only looked at: opening its split says what is wrong with it."""
    return IndexBuilder(file.parent, "recordio", "", ReadOptions(on_bad="skip"), shared=True)


def _highest_class(file: Path) -> int:
    if file.suffix.lower() == ".rec":
        labels = (record.label for _, record in _records(file, _quiet(file)))
    else:
        labels = (listed.label for listed in _read_list(file, _quiet(file)))
    highest = -1
    for label in labels:
        with contextlib.suppress(DataError):
            highest = max(highest, _highest(_objects(label, str(file))))
    return highest


def _highest(objects: _Objects) -> int:
    finite = objects[np.isfinite(objects[:, 0]), 0]
    return int(finite.max(initial=-1))


def _class_names(root: Path) -> tuple[list[str] | None, Path | None]:
    file = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    return (None, None) if file is None else (read_lines(file), file)


def _split_files(folder: Path) -> dict[str, Path]:
    files = files_in(folder, ".rec") or files_in(folder, ".lst")
    return name_splits({file.stem: file for file in files})


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write SPLIT.rec with .idx and .lst, labels as the Pikachu files have them, and classes.txt; `link` is unused."""
    fractions = Fractions()
    for split, dataset in splits.items():
        flags = bool(dataset.difficult.any())
        positions: list[str] = []
        listed: list[str] = []
        with (folder / f"{split}.rec").open("wb") as file:
            for key, (name, sample) in enumerate(zip(target_names(dataset, share_stems=True), dataset, strict=True)):
                boxes, keep = fractions.of(sample)
                columns = [sample.labels[:, None], boxes, *([sample.difficult[:, None]] if flags else [])]
                rows = np.concatenate(columns, axis=1)[keep].astype(np.float32)
                label = np.concatenate([np.array([2, 5 + flags], np.float32), rows.ravel()])
                positions.append(f"{key}\t{write_record(file, ImageRecord(key, label, image_bytes(sample)))}")
                listed.append("\t".join([str(key), *(f"{value:.9g}" for value in label.tolist()), name]))
        write_lines(folder / f"{split}.idx", positions)
        write_lines(folder / f"{split}.lst", listed)
    write_lines(folder / "classes.txt", next(iter(splits.values())).class_names)
    return fractions.sentences("RecordIO")
