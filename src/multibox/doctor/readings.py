"""How the boxes of a split must be read to fit their images: other units, columns, axes or scale than declared.

A label file cannot say that its four numbers are others than those of its format, but the boxes do: as declared, many
are reversed or leave their images, and under the true reading nearly all fit. The checks of single boxes start from
the true reading, so that one mistake of a tool is one finding and not one for each box.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from multibox.doctor.findings import Finding, finding
from multibox.doctor.survey import Survey, misfits
from multibox.structures import Boxes, Flags

_DECLARED = {
    "coco": "xywh",
    "imagefolder": "xywh",
    "parquet": "xywh",
    "webdataset": "xywh",
    "yolo": "cxcywh",
    "createml": "cxcywh",
}
"""The four numbers that a format's files hold; all others hold xyxy."""
_NAMES = {
    "xyxy": "x1, y1, x2, y2",
    "xywh": "x, y, width, height",
    "cxcywh": "centre x, centre y, width, height",
    "xxyy": "x1, x2, y1, y2",
}
_MISFIT = 0.05
"""Share of boxes that must not fit as declared, for another reading to be believed."""
_MOST = 0.1
"""Boxes that may not fit under the other reading, as a share of those that do not fit as declared."""
_CERTAIN = 20
"""Boxes of which one may not fit as declared, if all do under another reading."""
_SCALED = 0.3
"""Share of boxes centred outside their images from which the labels are said to be made at a larger size: a factor of
1.25 brings a third of evenly spread boxes there, single slips hardly any."""
_CORNER = 0.67
"""Part of the image, from the upper left corner, that no box of a whole split leaves if labels were made smaller."""
_ENOUGH, _SEVERAL = 12, 6
"""Boxes, and images with boxes, needed to say so."""


@dataclass(frozen=True)
class Reading:
    """The boxes of a split under the reading that fits them, and the findings about it."""

    boxes_xyxy: Boxes
    """[N, 4] in pixels."""
    findings: tuple[Finding, ...] = ()
    kinds: dict[str, Flags] = field(default_factory=dict[str, Flags])
    """Which boxes [N] each kind of finding changed."""


def find_reading(survey: Survey) -> Reading:
    """Return how a split's boxes must be read to fit their images; as declared where nothing says otherwise."""
    reading = Reading(survey.boxes_xyxy.copy())
    if not len(survey.boxes_xyxy):
        return reading
    for step in (_units, _columns, _scale):
        reading = step(survey, reading)
    return reading


def columns_of(boxes_xyxy: Boxes, layout: str) -> NDArray[np.float64]:
    """Return the four numbers [N, 4] that files of a layout hold for boxes."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    if layout == "xyxy":
        return boxes_xyxy
    return np.concatenate([low if layout == "xywh" else (low + high) / 2, high - low], axis=1)


def boxes_of(columns: NDArray[np.float64], layout: str) -> Boxes:
    """Return the boxes xyxy [N, 4] that four columns mean under a layout."""
    if layout == "xxyy":
        return columns[:, [0, 2, 1, 3]]
    first, second = columns[:, :2], columns[:, 2:]
    if layout == "xywh":
        return np.concatenate([first, first + second], axis=1)
    if layout == "cxcywh":
        return np.concatenate([first - second / 2, first + second / 2], axis=1)
    return columns


def _units(survey: Survey, reading: Reading) -> Reading:
    """Turn fractions into pixels where pixels are expected, and the reverse; decided image by image."""
    boxes, wh = reading.boxes_xyxy, survey.box_wh
    edges = np.concatenate([wh, wh], axis=1)
    small = survey.finite & (np.abs(boxes) <= 1.05).all(axis=1) & (wh > 8).all(axis=1)
    # Corners reach half a box beyond a fraction of 1, and tools that misread columns one whole box
    far = survey.finite & (np.abs(boxes / edges) > 3.0).any(axis=1)
    if not survey.raw.fractions:
        wrong = small & (boxes != np.rint(boxes)).any(axis=1)
        kind, boxes_then = "normalised-boxes", boxes * edges
        what = "are fractions of the image, where pixels are expected"
    elif small.mean() > 0.5:
        wrong, kind, boxes_then = small, "normalised-boxes", boxes * edges
        what = "are fractions that were divided by the size of the image twice"
    else:
        wrong = far & ~(np.abs(boxes / edges / edges) > 3.0).any(axis=1)
        kind, boxes_then = "pixel-boxes", boxes / edges
        what = "are pixels, where fractions of the image from 0 to 1 are expected"
    if not wrong.any():
        return reading
    images = np.zeros(len(survey.image_wh), np.bool_)
    images[survey.raw.owners[wrong]] = True
    # The corners of a whole image are 0 and 1 in fractions; so are those of a slip of the mouse in pixels
    whole = images[survey.raw.owners] & survey.finite & ((kind == "pixel-boxes") | small)
    found = _by_file(survey, kind, whole, what)
    return Reading(np.where(whole[:, None], boxes_then, boxes), found, {kind: whole})


def _columns(survey: Survey, reading: Reading) -> Reading:
    """Find other columns or exchanged axes under which the boxes fit much better than as declared."""
    declared = _DECLARED.get(survey.raw.format, "xyxy")
    usable = survey.finite & ~survey.raw.outline & np.isfinite(survey.box_wh).all(axis=1)
    count = int(usable.sum())
    wh, boxes = survey.box_wh[usable], reading.boxes_xyxy[usable]
    before = int(misfits(boxes, wh).sum())
    if not before:
        return reading
    columns = columns_of(boxes, declared)
    others: list[tuple[str, str, Callable[[Boxes], Boxes]]] = [
        ("wrong-box-format", layout, _reader(declared, layout)) for layout in _NAMES if layout != declared
    ]
    others.append(("swapped-axes", declared, lambda boxes_xyxy: boxes_xyxy[:, [1, 0, 3, 2]]))
    after = [int(misfits(read(boxes), wh).sum()) for _, _, read in others]
    best = int(np.argmin(after))
    kind, layout, read = others[best]
    surely = before >= 2 and before >= _MISFIT * count and after[best] <= _MOST * before
    # One box that leaves its image may be a mistake of its own, but hardly if all fit in another way
    hardly = kind == "wrong-box-format" and after[best] == 0 and count >= _CERTAIN
    if not (surely or hardly) or _would_do_for_any(columns, layout, kind):
        return reading
    changed = reading.boxes_xyxy.copy()
    changed[usable] = read(boxes)
    if kind == "swapped-axes":
        what = (
            f"x and y of the boxes are exchanged: {before} of {count} boxes leave their images as written, "
            f"{after[best]} with x and y swapped"
        )
    else:
        what = (
            f"the boxes are {_NAMES[layout]}, where {survey.raw.format} has {_NAMES[declared]}: {before} of {count} "
            f"boxes are reversed or leave their images as written, {after[best]} when read so"
        )
    return _with(survey, reading, changed, kind, what, usable)


def _reader(declared: str, layout: str) -> Callable[[Boxes], Boxes]:
    return lambda boxes_xyxy: boxes_of(columns_of(boxes_xyxy, declared), layout)


def _would_do_for_any(columns: NDArray[np.float64], layout: str, kind: str) -> bool:
    """Return whether boxes read so are mostly without area, which fits everywhere and says nothing."""
    if kind == "swapped-axes":
        return False
    boxes = boxes_of(columns, layout)
    return bool(np.median(np.min(boxes[:, 2:] - boxes[:, :2], axis=1)) < 1)


def _scale(survey: Survey, reading: Reading) -> Reading:
    """Find boxes that were made at another size than that of the images, by one factor for the whole split."""
    usable = survey.finite & np.isfinite(survey.box_wh).all(axis=1)
    if not usable.any():
        return reading
    wh, boxes = survey.box_wh[usable], reading.boxes_xyxy[usable]
    beyond = ((boxes[:, :2] + boxes[:, 2:]) / 2 > wh).any(axis=1)
    reach = (boxes[:, 2:] / wh).max(axis=0)
    count = len(boxes)
    # Only beyond the right and lower edges: boxes made larger never pass the others
    over = misfits(boxes, wh) & (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    if (beyond.sum() >= 4 and beyond.mean() >= _SCALED) or (over.sum() >= 4 and over.mean() >= 0.5):
        factor = float(np.quantile((boxes[:, 2:] / wh).max(axis=1), 0.98))
        what = (
            f"{int(over.sum())} of {count} boxes leave their images at the right or below: the coordinates seem about "
        )
        what += f"{factor:.2g} times too large"
        return _with(survey, reading, reading.boxes_xyxy, "scale-mismatch", what, usable)
    nearest = (boxes[:, :2] / wh).min(axis=0)
    several = len(np.unique(survey.raw.owners[usable])) >= _SEVERAL
    if count >= _ENOUGH and several and (reach <= _CORNER).all() and (nearest < 0.1 * reach).all():
        if max(reach) > 1.2 * min(reach):
            return reading
        what = (
            f"all {count} boxes lie in the upper left {100 * max(reach):.0f} % of their images: the labels seem to be "
            f"made at about {max(reach):.2g} of the images' size"
        )
        return _with(survey, reading, reading.boxes_xyxy, "scale-mismatch", what, usable)
    return reading


def _with(survey: Survey, reading: Reading, boxes: Boxes, kind: str, what: str, rows: Flags) -> Reading:
    found = finding(kind, _label_place(survey), what, f"split {survey.raw.split}")
    return replace(reading, boxes_xyxy=boxes, findings=(*reading.findings, found), kinds={**reading.kinds, kind: rows})


def _by_file(survey: Survey, kind: str, rows: Flags, what: str) -> tuple[Finding, ...]:
    """Return one finding for the split if most boxes are affected, else one for each image."""
    count = int(rows.sum())
    if rows.mean() > 0.5:
        words = f"{count} of {len(rows)} boxes {what}"
        return (finding(kind, _label_place(survey), words, f"split {survey.raw.split}"),)
    return tuple(_images_of(survey, kind, rows, what))


def _images_of(survey: Survey, kind: str, rows: Flags, what: str) -> Iterator[Finding]:
    counts: list[int] = np.bincount(survey.raw.owners[rows], minlength=len(survey.image_wh)).tolist()
    for image, count in enumerate(counts):
        if not count:
            continue
        words = f"the coordinates of {count} {'box' if count == 1 else 'boxes'} {what}"
        yield finding(kind, survey.raw.sources[image], words, survey.raw.image_names[image])


def _label_place(survey: Survey) -> str:
    """Return the label file of a split, or the folder of its label files."""
    sources = survey.raw.sources
    return str(sources[0] if all(source == sources[0] for source in sources) else sources[0].parent)
