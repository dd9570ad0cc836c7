"""What the augmentations write and the renderer reads: a window over one image, its colours and its boxes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from multibox.structures import Boxes, Flags, iou

Fractions = NDArray[np.float64]
Distortion = Callable[[Image.Image], Image.Image]
"""A change of the colours of an 8-bit RGB image."""

MINIMUM_VISIBLE = 0.25
"""An object of which a window shows less than this share is not asked for, unless the recipe says which to keep."""


@dataclass
class View:
    """How an image is going to be looked at: a window over it, mirroring, its colours; and its boxes."""

    width: int
    height: int
    boxes_xyxy: Boxes
    """In pixels of the whole image; the operations read them, `project` projects them."""
    window: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """x1, y1, x2, y2 in pixels of the image; may reach beyond it, or lie beyond it."""
    keep: Flags | None = None
    """[N]; the objects that a recipe with a rule of its own asks for. None: those well visible (`MINIMUM_VISIBLE`)."""
    mirror: bool = False
    upend: bool = False
    resample: Image.Resampling = Image.Resampling.BILINEAR
    colour: Fractions = field(default_factory=lambda: np.eye(3, 4))
    """[3, 4]: the new RGB is colour[:, :3] @ rgb + colour[:, 3], on 0 to 255, also beyond the image."""
    distortions: list[Distortion] = field(default_factory=list)
    """What no matrix can do, in order: before `colour`, and on the image alone, not on what is beyond it."""

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
    """Blend with the mean grey of the image, as torchvision's adjust_contrast."""
    return ImageEnhance.Contrast(image).enhance(scale)


def scale_colourfulness(image: Image.Image, scale: float) -> Image.Image:
    """Blend with the image in grey, as torchvision's adjust_saturation."""
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


_RESAMPLINGS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.LANCZOS,
)


@dataclass(frozen=True)
class RandomInterpolation:
    """Resize with Pillow's nearest, bilinear, bicubic, box or Lanczos, each as likely (facts 8.5).

    Caffe draws from OpenCV's nearest, linear, cubic, area and Lanczos, of which only area averages when it shrinks; of
    Pillow's all but nearest do.
    """

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Set how the view is resampled."""
        view.resample = _RESAMPLINGS[rng.integers(len(_RESAMPLINGS))]


@dataclass(frozen=True)
class Expand:
    """Put the image somewhere, at whole pixels, on a canvas of `ratio` times its size: the window grows beyond it.

    Beyond the image is what `render` fills with: the mean colour. Comes before all that moves the window.
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
    """Caffe SSD's samplers: the whole window, or one patch for each demand on the overlap; one of those found, evenly.

    A patch is found when at least one object overlaps it (IoU) by the sampler's number, within `tries` trials. Objects
    with their centre in the patch or on its border are kept; that may be none.
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
        # Without objects no sampler is content, the one that takes any patch neither
        overlap = iou(patches[:, None], view.boxes_xyxy).max(axis=1, initial=-1.0)
        good = overlap.reshape(samplers, tries) >= np.array(self.overlaps)[:, None]
        first = good.argmax(axis=1) + tries * np.arange(samplers)
        windows = np.vstack([np.array([view.window]), patches[first[good.any(axis=1)]]])
        view.look_at(windows[rng.integers(len(windows))])
        view.keep = centres_inside(np.array([view.window]), view.boxes_xyxy, border=True)[0]


@dataclass(frozen=True)
class HikapokPatch:
    """SSD.TensorFlow's expansion and patch, drawn again until an object is left that is worth learning (facts 8.3).

    All objects with their centre in a patch must overlap it (IoU) by a number drawn from `overlaps`, where 1 stands for
    no patch; after `tries` patches with a centre inside, the last one is taken. Kept are the objects of more than .001
    and less than .9 of what is shown and wider and higher than .025 of it. After `attempts` attempts without one, the
    image stays as it is, with all its objects. The original adds one pixel to the sizes in the overlap; not so here.
    """

    expand: Expand = Expand(ratio=(1.1, 4.0))
    overlaps: tuple[float, ...] = (-0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    scale: tuple[float, float] = (0.3, 0.999)
    tries: int = 50
    attempts: int = 3
    emulate_defects: bool = False
    """The original discards what its last attempt finds."""

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
        patches = self._draw(view, rng)
        inside = centres_inside(patches, boxes)
        candidates = np.flatnonzero(inside.any(axis=1))[: self.tries]
        if least >= 1 or not len(candidates):
            return np.ones(len(boxes), bool)
        overlap = iou(patches[candidates][:, None], boxes)
        good = (~inside[candidates] | (overlap >= least)).all(axis=1)
        chosen = candidates[good.argmax() if good.any() else -1]
        view.look_at(patches[chosen])
        return inside[chosen]

    def _draw(self, view: View, rng: np.random.Generator) -> Boxes:
        """Return 20 patches for each try, in whole pixels; a centre must be found within these."""
        count, size = 20 * self.tries, _window_size(view)
        sizes = rng.uniform(*self.scale, (count, 10, 2)) * size
        slim = sizes.max(axis=2) > 2 * sizes.min(axis=2)
        # The tenth is taken whatever its shape: no patch of a very long image is less slim
        shape = np.where(slim.all(axis=1), 9, slim.argmin(axis=1))
        chosen = np.maximum(np.floor(sizes[np.arange(count), shape]), 1)
        corner = view.window[:2] + np.floor(rng.random((count, 2)) * (size - chosen))
        return np.hstack([corner, corner + chosen])


@dataclass(frozen=True)
class TorchvisionIoUCrop:
    """torchvision's RandomIoUCrop: a patch which one of the objects with their centre inside overlaps enough.

    The least IoU is drawn from `overlaps`, where 1 stands for no patch, and drawn again after `tries` patches in vain.
    """

    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)
    tries: int = 40

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window and say which objects are kept."""
        boxes = view.boxes_xyxy
        view.keep = np.ones(len(boxes), bool)
        size = _window_size(view)
        while len(boxes) and (least := self.overlaps[rng.integers(len(self.overlaps))]) < 1:
            chosen = np.maximum(np.floor(rng.uniform(*self.scale, (self.tries, 2)) * size), 1)
            corner = view.window[:2] + np.floor(rng.random((self.tries, 2)) * (size - chosen))
            patches = np.hstack([corner, corner + chosen])
            aspect = chosen[:, 0] / chosen[:, 1]
            inside = centres_inside(patches, boxes)
            overlap = np.where(inside, iou(patches[:, None], boxes), -1.0).max(axis=1)
            good = (overlap >= least) & (self.aspect[0] <= aspect) & (aspect <= self.aspect[1])
            if good.any():
                view.look_at(patches[good.argmax()])
                view.keep = inside[good.argmax()]
                return


@dataclass(frozen=True)
class NvidiaCrop:
    """SSDCropping of NVIDIA's DeepLearningExamples: a patch which every object of the image overlaps enough.

    The least IoU is drawn from `overlaps`, where 1 stands for no patch, and drawn again after each patch that fails;
    the objects with their centre inside are kept, at least one.
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


def centres_inside(windows_xyxy: Boxes, boxes_xyxy: Boxes, *, border: bool = False) -> Flags:
    """Tell whether each window [T, 4] holds the centre of each box [N, 4], [T, N]; on its `border` if that counts."""
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    below = np.less_equal if border else np.less
    low, high = windows_xyxy[:, None, :2], windows_xyxy[:, None, 2:]
    return np.all(below(low, centres) & below(centres, high), axis=2)


def _window_size(view: View) -> Fractions:
    x1, y1, x2, y2 = view.window
    return np.array([x2 - x1, y2 - y1])


def _place(view: View, sizes: Fractions, where: Fractions) -> Boxes:
    """Return patches [T, 4] of `sizes` [T, 2], shares of the window, at `where` [T, 2], 0 to 1 of the room left."""
    corner = where * (1 - sizes)
    return np.tile(view.window[:2], 2) + np.hstack([corner, corner + sizes]) * np.tile(_window_size(view), 2)


def _worth_learning(view: View) -> Flags:
    cut = view.cut()
    sides = (cut[:, 2:] - cut[:, :2]) / _window_size(view)
    area = sides.prod(axis=1)
    return (area > 0.001) & (area < 0.9) & (sides > 0.025).all(axis=1)
