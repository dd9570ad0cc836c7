"""One VOC annotation as XML: read it, write it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from multibox.data.formats.common import ADVICE
from multibox.errors import DataError, MissingExtraError


@dataclass(frozen=True)
class AnnotatedObject:
    """One object as its XML says it."""

    name: str
    box_xyxy: tuple[float, float, float, float]
    difficult: bool = False
    crowd: bool = False
    """Not VOC's: our own element, so that COCO's crowds survive; such an object is also marked difficult."""


@dataclass(frozen=True)
class Annotation:
    """One XML file."""

    filename: str
    size: tuple[int, int] | None
    objects: list[AnnotatedObject] = field(default_factory=list)


def read_annotation(path: Path) -> Annotation:
    """Read one VOC XML file.

    Raises:
        DataError: when it is no XML or no VOC annotation, naming the file and the object.
        MissingExtraError: without defusedxml.
    """
    tree = _parsed(path)
    if tree.tag != "annotation":
        raise DataError(f"{path} is no VOC label file: expected <annotation> outermost, got <{tree.tag}>; {ADVICE}")
    things = [_read_object(thing, number, path) for number, thing in enumerate(tree.findall("object"), start=1)]
    return Annotation((tree.findtext("filename") or "").strip(), _read_size(tree.find("size")), things)


def read_names(path: Path) -> set[str]:
    """Return the class names in one VOC XML file; none where the file is broken."""
    try:
        return {name for thing in _parsed(path).iterfind("object") if (name := (thing.findtext("name") or "").strip())}
    except DataError:
        return set()


def write_annotation(path: Path, name: str, size: tuple[int, int], objects: list[AnnotatedObject]) -> None:
    """Write one VOC XML file; a number is written so that reading gives it back exactly."""
    lines = [
        "<annotation>",
        f"  <folder>{escape(path.parent.name)}</folder>",
        f"  <filename>{escape(name)}</filename>",
        f"  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for thing in objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), thing.box_xyxy, strict=True)
        box = "".join(f"<{tag}>{number_text(value)}</{tag}>" for tag, value in corners)
        lines += [
            "  <object>",
            f"    <name>{escape(thing.name)}</name>",
            "    <pose>Unspecified</pose>",
            "    <truncated>0</truncated>",
            f"    <difficult>{int(thing.difficult or thing.crowd)}</difficult>",
            *(["    <crowd>1</crowd>"] if thing.crowd else []),
            f"    <bndbox>{box}</bndbox>",
            "  </object>",
        ]
    path.write_text("\n".join([*lines, "</annotation>", ""]), encoding="utf-8")


def number_text(value: float) -> str:
    """Write 78.0 as "78" and every other number in the fewest digits that read back as the same."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)


def _parsed(path: Path) -> Any:
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import ParseError, fromstring
    except ImportError:
        raise MissingExtraError("Reading VOC XML", "train") from None
    try:
        data = path.read_bytes()
        # defusedxml is ten times slower; without "<!" there is no DTD, so nothing for it to defuse.
        plain = b"<!" not in data and b"\0" not in data
        return ElementTree.fromstring(data) if plain else fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DataError(f"{path} is no XML ({error}); {ADVICE}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {ADVICE}") from None


def _read_object(thing: Any, number: int, path: Path) -> AnnotatedObject:
    name = (thing.findtext("name") or "").strip()
    box = thing.find("bndbox")
    if not name or box is None:
        raise DataError(f"{path}, object {number}: no <{'bndbox' if name else 'name'}>; {ADVICE}")
    corners: list[float] = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = box.findtext(tag)
        try:
            corners.append(float(text))
        except (TypeError, ValueError):
            raise DataError(f"{path}, object {number}: <{tag}> should be a number, got {text!r}; {ADVICE}") from None
    crowd = _flag(thing, "crowd")
    x1, y1, x2, y2 = corners
    return AnnotatedObject(name, (x1, y1, x2, y2), _flag(thing, "difficult") and not crowd, crowd)


def _flag(thing: Any, tag: str) -> bool:
    return (thing.findtext(tag) or "0").strip().lower() in ("1", "true", "yes")


def _read_size(size: Any) -> tuple[int, int] | None:
    try:
        width, height = (int(float(size.findtext(tag))) for tag in ("width", "height"))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None
