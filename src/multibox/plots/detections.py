"""Images with boxes and sheets of them, drawn with Pillow alone.

Lines and letters scale with the image and shrink where there are many boxes (`_STYLES`). Colours are those of Okabe and
Ito, which people with any kind of colour vision tell apart. They repeat from the eighth class on.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from multibox.plots.labels import (
    Font,
    Placed,
    drawable_names,
    drawable_text,
    font_for,
    free_corner,
    height,
    place_labels,
    shortened,
    width,
)
from multibox.structures import Boxes, Detections, Labels, Sample

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442")
"""Class k is drawn in colour k modulo 7."""

_PAPER = "#ffffff"
_INK = "#000000"
_LETTERS = 0.03  # of the image's side
_LINE = 1 / 220


class _Style(NamedTuple):
    """Size and content of labels."""

    scale: float
    """Of letters and lines."""
    scores: bool = True
    names: bool = True
    """False writes class indices, which a legend explains."""


_STYLES = (
    _Style(1.0),
    _Style(0.75),
    _Style(0.6),
    _Style(0.6, scores=False),
    _Style(0.45, scores=False),
    _Style(0.45, scores=False, names=False),
)
"""From few boxes to crowds; the first style whose labels fit is taken, else the last."""
_MISSING, _HIDDEN = 0.02, 0.2
"""Labels of a style fit up to this share of labels without room and this share of an object hidden per label."""


@dataclass(frozen=True)
class _Mark:
    box: tuple[int, int, int, int]
    """First and last pixel drawn on, both inside the image."""
    label: int
    name: str
    suffix: str
    """Kept whole when the name is shortened."""
    dashed: bool

    @property
    def colour(self) -> str:
        return PALETTE[self.label % len(PALETTE)]


def draw_detections(image: Image.Image, detections: Detections, threshold: float = 0.0) -> Image.Image:
    """Return a copy of `image` with box, name and score of each detection, the best on top.

    Labels cover no other label and as little of the objects as possible. Where there are many, letters are smaller,
    then scores are left out, then class indices and a legend replace names. Names whose letters no font of this system
    has are drawn as "class INDEX".

    Args:
        image: The original image.
        detections: Boxes in pixels of `image`, cut at its border. Those under a pixel wide or high are left out.
        threshold: Lowest score to draw.
    """
    shown = np.flatnonzero(detections.scores >= threshold)
    shown = shown[np.argsort(-detections.scores[shown], kind="stable")]
    scores = [f" {score:.2f}" for score in detections.scores[shown].tolist()]
    plain = [False] * len(shown)
    return _marked(image, detections.boxes[shown], detections.labels[shown], detections.names, scores, plain)


def draw_sample(image: Image.Image, sample: Sample, class_names: Sequence[str]) -> Image.Image:
    """Return a copy of `image` with boxes and names of its ground truth, placed as in `draw_detections`.

    Boxes of difficult objects are dashed, those of crowds are labelled "(crowd)".

    Args:
        image: The sample's image.
        sample: Its boxes, cut and left out as in `draw_detections`.
        class_names: Name of each label.
    """
    suffixes = [" (crowd)" if crowd else "" for crowd in sample.crowd.tolist()]
    return _marked(image, sample.boxes_xyxy, sample.labels, class_names, suffixes, sample.difficult.tolist())


def contact_sheet(
    tiles: Sequence[Image.Image],
    columns: int | None = None,
    tile: int = 256,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Arrange images on one white sheet, row by row.

    Args:
        tiles: The images; each is scaled into a square and keeps its shape. Without images there is one empty square.
        columns: Squares per row; by default about as many as rows.
        tile: Side of the squares in pixels.
        captions: A line below each image, shortened in the middle if it is too long.

    Raises:
        ValueError: `columns` or `tile` is below 1, or there are not as many captions as tiles.
    """
    if tile < 1 or (columns is not None and columns < 1):
        raise ValueError(f"contact_sheet needs columns and tile of at least 1, got {columns} and {tile}")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"contact_sheet needs a caption for each of {len(tiles)} tiles, got {len(captions)}")
    count = max(len(tiles), 1)
    across = min(columns or math.ceil(math.sqrt(count)), count)
    gap = max(2, tile // 32)
    size = round(tile / 20)
    captions = None if captions is None else [drawable_text(caption) for caption in captions]
    line = 0 if captions is None else max(height(font_for(caption, size)) for caption in captions or [""])
    step_y = tile + line + gap
    sheet = Image.new("RGB", (across * (tile + gap) + gap, math.ceil(count / across) * step_y + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(tiles):
        left, top = gap + index % across * (tile + gap), gap + index // across * step_y
        fitted = _fitted(image, tile)
        sheet.paste(fitted, (left + (tile - fitted.width) // 2, top + (tile - fitted.height) // 2))
        if captions is not None:
            font = font_for(captions[index], size)
            text = shortened(captions[index], size, tile)
            indent = (tile - font.getlength(text)) / 2
            draw.text((left + indent, top + tile), text, _INK, font)
    return sheet


def _pixels(xyxy: Boxes | NDArray[np.float32], size: tuple[int, int]) -> list[tuple[int, int, int, int] | None]:
    """Return the first and last pixel inside each clipped box; None for boxes under a pixel wide or high."""
    corners = np.array(xyxy, np.float64).reshape(-1, 4)
    finite = np.isfinite(corners).all(axis=1)
    corners[~finite] = 0
    x1, y1, x2, y2 = np.clip(corners, 0, np.array([*size, *size])).T
    drawn = (x2 - x1 >= 1) & (y2 - y1 >= 1)
    left, top = (np.minimum(np.rint(low), side - 1) for low, side in ((x1, size[0]), (y1, size[1])))
    right, bottom = (np.maximum(np.rint(high) - 1, low) for high, low in ((x2, left), (y2, top)))
    rows = np.stack([left, top, right, bottom], axis=1).astype(int).tolist()
    return [(a, b, c, d) if fine else None for (a, b, c, d), fine in zip(rows, drawn.tolist(), strict=True)]


def _marked(
    image: Image.Image,
    boxes_xyxy: Boxes | NDArray[np.float32],
    labels: Labels,
    names: Sequence[str],
    suffixes: Sequence[str],
    dashed: Sequence[bool],
) -> Image.Image:
    """Return a copy of the image with boxes and labels, the most important first."""
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    drawable, classes = drawable_names(tuple(names)), list[int](labels.tolist())
    boxes = _pixels(boxes_xyxy, image.size)
    marks = [
        _Mark(box, label, drawable[label], suffix, dash)
        for box, label, suffix, dash in zip(boxes, classes, suffixes, dashed, strict=True)
        if box is not None
    ]
    if not marks:
        return drawn
    draw = ImageDraw.Draw(drawn)
    plan = _plan(marks, drawn.size)
    line = max(1, round(_side(drawn.size) * _LINE * plan.style.scale))
    for mark in reversed(marks):
        _outline(draw, mark, line)
    # After all boxes, so that no line crosses a label
    corners = plan.placed.corners.tolist()
    for mark, (left, top), (name, suffix), size in zip(marks, corners, plan.texts, plan.sizes, strict=True):
        if left >= 0 and (text := (name + suffix).strip()):
            _write(draw, text, (left, top), size, mark.colour, plan.letters)
    if not plan.style.names:
        _draw_legend(draw, marks, plan)
    return drawn


class _Plan(NamedTuple):
    """Texts and places of all labels."""

    style: _Style
    letters: int
    """Height of letters in pixels."""
    texts: list[tuple[str, str]]
    """Name and suffix of each label."""
    sizes: list[tuple[int, int]]
    """Width and height of each label in pixels."""
    placed: Placed
    legend: tuple[int, int, int, int] | None
    """x1, y1, x2, y2, the last two exclusive; None without a legend."""


def _plan(marks: Sequence[_Mark], image: tuple[int, int]) -> _Plan:
    """Return the first style whose labels fit, by bisection: each style needs less room than the one before it."""
    boxes = np.array([mark.box for mark in marks], np.float32)
    boxes[:, 2:] += 1

    @cache
    def plan(index: int) -> _Plan:
        return _plan_style(marks, boxes, image, _STYLES[index])

    def fits(index: int) -> bool:
        return plan(index).placed.missing <= _MISSING and plan(index).placed.hidden <= _HIDDEN

    # Most images have few boxes: the first style is worth the first try
    return plan(0 if fits(0) else 1 + bisect_left(range(1, len(_STYLES) - 1), True, key=fits))


def _plan_style(marks: Sequence[_Mark], boxes: NDArray[np.float32], image: tuple[int, int], style: _Style) -> _Plan:
    letters = round(_side(image) * _LETTERS * style.scale)
    texts = [_text(mark, style, letters, image[0]) for mark in marks]
    sizes = [_measured(name, suffix, letters) for name, suffix in texts]
    legend = None
    if not style.names:
        wide, tall = _legend_size(marks, letters)
        if wide <= image[0] / 2 and tall <= image[1] / 2:
            left, top = free_corner(boxes, (wide, tall), image)
            legend = (left, top, left + wide, top + tall)
    placed = place_labels(boxes, np.array(sizes, np.float32), image, [legend] if legend else [])
    return _Plan(style, letters, texts, sizes, placed, legend)


def _text(mark: _Mark, style: _Style, letters: int, image_width: int) -> tuple[str, str]:
    """Return the name, shortened to the image's width, and the suffix."""
    if not style.names:
        return str(mark.label), ""
    suffix = mark.suffix if style.scores or not mark.suffix[-1:].isdigit() else ""
    room = image_width - _measured("", suffix, letters)[0]
    return shortened(mark.name, letters, room), suffix


@lru_cache(maxsize=4096)
def _measured(name: str, suffix: str, letters: int) -> tuple[int, int]:
    """Return width and height of a label; cached, as names and scores repeat."""
    font = font_for(name, letters)
    return math.ceil(width(name, letters) + width(suffix, letters, name)) + 2 * _pad(font), height(font)


def _write(
    draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], size: tuple[int, int], colour: str, letters: int
) -> None:
    (left, top), (wide, tall) = corner, size
    font = font_for(text, letters)
    draw.rectangle((left, top, left + wide - 1, top + tall - 1), fill=colour)
    draw.text((left + _pad(font), top + tall / 2), text, _ink_on(colour), font, anchor="lm")


def _legend_rows(marks: Sequence[_Mark]) -> list[_Mark]:
    return sorted({mark.label: mark for mark in marks}.values(), key=lambda mark: mark.label)


def _legend_size(marks: Sequence[_Mark], letters: int) -> tuple[int, int]:
    sizes = [_measured(f"{mark.label} {mark.name}", "", letters) for mark in _legend_rows(marks)]
    return max(wide for wide, _ in sizes), sum(tall for _, tall in sizes)


def _draw_legend(draw: ImageDraw.ImageDraw, marks: Sequence[_Mark], plan: _Plan) -> None:
    """Write index and name of each class, one below the other."""
    if plan.legend is None:
        return
    left, top, right, _ = plan.legend
    for mark in _legend_rows(marks):
        text = f"{mark.label} {mark.name}"
        tall = _measured(text, "", plan.letters)[1]
        _write(draw, text, (left, top), (right - left, tall), mark.colour, plan.letters)
        top += tall


def _side(size: tuple[int, int]) -> float:
    return math.sqrt(size[0] * size[1])


def _pad(font: Font) -> int:
    return max(1, round(font.size / 6))


def _outline(draw: ImageDraw.ImageDraw, mark: _Mark, line: int) -> None:
    x1, y1, x2, y2 = mark.box
    line = max(1, min(line, (x2 - x1 + 1) // 4, (y2 - y1 + 1) // 4))  # a thicker line would hide a small object
    if not mark.dashed:
        draw.rectangle(mark.box, outline=mark.colour, width=line)
        return
    dash = 4 * line
    across = [
        (x, y, min(x + dash - 1, x2), y + line - 1) for x in range(x1, x2 + 1, 2 * dash) for y in (y1, y2 - line + 1)
    ]
    down = [
        (x, y, x + line - 1, min(y + dash - 1, y2)) for y in range(y1, y2 + 1, 2 * dash) for x in (x1, x2 - line + 1)
    ]
    for part in across + down:
        draw.rectangle(part, fill=mark.colour)


@cache
def _ink_on(colour: str) -> str:
    """Return black or white, whichever has the greater contrast (WCAG 2.2, relative luminance)."""
    channels = [channel / 255 for channel in ImageColor.getrgb(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _INK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _PAPER


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
