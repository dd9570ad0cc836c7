"""The windows of the lineages: zooming out, and patches chosen by how much they overlap the objects (facts 8.2, 8.3).

All trials of a picture are drawn and tested at once; which one is taken is as if they came one after the other.
Windows are not rounded to the pixels of the picture unless the original draws them so.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from multibox.data.augmentation_view import Fractions, View
from multibox.structures import Boxes, Flags

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
    """Put the picture somewhere, at whole pixels, on a canvas of `ratio` times its size: the window grows beyond it.

    Beyond the picture is what `render` fills with: the mean colour. Comes before all that moves the window.
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
        overlap = intersection_over_union(patches, view.boxes_xyxy).max(axis=1, initial=-1.0)
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
    picture stays as it is, with all its objects. The original adds one pixel to the sizes in the overlap; not so here.
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
        overlap = intersection_over_union(patches[candidates], boxes)
        good = (~inside[candidates] | (overlap >= least)).all(axis=1)
        chosen = candidates[good.argmax() if good.any() else -1]
        view.look_at(patches[chosen])
        return inside[chosen]

    def _draw(self, view: View, rng: np.random.Generator) -> Boxes:
        """Return 20 patches for each try, in whole pixels; a centre must be found within these."""
        count, size = 20 * self.tries, _window_size(view)
        sizes = rng.uniform(*self.scale, (count, 10, 2)) * size
        slim = sizes.max(axis=2) > 2 * sizes.min(axis=2)
        # The tenth is taken whatever its shape: no patch of a very long picture is less slim
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
            overlap = np.where(inside, intersection_over_union(patches, boxes), -1.0).max(axis=1)
            good = (overlap >= least) & (self.aspect[0] <= aspect) & (aspect <= self.aspect[1])
            if good.any():
                view.look_at(patches[good.argmax()])
                view.keep = inside[good.argmax()]
                return


@dataclass(frozen=True)
class NvidiaCrop:
    """SSDCropping of NVIDIA's DeepLearningExamples: a patch which every object of the picture overlaps enough.

    The least IoU is drawn from `overlaps`, where 1 stands for no patch, and drawn again after each patch that fails;
    the objects with their centre inside are kept, at least one.
    """

    overlaps: tuple[float, ...] = (1.0, 0.1, 0.3, 0.5, 0.7, 0.9, -1.0)
    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.5, 2.0)
    """Of the patch in shares of the picture's sides, not in pixels."""

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Replace the view's window and say which objects are kept."""
        boxes = view.boxes_xyxy
        view.keep = np.ones(len(boxes), bool)
        while len(boxes) and (least := self.overlaps[rng.integers(len(self.overlaps))]) < 1:
            size = rng.uniform(*self.scale, (1, 2))
            patch = _place(view, size, rng.random((1, 2)))
            inside = centres_inside(patch, boxes)[0]
            shaped = self.aspect[0] <= size[0, 0] / size[0, 1] <= self.aspect[1]
            if shaped and inside.any() and (intersection_over_union(patch, boxes) > least).all():
                view.look_at(patch[0])
                view.keep = inside
                return


def clamped_size(scale: Fractions, aspect: Fractions) -> Fractions:
    """Return width and height [T, 2] as shares of the window, of area scale² and of an aspect at which both fit."""
    aspect = np.clip(aspect, scale**2, 1 / scale**2)
    return np.minimum(np.column_stack([scale * np.sqrt(aspect), scale / np.sqrt(aspect)]), 1.0)


def intersection_over_union(windows_xyxy: Boxes, boxes_xyxy: Boxes) -> Fractions:
    """Return the IoU of each window [T, 4] with each box [N, 4], [T, N]."""
    low = np.maximum(windows_xyxy[:, None, :2], boxes_xyxy[:, :2])
    high = np.minimum(windows_xyxy[:, None, 2:], boxes_xyxy[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (windows_xyxy, boxes_xyxy)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)


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
