"""A split as its label files say it, and what could not be used: what the doctor examines."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multibox.columns import Numbers, Paths, Texts
from multibox.structures import Boxes, Flags, Labels, Sample, Sizes


class Problem(NamedTuple):
    """Something a reader could not use."""

    reason: str
    """Of `left_out.REASONS`, under which a reader that skips counts it."""
    kind: str
    """The doctor's id for it; empty where the reason tells."""
    source: Path
    """The label file, or the folder that was read."""
    subject: str
    """The image, line or object in it."""
    message: str
    image: int = -1
    """Row of the image whose box or label it is; -1 where that is not known, or the image is left out itself."""
    became: str = "left out"
    """What the reader made of it; empty if it is read as it is."""


@dataclass(frozen=True)
class RawLabels:
    """One split as its label files say it: nothing dropped, clipped or renamed, but what could not be read at all.

    Boxes are xyxy in pixels; a format of fractions multiplied them by the image's size.
    """

    root: Path
    format: str
    split: str
    class_names: list[str]
    """As declared, or in the order met; `labels` index it."""
    image_names: Texts
    paths: Paths
    sources: Paths
    """The label file of each image."""
    sizes: Sizes
    """As the label file declares it; of the image itself where the format holds fractions."""
    offsets: Numbers
    lengths: Numbers
    boxes_xyxy: Boxes
    """[N, 4]"""
    owners: Labels
    """[N]; index of each box's image, ascending."""
    labels: Labels
    """[N]"""
    lines: Labels
    """[N]; line, annotation id or number of the object in its label file; 0 where the reader does not say it."""
    difficult: Flags
    crowd: Flags
    outline: Flags
    """[N]; whether the box was made of a polygon, a mask or key points."""
    fractions: bool
    """Whether the label files hold fractions of the image instead of pixels."""
    problems: list[Problem]
    notes: list[str]
    """What the reader guessed, as sentences."""

    def sample(self, image: int) -> Sample:
        """Return an image with its boxes as written, some of which may have no area."""
        rows = slice(*np.searchsorted(self.owners, (image, image + 1)).tolist())
        return Sample(
            name=self.image_names[image],
            path=self.paths[image],
            boxes_xyxy=self.boxes_xyxy[rows],
            labels=self.labels[rows],
            difficult=self.difficult[rows],
            crowd=self.crowd[rows],
            size=self.sizes[image],
            offset=self.offsets[image],
            length=self.lengths[image],
        )
