"""Pictures with boxes and sheets of them, drawn with Pillow alone.

Lines and letters scale with the picture. Colours are those of Okabe and Ito, which people with any kind of colour
vision tell apart; from the eighth class on they repeat, and the label tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from multibox.structures import Detections, Sample

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442")
"""Class k is drawn in colour k modulo 7."""

_PAPER = "#ffffff"
_INK = "#000000"
_SMALLEST_LETTERS = 9  # pixels; below that Pillow's own font cannot be read
_LETTERS = 0.032  # of the picture's side
_LINE = 1 / 220


@dataclass(frozen=True)
class _Mark:
    box: tuple[int, int, int, int]  # first and last pixel drawn on, both inside the picture
    colour: str
    name: str
    suffix: str  # stays whole when the name has to be shortened
    dashed: bool


def draw_detections(picture: Image.Image, detections: Detections, threshold: float = 0.0) -> Image.Image:
    """Return a copy of `picture` with a box, the name and the score of each detection, the best on top.

    Args:
        picture: The original picture, in whose pixels the boxes are.
        detections: What to draw; boxes are clipped to the picture, and what is then under a pixel wide or high is left
            out.
        threshold: Lowest score to draw.
    """
    shown = np.flatnonzero(detections.scores >= threshold)
    shown = shown[np.argsort(detections.scores[shown], kind="stable")]
    marks: list[_Mark] = []
    for row in shown:
        label = int(detections.labels[row])
        if (box := _pixels(detections.boxes[row], picture.size)) is not None:
            suffix = f" {detections.scores[row]:.2f}"
            marks.append(_Mark(box, _colour(label), detections.names[label], suffix, dashed=False))
    return _marked(picture, marks)


def draw_sample(picture: Image.Image, sample: Sample, class_names: Sequence[str]) -> Image.Image:
    """Return a copy of `picture` with the boxes and names of its labels.

    Boxes of difficult objects are dashed, those of crowds are labelled "(crowd)".

    Args:
        picture: The sample's picture, as shown.
        sample: Its labels; clipped and left out as in `draw_detections`.
        class_names: Name of each label.
    """
    marks = [
        _Mark(box, _colour(int(label)), class_names[int(label)], " (crowd)" if crowd else "", dashed=bool(difficult))
        for xyxy, label, difficult, crowd in zip(
            sample.boxes_xyxy, sample.labels.tolist(), sample.difficult, sample.crowd, strict=True
        )
        if (box := _pixels(xyxy, picture.size)) is not None
    ]
    return _marked(picture, marks)


def contact_sheet(
    tiles: Sequence[Image.Image],
    columns: int | None = None,
    tile: int = 256,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Lay pictures out on one white sheet, row by row.

    Args:
        tiles: The pictures; each is scaled into a square, keeping its shape. None at all give one empty square.
        columns: Squares a row; by default about as many as there are rows.
        tile: Side of the squares in pixels.
        captions: A line below each picture; one too long is shortened in the middle.

    Raises:
        ValueError: `columns` or `tile` is below 1, or there are more or fewer captions than tiles.
    """
    if tile < 1 or (columns is not None and columns < 1):
        raise ValueError(f"contact_sheet needs columns and tile of at least 1, got {columns} and {tile}")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"contact_sheet needs a caption for each of {len(tiles)} tiles, got {len(captions)}")
    count = max(len(tiles), 1)
    across = min(columns or math.ceil(math.sqrt(count)), count)
    gap = max(2, tile // 32)
    font = _font(tile / 20)
    line = 0 if captions is None else _height(font)
    step_y = tile + line + gap
    sheet = Image.new("RGB", (across * (tile + gap) + gap, math.ceil(count / across) * step_y + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(tiles):
        left, top = gap + index % across * (tile + gap), gap + index // across * step_y
        fitted = _fitted(picture, tile)
        sheet.paste(fitted, (left + (tile - fitted.width) // 2, top + (tile - fitted.height) // 2))
        if captions is not None:
            text = _shortened(captions[index], font, tile)
            indent = (tile - font.getlength(text)) / 2
            draw.text((left + indent, top + tile), text, _INK, font)
    return sheet


def _colour(label: int) -> str:
    return PALETTE[label % len(PALETTE)]


def _pixels(xyxy: NDArray[np.floating], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the first and last pixel inside the clipped box, or None where it is under a pixel wide or high."""
    if not np.isfinite(xyxy).all():
        return None
    width, height = size
    x1, y1, x2, y2 = np.clip(xyxy, 0, [width, height, width, height]).tolist()
    if x2 - x1 < 1 or y2 - y1 < 1:
        return None
    left, top = min(round(x1), width - 1), min(round(y1), height - 1)
    return left, top, max(round(x2) - 1, left), max(round(y2) - 1, top)


def _marked(picture: Image.Image, marks: Sequence[_Mark]) -> Image.Image:
    drawn = picture.convert("RGB")  # a copy, whatever the mode
    side = math.sqrt(drawn.width * drawn.height)
    font = _font(side * _LETTERS)
    draw = ImageDraw.Draw(drawn)
    for mark in marks:
        _outline(draw, mark, max(1, round(side * _LINE)))
    for mark in marks:  # after all boxes, so that no line crosses a label
        _label(draw, mark, font, drawn.size)
    return drawn


def _outline(draw: ImageDraw.ImageDraw, mark: _Mark, line: int) -> None:
    x1, y1, x2, y2 = mark.box
    line = max(1, min(line, (x2 - x1 + 1) // 4, (y2 - y1 + 1) // 4))  # or it would hide a small object
    if not mark.dashed:
        draw.rectangle(mark.box, outline=mark.colour, width=line)
        return
    dash = 4 * line
    for x in range(x1, x2 + 1, 2 * dash):
        end = min(x + dash - 1, x2)
        draw.rectangle((x, y1, end, y1 + line - 1), fill=mark.colour)
        draw.rectangle((x, y2 - line + 1, end, y2), fill=mark.colour)
    for y in range(y1, y2 + 1, 2 * dash):
        end = min(y + dash - 1, y2)
        draw.rectangle((x1, y, x1 + line - 1, end), fill=mark.colour)
        draw.rectangle((x2 - line + 1, y, x2, end), fill=mark.colour)


def _label(draw: ImageDraw.ImageDraw, mark: _Mark, font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> None:
    """Write the label above its box, or at the box's upper edge where there is no room; inside the picture always."""
    pad = max(1, round(font.size / 6))
    room = size[0] - 2 * pad
    text = (_shortened(mark.name, font, room - font.getlength(mark.suffix)) + mark.suffix).strip()
    width, height = math.ceil(font.getlength(text)) + 2 * pad, _height(font)
    if not text or width > size[0] or height > size[1]:
        return
    left = min(mark.box[0], size[0] - width)
    above = mark.box[1] - height
    top = above if above >= 0 else min(mark.box[1], size[1] - height)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=mark.colour)
    draw.text((left + pad, top + height / 2), text, _ink_on(mark.colour), font, anchor="lm")


def _font(size: float) -> ImageFont.FreeTypeFont:
    # Given a size, Pillow returns its built-in outline font: no file is needed.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=max(_SMALLEST_LETTERS, size)))


def _height(font: ImageFont.FreeTypeFont) -> int:
    return math.ceil(font.size * 1.3)


def _ink_on(colour: str) -> str:
    """Return black or white, whichever has the greater contrast (WCAG 2.2, relative luminance)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _INK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _PAPER


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Return `text` on one line, with an ellipsis for its middle if wider than `room`; empty if nothing fits."""
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    for kept in range(len(text) - 1, -1, -1):
        short = text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]
        if font.getlength(short) <= room:
            return short
    return ""


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
