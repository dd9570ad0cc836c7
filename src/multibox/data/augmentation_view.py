"""What the augmentations write and the renderer reads: a window over one picture, its colours and its boxes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.structures import Boxes, Flags

Fractions = NDArray[np.float64]
Distortion = Callable[[Image.Image], Image.Image]
"""A change of the colours of an 8-bit RGB picture."""

MINIMUM_VISIBLE = 0.25
"""An object of which a window shows less than this share is not asked for, unless the recipe says which to keep."""


@dataclass
class View:
    """How a picture is going to be looked at: a window over it, mirroring, its colours; and its boxes."""

    width: int
    height: int
    boxes_xyxy: Boxes
    """In pixels of the whole picture; the operations read them, `project` projects them."""
    window: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """x1, y1, x2, y2 in pixels of the picture; may reach beyond it, or lie beyond it."""
    keep: Flags | None = None
    """[N]; the objects that a recipe with a rule of its own asks for. None: those well visible (`MINIMUM_VISIBLE`)."""
    mirror: bool = False
    upend: bool = False
    resample: Image.Resampling = Image.Resampling.BILINEAR
    colour: Fractions = field(default_factory=lambda: np.eye(3, 4))
    """[3, 4]: the new RGB is colour[:, :3] @ rgb + colour[:, 3], on 0 to 255, also beyond the picture."""
    distortions: list[Distortion] = field(default_factory=list)
    """What no matrix can do, in order: before `colour`, and on the picture alone, not on what is beyond it."""

    def __post_init__(self) -> None:
        self.window = (0.0, 0.0, float(self.width), float(self.height))

    def look_at(self, window_xyxy: Fractions) -> None:
        """Move the window to `window_xyxy`, [4]."""
        x1, y1, x2, y2 = window_xyxy.tolist()
        self.window = (x1, y1, x2, y2)

    def cut(self) -> Boxes:
        """Return the boxes cut at the border of the window, [N, 4]; those beyond it have no area."""
        x1, y1, x2, y2 = self.window
        return np.clip(self.boxes_xyxy, (x1, y1, x1, y1), (x2, y2, x2, y2))

    def visible(self) -> Fractions:
        """Return the share of each box's area that lies in the window, [N]."""
        return _area(self.cut()) / np.maximum(_area(self.boxes_xyxy), 1e-12)

    def kept(self) -> Flags:
        """Return which objects are asked for, [N]; never one of which the window shows nothing."""
        visible = self.visible()
        return visible >= MINIMUM_VISIBLE if self.keep is None else self.keep & (visible > 0)


def _area(boxes_xyxy: Boxes) -> Fractions:
    return np.prod(np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0), axis=1)
