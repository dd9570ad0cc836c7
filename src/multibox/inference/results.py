"""Detections of many pictures as files: our JSON, COCO's results, YOLO's and PASCAL VOC's text files."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multibox.errors import DataError
from multibox.files import write_text_whole
from multibox.structures import Detections


@dataclass(frozen=True)
class PictureResult:
    """What was found in one picture file."""

    file: str
    """The picture's path, as it was given."""
    width: int
    """Of the picture as shown, in pixels."""
    height: int
    detections: Detections
    """Boxes in pixels of that picture."""


def write_results(
    rows: Sequence[PictureResult],
    *,
    json_file: str | Path | None = None,
    coco: str | Path | None = None,
    yolo: str | Path | None = None,
    voc: str | Path | None = None,
) -> None:
    """Write detections in every format that is given a place; scores to 5 digits, pixels to 2, YOLO's shares to 6.

    Each file is written whole, over one of that name; other files of the folders stay. COCO, YOLO and VOC know a
    picture by its file name without folder and ending; of several with one such name, the later ones are called
    `name-2`, `name-3` and so on (see `distinct_names`).

    Args:
        rows: One per picture, in the order to write; all of one detector.
        json_file: A list of `{"file", "width", "height", "detections": [{"label", "name", "score", "box": [x1, y1, x2,
            y2]}]}`, which `read_predictions` reads.
        coco: COCO's results JSON: a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
            `image_id` is the picture's name as a number if all names are different numbers (000000000139 is 139), else
            the name. `category_id` is the label + 1, as in the COCO files that `multibox data convert` writes; COCO's
            own ids have gaps.
        yolo: Folder for one text file a picture, empty where nothing was found: `label cx cy width height score`, the
            box as shares of the picture's width and height, clipped to the picture.
        voc: Folder for one `comp4_det_test_CLASS.txt` for each class, empty where nothing was found:
            `name score x1 y1 x2 y2`. Pixels count as in the labels the detector learned from, so from 1 if they were
            VOC's. Without rows no class is known and nothing is written.

    Raises:
        DataError: The rows have different class names; or a picture's or class's name cannot stand in VOC's files,
            found after the other formats were written.
        OSError: A file cannot be written.
    """
    if len({row.detections.names for row in rows}) > 1:
        raise DataError("the results come from detectors with different class names: write one file for each detector")
    names = distinct_names(Path(row.file).stem for row in rows)
    if json_file is not None:
        write_text_whole(json_file, _json_list(_own_row(row) for row in rows))
    if coco is not None:
        write_text_whole(coco, _json_list(_coco_entries(rows, names)))
    if yolo is not None:
        _write_yolo(Path(yolo), rows, names)
    if voc is not None:
        _write_voc(Path(voc), rows, names)


def read_predictions(path: str | Path) -> list[PictureResult]:
    """Read what `write_results` wrote as `json_file`.

    The file names only the classes that were found: others below the highest label found are called `class_K`.

    Raises:
        DataError: The file is missing, no JSON, or not of that form.
    """
    path = Path(path)
    form = 'a list of {"file", "width", "height", "detections"} as `multibox predict --json` writes'
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file, expected {form}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}), expected {form}") from error
    try:
        if not isinstance(rows, list):
            raise TypeError(type(rows).__name__)
        names = _class_names(path, [found for row in rows for found in row["detections"]])
        return [_read_row(row, names) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{path} has another form ({error!r}), expected {form}") from error


def distinct_names(names: Iterable[str]) -> list[str]:
    """Return the names with `-2`, `-3` and so on after those that came before; no number makes a name that is given."""
    given = list(names)
    taken, seen = set(given), set()
    distinct: list[str] = []
    for name in given:
        new, number = name, 1
        while name in seen and new in taken:
            number += 1
            new = f"{name}-{number}"
        seen.add(name)
        taken.add(new)
        distinct.append(new)
    return distinct


def _json_list(entries: Iterable[dict[str, Any]]) -> str:
    # Escaped, not UTF-8: a file name that is no valid text would not survive otherwise.
    lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def _values(found: Detections) -> Iterable[tuple[int, float, list[float]]]:
    # The type comes first: rounded in float32, 0.87 would be written as 0.8700000047683716.
    scores = np.round(found.scores.astype(np.float64), 5).tolist()
    return zip(found.labels.tolist(), scores, found.boxes.astype(np.float64).tolist(), strict=True)


def _own_row(row: PictureResult) -> dict[str, Any]:
    names = row.detections.names
    found = [
        {"label": label, "name": names[label], "score": score, "box": [round(edge, 2) for edge in box]}
        for label, score, box in _values(row.detections)
    ]
    return {"file": row.file, "width": row.width, "height": row.height, "detections": found}


def _coco_entries(rows: Sequence[PictureResult], names: Sequence[str]) -> Iterable[dict[str, Any]]:
    numbers = {int(name) for name in names if name.isascii() and name.isdigit()}
    ids = [int(name) for name in names] if len(numbers) == len(names) else names
    for row, image_id in zip(rows, ids, strict=True):
        for label, score, (x1, y1, x2, y2) in _values(row.detections):
            bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            yield {"image_id": image_id, "category_id": label + 1, "bbox": bbox, "score": score}


def _write_yolo(folder: Path, rows: Sequence[PictureResult], names: Sequence[str]) -> None:
    for row, name in zip(rows, names, strict=True):
        lines: list[str] = []
        for label, score, box in _values(row.detections):
            x1, x2 = np.clip(box[::2], 0, row.width) / row.width
            y1, y2 = np.clip(box[1::2], 0, row.height) / row.height
            shares = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)} {score:.5f}\n")
        write_text_whole(folder / f"{name}.txt", "".join(lines))


def _write_voc(folder: Path, rows: Sequence[PictureResult], names: Sequence[str]) -> None:
    classes = rows[0].detections.names if rows else ()
    for kind in classes:
        if not kind.isprintable() or set(kind) & set('/\\:*?"<>|'):
            raise DataError(f"class {kind!r} cannot be part of a file name: rename it, or do not ask for VOC's files")
    for name, row in zip(names, rows, strict=True):
        if not name.isprintable() or " " in name:
            raise DataError(
                f"{row.file}: VOC's files separate by blanks, so a picture's name must not hold one: rename it, "
                "or ask for another format"
            )
    lines: list[list[str]] = [[] for _ in classes]
    for row, name in zip(rows, names, strict=True):
        for label, score, box in _values(row.detections):
            lines[label].append(f"{name} {score:.5f} {' '.join(f'{edge:.2f}' for edge in box)}\n")
    for kind, text in zip(classes, lines, strict=True):
        write_text_whole(folder / f"comp4_det_test_{kind}.txt", "".join(text))


def _class_names(path: Path, found: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for entry in found:
        label, name = int(entry["label"]), str(entry["name"])
        if label < 0:
            raise DataError(f"{path}: label {label} of class {name!r}, expected 0 or more")
        if names.setdefault(label, name) != name:
            raise DataError(f"{path}: label {label} is called {names[label]!r} and {name!r}, expected one name")
    return tuple(names.get(label, f"class_{label}") for label in range(max(names, default=-1) + 1))


def _read_row(row: dict[str, Any], names: tuple[str, ...]) -> PictureResult:
    found = row["detections"]
    detections = Detections(
        boxes=np.array([entry["box"] for entry in found], np.float32).reshape(len(found), 4),
        scores=np.array([entry["score"] for entry in found], np.float32),
        labels=np.array([entry["label"] for entry in found], np.int64),
        names=names,
    )
    return PictureResult(str(row["file"]), int(row["width"]), int(row["height"]), detections)
