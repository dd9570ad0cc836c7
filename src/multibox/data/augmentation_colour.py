"""The colour distortions of the lineages. Each draws its numbers and leaves functions for `render` to apply.

The originals distort the whole picture at its full size and crop and resize it afterwards (NVIDIA's excepted); here the
part that is shown is distorted after its resize, which costs a fraction. Per-pixel changes hardly tell the order; the
contrast around the mean grey (torchvision) refers to the part that is shown. Hue and saturation are Pillow's 8-bit HSV.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from multibox.data.augmentation_view import Distortion, View
from multibox.structures import Flags

_CIRCLE = 255
"""Pillow's hue of a whole turn."""


def shift_and_scale(image: Image.Image, *, scale: float = 1.0, shift: float = 0.0) -> Image.Image:
    """Return scale * value + shift of every channel, rounded and cut to 0 to 255."""
    return image.point(_table(np.arange(256) * scale + shift) * 3)


def scale_saturation(image: Image.Image, scale: float) -> Image.Image:
    """Multiply S of HSV."""
    hue, saturation, value = image.convert("HSV").split()
    saturation = saturation.point(_table(np.arange(256) * scale))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def turn_hue(image: Image.Image, turn: float, *, wrap: bool = True) -> Image.Image:
    """Add `turn`, a share of the circle, to H of HSV; without `wrap` a hue that would fall below 0 becomes 0, red."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.arange(256) + _CIRCLE * turn
    hue = hue.point(_table((turned if wrap else np.maximum(turned, 0)) % _CIRCLE))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def permute_channels(image: Image.Image, order: list[int]) -> Image.Image:
    """Take channel order[0] for red, and so on."""
    bands = image.split()
    return Image.merge("RGB", [bands[i] for i in order])


def scale_brightness(image: Image.Image, scale: float) -> Image.Image:
    """Blend with black, as torchvision's adjust_brightness."""
    return ImageEnhance.Brightness(image).enhance(scale)


def scale_contrast(image: Image.Image, scale: float) -> Image.Image:
    """Blend with the mean grey of the picture, as torchvision's adjust_contrast."""
    return ImageEnhance.Contrast(image).enhance(scale)


def scale_colourfulness(image: Image.Image, scale: float) -> Image.Image:
    """Blend with the picture in grey, as torchvision's adjust_saturation."""
    return ImageEnhance.Color(image).enhance(scale)


@dataclass(frozen=True)
class CaffeDistort:
    """Caffe SSD's distortion: four changes, each by chance, the contrast second or last (facts 8.1).

    The hue is added to an 8-bit number that saturates, so a hue below 0 becomes red instead of going round.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 0.1
    """Largest turn as a share of the circle; 18 of OpenCV's 180."""
    probability: float = 0.5

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Add to the view's distortions."""
        brightness = partial(shift_and_scale, shift=rng.uniform(-self.brightness, self.brightness))
        contrast = partial(shift_and_scale, scale=rng.uniform(*self.contrast))
        saturation = partial(scale_saturation, scale=rng.uniform(*self.saturation))
        hue = partial(turn_hue, turn=rng.uniform(-self.hue, self.hue), wrap=False)
        applied = rng.random(4) < self.probability
        order = (0, 1, 2, 3) if rng.random() < 0.5 else (0, 2, 3, 1)
        view.distortions += _choose([brightness, contrast, saturation, hue], order, applied)


@dataclass(frozen=True)
class HikapokDistort:
    """SSD.TensorFlow's fast distortion: brightness and saturation always, in this order one time in four (facts 8.1).

    Its brightness may leave 0 to 255 until the end; here each step is 8-bit.
    """

    brightness: float = 32.0
    saturation: tuple[float, float] = (0.5, 1.5)

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Add to the view's distortions."""
        brightness = partial(shift_and_scale, shift=rng.uniform(-self.brightness, self.brightness))
        saturation = partial(scale_saturation, scale=rng.uniform(*self.saturation))
        view.distortions += [brightness, saturation] if rng.integers(4) == 0 else [saturation, brightness]


@dataclass(frozen=True)
class TorchvisionDistort:
    """torchvision's RandomPhotometricDistort: each change by chance, the contrast second or last of the first four."""

    brightness: tuple[float, float] = (0.875, 1.125)
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.05, 0.05)
    probability: float = 0.5

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Add to the view's distortions."""
        changes = [
            partial(scale_brightness, scale=rng.uniform(*self.brightness)),
            partial(scale_contrast, scale=rng.uniform(*self.contrast)),
            partial(scale_colourfulness, scale=rng.uniform(*self.saturation)),
            partial(turn_hue, turn=rng.uniform(*self.hue)),
            partial(permute_channels, order=rng.permutation(3).tolist()),
        ]
        applied = rng.random(5) < self.probability
        order = (0, 1, 2, 3, 4) if rng.random() < 0.5 else (0, 2, 3, 1, 4)
        view.distortions += _choose(changes, order, applied)


@dataclass(frozen=True)
class NvidiaJitter:
    """The ColorJitter of NVIDIA's SSD: all four changes always, in any order, after the resize as in the original."""

    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Add to the view's distortions."""
        changes = [
            partial(scale_brightness, scale=1 + rng.uniform(-self.brightness, self.brightness)),
            partial(scale_contrast, scale=1 + rng.uniform(-self.contrast, self.contrast)),
            partial(scale_colourfulness, scale=1 + rng.uniform(-self.saturation, self.saturation)),
            partial(turn_hue, turn=rng.uniform(-self.hue, self.hue)),
        ]
        view.distortions += [changes[i] for i in rng.permutation(4)]


def _choose(changes: list[Distortion], order: tuple[int, ...], applied: Flags) -> list[Distortion]:
    return [changes[i] for i in order if applied[i]]


def _table(values: NDArray[np.floating]) -> list[int]:
    return np.clip(np.rint(values), 0, 255).astype(int).tolist()
