"""PASCAL VOC: one XML file an image, lists of images in ImageSets/Main; also the trees people make of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder
from multibox.data.formats.index import Columns
from multibox.data.formats.text import (
    ADVICE,
    SKIP,
    ReadOptions,
    child,
    files_below,
    files_in,
    folders_in,
    in_order,
    is_split_name,
    name_splits,
    read_lines,
    stem_of,
)
from multibox.errors import DataError, MissingExtraError
from multibox.structures import Dataset, Size


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
    size: Size | None
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


def write_annotation(path: Path, name: str, size: Size, objects: list[AnnotatedObject]) -> None:
    """Write one VOC XML file; a number is written so that reading gives it back exactly."""
    lines = [
        "<annotation>",
        f"  <folder>{escape(path.parent.name)}</folder>",
        f"  <filename>{escape(name)}</filename>",
        f"  <size><width>{size.width}</width><height>{size.height}</height><depth>3</depth></size>",
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


def _read_size(size: Any) -> Size | None:
    try:
        width, height = (int(float(size.findtext(tag))) for tag in ("width", "height"))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return Size(height, width) if width > 0 and height > 0 else None


_XML_FOLDERS = ("Annotations", "xmls", "xml", "labels")
_CLASS_LIST_ENDS = ("_train", "_val", "_trainval", "_test")


@dataclass(frozen=True)
class _Split:
    root: Path
    xml_folder: Path
    list_file: Path | None = None


def recognise(folder: Path) -> str | None:
    """Say what makes this folder a VOC tree, or None."""
    xml_folder = _xml_folder(folder)
    if xml_folder is not None:
        return f"{xml_folder.name}/*.xml" if xml_folder != folder else "*.xml"
    if _list_files(folder):
        return "ImageSets"
    return next((f"{part.name}/*.xml" for part in _split_folders(folder)), None)


def find_splits(root: Path) -> dict[str, _Split]:
    """Return the splits: ImageSets' lists, else folders named like splits, else one called "all"."""
    xml_folder = _xml_folder(root)
    lists = _list_files(root)
    if lists:
        place = xml_folder or root / "Annotations"
        return {name: _Split(root, place, path) for name, path in lists.items()}
    if xml_folder is None:
        parts = {part.name: part for part in _split_folders(root)}
        return {name: _Split(part, _xml_folder(part) or part) for name, part in name_splits(parts).items()}
    parts = {part.name: part for part in folders_in(xml_folder) if files_below(part, ".xml")}
    if parts and not files_in(xml_folder, ".xml") and all(map(is_split_name, parts)):
        return {name: _Split(root, part) for name, part in name_splits(parts).items()}
    return {"all": _Split(root, xml_folder)}


def read(root: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; coordinates are kept as written unless `options.one_based`.

    Classes come in the order of the alphabet, over the XML files of all splits, unless the options name them.

    Raises:
        DataError: for a listed name without XML or image, XML that is none or has no objects as VOC writes them.
    """
    source = find_splits(root)[split]
    columns = Columns(root, "voc", split, options, shared=False)
    labels: dict[str, int] = {}
    read_already: set[Path] = set()
    images = _image_finder(source)
    for path in _listed(source, columns):
        try:
            annotation = read_annotation(path)
        except DataError as error:
            columns.bad(str(error), path.name)
            continue
        read_already.add(path)
        _add(columns, images, source, path, annotation, labels)
    declared = list(labels)
    if options.class_names is None:
        labels.update(dict.fromkeys(_other_classes(root, read_already), 0))
    return columns.finish(declared, order=sorted(labels), clip=False)


def _add(
    columns: Columns,
    images: ImageFinder,
    source: _Split,
    path: Path,
    annotation: Annotation,
    labels: dict[str, int],
) -> None:
    stem = path.relative_to(source.xml_folder).as_posix()[: -len(path.suffix)]
    suffix = Path(annotation.filename.replace("\\", "/")).suffix
    # The XML's own name comes first: <filename> goes stale when people rename files.
    found = images.find_stem(stem, suffix) or (images.find(annotation.filename) if annotation.filename else None)
    if found is None:
        wanted = annotation.filename or stem
        columns.bad(
            f"{path}: its image {wanted!r} is missing; looked in {images.places()}; put it there, or {SKIP}",
            path.name,
            "missing",
        )
        return
    name = f"{stem}{found.suffix}" if found.name.startswith(Path(stem).name) else found.name
    row = columns.add_image(name, found, path, annotation.size)
    if row is None:
        return
    less = 1.0 if columns.options.one_based else 0.0
    for thing in annotation.objects:
        x1, y1, x2, y2 = thing.box_xyxy
        label = labels.setdefault(thing.name, len(labels))
        columns.add_box(row, (x1 - less, y1 - less, x2, y2), label, difficult=thing.difficult, crowd=thing.crowd)


def _listed(source: _Split, columns: Columns) -> Iterable[Path]:
    held = {name[:-4]: source.xml_folder / name for name in files_below(source.xml_folder, ".xml")}
    if source.list_file is None:
        return held.values()
    chosen: dict[str, Path] = {}
    loose = {stem.casefold(): path for stem, path in held.items()}
    for line in read_lines(source.list_file):
        name = _listed_name(line, held)
        if name is None:
            continue
        path = held.get(name) or held.get(name.rpartition("/")[2]) or loose.get(name.casefold())
        if name in chosen:
            columns.count(
                name, "image is listed twice and was taken once", "images are listed twice and were taken once"
            )
        elif path is None:
            columns.bad(
                f"{source.list_file} lists {name!r}, but {source.xml_folder / name}.xml is missing; "
                f"add it, take the name off the list, or {SKIP}",
                name,
            )
        else:
            chosen[name] = path
    return chosen.values()


def _listed_name(line: str, held: dict[str, Path]) -> str | None:
    """Return the stem a line of ImageSets names; None where its second column says -1 (not in this class)."""
    line = line.replace("\\", "/")
    if line in held:
        return line
    head, _, flag = line.rpartition(" ")
    if "\t" in line:
        head, _, flag = line.rpartition("\t")
    if head and flag in ("-1", "0", "1"):
        if flag == "-1":
            return None
        line = head.strip()
    return stem_of(line)


def _other_classes(root: Path, read_already: set[Path]) -> set[str]:
    found: set[str] = set()
    for place in {split.xml_folder for split in find_splits(root).values()}:
        paths = (place / name for name in files_below(place, ".xml"))
        found.update(*(read_names(path) for path in paths if path not in read_already))
    return found


def _image_finder(source: _Split) -> ImageFinder:
    inside = source.xml_folder.name
    by_split = [source.root / name / inside for name in IMAGE_FOLDERS]
    return ImageFinder(source.root, [*by_split, *_beside(source)])


def _beside(source: _Split) -> list[Path]:
    usual = [source.root / name for name in IMAGE_FOLDERS]
    return [*usual, source.xml_folder, *(source.xml_folder.parent / name for name in IMAGE_FOLDERS)]


def _xml_folder(folder: Path) -> Path | None:
    for name in _XML_FOLDERS:
        place = child(folder, name)
        if place is not None and _holds_voc(place, files_below(place, ".xml"), by_name=True):
            return place
    here = [path.name for path in files_in(folder, ".xml")]
    return folder if _holds_voc(folder, here, by_name=False) else None


def _holds_voc(folder: Path, names: list[str], *, by_name: bool) -> bool:
    # A few are enough: one may be broken, and the reader says so. In Annotations even a file that is no XML counts.
    starts = [_start(folder / name) for name in names[:5]]
    voc = re.compile(rb"<annotation[\s>]")
    return any(
        voc.search(start) or (by_name and not start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<")) for start in starts
    )


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(600).replace(b"\0", b"").removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    except OSError:
        return b""


def _list_files(folder: Path) -> dict[str, Path]:
    image_sets = child(folder, "ImageSets")
    if image_sets is None:
        return {}
    files = files_in(image_sets / "Main", ".txt") or files_in(image_sets, ".txt")
    lists = {path.stem: path for path in files}
    # aeroplane_train.txt beside train.txt says which images show an aeroplane: no split of its own.
    extra = [name for name in lists for end in _CLASS_LIST_ENDS if name.endswith(end) and end[1:] in lists]
    return {name: lists[name] for name in in_order(lists) if name not in extra}


def _split_folders(folder: Path) -> list[Path]:
    return [part for part in folders_in(folder) if is_split_name(part.name) and _xml_folder(part) is not None]
