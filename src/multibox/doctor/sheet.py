"""A contact sheet of the worst findings: each image with the boxes that are meant."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from multibox.data.images import load_image
from multibox.doctor.examine import Diagnosis, SplitDiagnosis
from multibox.doctor.findings import Finding
from multibox.doctor.survey import misfits
from multibox.errors import DataError
from multibox.plots.detections import contact_sheet, draw_sample
from multibox.structures import Boxes, Labels, Sample

TILES, PER_KIND = 24, 4
"""Images on the sheet, and of them at most so many of one kind."""
_LEAST = 0.04
"""Share of the image's longer side to which smaller boxes are enlarged, so that they can be seen."""
_AROUND = 0.5
"""Grey paper around the image, as a share of its sides, for boxes that leave it."""
_PAPER = (190, 190, 190)


class _Place(NamedTuple):
    split: SplitDiagnosis
    image: int
    rows: Labels
    """Boxes to draw."""


def worst_sheet(diagnosis: Diagnosis) -> Image.Image | None:
    """Return a sheet of up to `TILES` findings that concern an image, the worst first; None if there are none.

    An image that cannot be read is a grey square. Boxes are drawn as the label files have them, on grey paper where
    they leave their image.
    """
    places = _places(diagnosis)
    tiles: list[Image.Image] = []
    captions: list[str] = []
    shown: dict[str, int] = {}
    for one in diagnosis.findings:
        place = places.get((one.file, one.where)) or _of_image(diagnosis, one)
        if place is None or shown.get(one.kind, 0) >= PER_KIND:
            continue
        shown[one.kind] = shown.get(one.kind, 0) + 1
        tiles.append(_draw(place))
        captions.append(f"{one.kind}: {place.split.survey.raw.image_names[place.image]}")
        if len(tiles) == TILES:
            break
    return contact_sheet(tiles, captions=captions) if tiles else None


def _places(diagnosis: Diagnosis) -> dict[tuple[str, str], _Place]:
    """Return where to look for findings about boxes, by their file and place in it."""
    found: dict[tuple[str, str], _Place] = {}
    for split in diagnosis.splits.values():
        survey = split.survey
        owners = survey.raw.owners
        partners = {pair.second: pair.first for pair in split.faults.pairs}
        faulty = {row for rows in split.faults.boxes.values() for row in np.flatnonzero(rows).tolist()}
        for row in sorted(faulty | partners.keys()):
            rows = np.array([row, *([partners[row]] if row in partners else [])], np.int64)
            found.setdefault((survey.file_of(row), survey.where_of(row)), _Place(split, int(owners[row]), rows))
        out = misfits(np.where(survey.finite[:, None], survey.raw.boxes_xyxy, 0.0), survey.box_wh)
        if out.any():
            # What concerns the whole split is seen best where most boxes leave their image
            image = int(np.argmax(np.bincount(owners[out])))
            place = _Place(split, image, np.flatnonzero(owners == image))
            for one in split.reading.findings:
                found.setdefault((one.file, one.where), place)
    return found


def _of_image(diagnosis: Diagnosis, one: Finding) -> _Place | None:
    """Return the image that a finding names by its file or its name in a label file, with all its boxes."""
    for split in diagnosis.splits.values():
        raw = split.survey.raw
        for image in _candidates(split, one):
            return _Place(split, image, np.flatnonzero(raw.owners == image))
    return None


def _candidates(split: SplitDiagnosis, one: Finding) -> Iterator[int]:
    raw = split.survey.raw
    for image, (path, source) in enumerate(zip(raw.paths, raw.sources, strict=True)):
        inside = raw.offsets[image] is not None
        named = raw.image_names[image] == one.where
        if (str(path) == one.file and (named or not inside)) or (str(source) == one.file and named):
            yield image


def _draw(place: _Place) -> Image.Image:
    """Return the image with its boxes, on grey paper if a box leaves it."""
    survey = place.split.survey
    sample = survey.raw.sample(place.image)
    try:
        image = load_image(sample)
    except DataError:
        return Image.new("RGB", (256, 256), _PAPER)
    boxes = survey.raw.boxes_xyxy[place.rows]
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    labels = survey.raw.labels[place.rows][np.isfinite(survey.raw.boxes_xyxy[place.rows]).all(axis=1)]
    boxes = _visible(boxes, image.size)
    leaves = (boxes < 0).any() or (boxes > np.array(image.size * 2)).any()
    if leaves:
        left, top = (round(side * _AROUND) for side in image.size)
        paper = Image.new("RGB", (image.width + 2 * left, image.height + 2 * top), _PAPER)
        paper.paste(image, (left, top))
        image, boxes = paper, boxes + np.array([left, top, left, top])
    none = np.zeros(len(labels), np.bool_)
    shown = Sample(sample.name, sample.path, boxes, labels, difficult=none, crowd=none)
    return draw_sample(image, shown, survey.raw.class_names)


def _visible(boxes_xyxy: Boxes, size: tuple[int, int]) -> Boxes:
    """Return the boxes sorted, brought near the image, and large enough to be seen."""
    low, high = np.minimum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:]), np.maximum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:])
    least = _LEAST * max(size)
    grow = np.maximum(least - (high - low), 0) / 2
    low, high = low - grow, high + grow
    edges = np.array(size, np.float64)
    near_low, near_high = -_AROUND * edges, (1 + _AROUND) * edges
    low = np.clip(low, near_low, near_high - least)
    return np.concatenate([low, np.clip(high, low + least, near_high)], axis=1)
