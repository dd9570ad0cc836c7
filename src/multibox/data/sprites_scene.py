"""Scenes for the figures: procedural backgrounds, lumps that are no figures, light, shadow, sensor noise."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from multibox.data.sprites_figures import palette
from multibox.data.sprites_render import Floats, Lamp, Solid, cast, turn

Rng = np.random.Generator


def lamp(rng: Rng) -> Lamp:
    """Draw a light from above, from warm to cold, with its share of light from everywhere."""
    around, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 0.9)
    flat = math.sqrt(1 - height * height)
    direction = np.array([flat * math.cos(around), abs(flat * math.sin(around)), height], np.float32)
    warmth = rng.uniform(-0.12, 0.12)
    tint = np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    return Lamp(direction, tint * np.float32(rng.uniform(0.5, 0.95)), tint[::-1] * np.float32(rng.uniform(0.2, 0.5)))


def background(rng: Rng, size: int) -> Floats:
    """Return a backdrop [size, size, 3], 0 to 1: noise, stripes, tiles or a horizon, over two or three colours."""
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
    """Lay lumps and flat shapes in the figures' own colours over the canvas: what a detector must not fall for."""
    size = len(canvas)
    for _ in range(rng.integers(0, 5)):
        longest = size * rng.uniform(0.08, 0.45)
        coat = palette(int(rng.integers(classes))) if rng.random() < 0.7 else rng.uniform(0.1, 0.9, (3, 3))
        if rng.random() < 0.6:
            colour, cover = cast(_lump(rng, coat), turn(*rng.uniform(-3, 3, 3)), longest, light)
        else:
            colour, cover = _flat_shape(rng, int(longest), coat)
        height, width = cover.shape
        x, y = (int(rng.integers(-side // 3, size - side + side // 3 + 1)) for side in (width, height))
        paste(canvas, colour, cover, x, y)


def paste(canvas: Floats, colour: Floats, cover: Floats, x: int, y: int) -> None:
    """Lay premultiplied `colour` over the canvas with its left upper corner at (x, y), cut at the border."""
    size = len(canvas)
    height, width = cover.shape
    rows, columns = slice(max(y, 0), min(y + height, size)), slice(max(x, 0), min(x + width, size))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    own = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
    canvas[rows, columns] *= 1 - cover[own][..., None]
    canvas[rows, columns] += colour[own]


def shadow(canvas: Floats, cover: Floats, x: int, y: int, light: Lamp) -> None:
    """Darken what lies behind a figure, on the side away from the light."""
    height, width = cover.shape
    reach = max(2, round(0.12 * max(height, width)))
    room = ((2 * reach, 2 * reach), (2 * reach, 2 * reach))
    soft = Image.fromarray((np.pad(cover, room) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(reach * 0.6))
    dark = np.asarray(soft, np.float32) / 255 * 0.45
    left = x - 2 * reach - round(float(light.direction[0]) * reach)
    top = y - 2 * reach + round(float(light.direction[1]) * reach)
    paste(canvas, np.zeros((*dark.shape, 3), np.float32), dark, left, top)


def develop(rng: Rng, canvas: Floats) -> np.ndarray:
    """Return the canvas as a camera would: a little blur, exposure, noise; uint8."""
    picture = Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.7))))
    pixels = np.asarray(picture, np.float32) * np.float32(rng.uniform(0.75, 1.15))
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
    axes = np.stack([turn(*rng.uniform(-3, 3, 3)) * rng.uniform(0.2, 1.0, 3).astype(np.float32) for _ in range(parts)])
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
    outline = [
        (2 * longest + r * math.cos(a), 2 * longest + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)
    ]
    fine = Image.new("L", (4 * longest, 4 * longest))
    ImageDraw.Draw(fine).polygon(outline, fill=255)
    cover = np.asarray(fine.resize((longest, longest), Image.Resampling.BOX), np.float32) / 255
    colour = np.asarray(coat, np.float32)[rng.integers(3)] * np.float32(rng.uniform(0.5, 1.0))
    return cover[..., None] * colour, cover
