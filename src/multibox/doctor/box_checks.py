"""Faults of single boxes and of pairs of boxes, over all boxes of a split at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.doctor.findings import Finding, Severity, finding
from multibox.doctor.readings import Reading
from multibox.doctor.survey import Survey
from multibox.structures import Boxes, Flags, Labels, iou

OVER_PX, OVER = 0.5, 0.001
"""A box that leaves its image by less than these pixels, or this share of the side, is only rounded."""
WHOLE = 0.99
"""Share of both sides from which a box covers the whole image."""
DUPLICATE = 0.9
"""Overlap (IoU) from which two boxes of one class are the same object. Second labels in BCCD have 0.91 to 0.93."""
SAME_PLACE, NEAR_PLACE = 0.95, 0.85
"""Overlap from which two boxes of different classes have the same place, or nearly: a warning, and a note."""
INSIDE = 0.97
"""Share of a box inside another of its class from which it lies inside."""
NESTED, NESTED_MAYBE = 0.7, 0.5
"""Overlap from which a box inside another of its class is a second label, or may be: a warning, and a note."""

_AT_THE_EDGE = 3
"""Images with a corner at 1 that are needed to say that corners count from 1."""


class Pair(NamedTuple):
    """Two boxes of one image that seem to be one object."""

    kind: str
    first: int
    second: int
    """Row of the box written later."""
    overlap: float
    severity: Severity


@dataclass(frozen=True)
class Faults:
    """What is wrong with the boxes of a split, under the reading that fits them."""

    boxes: dict[str, Flags] = field(default_factory=dict[str, Flags])
    """Which boxes [N] have each fault."""
    pairs: list[Pair] = field(default_factory=list[Pair])


def find_faults(survey: Survey, reading: Reading) -> Faults:
    """Return the faults of a split's boxes."""
    boxes, wh = reading.boxes_xyxy, survey.box_wh
    finite = survey.finite
    sound = np.where(finite[:, None], boxes, 0.0)
    low, high = np.minimum(sound[:, :2], sound[:, 2:]), np.maximum(sound[:, :2], sound[:, 2:])
    sides = high - low
    in_frame = finite & ~reading.kinds.get("scale-mismatch", np.zeros(len(boxes), np.bool_))
    outside = in_frame & ((high <= 0) | (low >= wh)).any(axis=1)
    empty = finite & (sides == 0).any(axis=1)
    slack = np.maximum(OVER_PX, OVER * wh)
    over = in_frame & ((low < -slack) | (high > wh + slack)).any(axis=1)
    faults = {
        "not-a-number": ~finite,
        "reversed-box": finite & (boxes[:, :2] > boxes[:, 2:]).any(axis=1),
        "empty-box": empty,
        "outside-box": outside & ~empty,
        "tiny-box": finite & ~empty & ~outside & (sides < 1).any(axis=1),
        "clipped-box": over & ~outside & ~empty,
        "whole-image-box": in_frame & ~over & (sides >= WHOLE * wh).all(axis=1),
    }
    usable = finite & ~empty & ~outside & ~survey.raw.crowd
    return Faults(
        {kind: rows for kind, rows in faults.items() if rows.any()},
        _pairs(np.concatenate([low, high], axis=1), survey.raw.owners, survey.raw.labels, usable),
    )


def check_boxes(survey: Survey, reading: Reading, faults: Faults) -> Iterator[Finding]:
    """Yield findings about the boxes of a split."""
    yield from reading.findings
    for kind, rows in faults.boxes.items():
        for row in np.flatnonzero(rows).tolist():
            yield finding(kind, survey.file_of(row), _describe(kind, survey, reading, row), survey.where_of(row))
    for pair in faults.pairs:
        one, other = pair.first, pair.second
        what = f"{_box(survey, reading, other)} overlaps {_box(survey, reading, one)} by {pair.overlap:.2f}"
        if pair.kind == "nested-duplicate":
            what = f"of {_box(survey, reading, one)} and {_box(survey, reading, other)} one lies inside the other"
        yield finding(pair.kind, survey.file_of(other), what, survey.where_of(other), severity=pair.severity)
    yield from _one_based(survey, reading)
    yield from _outlines(survey)


def _box(survey: Survey, reading: Reading, row: int) -> str:
    corners = ", ".join(f"{value:g}" for value in reading.boxes_xyxy[row].round(2).tolist())
    return f"{survey.class_of(row)!r} ({corners})"


def _describe(kind: str, survey: Survey, reading: Reading, row: int) -> str:
    box = _box(survey, reading, row)
    if kind == "not-a-number":
        return f"box of {box} has a coordinate that is not a finite number"
    if kind == "reversed-box":
        x1, _, x2, _ = reading.boxes_xyxy[row].tolist()
        return f"box of {box} is reversed: {'xmin is above xmax' if x1 > x2 else 'ymin is above ymax'}"
    if kind == "empty-box":
        return f"box of {box} has no area"
    if kind == "tiny-box":
        width, height = np.abs(reading.boxes_xyxy[row, 2:] - reading.boxes_xyxy[row, :2]).tolist()
        return f"box of {box} is {width:.3g} x {height:.3g} pixels"
    size = " x ".join(f"{side:g}" for side in survey.box_wh[row].tolist())
    words = {
        "outside-box": f"lies outside its image of {size}",
        "clipped-box": f"runs out of its image of {size}",
        "whole-image-box": f"covers the whole image of {size}",
    }
    return f"box of {box} {words[kind]}"


def _pairs(boxes: Boxes, owners: Labels, labels: Labels, usable: Flags) -> list[Pair]:
    """Return pairs of boxes that seem to be one object, in the order of the second: of each box one pair per kind."""
    rows = np.flatnonzero(usable)
    originals, copies = _copies(boxes[rows], owners[rows], labels[rows])
    once = np.setdiff1d(np.arange(len(rows)), copies, assume_unique=True)
    first, second = overlapping(boxes[rows[once]], owners[rows[once]])
    first, second = np.append(once[first], originals), np.append(once[second], copies)
    first, second = rows[np.minimum(first, second)], rows[np.maximum(first, second)]
    overlap = iou(boxes[first], boxes[second])
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    smaller = np.minimum(area[first], area[second])
    # intersection = iou * union = iou * (a + b) / (1 + iou)
    inside = overlap * (area[first] + area[second]) / (1 + overlap) / smaller
    same = labels[first] == labels[second]
    duplicate = same & (overlap >= DUPLICATE)
    nested = same & ~duplicate & (inside >= INSIDE) & (overlap >= NESTED_MAYBE)
    place = ~same & (overlap >= NEAR_PLACE)
    found: list[Pair] = []
    for kind, chosen, sure in (
        ("duplicate-box", duplicate, DUPLICATE),
        ("nested-duplicate", nested, NESTED),
        ("same-place-two-classes", place, SAME_PLACE),
    ):
        at = np.flatnonzero(chosen)
        at = at[np.lexsort((first[at], -overlap[at], second[at]))]
        # Of many boxes in one place each would pair with all before it
        at = at[np.append(True, second[at[1:]] != second[at[:-1]])] if len(at) else at
        for one, other, value in zip(first[at].tolist(), second[at].tolist(), overlap[at].tolist(), strict=True):
            found.append(Pair(kind, one, other, value, "warning" if value >= sure else "note"))
    return sorted(found, key=lambda pair: (pair.kind, pair.second, pair.first))


def _copies(boxes_xyxy: Boxes, owners: Labels, labels: Labels) -> tuple[Labels, Labels]:
    """Return the rows that repeat an earlier row's image, class and corners exactly, and before them that first row."""
    order = np.lexsort((labels, *boxes_xyxy.T, owners))
    boxes = boxes_xyxy[order]
    again = (boxes[1:] == boxes[:-1]).all(axis=1)
    for column in (owners, labels):
        again &= column[order[1:]] == column[order[:-1]]
    copy = np.append(False, again) if len(order) else again
    began = np.maximum.accumulate(np.where(copy, 0, np.arange(len(order))))
    return order[began[copy]], order[copy]


def overlapping(boxes_xyxy: Boxes, owners: Labels) -> tuple[Labels, Labels]:
    """Return the pairs of rows of one image whose boxes overlap, without a loop over images or boxes.

    Rows are sorted by image and left edge. Each is then compared with the next, the second next and so on, as long as
    any row has a neighbour at that distance which begins left of its right edge.
    """
    order = np.lexsort((boxes_xyxy[:, 0], owners))
    boxes, images = boxes_xyxy[order], owners[order]
    firsts: list[Labels] = []
    seconds: list[Labels] = []
    active = np.arange(len(boxes))
    distance = 1
    while len(active):
        active = active[active + distance < len(boxes)]
        other = active + distance
        near = (images[active] == images[other]) & (boxes[other, 0] < boxes[active, 2])
        active, other = active[near], other[near]
        meets = (boxes[other, 1] < boxes[active, 3]) & (boxes[other, 3] > boxes[active, 1])
        firsts.append(order[active[meets]])
        seconds.append(order[other[meets]])
        distance += 1
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *firsts]), np.concatenate([none, *seconds])


def _one_based(survey: Survey, reading: Reading) -> Iterator[Finding]:
    """Yield a finding if the corners of the split seem to count from 1.

    Objects cut by the left or upper edge pile up at the lowest coordinate, which is then 1 and never 0. VOC's own do.
    """
    rows = survey.finite & ~survey.raw.outline & np.isfinite(survey.box_wh).all(axis=1)
    boxes, whole = reading.boxes_xyxy[rows], np.rint(reading.boxes_xyxy[rows])
    # Fractions have six digits
    if len(boxes) < 10 or (np.abs(boxes - whole) > 0.001 + 2e-6 * survey.box_wh[rows].max(axis=1)[:, None]).any():
        return
    low: NDArray[np.float64] = whole[:, :2]
    at_one = (low == 1).any(axis=1)
    ones, twos = int((low == 1).sum()), int((low == 2).sum())
    if (low < 1).any() or len(np.unique(survey.raw.owners[rows][at_one])) < _AT_THE_EDGE or ones <= 2 * twos:
        return
    usual = " as VOC's own do" if survey.raw.format == "voc" else ""
    what = f"corners count from 1{usual}: none of {low.size} left and upper edges is at 0, {ones} are at 1"
    place, severity = survey.raw.sources[0].parent, "note" if usual else None
    yield finding("one-based-boxes", place, what, f"split {survey.raw.split}", severity=severity)


def _outlines(survey: Survey) -> Iterator[Finding]:
    count = int(survey.raw.outline.sum())
    if count:
        row = int(np.flatnonzero(survey.raw.outline)[0])
        objects = "object is an outline" if count == 1 else "objects are outlines"
        what = f"{count} {objects}, of which the box around it is used"
        yield finding("outline-as-box", survey.file_of(row), what, f"split {survey.raw.split}")
