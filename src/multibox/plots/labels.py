"""Labels of boxes: a font that has the letters of a text, and a place for each label."""

import logging
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont

SMALLEST = 9
"""Pixels; smaller letters of Pillow's own font cannot be read."""
_MISSING = "\uffff"  # never a letter, so a font draws its box for missing letters
_PLAIN = ("regular", "sans", "gothic", "hei", "pingfang", "arial", "ms")  # in names of fonts that suit labels
_FANCY = ("bold", "italic", "oblique", "thin", "light", "black", "mono", "serif", "condensed", "emoji", "symbol")

_log = logging.getLogger("multibox")


def font_for(text: str, size: int) -> Font:
    """Return the first font that has every letter of `text`, `size` pixels high; Pillow's own where none has."""
    return _font(_file_for(text), max(SMALLEST, size))


def height(font: Font) -> int:
    """Return the height of a line in pixels."""
    return math.ceil(font.size * 1.3)


@lru_cache(maxsize=4096)
def width(text: str, size: int, beside: str = "") -> float:
    """Return the width of a text in pixels, in the font that it has on a line with `beside`."""
    return font_for(beside + text, size).getlength(text)


@lru_cache(maxsize=4096)
def shortened(text: str, size: int, room: float) -> str:
    """Return `text` on one line, with an ellipsis for its middle if wider than `room`; empty if nothing fits."""
    text = " ".join(text.split())
    if width(text, size) <= room:
        return text
    font = font_for(text, size)
    for kept in range(len(text) - 1, -1, -1):
        short = text[: kept - kept // 2] + "..." + text[len(text) - kept // 2 :]
        if font.getlength(short) <= room:
            return short
    return ""


@lru_cache(maxsize=16)
def drawable_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names as they can be drawn here: as they are, else without accents, else "class INDEX".

    The last is logged once per list of names.
    """
    drawn = tuple(_drawable(name) or f"class {index}" for index, name in enumerate(names))
    lost = [f"{name} is {new}" for name, new in zip(names, drawn, strict=True) if not _drawable(name)]
    if lost:
        _log.warning(
            "no font of this system has the letters of %d class names, so images show numbers instead (%s); install "
            "a font that has them, such as fonts-noto-cjk",
            len(lost),
            ", ".join(lost[:5]) + (" ..." if len(lost) > 5 else ""),
        )
    return drawn


@lru_cache(maxsize=4096)
def _file_for(text: str) -> str | None:
    return None if _has(None, text) else _system_font(_letters(text))


@lru_cache(maxsize=64)
def _font(file: str | None, size: int) -> Font:
    # Given a size, Pillow returns its built-in outline font: no file is needed
    return cast(Font, ImageFont.load_default(size=size)) if file is None else ImageFont.truetype(file, size)


def drawable_text(text: str) -> str:
    """Return a text as it can be drawn here: as it is, else without accents, else with ? for letters no font has."""
    return _drawable(text) or "".join(letter if _has(None, letter) else "?" for letter in text)


def extra_fonts(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the files of the system's fonts that texts need beside Pillow's own."""
    return tuple(dict.fromkeys(file for text in texts if (file := _file_for(text)) is not None))


def _drawable(name: str) -> str:
    """Return the name, without accents if no font has them; empty if no font has its letters either."""
    right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
    if right_to_left and not features.check("raqm"):
        return ""
    if _has(None, name) or _system_font(_letters(name)) is not None:
        return name
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return plain if _has(None, plain) else ""


def _letters(text: str) -> frozenset[str]:
    return frozenset(letter for letter in text if not letter.isspace())


def _has(file: str | None, text: Iterable[str]) -> bool:
    """Return whether a font file, or Pillow's own font, has every letter of `text`."""
    return all(letter.isspace() or _has_letter(file, letter) for letter in text)


@lru_cache(maxsize=4096)
def _has_letter(file: str | None, letter: str) -> bool:
    if file is None and "!" <= letter <= "~":
        return True
    font = _probe(file)
    if font is None:
        return False
    try:
        drawn, missing = (cast(Any, font.getmask(text)) for text in (letter, _MISSING))
        return drawn.size != missing.size or bytes(drawn) != bytes(missing)
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=8)
def _probe(file: str | None) -> Font | None:
    """Return a font to try letters with; None if Pillow cannot scale the file."""
    try:
        if file is None:
            return cast(Font, ImageFont.load_default(size=16))
        return ImageFont.truetype(file, 16, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _system_font(letters: frozenset[str]) -> str | None:
    """Return the file of the system's first font that has all the letters."""
    return next((file for file in _system_fonts() if _has(file, letters)), None)


@cache
def _system_fonts() -> tuple[str, ...]:
    """Return the system's font files, plain ones first."""
    files = {file for folder in _font_folders() for file in _font_files(folder)}
    return tuple(sorted(files, key=lambda file: (_fanciness(file), file)))


def _fanciness(file: str) -> int:
    name = Path(file).stem.lower().replace("sansserif", "sans")
    return sum(word in name for word in _FANCY) - any(word in name for word in _PLAIN)


def _font_files(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (str(Path(root, name)) for name in names if name.lower().endswith((".ttf", ".otf", ".ttc")))


def _font_folders() -> list[Path]:
    home = Path("~").expanduser()
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", "C:/Windows"))
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"))
        return [windows / "Fonts", local / "Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "fonts"
    return [own, home / ".fonts", *(Path(folder, "fonts") for folder in shared.split(":") if folder)]


Rectangles = NDArray[np.float32]
"""[N, 4]; x1, y1, x2, y2 in pixels, the last two exclusive."""

_ACROSS, _DOWN = np.array(
    # Share of the free width, and of the height: 0 left or top, 1 right or bottom, in units of the box
    [(0, -1), (1, -1), (0.5, -1), (0, 2), (1, 2), (0.5, 2), (0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0), (0.5, 1),
     (2, 0), (-1, 0), (2, 1), (-1, 1)],
    np.float32,
).T  # fmt: skip
"""Candidate places of a label: -1 lies before the box, 2 behind it, 0 to 1 within."""
_PREFERENCE = np.arange(len(_ACROSS), dtype=np.float32) * 0.004
"""Cost of each place by itself: readers look first above the box at its left."""
_MOST = 250
"""Labels per image; the first of them get a place."""


class Placed(NamedTuple):
    """Places of labels."""

    corners: NDArray[np.int64]
    """[N, 2]; left and top, -1 without a place."""
    missing: float
    """Share of the labels without a place."""
    hidden: float
    """Share of an object that a label covers on average; above 1 if it covers several."""


def place_labels(
    boxes: Rectangles, sizes: NDArray[np.float32], image: tuple[int, int], taken: Sequence[Sequence[float]] = ()
) -> Placed:
    """Place each label, the first ones first, where it covers no other label and least of the boxes.

    Args:
        boxes: [N, 4] inside the image.
        sizes: [N, 2]; width and height of the labels in pixels.
        image: Width and height.
        taken: Rectangles where no label may be.
    """
    count = len(boxes)
    corners = np.full((count, 2), -1, np.int64)
    if not count:
        return Placed(corners, 0.0, 0.0)
    wanted = min(count, _MOST)
    places = _candidates(boxes[:wanted], sizes[:wanted], image)
    cost = _covered(places.reshape(4, -1).T, boxes).reshape(wanted, -1) + _PREFERENCE
    # No label where it does not fit into the image at all
    cost[(sizes[:wanted] > np.array(image)).any(axis=1)] = np.inf
    for rectangle in taken:
        cost[_meets(places, np.array(rectangle, np.float32))] = np.inf
    hidden = 0.0
    # Label by label, since each choice takes room from the ones that follow
    for row in range(wanted):
        column = int(cost[row].argmin())
        price = float(cost[row, column])
        if price < np.inf:
            chosen = places[:, row, column]
            hidden += price
            corners[row] = chosen[:2]
            cost[row + 1 :][_meets(places[:, row + 1 :], chosen)] = np.inf
    placed = int((corners[:, 0] >= 0).sum())
    return Placed(corners, 1 - placed / count, hidden / max(placed, 1))


def free_corner(boxes: Rectangles, size: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
    """Return left and top of a rectangle of `size` in the corner of the image where it covers least of the boxes."""
    right, bottom = image[0] - size[0], image[1] - size[1]
    lefts, tops = np.array([(0, bottom), (right, bottom), (right, 0), (0, 0)], np.float32).T
    corners = np.stack([lefts, tops, lefts + size[0], tops + size[1]], axis=1)
    best = int(_covered(corners, boxes).argmin())
    return int(lefts[best]), int(tops[best])


def _candidates(boxes: Rectangles, sizes: NDArray[np.float32], image: tuple[int, int]) -> NDArray[np.float32]:
    """Return the places of each label [4, N, C], pushed into the image."""
    x1, y1, x2, y2 = boxes.T[..., None]
    width, height = sizes.T[..., None]
    left = _along(x1, x2, width, _ACROSS)
    top = _along(y1, y2, height, _DOWN)
    left = np.clip(np.rint(left), 0, np.maximum(image[0] - width, 0))
    top = np.clip(np.rint(top), 0, np.maximum(image[1] - height, 0))
    return np.stack([left, top, left + width, top + height])


def _along(
    low: NDArray[np.float32], high: NDArray[np.float32], size: NDArray[np.float32], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    within = low + (high - low - size) * share
    return np.where(share < 0, low - size, np.where(share > 1, high, within))


def _covered(places: Rectangles, boxes: Rectangles) -> NDArray[np.float32]:
    """Return what each rectangle covers of all boxes together, [N]; 1 is a whole box."""
    x1, y1, x2, y2 = (places[:, i, None] for i in range(4))
    width = np.minimum(x2, boxes[:, 2]) - np.maximum(x1, boxes[:, 0])
    height = np.minimum(y2, boxes[:, 3]) - np.maximum(y1, boxes[:, 1])
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    width *= height
    return width @ (1 / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def _meets(places: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rectangles [4, ...] share a pixel with `one` [4]."""
    x1, y1, x2, y2 = places
    return (x1 < one[2]) & (one[0] < x2) & (y1 < one[3]) & (one[1] < y2)
