"""Operations that mix images: four in one, two blended, objects of one pasted into another.

Every image first goes through the other operations of the recipe. Partners are drawn by the generator of the item, with
repetition and from all images, so a data set of one image has partners too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.augmentation_ops import MINIMUM_VISIBLE, Fractions, View, log_uniform, visible_shares
from multibox.data.images import resize_image
from multibox.structures import Boxes, Labels, Size


class Scene(NamedTuple):
    """A rendered image and its objects."""

    pixels: NDArray[np.uint8]
    """[h, w, 3], RGB; may be read-only."""
    boxes_xyxy: Boxes
    """[N, 4] as fractions of the image; every box has an area."""
    labels: Labels
    """[N]"""
    rows: Labels
    """[N]; row of each object in the columns of its data set."""
    lost: int = 0
    """Objects of the images shown that are not asked for: cut off or hidden too far."""


Draw = Callable[[Size], Scene]
"""Render an image at a size through the other operations of the recipe; see `narrow` for other shapes."""
Rectangle = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels."""


@dataclass(frozen=True)
class Mosaic:
    """Four images around a random centre, the item's own at the top left (YOLOv4, arXiv 2004.10934).

    Each is rendered at the size of its quarter and cut to its shape, so none is squeezed or resampled twice. Objects
    come out at about half their size. Must be the first of the mixing operations.
    """

    probability: float = 0.5
    centre: tuple[float, float] = (0.3, 0.7)
    """Range of the centre, in shares of width and height."""

    def __call__(self, own: Draw, other: Draw, size: Size, rng: np.random.Generator) -> Scene:
        """Return the mosaic, of `size`."""
        height, width = size
        x, y = (round(side * rng.uniform(*self.centre)) for side in (width, height))
        draws = (own, other, other, other)
        places = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        quarters = [draw(Size(y2 - y1, x2 - x1)) for draw, (x1, y1, x2, y2) in zip(draws, places, strict=True)]
        pixels, boxes = np.empty((height, width, 3), np.uint8), list[Boxes]()
        for quarter, (x1, y1, x2, y2) in zip(quarters, places, strict=True):
            pixels[y1:y2, x1:x2] = quarter.pixels
            boxes.append((quarter.boxes_xyxy * _sides(x2 - x1, y2 - y1) + (x1, y1, x1, y1)) / _sides(width, height))
        labels = np.concatenate([quarter.labels for quarter in quarters])
        rows = np.concatenate([quarter.rows for quarter in quarters])
        return Scene(pixels, np.concatenate(boxes), labels, rows, sum(quarter.lost for quarter in quarters))


@dataclass(frozen=True)
class MixUp:
    """Two images blended, with all objects of both (Zhang et al. 2018, arXiv 1710.09412).

    Labels get no weights, as in YOLOX. So the ratio stays near one half, Beta distributed as in YOLOv5: an object that
    can hardly be seen would be a wrong label.
    """

    probability: float = 0.5
    concentration: float = 32.0
    """Both parameters of the Beta distribution; its standard deviation is 1 / sqrt(8 concentration + 4)."""

    def __call__(self, own: Draw, other: Draw, size: Size, rng: np.random.Generator) -> Scene:
        """Return the blended image, of `size`."""
        first, second = own(size), other(size)
        part = round(256 * rng.beta(self.concentration, self.concentration))
        mixed = np.multiply(first.pixels, part, dtype=np.uint16)
        mixed += np.multiply(second.pixels, 256 - part, dtype=np.uint16)
        mixed += 128  # the largest sum, 256 * 255 + 128, fits
        boxes = np.concatenate([first.boxes_xyxy, second.boxes_xyxy])
        labels = np.concatenate([first.labels, second.labels])
        rows = np.concatenate([first.rows, second.rows])
        return Scene((mixed >> 8).astype(np.uint8), boxes, labels, rows, first.lost + second.lost)


@dataclass(frozen=True)
class CopyPaste:
    """Rectangles around objects of another image, pasted where they hide little (Ghiasi et al., arXiv 2012.07177).

    There are boxes, no outlines, so a rectangle includes a margin of random width. Without it the seam would be the
    box, and a network would learn to detect seams. Over the margin the patch fades in. Other objects of which the
    rectangle shows enough are pasted with their labels.
    """

    probability: float = 0.5
    objects: int = 3
    """Most objects pasted; their number is drawn evenly from 1."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Scale of a patch, log-uniform; it never becomes larger than the image."""
    margin: float = 0.25
    """Widest margin on each side, in shares of the object's width or height."""
    covered: float = 0.3
    """Largest share of an object that may be hidden, unless so much is hidden that the object is dropped."""
    tries: int = 30
    """Places drawn, of which the one that hides least is taken; without one the patch is left out."""

    def __call__(self, own: Draw, other: Draw, size: Size, rng: np.random.Generator) -> Scene:
        """Return the image with the patches, of `size`."""
        scene, source = own(size), other(size)
        pixels, extent = np.array(scene.pixels), _sides(size[1], size[0])
        boxes, labels, rows = scene.boxes_xyxy * extent, scene.labels, scene.rows
        hidden = np.zeros(len(labels))
        count = int(rng.integers(1, self.objects + 1))
        # An object cut by its border would look cut in the middle of an image
        whole = np.flatnonzero(((source.boxes_xyxy > 0) & (source.boxes_xyxy < 1)).all(axis=1))
        for chosen in rng.permutation(whole)[:count]:
            rectangle = self._rectangle(source, int(chosen), rng)
            shape = self._shape(rectangle, size, rng)
            place = self._place(shape, size, boxes, hidden, rng)
            if place is None:
                continue
            x, y = place
            patch, inner = _cut(source, rectangle, int(chosen))
            _paste(pixels, patch.pixels, shape, inner, x, y)
            hidden = hidden + visible_shares(np.array([[x, y, x + shape.width, y + shape.height]]), boxes)[0]
            boxes = np.concatenate([boxes, patch.boxes_xyxy * _sides(shape.width, shape.height) + (x, y, x, y)])
            labels, rows = np.concatenate([labels, patch.labels]), np.concatenate([rows, patch.rows])
            hidden = np.concatenate([hidden, np.zeros(len(patch.labels))])
        shown = hidden <= 1 - MINIMUM_VISIBLE
        return Scene(pixels, boxes[shown] / extent, labels[shown], rows[shown], scene.lost + int((~shown).sum()))

    def _rectangle(self, source: Scene, chosen: int, rng: np.random.Generator) -> Rectangle:
        """Return the box with its margin, in pixels of the source image."""
        height, width = source.pixels.shape[:2]
        x1, y1, x2, y2 = source.boxes_xyxy[chosen] * _sides(width, height)
        margin = rng.uniform(0, self.margin)
        across, down = margin * (x2 - x1), margin * (y2 - y1)
        left, top = max(0, math.floor(x1 - across)), max(0, math.floor(y1 - down))
        return left, top, min(width, math.ceil(x2 + across)), min(height, math.ceil(y2 + down))

    def _shape(self, rectangle: Rectangle, size: Size, rng: np.random.Generator) -> Size:
        """Return the size of the patch when pasted."""
        scale = math.exp(log_uniform(self.scale, rng))
        width, height = rectangle[2] - rectangle[0], rectangle[3] - rectangle[1]
        scale = min(scale, size[0] / height, size[1] / width)
        return Size(max(1, round(height * scale)), max(1, round(width * scale)))

    def _place(
        self, shape: Size, size: Size, boxes: Boxes, hidden: Fractions, rng: np.random.Generator
    ) -> tuple[int, int] | None:
        """Return left and top of the place that hides least; None if each leaves an object half hidden."""
        room = (size[1] - shape[1] + 1, size[0] - shape[0] + 1)
        corners = rng.integers(0, room, (self.tries, 2))
        shares = visible_shares(np.hstack([corners, corners + np.array([shape[1], shape[0]])]), boxes)
        after = hidden + shares
        half = (shares > 0) & (after > self.covered) & (after <= 1 - MINIMUM_VISIBLE)
        fits = np.flatnonzero(~half.any(axis=1))
        if not len(fits):
            return None
        x, y = corners[fits[shares[fits].sum(axis=1).argmin()]].tolist()
        return x, y


Mixing = Mosaic | MixUp | CopyPaste


def mix(operations: Sequence[Mixing], own: Draw, other: Draw, size: Size, rng: np.random.Generator) -> Scene:
    """Return the item's image, of `size`, after those operations that take place, in order.

    `own` draws the item's image and `other` a new partner at each call, both by random numbers of `rng`.
    """
    for operation in operations:
        if rng.random() < operation.probability:
            scene = operation(own, other, size, rng)
            own = lambda _, scene=scene: scene  # noqa: E731 - the next operation takes it as it is
    return own(size)


def narrow(view: View, across: float, down: float, rng: np.random.Generator) -> None:
    """Cut the view's window at a random place to the aspect `across` : `down`, so that nothing is squeezed.

    Along the larger of the two all of the window stays.
    """
    x1, y1, x2, y2 = view.window
    scale = max(across, down)
    width, height = (x2 - x1) * across / scale, (y2 - y1) * down / scale
    x, y = x1 + rng.random() * (x2 - x1 - width), y1 + rng.random() * (y2 - y1 - height)
    view.window = (x, y, x + width, y + height)
    if view.keep is not None:
        # The recipe's rule was applied before this cut
        view.keep = view.keep & (view.visible() >= MINIMUM_VISIBLE)


def _sides(width: int, height: int) -> Fractions:
    return np.array([width, height, width, height], np.float64)


def _cut(source: Scene, rectangle: Rectangle, chosen: int) -> tuple[Scene, Fractions]:
    """Return what a rectangle of the source shows, and the chosen box, [4], as fractions of it."""
    height, width = source.pixels.shape[:2]
    x1, y1, x2, y2 = rectangle
    boxes = source.boxes_xyxy * _sides(width, height)
    inside = np.clip(boxes, (x1, y1, x1, y1), (x2, y2, x2, y2))
    shown = visible_shares(np.array([rectangle]), boxes)[0] >= MINIMUM_VISIBLE
    fractions = (inside - (x1, y1, x1, y1)) / _sides(x2 - x1, y2 - y1)
    patch = source.pixels[y1:y2, x1:x2]
    return Scene(patch, fractions[shown], source.labels[shown], source.rows[shown]), fractions[chosen]


def _paste(pixels: NDArray[np.uint8], patch: NDArray[np.uint8], shape: Size, inner: Fractions, x: int, y: int) -> None:
    """Scale a patch to `shape` and paste it in place, fading in from its border to the `inner` box."""
    scaled = np.asarray(resize_image(Image.fromarray(np.ascontiguousarray(patch)), shape), np.float32)
    height, width = shape
    x1, y1, x2, y2 = inner * _sides(width, height)
    cover = np.outer(_ramp(height, y1, height - y2), _ramp(width, x1, width - x2))[..., None]
    under = pixels[y : y + height, x : x + width]
    under[...] = np.rint(under + cover * (scaled - under))


def _ramp(count: int, before: float, after: float) -> NDArray[np.float32]:
    """Return weights, [count]: rising to 1 over the first `before` pixels, falling over the last `after`."""
    centres = np.arange(count) + 0.5
    rising, falling = centres / max(before, 1e-9), (count - centres) / max(after, 1e-9)
    return np.minimum(np.minimum(rising, falling), 1).astype(np.float32)
