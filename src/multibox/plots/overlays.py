"""Many boxes at once over an image, in colours that a legend below it explains."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from multibox.plots.labels import drawable_text, font_for, height, shortened

SMALLEST, LARGEST = 640, 1600
"""Longer side of an image after `fitted`: lines and letters need room."""
_PAPER, _INK = "#ffffff", "#000000"
_TEXT = 15
"""Height of letters in pixels."""


class Outline(NamedTuple):
    """How boxes are drawn."""

    colour: str
    width: int = 2
    dashed: bool = False
    halo: str | None = None
    """Colour of a wider line below, so that the box is seen on any ground."""


def fitted(image: Image.Image) -> tuple[Image.Image, float]:
    """Return the image as RGB, enlarged or reduced until its longer side has room for lines, and the scale."""
    longer = max(image.size)
    scale = min(max(longer, SMALLEST), LARGEST) / longer
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC), scale


def draw_outlines(image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], scale: float, outline: Outline) -> None:
    """Draw boxes, in pixels of the image before it was scaled, onto the image; they are cut at its border."""
    draw = ImageDraw.Draw(image)
    for box in boxes_xyxy:
        x1, y1, x2, y2 = (value * scale for value in box)
        x1, x2 = (min(max(x, 0), image.width - 1) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), image.height - 1) for y in (y1, y2))
        corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        if outline.halo is not None:
            draw.rectangle(corners, outline=outline.halo, width=outline.width + 2)
        if outline.dashed:
            _dash(draw, corners, outline)
        else:
            draw.rectangle(corners, outline=outline.colour, width=outline.width)


def write_numbers(image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], scale: float, colour: str) -> None:
    """Write 1, 2, 3 ... into the upper left corners of boxes, in white on `colour`."""
    draw = ImageDraw.Draw(image)
    for number, box in enumerate(boxes_xyxy, 1):
        font = font_for(str(number), _TEXT)
        x, y = max(0.0, box[0] * scale), max(0.0, box[1] * scale)
        wide, tall = font.getlength(str(number)) + 6, height(font)
        x, y = min(x, image.width - wide), min(y, image.height - tall)
        draw.rectangle((x, y, x + wide, y + tall), fill=colour)
        draw.text((x + 3, y), str(number), _PAPER, font)


def _dash(draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], outline: Outline) -> None:
    x1, y1, x2, y2 = (round(value) for value in corners)
    dash = 3 * outline.width + 2
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, y2):
            draw.line((x, y, min(x + dash, x2), y), outline.colour, outline.width)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, x2):
            draw.line((x, y, x, min(y + dash, y2)), outline.colour, outline.width)


def with_legend(image: Image.Image, title: str, rows: Sequence[tuple[Outline | None, str]]) -> Image.Image:
    """Return the image with a title above it, and below it a line per row: how it is drawn, and what it means.

    Args:
        image: The image.
        title: Shortened if it is too long.
        rows: Long texts are broken into lines; None draws no sample.
    """
    margin = _TEXT // 2
    indent = 3 * _TEXT
    lines: list[tuple[Outline | None, str]] = []
    for outline, text in rows:
        parts = _broken(text, image.width - indent - 2 * margin)
        lines += [(outline if number == 0 else None, part) for number, part in enumerate(parts)]
    title = drawable_text(title)
    tall = max(height(font_for(text, _TEXT)) for text in (title, *(text for _, text in lines)))
    sheet = Image.new("RGB", (image.width, image.height + (len(lines) + 1) * tall + 3 * margin), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin / 2), shortened(title, _TEXT, image.width - 2 * margin), _INK, font_for(title, _TEXT))
    sheet.paste(image, (0, tall + margin))
    top = tall + 2 * margin + image.height
    for outline, text in lines:
        if outline is not None:
            sample = (margin, top + tall // 4, margin + 2 * _TEXT, top + tall * 3 // 4)
            draw_outlines(sheet, [sample], 1.0, outline)
        draw.text((indent + margin, top), text, _INK, font_for(text, _TEXT))
        top += tall
    return sheet


def _broken(text: str, room: float) -> list[str]:
    """Return a text as lines that fit, broken between words."""
    lines = [""]
    for word in drawable_text(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font_for(longer, _TEXT).getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
