"""Label files that describe an image of another size or orientation: their boxes turned, scaled or kept, with a note.

People shrink images after labelling them, and many labelling tools show a photograph as it is stored instead of as its
EXIF orientation says. The size that a label file declares gives both away. Whether the boxes belong to the declared
size or to the image's own is decided over all images of a split, by the boxes that fit one and run out of the other.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from multibox.data.images import orientation_of, shown_size
from multibox.data.left_out import counted
from multibox.errors import DataError
from multibox.structures import Boxes, Flags, Labels, Sample, Size

Sides = NDArray[np.float64]
"""[N, 2] width and height; 0 where unknown."""
SAME, TURNED, SCALED, KEPT = 0, 1, 2, 3
"""What was done to an image's boxes: nothing, as the sizes agree; turned (and scaled); scaled; nothing, with a note."""

_SLACK_PX, _SLACK = 2.0, 0.01
"""A box runs out of a frame by more than these: rounding, and tools that count pixels from 1, are no evidence."""
_UNLIKELY = 0.01
"""Probability below which boxes that all lie in the declared part of a larger image are no accident."""
_SMALLER = 0.9
"""Share of the image's area below which a declared size is another scale, not another way to count pixels."""
_SIDEWAYS = (5, 6, 7, 8)
_THREADS = 8
"""For slow disks; a header from the file cache takes 40 us."""
_CHUNK = 64
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Fit:
    """Boxes of a split in pixels of their images as shown."""

    boxes_xyxy: Boxes
    """[N, 4]"""
    done: NDArray[np.uint8]
    """[images]: SAME, TURNED, SCALED or KEPT."""
    notes: list[str]


def fit_to_images(
    boxes_xyxy: Boxes,
    owners: Labels,
    declared: Sequence[Size | None],
    names: Sequence[str],
    sample_of: Callable[[int], Sample],
    shown: Sequence[Size | None] | None = None,
) -> tuple[Fit, list[Size | None]]:
    """Return the boxes in pixels of their images as shown, and the images' own sizes.

    Args:
        boxes_xyxy: as written, [N, 4].
        owners: index of each box's image, [N].
        declared: the size that each image's label file says, or None.
        names: of the images, for the notes.
        sample_of: returns an image by its index; only its file is read, not its labels.
        shown: the images' own sizes where they are known already; else the header of each image with a declared size
            is read.

    Returns:
        The boxes and what was done, and each image's own size: None where it has no declared one or cannot be read.
    """
    asked = [row for row, size in enumerate(declared) if size is not None]
    own: list[Size | None] = [None] * len(declared) if shown is None else list(shown)
    if shown is None:
        for row, size in zip(asked, _in_threads(asked, lambda row: _size_or_none(sample_of(row))), strict=True):
            own[row] = size
    differs = [row for row in asked if own[row] is not None and own[row] != declared[row]]
    if not differs:
        return Fit(boxes_xyxy, np.full(len(declared), SAME, np.uint8), []), own
    orientations = np.ones(len(declared), np.int64)
    orientations[differs] = _in_threads(differs, lambda row: _orientation_or_1(sample_of(row)))
    if np.isin(orientations, _SIDEWAYS).any():
        orientations[asked] = _in_threads(asked, lambda row: _orientation_or_1(sample_of(row)))
    return fit_boxes(boxes_xyxy, owners, sides_of(declared), sides_of(own), orientations, names), own


def sides_of(sizes: Iterable[Size | None]) -> Sides:
    """Return sizes as rows of width and height; 0 for None."""
    return np.array([(size.width, size.height) if size else (0, 0) for size in sizes], np.float64).reshape(-1, 2)


def fit_boxes(
    boxes_xyxy: Boxes, owners: Labels, declared: Sides, shown: Sides, orientations: Labels, names: Sequence[str]
) -> Fit:
    """Return the boxes in pixels of their images as shown.

    Args:
        boxes_xyxy: as written, [N, 4]; those that are no numbers stay so.
        owners: index of each box's image, [N].
        declared: size that the label file says, [images, 2].
        shown: size of the image itself after EXIF orientation, [images, 2].
        orientations: EXIF's, 1 to 8, [images].
        names: of the images, for the notes.
    """
    known = (declared > 0).all(1) & (shown > 0).all(1)
    sideways = np.isin(orientations, _SIDEWAYS)
    stored = np.where(sideways[:, None], shown[:, ::-1], shown)
    differs = known & (declared != shown).any(1)
    turnable = differs & sideways & _alike(declared, stored)
    turnable &= (declared == stored).all(1) | ~_alike(declared, shown)
    scaled = differs & ~turnable & _alike(declared, shown)
    swapped = (declared == shown[:, ::-1]).all(1)
    stretched = differs & ~turnable & ~scaled & ~swapped
    evidence = _Evidence(boxes_xyxy, owners, declared, shown)
    turned = turnable & evidence.turn(turnable)
    square = declared[:, 0] == declared[:, 1]
    if turned.any() and not (known & sideways & ~differs & ~square).any():
        # The tool showed sideways images as stored, so it showed mirrored ones and those upside down as stored, too
        turned |= known & (orientations > 1) & (declared == stored).all(1)
    scaled = (scaled & evidence.scale(scaled)) | (stretched & evidence.stretch(stretched))
    done = np.full(len(declared), SAME, np.uint8)
    done[differs] = KEPT
    done[scaled] = SCALED
    done[turned] = TURNED
    if not done.any():
        return Fit(boxes_xyxy, done, [])
    moved = turn_boxes(boxes_xyxy, owners, declared, orientations, turned)
    frame = np.where((turned & sideways)[:, None], declared[:, ::-1], declared)
    factors = np.ones_like(shown)
    resized = (turned | scaled) & (frame != shown).any(1)
    factors[resized] = shown[resized] / frame[resized]
    moved = moved * factors[owners][:, [0, 1, 0, 1]] if resized.any() else moved
    return Fit(moved, done, _notes(done, declared, shown, names))


class _Evidence:
    """Which images' boxes fit one of two frames and run out of the other."""

    def __init__(self, boxes_xyxy: Boxes, owners: Labels, declared: Sides, shown: Sides) -> None:
        self.shares = np.divide(declared, shown, out=np.ones_like(shown), where=shown > 0).prod(1)
        self.boxes = np.bincount(owners, minlength=len(shown))
        # If a box of this size lay anywhere in the image's own frame: the chance that the declared part holds it
        sides = np.nan_to_num(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], nan=0.0, posinf=0.0, neginf=0.0).clip(0)
        room, own_room = (np.maximum(frame[owners] - sides, 1.0) for frame in (declared, shown))
        chances = np.log(np.minimum(room / own_room, 1.0)).sum(1)
        self.accident = np.bincount(owners, chances, minlength=len(shown))
        over_declared = _over(boxes_xyxy, owners, declared)
        over_shown = _over(boxes_xyxy, owners, shown)
        self.for_declared = over_shown & ~over_declared
        self.for_shown = over_declared & ~over_shown

    def turn(self, chosen: Flags) -> Flags:
        """Return which images have boxes of the declared frame, which is the stored orientation."""
        against = int((self.for_shown & chosen).sum()) > int((self.for_declared & chosen).sum())
        return np.zeros_like(chosen) if against else ~self.for_shown

    def scale(self, chosen: Flags) -> Flags:
        """Return which images have boxes of the declared frame, where it is the image's own at another scale."""
        votes, against = int((self.for_declared & chosen).sum()), int((self.for_shown & chosen).sum())
        smaller = chosen & (self.shares < _SMALLER)
        accident = float(self.accident[smaller].sum())
        wins = votes > against or (not against and accident < np.log(_UNLIKELY))
        return ~self.for_shown if wins else np.zeros_like(chosen)

    def stretch(self, chosen: Flags) -> Flags:
        """Return which images have boxes of the declared frame, of another aspect: on clear evidence only."""
        votes, against = int((self.for_declared & chosen).sum()), int((self.for_shown & chosen).sum())
        wins = not against and votes >= max(2, 0.3 * int((chosen & (self.boxes > 0)).sum()))
        return np.ones_like(chosen) if wins else np.zeros_like(chosen)


def _alike(one: Sides, other: Sides) -> Flags:
    """Return which sizes have the same aspect, up to the rounding of whole pixels."""
    difference = np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0])
    return difference <= np.maximum(one.sum(1), other.sum(1))


def _over(boxes_xyxy: Boxes, owners: Labels, frames: Sides) -> Flags:
    """Return which images have a box that runs out of the frame."""
    edges = frames[owners] * (1 + _SLACK) + _SLACK_PX
    with np.errstate(invalid="ignore"):
        # Far beyond any frame is a broken box, not a frame
        out = ((boxes_xyxy[:, 2:] > edges) & (boxes_xyxy[:, 2:] < 1e6)).any(1)
    flags = np.zeros(len(frames), np.bool_)
    flags[owners[out]] = True
    return flags


def turn_boxes(boxes_xyxy: Boxes, owners: Labels, stored: Sides, orientations: Labels, turned: Flags) -> Boxes:
    """Return the boxes turned as `images.upright_rgb` turns the image, [N, 4]."""
    rows = np.flatnonzero(turned[owners])
    if not len(rows):
        return boxes_xyxy
    chosen, how = boxes_xyxy[rows], orientations[owners[rows]]
    # Where an axis is flipped, its low and high corners change places
    flips = np.stack([np.isin(how, (2, 3, 7, 8)), np.isin(how, (3, 4, 6, 7))] * 2, 1)
    mirrored = stored[owners[rows]][:, [0, 1, 0, 1]] - chosen[:, [2, 3, 0, 1]]
    chosen = np.where(flips, mirrored, chosen)
    moved = boxes_xyxy.copy()
    moved[rows] = np.where(np.isin(how, _SIDEWAYS)[:, None], chosen[:, [1, 0, 3, 2]], chosen)
    return moved


def _notes(done: NDArray[np.uint8], declared: Sides, shown: Sides, names: Sequence[str]) -> list[str]:
    notes: list[str] = []
    for what, one, many, then in (
        (
            TURNED,
            "image is labelled as it is stored, not as its EXIF orientation shows it",
            "images are labelled as they are stored, not as their EXIF orientation shows them",
            "the boxes were turned with the image",
        ),
        (
            SCALED,
            "image has another size than its label file says",
            "images have another size than their label files say",
            "the boxes were scaled to the image's own size",
        ),
        (
            KEPT,
            "image has another size than its label file says",
            "images have another size than their label files say",
            "the boxes were kept as written, and the image's own size counts",
        ),
    ):
        rows = np.flatnonzero(done == what).tolist()
        if rows:
            (w, h), (own_w, own_h) = declared[rows[0]].astype(int).tolist(), shown[rows[0]].astype(int).tolist()
            first = f"{names[rows[0]]} is {own_w} x {own_h}, the label says {w} x {h}"
            notes.append(f"{counted(len(rows), one, many)} ({first}); {then}")
    return notes


def _in_threads(rows: Sequence[int], look: Callable[[int], _Item]) -> list[_Item]:
    def several(start: int) -> list[_Item]:
        return [look(row) for row in rows[start : start + _CHUNK]]

    with ThreadPoolExecutor(_THREADS) as pool:
        return [item for part in pool.map(several, range(0, len(rows), _CHUNK)) for item in part]


def _size_or_none(sample: Sample) -> Size | None:
    try:
        return shown_size(sample)
    except DataError:  # whoever opens the image says what is wrong with it
        return None


def _orientation_or_1(sample: Sample) -> int:
    try:
        return orientation_of(sample)
    except DataError:
        return 1
