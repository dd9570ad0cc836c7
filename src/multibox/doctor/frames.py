"""Labels that belong to the image at another size or in another orientation than it is shown in.

Where label files declare a size, it tells (`data.formats.sizes`, by which readers mend the boxes). Where they do not,
as in YOLO and CSV, the images that EXIF turns tell: boxes stand out from what surrounds them, so over all boxes those
in the right place differ more in colour from their surroundings than those in a wrong one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.sizes import SCALED, TURNED, turn_boxes
from multibox.data.images import load_small
from multibox.doctor.findings import Finding, finding
from multibox.doctor.image_files import Looks
from multibox.doctor.survey import Survey
from multibox.errors import DataError
from multibox.limits import available_cores
from multibox.structures import Boxes, Size

LEAST_TURNED, MOST_TURNED = 3, 200
"""Images that EXIF turns, with boxes: fewer say nothing, and more are not looked at."""
CERTAIN, ENOUGH = 3.0, 5
"""Standard errors by which the mean contrast in the stored orientation must exceed that in the shown one, twice as many
below `ENOUGH` images. On 300 photographs that labels followed, no draw of 5 or more was accused (docs/decisions.md)."""
_CLOSE_PX = 2
"""Difference of a declared size that is a way to count pixels."""
_THUMBNAIL = Size(160, 160)
_RING = 0.25
"""Width of the surroundings of a box, as a share of its sides."""


def check_sizes(survey: Survey) -> Iterator[Finding]:
    """Yield images whose own size or orientation is not the one that their labels declare."""
    raw, done, shown = survey.raw, survey.fit.done, survey.shown
    if raw.fractions:
        return
    for row in np.flatnonzero(done).tolist():
        declared, own = raw.sizes[row], shown[row]
        assert declared is not None and own is not None
        sizes = f"is {own.width} x {own.height}, its labels say {declared.width} x {declared.height}"
        name = raw.image_names[row]
        if done[row] == TURNED:
            what = f"{name} {sizes}: they follow the image as stored, which its EXIF orientation turns"
            why = "multibox turns these boxes with the image; other programs put them in the wrong place."
            yield finding("exif-mismatch", raw.sources[row], what, name, why=why)
            continue
        then = "the boxes were drawn at that size" if done[row] == SCALED else "the boxes fit the image itself"
        close = max(abs(own.width - declared.width), abs(own.height - declared.height)) <= _CLOSE_PX
        what = f"{name} {sizes}; {then}"
        yield finding("size-mismatch", raw.sources[row], what, name, severity="note" if close else None)


class Turned(NamedTuple):
    """Images that EXIF turns, of which labels declare no size that tells whether they followed."""

    rows: list[int]
    """Of the split's images."""
    orientations: list[int]


def turned_images(survey: Survey, looks: Looks) -> Turned:
    """Return the images with an EXIF orientation whose labels may or may not have followed it."""
    raw = survey.raw
    turned = Turned([], [])
    with_boxes = set(raw.owners.tolist())
    for row in range(len(raw.image_names)):
        look = looks.get((str(raw.paths[row]), raw.offsets[row]))
        if look is None or look.size is None or look.orientation == 1 or row not in with_boxes:
            continue
        declared = raw.sizes[row]
        if raw.fractions or declared is None or (declared == look.size and look.orientation < 5):
            turned.rows.append(row)
            turned.orientations.append(look.orientation)
    return turned


def check_orientations(survey: Survey, looks: Looks) -> Iterator[Finding]:
    """Yield a finding if labels without sizes follow the stored orientation of the images, by statistics."""
    raw, turned = survey.raw, turned_images(survey, looks)
    if len(turned.rows) < LEAST_TURNED or not _follow_stored(survey, turned, looks):
        return
    first = raw.image_names[turned.rows[0]]
    for row, orientation in zip(*turned, strict=True):
        name = raw.image_names[row]
        what = f"the boxes of {name} fit the image as stored, not as its EXIF orientation ({orientation}) shows it"
        why = f"Found by the contrast of boxes and surroundings over {len(turned.rows)} images such as {first}."
        yield finding("exif-mismatch", raw.sources[row], what, name, why=why)


def stored_boxes(survey: Survey, row: int, orientation: int) -> Boxes:
    """Return the boxes of an image in pixels as shown, [N, 4], if its labels describe it as stored."""
    sample = survey.raw.sample(row)
    shown = survey.image_wh[row]
    stored = shown[::-1] if orientation > 4 else shown
    boxes = sample.boxes_xyxy
    if survey.raw.fractions:
        boxes = boxes / np.tile(shown, 2) * np.tile(stored, 2)
    owners = np.zeros(len(boxes), np.int64)
    return turn_boxes(boxes, owners, stored[None], np.array([orientation]), np.array([True]))


def _follow_stored(survey: Survey, turned: Turned, looks: Looks) -> bool:
    chosen = np.unique(np.linspace(0, len(turned.rows) - 1, min(MOST_TURNED, len(turned.rows))).astype(int)).tolist()

    def gain(number: int) -> float | None:
        row, orientation = turned.rows[number], turned.orientations[number]
        sample = survey.raw.sample(row)
        try:
            image = load_small(sample, _THUMBNAIL)
        except DataError:
            return None
        pixels = np.asarray(image, np.float64)
        scale = np.array([image.width, image.height] * 2) / np.tile(survey.image_wh[row], 2)
        as_shown = contrast(pixels, sample.boxes_xyxy * scale)
        as_stored = contrast(pixels, stored_boxes(survey, row, orientation) * scale)
        return float(np.mean(as_stored - as_shown)) if len(as_shown) else None

    with ThreadPoolExecutor(available_cores()) as pool:
        gains = np.array([one for one in pool.map(gain, chosen) if one is not None and np.isfinite(one)])
    if len(gains) < LEAST_TURNED:
        return False
    certain = CERTAIN if len(gains) >= ENOUGH else 2 * CERTAIN
    return bool(gains.mean() > certain * max(float(gains.std(ddof=1)) / np.sqrt(len(gains)), 0.5))


def contrast(pixels: NDArray[np.float64], boxes_xyxy: Boxes) -> NDArray[np.float64]:
    """Return how much the mean colour of each box differs from that around it, [N]; 0 for a box outside.

    Args:
        pixels: [height, width, 3]
        boxes_xyxy: in pixels, [N, 4]
    """
    height, width = pixels.shape[:2]
    sums = np.zeros((height + 1, width + 1, 3))
    sums[1:, 1:] = pixels.cumsum(0).cumsum(1)
    sides = np.nan_to_num(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2])
    rings = np.concatenate([boxes_xyxy[:, :2] - _RING * sides - 1, boxes_xyxy[:, 2:] + _RING * sides + 1], axis=1)

    def within(boxes: Boxes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        inside = np.nan_to_num(np.clip(np.rint(boxes), 0, np.array([width, height] * 2)))
        x1, y1, x2, y2 = inside.astype(np.int64).T
        x2, y2 = np.maximum(x1, x2), np.maximum(y1, y2)
        total = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
        return total, ((x2 - x1) * (y2 - y1)).astype(np.float64)

    (inner, area), (outer, whole) = within(boxes_xyxy), within(rings)
    usable = (area > 0) & (whole > area)
    mean = inner / np.maximum(area, 1)[:, None]
    around = (outer - inner) / np.maximum(whole - area, 1)[:, None]
    return np.where(usable, np.abs(mean - around).sum(1), 0.0)
