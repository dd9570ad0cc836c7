"""A split under examination: its labels as written beside the real sizes of its images."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.raw_labels import RawLabels
from multibox.data.formats.sizes import Fit, fit_to_images
from multibox.data.images import shown_size
from multibox.errors import DataError
from multibox.limits import available_cores
from multibox.structures import Boxes, Flags, Sample, Size

MARGIN, MARGIN_PX = 0.02, 1.0
"""A box fits if it leaves its image by at most this share of the side and this many pixels."""
SAMPLED = 2000
"""Headers opened per split by a fast examination, evenly spaced; sizes of the others are taken as declared."""


@dataclass(frozen=True)
class Survey:
    """One split: what its label files say, and the sizes of its images."""

    raw: RawLabels
    image_wh: NDArray[np.float64]
    """[images, 2] width and height of each image as shown; NaN where its header was not, or cannot be, read."""
    misread: dict[int, str] = field(default_factory=dict[int, str])
    """Why the header of an image cannot be read, by its row."""

    @cached_property
    def fit(self) -> Fit:
        """The boxes in pixels of their images as shown: turned or scaled where they were drawn in another frame."""
        raw, shown = self.raw, self.shown
        return fit_to_images(raw.boxes_xyxy, raw.owners, raw.sizes, raw.image_names, raw.sample, shown)[0]

    @property
    def shown(self) -> list[Size | None]:
        """Size of each image as shown; None where its header was not, or cannot be, read."""
        sides: list[list[float]] = self.image_wh.tolist()
        return [None if math.isnan(width) else Size(int(height), int(width)) for width, height in sides]

    @cached_property
    def frame_wh(self) -> NDArray[np.float64]:
        """[images, 2] width and height of each image, as declared where its header is not read; NaN where unknown."""
        declared = np.array([(size.width, size.height) if size else (np.nan, np.nan) for size in self.raw.sizes])
        return np.where(np.isfinite(self.image_wh), self.image_wh, declared.reshape(-1, 2))

    @cached_property
    def box_wh(self) -> NDArray[np.float64]:
        """[N, 2] width and height of the image of each box; NaN where unknown."""
        return self.frame_wh[self.raw.owners]

    @cached_property
    def finite(self) -> Flags:
        """[N] whether all four coordinates are finite numbers."""
        return np.asarray(np.isfinite(self.raw.boxes_xyxy).all(axis=1))

    @property
    def boxes_xyxy(self) -> Boxes:
        """[N, 4] in pixels of the images as shown."""
        return self.fit.boxes_xyxy

    def file_of(self, row: int) -> str:
        """Return the label file of a box."""
        return str(self.raw.sources[int(self.raw.owners[row])])

    def where_of(self, row: int) -> str:
        """Return where a box stands in its label file: the image, and the line, id or number of the object."""
        image = int(self.raw.owners[row])
        line = int(self.raw.lines[row]) or row - int(np.searchsorted(self.raw.owners, image)) + 1
        word = {"coco": "annotation", "yolo": "line", "csv": "line"}.get(self.raw.format, "object")
        return f"{self.raw.image_names[image]}, {word} {line}"

    def class_of(self, row: int) -> str:
        """Return the class name of a box."""
        return self.raw.class_names[int(self.raw.labels[row])]


def misfits(boxes_xyxy: Boxes, image_wh: NDArray[np.float64]) -> Flags:
    """Return which boxes [N] are reversed or leave their images by more than a rounding."""
    edges = np.concatenate([image_wh, image_wh], axis=1)
    margin = MARGIN * edges + MARGIN_PX
    out = (boxes_xyxy < -margin) | (boxes_xyxy > edges + margin)
    return np.asarray(out.any(axis=1) | (boxes_xyxy[:, 2:] < boxes_xyxy[:, :2]).any(axis=1))


def survey_split(raw: RawLabels, *, fast: bool = False) -> Survey:
    """Read the headers of a split's images, all or `SAMPLED` of them, on all cores."""
    count = len(raw.image_names)
    image_wh = np.full((count, 2), np.nan)
    rows: list[int] = []
    for row, size in enumerate(raw.sizes):
        if size is not None and raw.fractions:  # the reader has opened the header already
            image_wh[row] = size.width, size.height
        else:
            rows.append(row)
    if fast and len(rows) > SAMPLED:
        rows = np.unique(np.linspace(0, len(rows) - 1, SAMPLED).astype(int)).tolist()
    misread: dict[int, str] = {}
    samples = [raw.sample(row) for row in rows]
    with ThreadPoolExecutor(available_cores()) as pool:
        for row, size in zip(rows, pool.map(_size_of, samples), strict=True):
            if isinstance(size, str):
                misread[row] = size
            else:
                image_wh[row] = size
    return Survey(raw, image_wh, misread)


def _size_of(sample: Sample) -> tuple[int, int] | str:
    """Return width and height of an image as shown, or why they cannot be read."""
    try:
        size = shown_size(sample)
    except DataError as error:
        return str(error)
    return size.width, size.height
