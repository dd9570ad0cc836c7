"""PASCAL VOC: one XML file per image, lists of images in ImageSets/Main; also the trees that people make of it."""

import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from multibox.data.formats.documents import NO_SIZE, around, around_turned, parse_xml
from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder, place_image, target_names
from multibox.data.formats.index import IndexBuilder
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
    is_yes,
    name_splits,
    number_text,
    read_lines,
    safe_name,
    split_folders,
    stem_of,
    write_lines,
)
from multibox.data.images import image_bytes, shown_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, LISTED_TWICE, OUTLINE, Reason
from multibox.errors import DataError
from multibox.structures import Dataset, Sample, Size

_XML_FOLDERS = ("Annotations", "xmls", "xml", "labels")
_CLASS_LIST_ENDS = ("_train", "_val", "_trainval", "_test")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


_YEAR = re.compile(r"VOC(19|20)\d\d", re.IGNORECASE)
_OTHER_NAME = Reason(
    "label file names another image, which exists too; the image of the file's own name was taken",
    "label files name other images, which exist too; the images of the files' own names were taken",
)
_SECOND_BOX = Reason(
    "object has a second <bndbox>; the first was taken", "objects have a second <bndbox>; the first was taken"
)


@dataclass(frozen=True)
class _Split:
    root: Path
    xml_folder: Path
    list_file: Path | None = None
    prefix: str = ""
    """Put before the names of its images: the year of several in a VOCdevkit."""


class _Object(NamedTuple):
    name: str
    box_xyxy: tuple[float, ...]
    difficult: bool = False
    crowd: bool = False
    """Our own element, so that COCO's crowds survive; such an object is also marked difficult."""
    outline: bool = False
    """Made of a polygon or of a box that is turned."""


def recognise(folder: Path) -> str | None:
    """Return what makes this folder a VOC tree, or None."""
    xml_folder = _xml_folder(folder)
    if xml_folder is not None:
        inside = xml_folder.relative_to(folder)
        return f"{inside.as_posix()}/*.xml" if xml_folder != folder else "*.xml"
    if _list_files(folder):
        return "ImageSets"
    parts = [*_split_parts(folder).values(), *_years(folder)]
    return f"{parts[0].relative_to(folder).as_posix()}/*.xml" if parts else None


def find_splits(root: Path) -> dict[str, list[_Split]]:
    """Return the splits: ImageSets' lists, else folders named like splits, else one called "all".

    A VOCdevkit joins its years by the names of their splits: trainval has the images of 2007 and 2012.
    """
    one = _splits_of(root)
    if one:
        return {name: [split] for name, split in one.items()}
    joined: dict[str, list[_Split]] = {}
    for year in _years(root):
        for name, split in _splits_of(year).items():
            joined.setdefault(name, []).append(replace(split, prefix=f"{year.name}/"))
    return {name: joined[name] for name in in_order(joined)}


def _splits_of(root: Path) -> dict[str, _Split]:
    xml_folder = _xml_folder(root)
    lists = _list_files(root)
    if lists:
        place = xml_folder or root / "Annotations"
        return {name: _Split(root, place, path) for name, path in lists.items()}
    if xml_folder is None:
        parts = name_splits(_split_parts(root))
        return {name: _Split(part, _xml_folder(part) or part) for name, part in parts.items()}
    parts = {part.name: part for part in folders_in(xml_folder) if files_below(part, ".xml")}
    if parts and not files_in(xml_folder, ".xml") and all(map(is_split_name, parts)):
        return {name: _Split(root, part) for name, part in name_splits(parts).items()}
    return {"all": _Split(root, xml_folder)}


def read(root: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; coordinates are kept as written unless `options.one_based`.

    Classes come in the order of a labelmap.txt beside, else of the alphabet, over the XML files of all splits, unless
    the options name them.

    Raises:
        DataError: for a listed name without XML or image, or XML that VOC does not write.
    """
    index = IndexBuilder(root, "voc", split, options, shared=False)
    labels: dict[str, int] = {}
    read_already: set[Path] = set()
    for source in find_splits(root)[split]:
        finder = _finder(source, split)
        for stem, path in _listed(source, index):
            index.source = path
            with index.skipping(BROKEN_FILE, path.name):
                tree = _annotation(path, index)
                read_already.add(path)
                _add(index, finder, path, stem, source.prefix, tree, labels)
    declared = list(labels)
    if options.class_names is None:
        labels.update(dict.fromkeys(_other_classes(root, read_already), 0))
    mapped = _labelmap(root)
    order = [*mapped, *sorted(labels.keys() - set(mapped))]
    return index.finish(declared, order=order, clip=False)


def _add(
    index: IndexBuilder, finder: ImageFinder, path: Path, stem: str, prefix: str, tree: Any, labels: dict[str, int]
) -> None:
    filename = (tree.findtext("filename") or "").strip()
    # The XML's own name comes first: <filename> goes stale when people rename files.
    found = finder.find_stem(stem, os.path.splitext(filename)[1])  # noqa: PTH122 (a million names: no Path objects)
    if found is None and (filename or "%" in stem):
        found = finder.find(filename or stem)
    elif found is not None and _is_another(filename, found) and finder.holds(filename):
        index.guessed(_OTHER_NAME, f"{path.name} ({found.name}, not {filename})")
    found = index.check_found(found, finder, filename or stem, str(path), path.name)
    if found is None:
        return
    file = found.name
    name = f"{stem}{found.suffix}" if file.startswith(stem.rpartition("/")[2]) else file
    size = _read_size(tree.find("size"))
    row = index.add_image(prefix + name, found, path, size)
    if row is None:
        return
    if size is None and tree.find("size") is not None:
        index.guessed(NO_SIZE, path.name)
    add_boxes(index, row, tree, str(path), path.name, labels)


def add_boxes(index: IndexBuilder, row: int, tree: Any, where: str, subject: str, labels: dict[str, int]) -> None:
    """Add the objects of an <annotation> to an image; names that `labels` lacks are put into it."""
    less = 1.0 if index.options.one_based else 0.0
    for number, element in enumerate(tree.findall("object"), 1):
        with index.skipping(BROKEN_BOX, subject):
            thing = _read_object(element, f"{where}, object {number}")
            x1, y1, x2, y2 = thing.box_xyxy
            label = labels.setdefault(thing.name, len(labels))
            box = (x1 - less, y1 - less, x2, y2)
            flags = {"difficult": thing.difficult, "crowd": thing.crowd, "outline": thing.outline}
            index.add_box(row, box, label, **flags, line=number)
            if thing.outline:
                index.count(OUTLINE, subject)
            if len(element.findall("bndbox")) > 1:
                index.guessed(_SECOND_BOX, subject)


def _is_another(filename: str, found: Path) -> bool:
    """Return whether <filename> means another image than the one found, not the same with another ending."""
    stem = stem_of(safe_name(filename).rpartition("/")[2])
    return bool(stem) and stem != stem_of(found.name)


def _annotation(path: Path, index: IndexBuilder) -> Any:
    tree = _parsed(path, index)
    if tree.tag != "annotation":
        raise DataError(f"{path} is no VOC label file: expected <annotation> outermost, got <{tree.tag}>; {ADVICE}")
    return tree


def _parsed(path: Path, index: IndexBuilder | None = None) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {ADVICE}") from None
    return parse_xml(data, str(path), None if index is None else partial(index.tell_encoding, path))


def _read_object(thing: Any, where: str) -> _Object:
    name = (thing.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{where}: no <name>; {ADVICE}", kind="unreadable-label")
    box = _corners(thing.find("bndbox"), where)
    outline = box is None
    box = box or _around_polygon(thing.find("polygon"), where) or _around_turned(thing.find("robndbox"), where)
    if box is None:
        raise DataError(f"{where}: no <bndbox>; {ADVICE}", kind="unreadable-label")
    crowd = is_yes(thing.findtext("crowd"))
    return _Object(name, box, is_yes(thing.findtext("difficult")) and not crowd, crowd, outline)


def _corners(box: Any, where: str) -> tuple[float, ...] | None:
    return None if box is None else tuple(_number(box, tag, where) for tag in _CORNERS)


def _around_polygon(polygon: Any, where: str) -> tuple[float, ...] | None:
    """Return the box around x1, y1, x2, y2, ... or around <pt><x>, <y>; None without a polygon."""
    if polygon is None:
        return None
    points = [(_number(point, "x", where), _number(point, "y", where)) for point in polygon.findall("pt")]
    tags = {child.tag for child in polygon}
    numbers = itertools.takewhile(lambda number: f"x{number}" in tags, itertools.count(1))
    points += [(_number(polygon, f"x{number}", where), _number(polygon, f"y{number}", where)) for number in numbers]
    return around(points) if points else None


def _around_turned(box: Any, where: str) -> tuple[float, ...] | None:
    """Return the box around roLabelImg's <robndbox>: centre, size, and an angle in radians; None without one."""
    if box is None:
        return None
    cx, cy, width, height, angle = (_number(box, tag, where) for tag in ("cx", "cy", "w", "h", "angle"))
    return around_turned(cx - width / 2, cy - height / 2, width, height, math.degrees(angle), (cx, cy))


def _number(parent: Any, tag: str, where: str) -> float:
    text = parent.findtext(tag)
    if text is None:
        raise DataError(f"{where}: <{parent.tag}> has no <{tag}>; {ADVICE}", kind="unreadable-label")
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: <{tag}> should be a number, got {text!r}; {ADVICE}", kind="not-a-number") from None


def _read_size(size: Any) -> Size | None:
    try:
        width, height = (int(float(size.findtext(tag))) for tag in ("width", "height"))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return Size(height, width) if width > 0 and height > 0 else None


def _listed(source: _Split, index: IndexBuilder) -> Iterable[tuple[str, Path]]:
    """Return the label files of a split, each after its path in their folder without suffix."""
    held = {name[:-4]: source.xml_folder / name for name in files_below(source.xml_folder, ".xml")}
    if source.list_file is None:
        return held.items()
    chosen: dict[str, Path] = {}
    loose: dict[str, list[str]] = {}
    for stem in held:
        loose.setdefault(stem.casefold(), []).append(stem)
    index.source = source.list_file
    for line in read_lines(source.list_file, index.tell_encoding):
        name = _listed_name(line, held)
        if name is None:
            continue
        alike = loose.get(name.casefold(), [])
        stem = next(
            (one for one in (name, name.rpartition("/")[2]) if one in held), alike[0] if len(alike) == 1 else ""
        )
        if stem in chosen:
            index.count(LISTED_TWICE, name)
            continue
        with index.skipping(BROKEN_FILE, name):
            if not stem:
                raise DataError(
                    f"{source.list_file} lists {name!r}, but {source.xml_folder / name}.xml is missing; "
                    f"add it, take the name off the list, or {SKIP}",
                    kind="list-names-missing-file",
                )
            chosen[stem] = held[stem]
    return chosen.items()


def _listed_name(line: str, held: Mapping[str, Path]) -> str | None:
    """Return the stem that a line of ImageSets names; None if its second column says -1 (not in this class)."""
    line = line.replace("\\", "/")
    if line in held:
        return line
    head, _, flag = line.rpartition("\t" if "\t" in line else " ")
    if head and flag in ("-1", "0", "1"):
        if flag == "-1":
            return None
        line = head.strip()
    return stem_of(line)


def _other_classes(root: Path, read_already: set[Path]) -> set[str]:
    """Return the class names in the XML files of all splits that are not read yet; broken ones name none."""
    names: set[str] = set()
    for folder in {split.xml_folder for splits in find_splits(root).values() for split in splits}:
        for path in (folder / name for name in files_below(folder, ".xml")):
            if path not in read_already:
                try:
                    found = [(thing.findtext("name") or "").strip() for thing in _parsed(path).iterfind("object")]
                except DataError:
                    continue
                names.update(name for name in found if name)
    return names


def _labelmap(root: Path) -> list[str]:
    """Return the classes of CVAT's labelmap.txt (`name:colour:parts:actions`) beside, without the background."""
    file = root / "labelmap.txt"
    lines = read_lines(file) if file.is_file() else []
    names = [line.partition(":")[0].strip() for line in lines if not line.startswith("#")]
    return list(dict.fromkeys(name for name in names if name and name != "background"))


def _finder(source: _Split, split: str) -> ImageFinder:
    root, folder = source.root, source.xml_folder
    inside = folder.relative_to(root).parts[1:] or (folder.name,)
    by_split = [root.joinpath(name, *inside) for name in (*IMAGE_FOLDERS, "Data")]
    usual = [root / name for name in IMAGE_FOLDERS]
    beside = [folder, *(folder.parent / name for name in IMAGE_FOLDERS)]
    return ImageFinder(root, [*by_split, *usual, *beside], split)


def _xml_folder(folder: Path) -> Path | None:
    for name in _XML_FOLDERS:
        place = child(folder, name)
        if place is not None and _holds_voc(place, files_below(place, ".xml"), by_name=True):
            parts = folders_in(place)
            # ImageNet's Annotations/CLS-LOC; a folder of the split's name is found as a split.
            deeper = len(parts) == 1 and not is_split_name(parts[0].name) and not files_in(place, ".xml")
            return parts[0] if deeper else place
    here = [path.name for path in files_in(folder, ".xml")]
    return folder if _holds_voc(folder, here, by_name=False) else None


def _holds_voc(folder: Path, names: list[str], *, by_name: bool) -> bool:
    # The first may be broken or empty, and the reader says so. In Annotations even a file that is no XML counts.
    voc = re.compile(rb"<annotation[\s>]")
    return any(
        voc.search(start) or (by_name and not start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"))
        for start in (_start(folder / name) for name in names[:500])
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


def _split_parts(folder: Path) -> dict[str, Path]:
    """Return the folders by split that hold XML: in the folder itself, else in images/ as TensorFlow's tutorial has."""
    for place in (folder, child(folder, "images")):
        parts = split_folders(place) if place is not None else {}
        held = {name: part for name, part in parts.items() if _xml_folder(part) is not None}
        if held:
            return held
    return {}


def _years(folder: Path) -> list[Path]:
    """Return VOC2007, VOC2012 ... of a VOCdevkit, or of folders into which its archives were unpacked, if several."""
    here = [part for part in folders_in(folder) if _YEAR.fullmatch(part.name)]
    inside = [place for part in folders_in(folder) if part.name.upper().startswith("VOC") for place in _devkits(part)]
    years = [part for part in here + inside if _xml_folder(part) is not None or _list_files(part)]
    return sorted(years, key=lambda year: (year.name, year)) if len(years) > 1 else []


def _devkits(folder: Path) -> list[Path]:
    places = [folder, *(one for one in [child(folder, "VOCdevkit")] if one is not None)]
    return [part for place in places for part in folders_in(place) if _YEAR.fullmatch(part.name)]


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write JPEGImages, Annotations and ImageSets/Main; in folders by split if two splits share a name."""
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "Annotations").mkdir()
    apart = _names_clash(splits)
    for split, dataset in splits.items():
        stems: list[str] = []
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            name = f"{split}/{name}" if apart else name
            stems.append(str(Path(name).with_suffix("")))
            target = folder / "JPEGImages" / name
            if target.exists():
                continue  # in another split, the same image with the same boxes
            place_image(sample, target, link=link)
            path = folder / "Annotations" / f"{stems[-1]}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_annotation(path, target.name, sample, dataset.class_names)
        write_lines(lists / f"{split}.txt", stems)
    notes = ["images of different splits share names, so each split has a folder of its own"] if apart else []
    return notes + _order_notes(splits)


def _write_annotation(path: Path, name: str, sample: Sample, class_names: tuple[str, ...]) -> None:
    size = sample.size or shown_size(sample)
    lines = [
        "<annotation>",
        f"  <folder>{escape(path.parent.name)}</folder>",
        f"  <filename>{escape(name)}</filename>",
        f"  <size><width>{size.width}</width><height>{size.height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    labels: list[int] = sample.labels.tolist()
    for row, label in enumerate(labels):
        corners = zip(_CORNERS, sample.boxes_xyxy[row].tolist(), strict=True)
        box = "".join(f"<{tag}>{number_text(value)}</{tag}>" for tag, value in corners)
        lines += [
            "  <object>",
            f"    <name>{escape(class_names[label])}</name>",
            "    <pose>Unspecified</pose>",
            "    <truncated>0</truncated>",
            f"    <difficult>{int(sample.difficult[row] or sample.crowd[row])}</difficult>",
            *(["    <crowd>1</crowd>"] if sample.crowd[row] else []),
            f"    <bndbox>{box}</bndbox>",
            "  </object>",
        ]
    write_lines(path, [*lines, "</annotation>"])


def _names_clash(splits: Mapping[str, Dataset]) -> bool:
    seen: dict[str, Sample] = {}
    for dataset in splits.values():
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            other = seen.setdefault(str(Path(name).with_suffix("")), sample)
            if other is not sample and not _same(other, sample):
                return True
    return False


def _same(one: Sample, other: Sample) -> bool:
    if not (np.array_equal(one.labels, other.labels) and np.array_equal(one.boxes_xyxy, other.boxes_xyxy)):
        return False
    return (one.path, one.offset) == (other.path, other.offset) or image_bytes(one) == image_bytes(other)


def _order_notes(splits: Mapping[str, Dataset]) -> list[str]:
    names = next(iter(splits.values())).class_names
    used: set[int] = {label for dataset in splits.values() for label in dataset.labels.tolist()}
    unused = [name for number, name in enumerate(names) if number not in used]
    notes = [f"VOC has no list of classes: {', '.join(unused)} without boxes are lost"] if unused else []
    if list(names) != sorted(names):
        notes.append("VOC has no order of classes: they will be read in the order of the alphabet")
    return notes
