"""What a view shows of an image: one crop and resize, one change of colours, one flip.

The resize is PyTorch's for bytes, which gives Pillow's pixels (a test holds both to one grey level) in a fifth of the
time. It takes whole pixels, so windows are moved to whole pixels first (`snap`), and boxes follow the moved window.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from multibox.data.augmentation_ops import SAME_COLOURS, Fractions, View
from multibox.structures import Boxes, Size

Pixels = NDArray[np.uint8]
_TOGETHER = 16384
"""Pixels whose colours change at a time: few enough for the cache, and for the matrix product to stay in its thread."""


def snap(view: View, shape: Size) -> None:
    """Move the window's edges inside the image to whole pixels of its decoded form, of `shape`, at least one wide."""
    x1, y1, x2, y2 = view.window
    if view.resample == Image.Resampling.BILINEAR:
        x1, x2 = _snap(x1, x2, view.width, shape.width)
        y1, y2 = _snap(y1, y2, view.height, shape.height)
        view.window = (x1, y1, x2, y2)


def _snap(low: float, high: float, length: int, pixels: int) -> tuple[float, float]:
    if low >= length or high <= 0:
        return low, high
    scale = pixels / length
    first = min(round(low * scale), pixels - 1)
    last = max(round(high * scale), first + 1, 1)
    return (low if low <= 0 else first / scale), (high if high >= length else last / scale)


def render(pixels: Pixels, view: View, size: Size, fill: tuple[int, int, int]) -> Pixels:
    """Return the pixels that the view shows, uint8 RGB [h, w, 3] of `size`, with `fill` beyond the image.

    Args:
        pixels: [H, W, 3], the whole image, perhaps shrunk; not changed. What is returned may be a part of it.
        view: in pixels of the original image.
        size: of what is returned.
        fill: colour beyond the image, before the view's change of colours.
    """
    around = np.array([[fill]], np.uint8)
    if view.colour is not SAME_COLOURS:
        around = recolour(around, view.colour)
    shown = _crop_and_resize(pixels, view, size, around[0, 0])
    flipped = [axis for axis, flip in ((1, view.mirror), (0, view.upend)) if flip]
    # NumPy would copy a mirrored image byte by byte
    return torch.as_tensor(shown).flip(flipped).numpy() if flipped else shown


def recolour(pixels: Pixels, colour: Fractions) -> Pixels:
    """Return colour[:, :3] @ rgb + colour[:, 3] of every pixel, rounded and cut to 0 to 255.

    As Pillow's `convert` with a matrix but for one grey level now and then, and other threads run meanwhile.

    Args:
        pixels: [h, w, 3]
        colour: [3, 4]
    """
    flat = np.ascontiguousarray(pixels).reshape(-1, 3)
    changed, weights = np.empty_like(flat), np.ascontiguousarray(colour[:, :3].T, np.float32)
    shift = (colour[:, 3] + 0.5).astype(np.float32)
    # One number for all channels is added in a third of the time
    added = shift[0] if (shift == shift[0]).all() else np.tile(shift, (min(_TOGETHER, len(flat)), 1))
    for start in range(0, len(flat), _TOGETHER):
        part = flat[start : start + _TOGETHER].astype(np.float32) @ weights
        part += added if added.ndim == 0 else added[: len(part)]
        np.clip(part, 0, 255, out=part)
        np.copyto(changed[start : start + _TOGETHER], part, casting="unsafe")
    return changed.reshape(pixels.shape)


def project(view: View, boxes_xyxy: Boxes) -> Boxes:
    """Return boxes as fractions 0 to 1 of the view, cut at its border; some may have lost their area."""
    x1, y1, x2, y2 = view.window
    size = np.array([x2 - x1, y2 - y1] * 2)
    inside = np.clip((boxes_xyxy - (x1, y1, x1, y1)) / size, 0.0, 1.0)
    if view.mirror:
        inside[:, [0, 2]] = 1 - inside[:, [2, 0]]
    if view.upend:
        inside[:, [1, 3]] = 1 - inside[:, [3, 1]]
    return inside


def resize_pixels(pixels: Pixels, size: Size) -> Pixels:
    """Resize to `size` as `images.resize_image` does: bilinear, half-pixel centres, antialiased when shrinking."""
    if pixels.shape[:2] == size:
        return pixels
    # In this order of `[None]` and `permute` PyTorch sees that colours are innermost, and returns them so
    image = torch.as_tensor(pixels)[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(image, size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def _crop_and_resize(pixels: Pixels, view: View, size: Size, fill: Pixels) -> Pixels:
    """Return what the window shows, in its colours, with `fill` [3] as it is beyond the image."""
    x1, y1, x2, y2 = view.window
    inner = (max(x1, 0.0), max(y1, 0.0), min(x2, float(view.width)), min(y2, float(view.height)))
    height, width = size
    # Patches of an expanded image may show almost nothing of it, which cannot be resized
    if min(inner[2] - inner[0], inner[3] - inner[1]) < 0.01:
        return np.full((height, width, 3), fill, np.uint8)
    across, down = width / (x2 - x1), height / (y2 - y1)
    # The part inside is pasted at whole pixels, so boxes are off by half a pixel at most
    left, right = round((inner[0] - x1) * across), round((inner[2] - x1) * across)
    top, bottom = round((inner[1] - y1) * down), round((inner[3] - y1) * down)
    shape = Size(max(1, bottom - top), max(1, right - left))
    shown = _resized_part(pixels, view, inner, shape)
    if view.distortions:
        # Caffe SSD distorts before the resize, at full size; after it this costs a fraction
        image = Image.fromarray(shown)
        for distort in view.distortions:
            image = distort(image)
        shown = np.array(image)
    if view.colour is not SAME_COLOURS:
        shown = recolour(shown, view.colour)
    if shape == size:
        return shown
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = np.full((width, 3), fill, np.uint8)
    place = canvas[top : top + shape.height, left : left + shape.width]
    place[:] = shown[: place.shape[0], : place.shape[1]]
    return canvas


def _resized_part(pixels: Pixels, view: View, inner: tuple[float, float, float, float], shape: Size) -> Pixels:
    """Return the part `inner` of the image, in pixels of the original, at `shape`."""
    down, across = pixels.shape[0] / view.height, pixels.shape[1] / view.width
    x1, y1, x2, y2 = inner[0] * across, inner[1] * down, inner[2] * across, inner[3] * down
    if view.resample == Image.Resampling.BILINEAR:
        # Whole pixels already, but for rounding
        left, top = min(round(x1), pixels.shape[1] - 1), min(round(y1), pixels.shape[0] - 1)
        part = pixels[top : max(round(y2), top + 1), left : max(round(x2), left + 1)]
        return resize_pixels(part, shape)
    box = (x1, y1, min(x2, pixels.shape[1]), min(y2, pixels.shape[0]))
    return np.array(Image.fromarray(pixels).resize((shape.width, shape.height), view.resample, box=box))
