"""Whether two label formats in one folder say the same: their boxes compared by image name and class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from multibox.structures import Boxes, Dataset, Labels

_TOLERANCE_PX = 0.5
_SHOWN = 60


@dataclass(frozen=True)
class _Table:
    """All boxes of a data set, each image once, sorted by image and class."""

    keys: NDArray[np.str_]
    """[N]; image name without folder and ending."""
    classes: NDArray[np.str_]
    boxes_xyxy: Boxes
    unnamed: bool
    """Whether the classes are only numbers, as in a format whose names stand elsewhere."""


def differ(one: Sequence[Dataset], other: Sequence[Dataset]) -> str:
    """Return how the boxes of two data sets differ, in words; "" if they are the same to half a pixel.

    Args:
        one: every split of a data set; an image in several splits counts once.
        other: every split of the other one, in another format. Images without a box do not matter.
    """
    if not one or not other:
        return "one of which cannot be read"
    left, right = _table(one), _table(other)
    if len(left.keys) != len(right.keys):
        return f"with {len(left.keys):,} and {len(right.keys):,} boxes"
    if left.unnamed != right.unnamed:
        left, right = (_sorted(table.keys, np.zeros_like(table.classes), table.boxes_xyxy) for table in (left, right))
    unlike = left.keys != right.keys
    if unlike.any():
        return f"with boxes in different images ({_first(left.keys, right.keys, unlike)})"
    unlike = left.classes != right.classes
    if unlike.any():
        return f"with different classes ({_first(left.classes, right.classes, unlike)})"
    unlike = (np.abs(left.boxes_xyxy - right.boxes_xyxy) > _TOLERANCE_PX).any(axis=1)
    for key, name in sorted(set(zip(left.keys[unlike].tolist(), left.classes[unlike].tolist(), strict=True))):
        rows = (left.keys == key) & (left.classes == name)
        if not _same_in_any_order(left.boxes_xyxy[rows], right.boxes_xyxy[rows]):
            return f"with different boxes in image {key[:_SHOWN]}"
    return ""


def _first(left: NDArray[np.str_], right: NDArray[np.str_], unlike: NDArray[np.bool_]) -> str:
    row = int(np.argmax(unlike))
    return f"{str(left[row])[:_SHOWN]} and {str(right[row])[:_SHOWN]}"


def _table(datasets: Iterable[Dataset]) -> _Table:
    seen: set[tuple[Path, int | None]] = set()
    keys: list[str] = []
    rows: list[tuple[Dataset, Labels]] = []
    for dataset in datasets:
        places = list(zip(dataset.paths, dataset.offsets, strict=True))
        new = np.array([place not in seen for place in places], np.bool_)
        seen.update(places)
        counts: Labels = np.diff(dataset.starts)
        rows.append((dataset, np.flatnonzero(np.repeat(new, counts))))
        for name, count, fresh in zip(dataset.image_names, counts.tolist(), new.tolist(), strict=True):
            keys += [PurePosixPath(name).stem] * (count if fresh else 0)
    classes = [np.array(one.class_names, np.str_)[one.labels[chosen]] for one, chosen in rows]
    boxes = np.concatenate([one.boxes_xyxy[chosen] for one, chosen in rows])
    return _sorted(np.array(keys, np.str_), np.concatenate(classes), boxes)


def _sorted(keys: NDArray[np.str_], classes: NDArray[np.str_], boxes: Boxes) -> _Table:
    order = np.lexsort((*np.rint(boxes).T[::-1], classes, keys))
    unnamed = bool(len(classes)) and all(name.isdigit() for name in np.unique(classes).tolist())
    return _Table(keys[order], np.char.strip(classes[order]), boxes[order], unnamed)


def _same_in_any_order(left: Boxes, right: Boxes) -> bool:
    """Return whether two lists of boxes hold the same ones; rounding may have sorted them differently."""
    close = np.asarray((np.abs(left[:, None] - right[None]) <= _TOLERANCE_PX).all(axis=2))
    free = np.ones(len(right), np.bool_)
    for row in range(len(left)):
        hits = np.flatnonzero(close[row] & free)
        if not len(hits):
            return False
        free[hits[0]] = False
    return True
