"""Synthetic images of creatures, labelled to the pixel: like the Pikachu set of d2l-zh, but drawn by the code here."""

import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from multibox.data.convert import check_destination, write_dataset
from multibox.data.sprites_figures import Floats, Lamp, Solid, cast, class_name, figure, palette, turn
from multibox.errors import ConfigError
from multibox.structures import Boxes, Labels, Sample, Size, pack

Rng = np.random.Generator
Box = tuple[float, float, float, float]

TRAINING_SHARE = 0.9
_TRIES = 40
_LARGEST_SHARED = 0.2
"""The share of the smaller of two boxes that the other may cover."""


def lamp(rng: Rng) -> Lamp:
    """Draw a light from above, warm to cold, and the light that the surroundings reflect."""
    around, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 0.9)
    flat = math.sqrt(1 - height * height)
    direction = np.array([flat * math.cos(around), abs(flat * math.sin(around)), height], np.float32)
    warmth = rng.uniform(-0.12, 0.12)
    tint = np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    return Lamp(direction, tint * np.float32(rng.uniform(0.5, 0.95)), tint[::-1] * np.float32(rng.uniform(0.2, 0.5)))


def background(rng: Rng, size: int) -> Floats:
    """Draw a background [size, size, 3], 0 to 1: noise, stripes, tiles, a horizon or a ramp, in three colours."""
    colours = rng.uniform(0.08, 0.92, (3, 3)).astype(np.float32)
    colours = 0.6 * colours + 0.4 * colours.mean(axis=1, keepdims=True)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    kind = rng.integers(5)
    if kind == 0:
        mix = _noise(rng, size, 3, 5)
    elif kind == 1:
        angle, period = rng.uniform(0, math.pi), rng.uniform(0.04, 0.25)
        mix = _soft(np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period), rng.uniform(2, 12))
    elif kind == 2:
        period = rng.uniform(0.08, 0.3)
        mix = _soft(np.sin(x * 2 * math.pi / period) * np.sin(y * 2 * math.pi / period), rng.uniform(3, 20))
    elif kind == 3:
        mix = _soft(y - rng.uniform(0.3, 0.7) + 0.1 * (_noise(rng, size, 3, 3) - 0.5), 40)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        mix = 0.5 + (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    grain = _noise(rng, size, 8, 4)[..., None]
    base = colours[0] + (colours[1] - colours[0]) * np.clip(mix, 0, 1)[..., None]
    return np.clip(base + (colours[2] - base) * rng.uniform(0.1, 0.5) * grain, 0, 1).astype(np.float32)


def clutter(rng: Rng, canvas: Floats, classes: int, light: Lamp) -> None:
    """Paste distractors on the canvas: lumps and flat shapes, often in the figures' own colours."""
    size = len(canvas)
    for _ in range(rng.integers(0, 5)):
        longest = size * rng.uniform(0.08, 0.45)
        coat = palette(int(rng.integers(classes))) if rng.random() < 0.7 else rng.uniform(0.1, 0.9, (3, 3))
        if rng.random() < 0.6:
            colour, cover = cast(_lump(rng, coat), turn(*rng.uniform(-3, 3, 3).tolist()), longest, light)
        else:
            colour, cover = _flat_shape(rng, int(longest), coat)
        height, width = map(int, cover.shape)
        x, y = (int(rng.integers(-side // 3, size - side + side // 3 + 1)) for side in (width, height))
        paste(canvas, colour, cover, x, y)


def paste(canvas: Floats, colour: Floats, cover: Floats, x: int, y: int) -> None:
    """Paste premultiplied `colour` with its left upper corner at (x, y), cut at the border of the canvas."""
    own = (slice(max(-y, 0), max(len(canvas) - y, 0)), slice(max(-x, 0), max(len(canvas) - x, 0)))
    height, width = cover[own].shape
    under = canvas[max(y, 0) :, max(x, 0) :][:height, :width]
    under *= 1 - cover[own][..., None]
    under += colour[own]


def shadow(canvas: Floats, cover: Floats, x: int, y: int, light: Lamp) -> None:
    """Darken what lies behind a figure, on the side away from the light."""
    height, width = cover.shape
    reach = max(2, round(0.12 * max(height, width)))
    padded = Image.fromarray((np.pad(cover, 2 * reach) * 255).astype(np.uint8))
    dark = np.asarray(padded.filter(ImageFilter.GaussianBlur(reach * 0.6)), np.float32) / 255 * 0.45
    left = x - 2 * reach - round(float(light.direction[0]) * reach)
    top = y - 2 * reach + round(float(light.direction[1]) * reach)
    paste(canvas, np.zeros((*dark.shape, 3), np.float32), dark, left, top)


def develop(rng: Rng, canvas: Floats) -> np.ndarray:
    """Return the canvas as a camera would: a little blur, exposure, noise; uint8."""
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.7))))
    pixels = np.asarray(image, np.float32) * np.float32(rng.uniform(0.75, 1.15))
    pixels += rng.normal(0, rng.uniform(0.5, 4.0), pixels.shape).astype(np.float32)
    return (np.clip(pixels, 0, 255) + 0.5).astype(np.uint8)


def _noise(rng: Rng, size: int, cells: int, octaves: int) -> Floats:
    """Return value noise [size, size], about 0 to 1: random grids, each twice as fine and half as strong."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        grid = rng.random((min(size, cells << octave),) * 2, dtype=np.float32)
        fine = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        total += np.asarray(fine) * np.float32(0.5**octave)
    return total / np.float32(2 - 0.5 ** (octaves - 1))


def _soft(wave: Floats, steepness: float) -> Floats:
    return 0.5 + 0.5 * np.tanh(wave * np.float32(steepness))


def _lump(rng: Rng, coat: Floats) -> Solid:
    """Return a heap of one to five ellipsoids without a face."""
    parts = int(rng.integers(1, 6))
    turns = (turn(*rng.uniform(-3, 3, 3).tolist()) for _ in range(parts))
    axes = np.stack([rotation * rng.uniform(0.2, 1.0, 3).astype(np.float32) for rotation in turns])
    colours = np.asarray(coat, np.float32)[rng.integers(0, 3, parts)]
    centres = rng.uniform(-0.8, 0.8, (parts, 3)).astype(np.float32)
    return Solid(centres, axes, colours, np.full(parts, 0.25, np.float32))


def _flat_shape(rng: Rng, longest: int, coat: Floats) -> tuple[Floats, Floats]:
    """Return a star or polygon, colour and coverage."""
    longest = max(longest, 4)
    points = int(rng.integers(3, 9))
    inner = rng.uniform(0.3, 1.0)
    angles = np.arange(2 * points) * math.pi / points + rng.uniform(0, math.pi)
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0) * longest * 2
    outline = 2 * longest + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    fine = Image.new("L", (4 * longest, 4 * longest))
    ImageDraw.Draw(fine).polygon(outline.ravel().tolist(), fill=255)
    cover = np.asarray(fine.resize((longest, longest), Image.Resampling.BOX), np.float32) / 255
    colour = np.asarray(coat, np.float32)[rng.integers(3)] * np.float32(rng.uniform(0.5, 1.0))
    return cover[..., None] * colour, cover


def render(
    index: int, *, seed: int = 0, classes: int = 1, objects: tuple[int, int] = (1, 1), size: int = 256
) -> tuple[NDArray[np.uint8], Boxes, Labels]:
    """Draw image `index`: pixels [size, size, 3], boxes [N, 4] around what is visible, labels [N].

    It depends on the arguments alone, so images can be drawn in any order. Figures that find no room are left out.
    """
    rng = np.random.default_rng((seed, index))
    light = lamp(rng)
    canvas = background(rng, size)
    clutter(rng, canvas, classes, light)
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    largest: float = 0.6 if wanted <= 1 else max(0.2, 0.6 / wanted**0.4)
    boxes: list[Box] = []
    labels: list[int] = []
    for _ in range(wanted):
        label = int(rng.integers(classes))
        longest = size * np.exp(rng.uniform(float(np.log(0.15)), float(np.log(largest))))
        rotation = turn(rng.uniform(-0.9, 0.9), rng.uniform(-0.5, 0.5), rng.uniform(-np.pi, np.pi))
        colour, cover = cast(figure(label), rotation, float(longest), light)
        place = _place(rng, cover, boxes, size)
        if place is None:
            continue
        x, y, box = place
        shadow(canvas, cover, x, y, light)
        paste(canvas, colour, cover, x, y)
        boxes.append(box)
        labels.append(label)
    return develop(rng, canvas), np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def make_sprites(
    destination: str | Path,
    *,
    images: int = 1000,
    classes: int = 1,
    objects: tuple[int, int] = (1, 1),
    size: int = 256,
    seed: int = 0,
    format: str = "voc",
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write a data set of sprites, nine tenths for training and one for validation, byte for byte reproducible.

    Args:
        destination: a folder that does not exist yet, or is empty.
        images: images in both splits together, at least 2.
        classes: kinds of creature.
        objects: fewest and most creatures in an image.
        size: width and height in pixels, at least 32.
        seed: of all random draws.
        format: one of `FORMATS` that is written.
        progress: called with the number of images drawn so far.

    Raises:
        ConfigError: a number is out of its range, or the format is unknown.
        DataError: the destination is not empty.
    """
    if images < 2 or classes < 1 or size < 32 or not 0 <= objects[0] <= objects[1]:
        raise ConfigError(
            f"sprites need images >= 2, classes >= 1, size >= 32 and objects A-B with A <= B, "
            f"got {images}, {classes}, {size} and {objects[0]}-{objects[1]}"
        )
    destination = Path(destination)
    check_destination(destination)
    parent = destination.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".sprites-") as scratch, ThreadPoolExecutor() as pool:
        root = Path(scratch)
        draw = partial(_draw, root, seed=seed, classes=classes, objects=objects, size=size)
        samples: list[Sample] = []
        for sample in pool.map(draw, range(images)):
            samples.append(sample)
            progress(len(samples))
        cut = min(images - 1, max(1, round(images * TRAINING_SHARE)))
        names = [class_name(label) for label in range(classes)]
        splits = {
            split: pack(samples[part], root=root, format=format, split=split, class_names=names)
            for split, part in (("train", slice(cut)), ("val", slice(cut, None)))
        }
        write_dataset(splits, destination, format, link=True)


def _draw(folder: Path, index: int, *, seed: int, classes: int, objects: tuple[int, int], size: int) -> Sample:
    pixels, boxes, labels = render(index, seed=seed, classes=classes, objects=objects, size=size)
    path = folder / f"{index:05}.png"
    # Noise hardly compresses, and JPEG's bytes depend on the version of its library
    Image.fromarray(pixels).save(path, compress_level=1)
    none = np.zeros(len(labels), np.bool_)
    return Sample(path.name, path, boxes, labels, none, none, Size(size, size))


def _place(rng: Rng, cover: Floats, boxes: Sequence[Box], size: int) -> tuple[int, int, Box] | None:
    """Return left, top and visible box of a place in the image that hides no other figure; None if none is found."""
    rows, columns = (np.flatnonzero((cover > 0.5).any(axis=axis)) for axis in (1, 0))
    height, width = map(int, cover.shape)
    if not len(rows) or width > size or height > size:
        return None
    for _ in range(_TRIES):
        x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        box = (float(x + columns[0]), float(y + rows[0]), float(x + columns[-1] + 1), float(y + rows[-1] + 1))
        if all(_shared(box, other) <= _LARGEST_SHARED for other in boxes):
            return x, y, box
    return None


def _shared(a: Box, b: Box) -> float:
    """Return the share of the smaller box that both cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller
