"""PASCAL VOC: one XML file per image, lists of images in ImageSets/Main; also the trees that people make of it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from multibox.data.formats.documents import parse_xml
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
    stem_of,
    write_lines,
)
from multibox.data.images import image_bytes, shown_size
from multibox.data.left_out import BROKEN_FILE, LISTED_TWICE
from multibox.errors import DataError
from multibox.structures import Dataset, Sample, Size

_XML_FOLDERS = ("Annotations", "xmls", "xml", "labels")
_CLASS_LIST_ENDS = ("_train", "_val", "_trainval", "_test")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Split:
    root: Path
    xml_folder: Path
    list_file: Path | None = None


@dataclass(frozen=True)
class _Object:
    name: str
    box_xyxy: tuple[float, ...]
    difficult: bool = False
    crowd: bool = False
    """Our own element, so that COCO's crowds survive; such an object is also marked difficult."""


@dataclass(frozen=True)
class _Annotation:
    filename: str
    size: Size | None
    objects: list[_Object]


def recognise(folder: Path) -> str | None:
    """Return what makes this folder a VOC tree, or None."""
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
        DataError: for a listed name without XML or image, or XML that VOC does not write.
    """
    source = find_splits(root)[split]
    index = IndexBuilder(root, "voc", split, options, shared=False)
    labels: dict[str, int] = {}
    read_already: set[Path] = set()
    finder = _finder(source)
    for path in _listed(source, index):
        index.source = path
        with index.skipping(BROKEN_FILE, path.name):
            annotation = _read_annotation(path)
            read_already.add(path)
            _add(index, finder, path, path.relative_to(source.xml_folder), annotation, labels)
    declared = list(labels)
    if options.class_names is None:
        labels.update(dict.fromkeys(_other_classes(root, read_already), 0))
    return index.finish(declared, order=sorted(labels), clip=False)


def _add(
    index: IndexBuilder,
    finder: ImageFinder,
    path: Path,
    inside: Path,
    annotation: _Annotation,
    labels: dict[str, int],
) -> None:
    stem = inside.with_suffix("").as_posix()
    suffix = Path(annotation.filename.replace("\\", "/")).suffix
    # The XML's own name comes first: <filename> goes stale when people rename files.
    found = finder.find_stem(stem, suffix) or (finder.find(annotation.filename) if annotation.filename else None)
    found = index.check_found(found, finder, annotation.filename or stem, str(path), path.name)
    if found is None:
        return
    name = f"{stem}{found.suffix}" if found.name.startswith(Path(stem).name) else found.name
    row = index.add_image(name, found, path, annotation.size)
    if row is None:
        return
    less = 1.0 if index.options.one_based else 0.0
    for number, thing in enumerate(annotation.objects, 1):
        x1, y1, x2, y2 = thing.box_xyxy
        label = labels.setdefault(thing.name, len(labels))
        box = (x1 - less, y1 - less, x2, y2)
        index.add_box(row, box, label, difficult=thing.difficult, crowd=thing.crowd, line=number)


def _read_annotation(path: Path) -> _Annotation:
    tree = _parsed(path)
    if tree.tag != "annotation":
        raise DataError(f"{path} is no VOC label file: expected <annotation> outermost, got <{tree.tag}>; {ADVICE}")
    things = [_read_object(thing, f"{path}, object {number}") for number, thing in enumerate(tree.findall("object"), 1)]
    return _Annotation((tree.findtext("filename") or "").strip(), _read_size(tree.find("size")), things)


def _parsed(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {ADVICE}") from None
    return parse_xml(data, str(path))


def _read_object(thing: Any, where: str) -> _Object:
    name = (thing.findtext("name") or "").strip()
    box = thing.find("bndbox")
    if not name or box is None:
        raise DataError(f"{where}: no <{'bndbox' if name else 'name'}>; {ADVICE}")
    corners: list[float] = []
    for tag in _CORNERS:
        text = box.findtext(tag)
        try:
            corners.append(float(text))
        except (TypeError, ValueError):
            raise DataError(f"{where}: <{tag}> should be a number, got {text!r}; {ADVICE}") from None
    crowd = is_yes(thing.findtext("crowd"))
    return _Object(name, tuple(corners), is_yes(thing.findtext("difficult")) and not crowd, crowd)


def _read_size(size: Any) -> Size | None:
    try:
        width, height = (int(float(size.findtext(tag))) for tag in ("width", "height"))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return Size(height, width) if width > 0 and height > 0 else None


def _listed(source: _Split, index: IndexBuilder) -> Iterable[Path]:
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
            index.count(LISTED_TWICE, name)
            continue
        with index.skipping(BROKEN_FILE, name):
            if path is None:
                raise DataError(
                    f"{source.list_file} lists {name!r}, but {source.xml_folder / name}.xml is missing; "
                    f"add it, take the name off the list, or {SKIP}"
                )
            chosen[name] = path
    return chosen.values()


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
    for folder in {split.xml_folder for split in find_splits(root).values()}:
        for path in (folder / name for name in files_below(folder, ".xml")):
            if path not in read_already:
                try:
                    found = [(thing.findtext("name") or "").strip() for thing in _parsed(path).iterfind("object")]
                except DataError:
                    continue
                names.update(name for name in found if name)
    return names


def _finder(source: _Split) -> ImageFinder:
    root, folder = source.root, source.xml_folder
    by_split = [root / name / folder.name for name in IMAGE_FOLDERS]
    usual = [root / name for name in IMAGE_FOLDERS]
    return ImageFinder(root, [*by_split, *usual, folder, *(folder.parent / name for name in IMAGE_FOLDERS)])


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
