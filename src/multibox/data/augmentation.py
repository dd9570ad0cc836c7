"""Augmentation recipes: named sequences of operations, planned as one view and rendered once.

The operations move a window over the image and multiply a colour matrix. Then `rendering.render` crops and resizes
once and transforms colours once, so ten operations cost as much as one. Only the recipes of original SSD
implementations also leave distortions that no matrix can express.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from multibox.data.augmentation_ops import (
    CaffeDistort,
    CaffePatch,
    Expand,
    HikapokDistort,
    HikapokPatch,
    NvidiaCrop,
    NvidiaJitter,
    RandomInterpolation,
    TorchvisionDistort,
    TorchvisionIoUCrop,
    View,
    log_uniform,
)
from multibox.data.mixing import CopyPaste, Mixing, MixUp, Mosaic
from multibox.errors import ConfigError, did_you_mean
from multibox.structures import Boxes, Size

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclass(frozen=True)
class Flip:
    """Mirror left to right or, if `vertical`, top to bottom."""

    probability: float = 0.5
    vertical: bool = False
    """For images without an up: microscopes, satellites."""

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Toggle one mirror of the view."""
        toggled = bool(rng.random() < self.probability)
        if self.vertical:
            view.upend ^= toggled
        else:
            view.mirror ^= toggled


@dataclass(frozen=True)
class ScaleJitter:
    """Show a window of `scale` times the image's size and of a slightly different aspect.

    A scale above 1 zooms out, beyond the image; below 1 it zooms in. A window that shows no object well is drawn
    again, at most `tries` times; then the whole image is shown.
    """

    scale: tuple[float, float] = (0.5, 1.5)
    aspect: tuple[float, float] = (0.8, 1.25)
    probability: float = 0.8
    tries: int = 10

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window."""
        if rng.random() >= self.probability:
            return
        whole = view.window
        for _ in range(self.tries):
            scale, stretch = math.exp(log_uniform(self.scale, rng)), math.exp(log_uniform(self.aspect, rng) / 2)
            width, height = view.width * scale * stretch, view.height * scale / stretch
            x, y = (rng.uniform(min(0, a - b), max(0, a - b)) for a, b in ((view.width, width), (view.height, height)))
            view.window = (x, y, x + width, y + height)
            if not len(view.boxes_xyxy) or view.visible().max() > 0.7:
                return
        view.window = whole


@dataclass(frozen=True)
class CoveringCrop:
    """Crop so that each object it touches is covered by more than `covered` (MXNet: DetRandomCropAug).

    Area, as a share of the image's, and aspect are drawn from ranges, as in d2l-zh. After `tries` crops that fail the
    view stays. MXNet also drops objects of which .3 or less is left, but a crop that qualifies leaves none of these.
    """

    covered: float = 0.95
    area: tuple[float, float] = (0.05, 3.0)
    aspect: tuple[float, float] = (0.75, 1.33)
    tries: int = 200

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window by the first crop that qualifies."""
        old = view.window
        for _ in range(self.tries):
            ratio = rng.uniform(*self.aspect)
            area = rng.uniform(self.area[0], min(self.area[1], 1.0)) * view.width * view.height
            height = min(math.sqrt(area / ratio), float(view.height))
            width = height * ratio
            if width > view.width:
                continue
            x, y = rng.uniform(0, view.width - width), rng.uniform(0, view.height - height)
            view.window = (x, y, x + width, y + height)
            visible = view.visible()
            touched = visible > 0
            if touched.any() and (visible[touched] > self.covered).all():
                return
        view.window = old


@dataclass(frozen=True)
class ColourJitter:
    """Change brightness, contrast, saturation and hue by one matrix."""

    brightness: float = 0.125
    """Largest shift, as a share of 255."""
    contrast: tuple[float, float] = (0.7, 1.4)
    saturation: tuple[float, float] = (0.6, 1.5)
    hue: float = 0.05
    """Largest turn of the colour circle, as a share of it."""
    probability: float = 0.8

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Multiply the view's colour matrix."""
        if rng.random() >= self.probability:
            return
        angle = 2 * math.pi * rng.uniform(-self.hue, self.hue)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = _FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
        saturation = rng.uniform(*self.saturation)
        mix = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
        contrast = rng.uniform(*self.contrast)
        matrix = contrast * mix @ turn
        shift = 128 * (1 - contrast) + 255 * rng.uniform(-self.brightness, self.brightness)
        view.colour = np.column_stack([matrix @ view.colour[:, :3], matrix @ view.colour[:, 3] + shift])


Operation = Callable[[View, np.random.Generator], None] | Mixing
"""Changes the view of one image, or mixes several images; all draw from the generator of the item."""

_DEFAULT = (ScaleJitter(), Flip(), ColourJitter())

AUGMENTATIONS: dict[str, tuple[Operation, ...]] = {
    "none": (),
    "d2l": (CoveringCrop(),),
    "default": _DEFAULT,
    "any-way-up": (ScaleJitter(), Flip(), Flip(vertical=True), ColourJitter()),
    "caffe": (CaffeDistort(), Expand(), CaffePatch(), RandomInterpolation(), Flip()),
    "hikapok": (HikapokDistort(), HikapokPatch(), Flip()),
    "torchvision-ssd": (TorchvisionDistort(), Expand(), TorchvisionIoUCrop(), Flip()),
    "torchvision-ssdlite": (TorchvisionIoUCrop(), Flip()),
    "nvidia": (NvidiaCrop(), Flip(), NvidiaJitter()),
    "mosaic": (*_DEFAULT, Mosaic()),
    "mixup": (*_DEFAULT, MixUp()),
    "copy-paste": (*_DEFAULT, CopyPaste()),
    "strong": (*_DEFAULT, Mosaic(0.4), MixUp(0.15), CopyPaste(0.3)),
}


def find_augmentation(name: str) -> tuple[Operation, ...]:
    """Return the operations of the recipe called `name`."""
    if name not in AUGMENTATIONS:
        near = did_you_mean(name, AUGMENTATIONS)
        raise ConfigError(f"train.augmentation: unknown augmentation {name!r}{near}; known: {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


def plan(operations: Sequence[Operation], size: Size, boxes_xyxy: Boxes, rng: np.random.Generator) -> View:
    """Return the view of an image of `size` after all operations but those that mix images.

    Boxes are in pixels of the image. Mixing operations take what `render` returned.
    """
    view = View(size.width, size.height, boxes_xyxy)
    for operation in operations:
        if not isinstance(operation, Mixing):
            operation(view, rng)
    return view
