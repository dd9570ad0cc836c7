"""Detections of many images as files: our JSON, COCO's results, YOLO's and PASCAL VOC's text files."""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np

from multibox.errors import DataError
from multibox.files import same_name, whole_file, write_text_whole
from multibox.structures import Detections

VOC_LINES = 10_000
"""Lines of VOC's files held in memory."""


@dataclass(frozen=True)
class ImageResult:
    """Detections in one image file."""

    file: str
    """The image's path, as it was given."""
    width: int
    """Width in pixels, after EXIF orientation, as is the height."""
    height: int
    detections: Detections
    """Boxes in pixels of that image."""


CSV_COLUMNS = ("file", "frame", "time", "track", "label", "name", "score", "x1", "y1", "x2", "y2")
"""Of the CSV, a row per detection; frame, time and track are empty for images."""
Add: TypeAlias = Callable[[int, ImageResult], None]
"""Adds the detections of one image, given the index of its file."""


def write_results(
    rows: Sequence[ImageResult],
    *,
    json_file: str | Path | None = None,
    coco: str | Path | None = None,
    yolo: str | Path | None = None,
    voc: str | Path | None = None,
) -> None:
    """Write the detections of a list of images; formats and errors are those of `result_files`.

    Raises:
        DataError: The rows have different class names.
    """
    if len({row.detections.names for row in rows}) > 1:
        raise DataError("the results come from detectors with different class names: write one file for each detector")
    names = rows[0].detections.names if rows else ()
    files = [row.file for row in rows]
    with result_files(files, names, json_file=json_file, coco=coco, yolo=yolo, voc=voc) as add:
        for index, row in enumerate(rows):
            add(index, row)


@contextmanager
def result_files(
    files: Sequence[str],
    names: Sequence[str],
    *,
    json_file: str | Path | BinaryIO | None = None,
    coco: str | Path | None = None,
    yolo: str | Path | None = None,
    voc: str | Path | None = None,
    csv_file: str | Path | None = None,
) -> Generator[Add, None, None]:
    """Yield a function that adds one image's detections, given the index of its file, to every format named.

    Results are written as they come, so memory does not grow with their number. Each file is written whole: it appears,
    replacing one of that name, when the block ends well; YOLO's appear with each image. Scores have 5 digits, pixels 2,
    YOLO's shares 6. COCO, YOLO and VOC know an image by the name that `distinct_names` gives its file.

    Args:
        files: The image files that may come, in the order in which they will be added; some may be left out.
        names: The detector's class names.
        json_file: A list of `{"file", "width", "height", "detections": [{"label", "name", "score", "box": [x1, y1, x2,
            y2]}]}`, which `read_predictions` reads. A file opened in binary mode is written to directly.
        coco: COCO's results JSON: a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
            `image_id` is the image's name as a number if all names are different numbers (000000000139 is 139), else
            the name. `category_id` is the label + 1, as in the COCO files that `multibox data convert` writes; COCO's
            own ids have gaps.
        yolo: Folder for one text file per image, empty without detections: `label cx cy width height score`, the
            box as shares of the image's width and height, clipped to the image.
        voc: Folder for one `comp4_det_test_CLASS.txt` for each class, empty without detections: `name score x1 y1 x2
            y2`. Pixels are numbered as in the training labels, so from 1 if those were VOC's.
        csv_file: One row for each detection, `CSV_COLUMNS`.

    Raises:
        DataError: An image's or class's name cannot stand in VOC's files.
        OSError: A file cannot be written.
    """
    stems = distinct_names(Path(file).stem for file in files)
    with ExitStack() as stack:
        sinks: list[Add] = []
        if json_file is not None:
            sinks.append(stack.enter_context(_own_sink(json_file)))
        if coco is not None:
            sinks.append(stack.enter_context(_coco_sink(coco, stems)))
        if yolo is not None:
            sinks.append(partial(_write_yolo, Path(yolo), stems))
        if voc is not None:
            sinks.append(stack.enter_context(_voc_sink(Path(voc), files, stems, names)))
        if csv_file is not None:
            table = stack.enter_context(whole_file(csv_file))
            table.write(csv_lines([CSV_COLUMNS]))
            sinks.append(lambda _, row: cast("None", table.write(csv_lines(csv_rows(json_entry(row))))))

        def add(index: int, row: ImageResult) -> None:
            for sink in sinks:
                sink(index, row)

        yield add


def voc_file(kind: str) -> str:
    """Return the name of VOC's result file for a class."""
    return f"comp4_det_test_{kind}.txt"


def read_predictions(path: str | Path) -> list[ImageResult]:
    """Read what `write_results` wrote as `json_file`.

    The file names only classes with detections: others below the highest label are called `class_K`.

    Raises:
        DataError: The file is missing, no JSON, or not of that form.
    """
    path = Path(path)
    form = 'a list of {"file", "width", "height", "detections"} as `multibox predict --json` writes'
    try:
        rows: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file, expected {form}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}), expected {form}") from error
    try:
        if not isinstance(rows, list):
            raise TypeError(type(rows).__name__)
        rows = cast("list[dict[str, Any]]", rows)
        names = _class_names(path, [entry for row in rows for entry in row["detections"]])
        return [_read_row(row, names) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{path} has another form ({error!r}), expected {form}") from error


def distinct_names(names: Iterable[str]) -> list[str]:
    """Return the names, with `-2`, `-3` ... appended to repeated ones; no number makes a name that is given.

    Names that differ only in capitals count as one: some file systems do not tell them apart.
    """
    given = list(names)
    taken, seen = {same_name(name) for name in given}, set[str]()
    numbers: dict[str, int] = {}
    distinct: list[str] = []
    for name in given:
        key, new = same_name(name), name
        while key in seen and same_name(new) in taken:
            numbers[key] = numbers.get(key, 1) + 1
            new = f"{name}-{numbers[key]}"
        seen.add(key)
        taken.add(same_name(new))
        distinct.append(new)
    return distinct


@contextmanager
def list_of_objects(
    target: str | Path | BinaryIO,
) -> Generator[Callable[[Iterable[dict[str, Any]]], None], None, None]:
    """Yield a function that adds objects to a JSON list, one on each line; a file appears when the block ends well."""
    with whole_file(target) if isinstance(target, str | Path) else nullcontext(target) as file:
        written = 0

        def add(entries: Iterable[dict[str, Any]]) -> None:
            nonlocal written
            for entry in entries:
                # Escaped, not UTF-8: a file name that is no valid text would not survive otherwise
                file.write((",\n" if written else "[\n").encode() + json.dumps(entry, allow_nan=False).encode())
                written += 1

        yield add
        file.write(b"\n]\n" if written else b"[]\n")


def _values(found: Detections) -> Iterable[tuple[int, float, list[float]]]:
    # float64 first: rounded in float32, 0.87 would be written as 0.8700000047683716
    scores = np.round(found.scores.astype(np.float64), 5).tolist()
    return zip(found.labels.tolist(), scores, found.boxes.astype(np.float64).tolist(), strict=True)


def json_entry(row: ImageResult) -> dict[str, Any]:
    """Return the object that stands for one image in our JSON."""
    found = detection_entries(row.detections)
    return {"file": row.file, "width": row.width, "height": row.height, "detections": found}


def detection_entries(found: Detections) -> list[dict[str, Any]]:
    """Return the objects that stand for detections in our JSON, in their order."""
    return [
        {"label": label, "name": found.names[label], "score": score, "box": [round(x, 2) for x in box]}
        for label, score, box in _values(found)
    ]


def csv_rows(entry: dict[str, Any]) -> list[list[Any]]:
    """Return the rows of one image or frame, given its object in our JSON; the columns are `CSV_COLUMNS`."""
    place = [entry["file"], entry.get("frame"), entry.get("time")]
    return [
        [*place, found.get("track"), found["label"], found["name"], found["score"], *found["box"]]
        for found in entry["detections"]
    ]


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return rows as CSV in UTF-8; bytes of a file name that are no text are escaped."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


@contextmanager
def _own_sink(target: str | Path | BinaryIO) -> Generator[Add, None, None]:
    with list_of_objects(target) as add:
        yield lambda _, row: add([json_entry(row)])


@contextmanager
def _coco_sink(target: str | Path, stems: Sequence[str]) -> Generator[Add, None, None]:
    numbers = {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}
    ids = [int(stem) for stem in stems] if len(numbers) == len(stems) else stems
    with list_of_objects(target) as add:
        yield lambda index, row: add(_coco_entries(row, ids[index]))


def _coco_entries(row: ImageResult, image_id: int | str) -> Iterator[dict[str, Any]]:
    for label, score, (x1, y1, x2, y2) in _values(row.detections):
        bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        yield {"image_id": image_id, "category_id": label + 1, "bbox": bbox, "score": score}


def _write_yolo(folder: Path, stems: Sequence[str], index: int, row: ImageResult) -> None:
    lines: list[str] = []
    for label, score, box in _values(row.detections):
        x1, x2 = np.clip(box[::2], 0, row.width) / row.width
        y1, y2 = np.clip(box[1::2], 0, row.height) / row.height
        shares = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)} {score:.5f}\n")
    write_text_whole(folder / f"{stems[index]}.txt", "".join(lines))


@contextmanager
def _voc_sink(
    folder: Path, files: Sequence[str], stems: Sequence[str], classes: Sequence[str]
) -> Generator[Add, None, None]:
    """Collect the lines of each class in a temporary file: a process may not open a thousand files at once."""
    for kind in classes:
        if not kind.isprintable() or set(kind) & set('/\\:*?"<>|'):
            raise DataError(f"class {kind!r} cannot be part of a file name: rename it, or leave out VOC's files")
    for file, stem in zip(files, stems, strict=True):
        if not stem.isprintable() or " " in stem:
            raise DataError(
                f"{file}: VOC's files separate by blanks, so an image's name must not hold one: rename it, "
                "or choose another format"
            )
    with tempfile.TemporaryDirectory() as scratch:
        waiting: dict[int, list[str]] = {}

        def flush() -> None:
            for label, lines in waiting.items():
                with Path(scratch, str(label)).open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            waiting.clear()

        def add(index: int, row: ImageResult) -> None:
            for label, score, box in _values(row.detections):
                line = f"{stems[index]} {score:.5f} {' '.join(f'{edge:.2f}' for edge in box)}\n"
                waiting.setdefault(label, []).append(line)
            if sum(map(len, waiting.values())) > VOC_LINES:
                flush()

        yield add
        flush()
        for label, kind in enumerate(classes):
            with whole_file(folder / voc_file(kind)) as target:
                part = Path(scratch, str(label))
                if part.exists():
                    with part.open("rb") as lines:
                        shutil.copyfileobj(lines, target)


def _class_names(path: Path, entries: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for entry in entries:
        label, name = int(entry["label"]), str(entry["name"])
        if label < 0:
            raise DataError(f"{path}: label {label} of class {name!r}, expected 0 or more")
        if names.setdefault(label, name) != name:
            raise DataError(f"{path}: label {label} is called {names[label]!r} and {name!r}, expected one name")
    return tuple(names.get(label, f"class_{label}") for label in range(max(names, default=-1) + 1))


def _read_row(row: dict[str, Any], names: tuple[str, ...]) -> ImageResult:
    found = row["detections"]
    detections = Detections(
        boxes=np.array([entry["box"] for entry in found], np.float32).reshape(len(found), 4),
        scores=np.array([entry["score"] for entry in found], np.float32),
        labels=np.array([entry["label"] for entry in found], np.int64),
        names=names,
    )
    return ImageResult(str(row["file"]), int(row["width"]), int(row["height"]), detections)
