"""Work to time: images, and outputs of a network with few or many candidates."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from multibox.data.image_listing import list_images
from multibox.data.images import read_image
from multibox.structures import Size

Pixels = NDArray[np.uint8]
Images = Sequence[Pixels]
"""uint8 RGB [h, w, 3] each."""
SIZE = Size(375, 500)
"""As most of VOC's images have."""
QUALITY = 90
SPARSE = 300
"""Candidates per image at sparse load."""

Load = Literal["sparse", "dense"]
LOADS: tuple[Load, ...] = ("sparse", "dense")


class Outputs(NamedTuple):
    """Outputs of a network."""

    logits: NDArray[np.float32]
    """[b, a, k]"""
    offsets: NDArray[np.float32]
    """[b, a, 4]"""


def synthetic_images(count: int, size: Size = SIZE) -> list[Pixels]:
    """Return images of soft noise of `size` with shapes on it."""
    rng = np.random.default_rng(0)
    return [_draw(rng, size) for _ in range(count)]


def _draw(rng: np.random.Generator, size: Size) -> Pixels:
    wide_tall = (size.width, size.height)
    pixels = np.zeros((*size, 3))
    for share, cells in ((0.5, 4), (0.3, 16), (0.2, 64)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += share * np.asarray(noise.resize(wide_tall, Image.Resampling.BILINEAR))
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        extent = rng.uniform(0.1, 0.5, 2) * wide_tall
        corner = rng.uniform(0, 1, 2) * (wide_tall - extent)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([*corner, *(corner + extent)], fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    return np.asarray(image)


def folder_images(folder: Path, count: int) -> list[Pixels]:
    """Return `count` images of a folder, all in the size of the first, for batches have one size; few are repeated.

    Raises:
        ImageError: there are none, or one cannot be read.
    """
    found = [read_image(path) for path in list_images(folder)[:count]]
    size = found[0].size
    pixels = [np.asarray(image.resize(size, Image.Resampling.BILINEAR)) for image in found]
    return [pixels[index % len(pixels)] for index in range(count)]


def as_jpeg(image: Pixels) -> bytes:
    """Return an image as the bytes of a JPEG file."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def synthetic_outputs(
    load: Load, shape: tuple[int, int, int], score: Literal["softmax", "sigmoid"], threshold: float
) -> Outputs:
    """Return outputs [b, a, k] with 300 scores per image above `threshold`, or with all of them.

    Args:
        load: "sparse" (300, or one per anchor if those are fewer) or "dense" (all).
        shape: images, anchors, logits.
        score: turns logits into scores; the first logit of a softmax is the background.
        threshold: scores above it are candidates.
    """
    rng = np.random.default_rng(1)
    batch, anchors, width = shape
    first = int(score == "softmax")
    offsets = rng.normal(0, 0.5, (batch, anchors, 4)).astype(np.float32)
    if load == "dense":
        # Nearly equal logits, so that every softmax score is above the threshold; no background
        logits = rng.normal(0, 0.1, shape)
        logits[..., :first] = -20
        return Outputs(logits.astype(np.float32), offsets)
    logits = np.full(shape, -20.0)
    logits[..., :first] = 0
    some = min(SPARSE, anchors)
    where = np.argsort(rng.random((batch, anchors)), axis=1)[:, :some]
    label = rng.integers(first, width, (batch, some))
    least = np.log(threshold / (1 - threshold)) + 0.1
    logits[np.arange(batch)[:, None], where, label] = rng.uniform(least, 4, (batch, some))
    return Outputs(logits.astype(np.float32), offsets)


def count_candidates(outputs: Outputs, score: Literal["softmax", "sigmoid"], threshold: float) -> float:
    """Return the mean number of scores per image above the threshold, without background."""
    logits = outputs.logits.astype(np.float64)
    if score == "softmax":
        powers = np.exp(logits - logits.max(2, keepdims=True))
        scores = (powers / powers.sum(2, keepdims=True))[..., 1:]
    else:
        scores = 1 / (1 + np.exp(-logits))
    return float((scores > threshold).sum() / len(scores))
