"""JSON and XML as annotation tools write them: which tool wrote a file, and reading one that may be hostile."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from multibox.data.formats.text import (
    ADVICE,
    SKIP,
    decoded,
    files_below,
    is_hidden,
    is_list,
    is_mapping,
    is_split_name,
    name_splits,
    read_text,
    split_in,
)
from multibox.data.left_out import Reason
from multibox.errors import DataError, MissingExtraError
from multibox.structures import Size

JsonKind = Literal["coco", "labelme", "createml", "labelstudio", ""]

_HEAD = 1 << 16
# A string that the end of the head cuts runs to that end: looking for another beginning inside it would take long.
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*+)(?:"\s*(:)?|\\?\Z)|[{}\[\]]', re.DOTALL)
_ENCODING = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)")
_DECLARATION = re.compile(r"^\s*<\?xml.*?\?>", re.DOTALL)
_SEVERAL_BYTES = ("gb", "big5", "shift_jis", "shift-jis", "sjis", "cp932", "euc", "x-euc")
_LIST_ENDS = frozenset({"data", "annotation_id"})
_OBJECT_ENDS = frozenset({"images", "categories", "shapes", "imagePath", "imageData"})
"""Keys that tell the tool by themselves."""
_MOST_PIXELS = 1 << 31
"""Along a side: what declares more is no size but a mistake."""
_IMAGE_KEYS = {"image", "imagefilename", "image_filename", "filename"}
NO_SIZE = Reason(
    "image has a size in its labels that is none, such as 0, and was passed over",
    "images have sizes in their labels that are none, such as 0, and were passed over",
)
_REGION = re.compile(r'"(rectanglelabels|polygonlabels|brushlabels|ellipselabels|original_width)"\s*:')


def start_of(path: Path, count: int = _HEAD) -> str:
    """Return the beginning of a text file in whatever encoding, for a look at it; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(count)
    except OSError:
        return ""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace").lstrip()
    # Without a byte order mark UTF-16 shows by its zeros; the names that are looked for are ASCII
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"").decode("utf-8", errors="replace").lstrip()


def json_kind(path: Path) -> JsonKind:
    """Return which tool wrote a JSON file, by the keys at its beginning; "" if none that is known."""
    try:
        state = path.stat()
    except OSError:
        return ""
    return _kind_of(str(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _kind_of(path: str, size: int, changed: int) -> JsonKind:
    # Several recognisers ask this about each JSON file of a folder, of which there is one per image with some tools
    head = start_of(Path(path))
    if head.startswith("["):
        keys = _first_keys(head, _LIST_ENDS)
        if "data" in keys or "annotation_id" in keys or _REGION.search(head):
            return "labelstudio"
        return "createml" if keys & _IMAGE_KEYS and keys & {"annotations", "annotation"} else ""
    keys = _first_keys(head, _OBJECT_ENDS) if head.startswith("{") else set[str]()
    if keys & {"images", "categories"} or ("annotations" in keys and "shapes" not in keys):
        return "coco"
    return "labelme" if keys & {"shapes", "imagePath", "imageData"} else ""


def _first_keys(head: str, enough: frozenset[str]) -> set[str]:
    """Return the keys of the outermost object, or of the first object in the outermost list, up to one of `enough`."""
    keys: set[str] = set()
    wanted, depth = (2 if head.startswith("[") else 1), 0
    for token in _TOKEN.finditer(head):
        text = token[0][0]
        if text == '"':
            if token[2] and depth == wanted:
                keys.add(token[1])
                if token[1] in enough:
                    break
        elif text in "{[":
            depth += 1
        else:
            depth -= 1
            if depth < wanted and (keys or depth < 1):
                break
    return keys


def load_json(path: Path, tell: Callable[[Path, str], None] | None = None) -> Any:
    """Read a JSON file; `tell` is told of an encoding that was guessed.

    Raises:
        DataError: it cannot be read or is no JSON.
    """
    text = read_text(path, tell)
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{path} is nested too deep for a label file; get it again or export it anew") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); get the file again or export it anew") from None


def xml_root(path: Path) -> str:
    """Return the name of the outermost element of an XML file; "" if it shows none."""
    match = re.search(r"<([A-Za-z_][\w.-]*)[\s>/]", start_of(path, 2000))
    return match[1] if match else ""


def parse_xml(data: bytes, where: str, tell: Callable[[str], None] | None = None) -> Any:
    """Read XML from its bytes, in the encoding that it declares; external and expanding entities are refused.

    Args:
        data: the bytes.
        where: names them in errors.
        tell: called with the encoding where that was guessed, because it is another than declared or UTF-8.

    Raises:
        DataError: it is no XML, or holds what may be an attack.
    """
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import ParseError, fromstring
    except ImportError:
        raise MissingExtraError("Reading XML", "train") from None
    broken = (ParseError, DefusedXmlException, ValueError, LookupError)
    try:
        # defusedxml is ten times slower; without "<!" there is no DTD, so nothing for it to defuse.
        plain = b"<!" not in data and b"\0" not in data
        return ElementTree.fromstring(data) if plain else fromstring(data)
    except broken as error:
        if isinstance(error, DefusedXmlException):
            raise DataError(
                f"{where} is no XML that is taken: it declares entities or refers to other files, which may be an "
                f"attack; write its text without them, or {SKIP}"
            ) from None
        problem = DataError(f"{where} is no XML ({error}); {ADVICE}")
    text, guess = _in_its_encoding(data, where)
    if text is not None:
        try:
            tree = fromstring(_DECLARATION.sub("", text, count=1))
        except broken:
            raise problem from None
        if guess and tell is not None:
            tell(guess)
        return tree
    raise problem


def _in_its_encoding(data: bytes, where: str) -> tuple[str | None, str]:
    """Return the text of XML that expat does not read, and the encoding if it was guessed; None if UTF-8 is no help.

    Expat knows no encoding of several bytes per character, such as GB 2312, but UTF-8 and UTF-16.
    """
    declared = _ENCODING.match(data[:200])
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    if name.startswith(_SEVERAL_BYTES):
        with suppress(UnicodeError, LookupError):
            return data.decode("gb18030" if name.startswith("gb") else name), ""
    try:
        data.decode("utf-8")
        if b"\0" not in data and name in ("utf-8", "utf8"):
            return None, ""  # it is what it says, and broken all the same
    except UnicodeError:
        pass
    try:
        text, guess = decoded(data, where)
    except DataError:
        return None, ""
    return text, guess or ("" if declared is None else "UTF-8, not as it declares" * (b"\0" not in data))


def number(value: Any) -> float:
    """Return a number of a label file, written as a number or as its text.

    Raises:
        ValueError, TypeError or OverflowError: it is none, such as true, null or a list.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    return float(value)


def shown(value: Any, most: int = 60) -> str:
    """Return a value of a label file for a message: on one line, and not more than `most` characters of it."""
    text = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= most else f"{text[:most]}..."


def size_in(held: Any, height: str = "height", width: str = "width") -> Size | None:
    """Return the size of an image that a mapping holds under two keys; None where it is none."""
    try:
        size = Size(int(number(held[height])), int(number(held[width])))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 and max(size) < _MOST_PIXELS else None


def around(points: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the box around points (x, y); one that is not finite makes a box of NaN.

    Raises:
        ValueError: there are none, or one is no pair.
    """
    pairs = [(x, y) for x, y in points]
    if not all(math.isfinite(value) for pair in pairs for value in pair):
        return (math.nan, math.nan, math.nan, math.nan)
    xs, ys = zip(*pairs, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def around_turned(
    x: float, y: float, width: float, height: float, degrees: float, about: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return the box around a rectangle that is turned clockwise, as seen on the screen, about a point."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    moved = [(left - about[0], top - about[1]) for left, top in corners]
    return around((about[0] + cos * dx - sin * dy, about[1] + sin * dx + cos * dy) for dx, dy in moved)


def around_ellipse(
    cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0
) -> tuple[float, float, float, float]:
    """Return the box around an ellipse whose first axis is turned by `degrees`."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def is_textual(value: Any) -> bool:
    """Return whether a value read from JSON is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def items(value: Any, key: str) -> list[Any]:
    """Return the list that an object holds under a key; empty where there is none."""
    held: Any = value.get(key) if is_mapping(value) else None
    return held if is_list(held) else []


@dataclass(frozen=True)
class LabelFiles:
    """The label files of one split, and the folder below which their names count."""

    base: Path
    files: list[Path]


def label_files(
    folder: Path,
    suffixes: tuple[str, ...],
    fits: Callable[[Path], bool],
    places: Sequence[str],
    *,
    per_image: bool,
    declared: bool = False,
) -> dict[str, LabelFiles]:
    """Return the label files of each split of a folder: beside the images, in a folder of `places`, or by split.

    Args:
        folder: the data set.
        suffixes: endings of the label files.
        fits: whether a file is one of the format, by a look at its beginning.
        places: names of the folders that may hold label files.
        per_image: whether there is a file for each image, so that a file's name says nothing about its split.
        declared: whether another file makes this folder a data set, so that folders of any name are its splits.
    """
    for place, files, folders in _and_inside(folder, suffixes, places):
        held = _fitting(place, files, suffixes, fits, per_image)
        if held and per_image:
            return {_split_of(folder): LabelFiles(place, held)}
        if held:
            return _by_name(held, place, folder)
        parts = {part.name: part for part in folders if declared or is_split_name(split_in(part.name))}
        found = {
            name: files for name, part in parts.items() if (files := _inside(part, suffixes, fits, places, per_image))
        }
        if found:
            named = name_splits({name: parts[name] for name in found})
            return {name: found[part.name] for name, part in named.items()}
    return {}


def _and_inside(
    folder: Path, suffixes: tuple[str, ...], places: Sequence[str]
) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Yield a folder and then those of the `places` in it, each with its label files and its folders."""
    files, folders = _scan(folder, suffixes)
    yield folder, files, folders
    inside = {part.name.lower(): part for part in folders}
    for name in places:
        if name in inside:
            yield inside[name], *_scan(inside[name], suffixes)


def _scan(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the files with these endings and the folders in a folder, which is listed once: it may hold a million."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(suffixes) and entry.is_file():
                    files.append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
    except OSError:
        return [], []
    shown_files, shown_folders = ([name for name in sorted(names) if not is_hidden(name)] for names in (files, folders))
    return [folder / name for name in shown_files], [folder / name for name in shown_folders]


def _inside(
    part: Path, suffixes: tuple[str, ...], fits: Callable[[Path], bool], places: Sequence[str], per_image: bool
) -> LabelFiles | None:
    """Return the files of a split's folder, which may lie in folders of any name below it, where each has an image."""
    deeper = False
    for place, files, folders in _and_inside(part, suffixes, places):
        if held := _fitting(place, files, suffixes, fits, per_image):
            return LabelFiles(place, held)
        deeper = deeper or bool(folders)
    below = [part / name for name in files_below(part, *suffixes)] if per_image and deeper else []
    return LabelFiles(part, below) if any(fits(file) for file in below[:10]) else None


def _fitting(
    folder: Path, files: list[Path], suffixes: tuple[str, ...], fits: Callable[[Path], bool], per_image: bool
) -> list[Path]:
    if not per_image:
        return [file for file in files if fits(file)]
    # A few are enough: a reader opens each of them anyway, and passes over what is of another kind.
    known = any(fits(file) for file in files[:10])
    return [folder / name for name in files_below(folder, *suffixes)] if known else []


def _by_name(files: list[Path], place: Path, folder: Path) -> dict[str, LabelFiles]:
    if len(files) > 1 and all(is_split_name(split_in(file.stem)) for file in files):
        named = name_splits({file.stem: file for file in files})
        return {name: LabelFiles(place, [file]) for name, file in named.items()}
    return {_split_of(folder, *(files if len(files) == 1 else ())): LabelFiles(place, files)}


def _split_of(folder: Path, *files: Path) -> str:
    names = [*(split_in(file.stem) for file in files), folder.name]
    return next((name for name in names if is_split_name(name)), "all")


def split_of_file(file: Path) -> str:
    """Return the split that a label file given by itself holds, by its name or its folder's, else "all"."""
    return _split_of(file.parent, file)
