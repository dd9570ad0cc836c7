"""Fonts that have the letters of a text: Pillow's own, else one of the system's."""

import logging
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont

SMALLEST = 9
"""Pixels; smaller letters of Pillow's own font cannot be read."""
_MISSING = "\uffff"  # never a letter, so its picture is what a font draws for a letter that it lacks
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
    """Return class names as they can be drawn here: as they are, else without accents, else "class NUMBER".

    The last is logged once, since the names of an image without readable labels are no help.
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
    """Return the name, without its accents if no font here has them; empty where no font has its letters either."""
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
    """Return a font to try letters with, None where the file is none that Pillow can scale."""
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
