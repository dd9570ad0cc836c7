"""The view of an image, and the augmentations of the original SSD implementations as changes of a view.

Every operation is called with a `View` and the generator of the item. Operations that choose what is shown come first,
those that change colours follow. Names in brackets say where an original is found: repository, file or class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from multibox.structures import Boxes, Flags, iou

Fractions = NDArray[np.float64]
Distortion = Callable[[Image.Image], Image.Image]
"""A change of the colours of an 8-bit RGB image."""

MINIMUM_VISIBLE = 0.25
"""Objects of which a view shows a smaller share are dropped, unless the recipe has a rule of its own."""


SAME_COLOURS: Fractions = np.eye(3, 4)
"""The change of colours that changes nothing."""
SAME_COLOURS.flags.writeable = False


@dataclass
class View:
    """What is shown of an image: a window over it, mirroring and colours; and its boxes."""

    width: int
    height: int
    boxes_xyxy: Boxes
    """In pixels of the whole image; read by the operations and projected by `project`."""
    window: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """x1, y1, x2, y2 in pixels of the image; may reach or lie beyond it. Starts as the whole image."""
    keep: Flags | None = None
    """[N]; the objects that a recipe's own rule keeps. None keeps those shown by `MINIMUM_VISIBLE` or more."""
    mirror: bool = False
    upend: bool = False
    resample: Image.Resampling = Image.Resampling.BILINEAR
    colour: Fractions = field(default_factory=lambda: SAME_COLOURS)
    """[3, 4]: the new RGB is colour[:, :3] @ rgb + colour[:, 3], on 0 to 255, also beyond the image."""
    distortions: list[Distortion] = field(default_factory=list[Distortion])
    """Changes that no matrix can express, in order: before `colour`, and not beyond the image."""

    def __post_init__(self) -> None:
        self.window = (0.0, 0.0, float(self.width), float(self.height))

    def look_at(self, window_xyxy: Fractions) -> None:
        """Move the window to `window_xyxy`, [4]."""
        x1, y1, x2, y2 = window_xyxy.tolist()
        self.window = (x1, y1, x2, y2)

    def window_size(self) -> Fractions:
        """Return width and height of the window, [2]."""
        x1, y1, x2, y2 = self.window
        return np.array([x2 - x1, y2 - y1])

    def visible(self) -> Fractions:
        """Return the share of each box's area that lies in the window, [N]."""
        return visible_shares(np.array([self.window]), self.boxes_xyxy)[0]

    def kept(self) -> Flags:
        """Return which objects are kept, [N]; an object that the window does not show never is."""
        visible = self.visible()
        return visible >= MINIMUM_VISIBLE if self.keep is None else self.keep & (visible > 0)


def log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Draw the logarithm of a factor within `limits`."""
    low, high = limits
    return rng.uniform(float(np.log(low)), float(np.log(high)))


def visible_shares(windows_xyxy: NDArray[np.number[Any]], boxes_xyxy: Boxes) -> Fractions:
    """Return which share of each box [N, 4] lies in each window [T, 4]: [T, N]."""
    low = np.maximum(windows_xyxy[:, None, :2], boxes_xyxy[:, :2])
    high = np.minimum(windows_xyxy[:, None, 2:], boxes_xyxy[:, 2:])
    area = np.prod(np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0), axis=1)
    return np.prod(np.maximum(high - low, 0), axis=2) / np.maximum(area, 1e-12)


def centres_inside(windows_xyxy: Boxes, boxes_xyxy: Boxes, *, border: bool = False) -> Flags:
    """Tell whether each window [T, 4] holds the centre of each box [N, 4]: [T, N]; on its `border` if that counts."""
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    below = np.less_equal if border else np.less
    low, high = windows_xyxy[:, None, :2], windows_xyxy[:, None, 2:]
    return np.all(below(low, centres) & below(centres, high), axis=2)


@dataclass(frozen=True)
class Expand:
    """Put the image at whole pixels on a canvas of `ratio` times its size, filled with the mean colour.

    The window becomes the canvas. Caffe SSD: ExpandImage of `im_transforms.cpp`. Must come before other operations
    that move the window.
    """

    ratio: tuple[float, float] = (1.0, 4.0)
    probability: float = 0.5

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window."""
        if rng.random() >= self.probability:
            return
        ratio = rng.uniform(*self.ratio)
        width, height = int(view.width * ratio), int(view.height * ratio)
        x, y = int(rng.uniform(0, width - view.width)), int(rng.uniform(0, height - view.height))
        view.window = (float(-x), float(-y), float(width - x), float(height - y))


@dataclass(frozen=True)
class CaffePatch:
    """Take the whole window or a patch of it, evenly among those that meet their least IoU (Caffe SSD: `sampler.cpp`).

    Each of `overlaps` looks for one patch that at least one object overlaps by so much, `tries` times. Objects with
    their centre in the chosen patch or on its border are kept; that may be none.
    """

    overlaps: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)
    tries: int = 50

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window and say which objects are kept."""
        samplers, tries = len(self.overlaps), self.tries
        scale, aspect = rng.uniform(*self.scale, samplers * tries), rng.uniform(*self.aspect, samplers * tries)
        patches = _place(view, clamped_size(scale, aspect), rng.random((samplers * tries, 2)))
        # Without objects not even a least IoU of 0 is met
        overlap = iou(patches[:, None], view.boxes_xyxy).max(axis=1, initial=-1.0)
        good = overlap.reshape(samplers, tries) >= np.array(self.overlaps)[:, None]
        first = good.argmax(axis=1) + tries * np.arange(samplers)
        windows = np.vstack([np.array([view.window]), patches[first[good.any(axis=1)]]])
        view.look_at(windows[rng.integers(len(windows))])
        view.keep = centres_inside(np.array([view.window]), view.boxes_xyxy, border=True)[0]


@dataclass(frozen=True)
class HikapokPatch:
    """Expand and take a patch, again until an object is left that is worth learning (HiKapok/SSD.TensorFlow).

    All objects with their centre in a patch must overlap it by an IoU drawn from `overlaps`; 1 stands for no patch. Of
    `tries` patches that hold a centre the last is taken even if it fails. Objects are kept if they cover more than .001
    and less than .9 of the window and are wider and higher than .025 of it. After `attempts` attempts without one, the
    image stays as it is, with all its objects. Unlike the original, the IoU adds no pixel to the sizes.
    """

    expand: Expand = Expand(ratio=(1.1, 4.0))
    overlaps: tuple[float, ...] = (-0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    scale: tuple[float, float] = (0.3, 0.999)
    tries: int = 50
    attempts: int = 3
    emulate_defects: bool = False
    """Discard what the last attempt yields, as the original does."""

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window and say which objects are kept."""
        whole = view.window
        for _ in range(self.attempts - self.emulate_defects):
            view.window = whole
            self.expand(view, rng)
            keep = self._crop(view, rng) & _worth_learning(view)
            if keep.any():
                view.keep = keep
                return
        view.window, view.keep = whole, np.ones(len(view.boxes_xyxy), bool)

    def _crop(self, view: View, rng: np.random.Generator) -> Flags:
        """Replace the window by a patch of it, or not; return which objects have their centre in it, [N]."""
        boxes, least = view.boxes_xyxy, self.overlaps[rng.integers(len(self.overlaps))]
        # A patch with a centre must turn up within 20 draws per try
        count, size = 20 * self.tries, view.window_size()
        sizes = rng.uniform(*self.scale, (count, 10, 2)) * size
        slim = sizes.max(axis=2) > 2 * sizes.min(axis=2)
        # Of ten sizes the first that is not slim, else the last: in a very long image all are slim
        shape = np.where(slim.all(axis=1), 9, slim.argmin(axis=1))
        patches = _place_whole(view, sizes[np.arange(count), shape], rng)
        inside = centres_inside(patches, boxes)
        candidates = np.flatnonzero(inside.any(axis=1))[: self.tries]
        if least >= 1 or not len(candidates):
            return np.ones(len(boxes), bool)
        overlap = iou(patches[candidates][:, None], boxes)
        good = (~inside[candidates] | (overlap >= least)).all(axis=1)
        chosen = candidates[good.argmax() if good.any() else -1]
        view.look_at(patches[chosen])
        return inside[chosen]


@dataclass(frozen=True)
class TorchvisionIoUCrop:
    """Take a patch that at least one of the objects with their centre inside overlaps (torchvision: RandomIoUCrop).

    The least IoU is drawn from `overlaps`, where 1 stands for no patch, and drawn again if `tries` patches fail.
    """

    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)
    tries: int = 40

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window and say which objects are kept."""
        boxes = view.boxes_xyxy
        view.keep = np.ones(len(boxes), bool)
        while len(boxes) and (least := self.overlaps[rng.integers(len(self.overlaps))]) < 1:
            patches = _place_whole(view, rng.uniform(*self.scale, (self.tries, 2)) * view.window_size(), rng)
            width, height = (patches[:, 2:] - patches[:, :2]).T
            aspect, inside = width / height, centres_inside(patches, boxes)
            overlap = np.where(inside, iou(patches[:, None], boxes), -1.0).max(axis=1)
            good = (overlap >= least) & (self.aspect[0] <= aspect) & (aspect <= self.aspect[1])
            if good.any():
                view.look_at(patches[good.argmax()])
                view.keep = inside[good.argmax()]
                return


@dataclass(frozen=True)
class NvidiaCrop:
    """Take a patch that every object of the image overlaps (NVIDIA/DeepLearningExamples: SSDCropping).

    The least IoU is drawn from `overlaps`, where 1 stands for no patch, and drawn again after each patch that fails.
    Objects with their centre inside are kept, at least one.
    """

    overlaps: tuple[float, ...] = (1.0, 0.1, 0.3, 0.5, 0.7, 0.9, -1.0)
    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)
    """Of the patch in shares of the image's sides, not in pixels."""

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window and say which objects are kept."""
        boxes = view.boxes_xyxy
        view.keep = np.ones(len(boxes), bool)
        while len(boxes) and (least := self.overlaps[rng.integers(len(self.overlaps))]) < 1:
            size = rng.uniform(*self.scale, (1, 2))
            patch = _place(view, size, rng.random((1, 2)))
            inside = centres_inside(patch, boxes)[0]
            shaped = self.aspect[0] <= size[0, 0] / size[0, 1] <= self.aspect[1]
            if shaped and inside.any() and (iou(patch[:, None], boxes) > least).all():
                view.look_at(patch[0])
                view.keep = inside
                return


def clamped_size(scale: Fractions, aspect: Fractions) -> Fractions:
    """Return width and height [T, 2] as shares of the window, of area scale² and of an aspect at which both fit."""
    aspect = np.clip(aspect, scale**2, 1 / scale**2)
    return np.minimum(np.column_stack([scale * np.sqrt(aspect), scale / np.sqrt(aspect)]), 1.0)


def _place(view: View, sizes: Fractions, where: Fractions) -> Boxes:
    """Return patches [T, 4] of `sizes` [T, 2], shares of the window, at `where` [T, 2], 0 to 1 of the room left."""
    corner = where * (1 - sizes)
    return np.tile(view.window[:2], 2) + np.hstack([corner, corner + sizes]) * np.tile(view.window_size(), 2)


def _place_whole(view: View, sizes: Fractions, rng: np.random.Generator) -> Boxes:
    """Return patches [T, 4] of `sizes` [T, 2], in pixels and rounded down, at random whole pixels of the window."""
    sizes = np.maximum(np.floor(sizes), 1)
    corner = view.window[:2] + np.floor(rng.random(sizes.shape) * (view.window_size() - sizes))
    return np.hstack([corner, corner + sizes])


def _worth_learning(view: View) -> Flags:
    x1, y1, x2, y2 = view.window
    cut = np.clip(view.boxes_xyxy, (x1, y1, x1, y1), (x2, y2, x2, y2))
    sides = (cut[:, 2:] - cut[:, :2]) / view.window_size()
    area = sides.prod(axis=1)
    return (area > 0.001) & (area < 0.9) & (sides > 0.025).all(axis=1)


_RESAMPLINGS = tuple(Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "LANCZOS"))


@dataclass(frozen=True)
class RandomInterpolation:
    """Resize with Pillow's nearest, bilinear, bicubic, box or Lanczos, each as likely (Caffe SSD: `ssd_pascal.py`).

    Caffe draws from OpenCV's nearest, linear, cubic, area and Lanczos, of which only area averages when it shrinks; of
    Pillow's all but nearest do.
    """

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Set how the view is resampled."""
        view.resample = _RESAMPLINGS[rng.integers(len(_RESAMPLINGS))]


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
    # Pillow's hue of a whole turn is 255
    turned = np.arange(256) + 255 * turn
    hue = hue.point(_table((turned if wrap else np.maximum(turned, 0)) % 255))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def permute_channels(image: Image.Image, order: list[int]) -> Image.Image:
    """Take channel order[0] for red, and so on."""
    bands = image.split()
    return Image.merge("RGB", [bands[i] for i in order])


def scale_brightness(image: Image.Image, scale: float) -> Image.Image:
    """Blend with black, as torchvision's adjust_brightness."""
    return ImageEnhance.Brightness(image).enhance(scale)


def scale_contrast(image: Image.Image, scale: float) -> Image.Image:
    """Blend with the mean grey of the image, as torchvision's adjust_contrast."""
    return ImageEnhance.Contrast(image).enhance(scale)


def scale_colourfulness(image: Image.Image, scale: float) -> Image.Image:
    """Blend with the image in grey, as torchvision's adjust_saturation."""
    return ImageEnhance.Color(image).enhance(scale)


def _table(values: NDArray[np.floating[Any]]) -> list[int]:
    return np.clip(np.rint(values), 0, 255).astype(int).tolist()


@dataclass(frozen=True)
class CaffeDistort:
    """Change brightness, contrast, saturation and hue, each by chance (Caffe SSD: ApplyDistort of `im_transforms.cpp`).

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
        changes = [
            partial(shift_and_scale, shift=rng.uniform(-self.brightness, self.brightness)),
            partial(shift_and_scale, scale=rng.uniform(*self.contrast)),
            partial(scale_saturation, scale=rng.uniform(*self.saturation)),
            partial(turn_hue, turn=rng.uniform(-self.hue, self.hue), wrap=False),
        ]
        view.distortions += _by_chance(changes, self.probability, rng)


@dataclass(frozen=True)
class HikapokDistort:
    """Change brightness and saturation, in this order one time in four (HiKapok/SSD.TensorFlow: its fast mode).

    The original lets brightness leave 0 to 255 until the end; here each change gives 8 bits.
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
    """Change colours and permute channels, each by chance (torchvision: RandomPhotometricDistort)."""

    brightness: tuple[float, float] = (0.875, 1.125)
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.05, 0.05)
    probability: float = 0.5

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Add to the view's distortions."""
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        changes = _four_changes(*(rng.uniform(*each) for each in ranges))
        changes.append(partial(permute_channels, order=rng.permutation(3).tolist()))
        view.distortions += _by_chance(changes, self.probability, rng)


@dataclass(frozen=True)
class NvidiaJitter:
    """Change brightness, contrast, saturation and hue, always and in any order (NVIDIA/DeepLearningExamples)."""

    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Add to the view's distortions."""
        most = (self.brightness, self.contrast, self.saturation, self.hue)
        brightness, contrast, saturation, hue = (rng.uniform(-each, each) for each in most)
        changes = _four_changes(1 + brightness, 1 + contrast, 1 + saturation, hue)
        view.distortions += [changes[i] for i in rng.permutation(4)]


def _four_changes(brightness: float, contrast: float, saturation: float, hue: float) -> list[Distortion]:
    return [
        partial(scale_brightness, scale=brightness),
        partial(scale_contrast, scale=contrast),
        partial(scale_colourfulness, scale=saturation),
        partial(turn_hue, turn=hue),
    ]


def _by_chance(changes: Sequence[Distortion], probability: float, rng: np.random.Generator) -> list[Distortion]:
    """Return the changes that take place, in order; the second (contrast) comes fourth in half of the draws."""
    applied = rng.random(len(changes)) < probability
    order = (0, 1, 2, 3, 4) if rng.random() < 0.5 else (0, 2, 3, 1, 4)
    return [changes[i] for i in order[: len(changes)] if applied[i]]
