"""CVAT XML 1.1: one file for all images ("for images") or for the tracks of a video ("for video"), in pixels."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from multibox.data.formats.documents import (
    around,
    around_ellipse,
    around_turned,
    label_files,
    parse_xml,
    shown,
    size_in,
    split_of_file,
    xml_root,
)
from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder, place_image, target_names
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    ReadOptions,
    files_below,
    in_order,
    is_yes,
    number_text,
    safe_name,
    stem_of,
    write_lines,
)
from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.data.images import shown_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, NOT_A_BOX, OUTLINE, counted
from multibox.errors import DataError
from multibox.structures import Dataset, Sample

_PLACES = ("annotations",)
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_CUBOID = tuple(f"{axis}{end}{side}" for side in (1, 2) for end in ("tl", "bl", "tr", "br") for axis in "xy")
_NOT_BOXES = ("polyline", "points", "tag", "skeleton")
_NO_SUBSET = "default"
"""What CVAT calls the subset of images that have none."""


@dataclass(frozen=True)
class _Split:
    root: Path
    files: list[Path]
    subset: str | None
    """The images of the files that belong to the split; None for all."""


@dataclass(frozen=True)
class _Shape:
    label: str
    box_xyxy: tuple[float, float, float, float]
    outline: bool
    difficult: bool
    crowd: bool


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder CVAT's, or None."""
    if path.is_file():
        return path.name if _is_cvat(path) else None
    held = label_files(path, (".xml",), _is_cvat, _PLACES, per_image=False)
    return next((file.relative_to(path).as_posix() for one in held.values() for file in one.files), None)


def find_splits(path: Path) -> dict[str, _Split]:
    """Return the splits: the subsets that the images name, else by file or folder.

    Raises:
        DataError: for a file that is no XML.
    """
    if path.is_file():
        sources = {split_of_file(path): [path]}
    else:
        held = label_files(path, (".xml",), _is_cvat, _PLACES, per_image=False)
        sources = {name: one.files for name, one in held.items()}
    root = path.parent if path.is_file() else path
    if len(sources) == 1:
        (files,) = sources.values()
        subsets = dict.fromkeys(subset for file in files for subset in _subsets(_parsed(file)))
        if any(subset != _NO_SUBSET for subset in subsets):
            return {name: _Split(root, files, name) for name in in_order(subsets)}
    return {name: _Split(root, files, None) for name, files in sources.items()}


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; outlines become the boxes around them, lines, points and tags are passed over.

    Classes come in the order of the file's labels. Of a video each frame is an image; a box that is outside of the view
    is none.

    Raises:
        DataError: for XML that is no CVAT, a shape without a label or a place, a missing image.
    """
    splits = find_splits(path)
    source = splits[split]
    index = IndexBuilder(source.root, "cvat", split, options, shared=True)
    labels: dict[str, int] = {}
    trees = {file: _parsed(file) for file in source.files}
    for one in splits.values():
        for file in one.files:
            _declare(trees[file] if file in trees else _parsed(file), labels)
    for file, tree in trees.items():
        index.source = file
        finder = _finder(source, file, split)
        _add_images(index, tree, file, finder, source.subset, labels)
        _add_frames(index, tree, file, finder, source.subset, labels)
    return index.finish(list(labels))


def _declare(tree: Any, labels: dict[str, int]) -> None:
    """Put the names of a file's labels behind those that are known, and then those that only its shapes use."""
    for label in tree.iterfind("./meta//labels/label"):
        name = (label.findtext("name") or "").strip()
        # A skeleton's points are labels with a parent; tags are of the whole image
        of_box = not (label.findtext("parent") or "").strip() and (label.findtext("type") or "").strip() != "tag"
        if name and of_box:
            labels.setdefault(name, len(labels))
    for thing in (*tree.iterfind("image/*"), *tree.iterfind("track")):
        name = (thing.get("label") or "").strip()
        if name and thing.tag not in _NOT_BOXES:
            labels.setdefault(name, len(labels))


def _add_images(
    index: IndexBuilder, tree: Any, file: Path, finder: ImageFinder, subset: str | None, labels: Mapping[str, int]
) -> None:
    for image in tree.iterfind("image"):
        if subset is not None and _subset_of(image, tree) != subset:
            continue
        listed = (image.get("name") or "").strip()
        row = None
        with index.skipping(BROKEN_FILE, listed or "image without a name"):
            if not listed:
                raise DataError(f"{file}, image {image.get('id')}: it has no name; {ADVICE}")
            found = index.find_image(finder, listed, str(file))
            if found is not None:
                name = safe_name(listed)
                size = size_in(image.attrib)
                row = index.add_image(name if Path(name).suffix else found.name, found, file, size)
        if row is not None:
            for number, thing in enumerate(image, start=1):
                _add_shape(index, row, thing, number, f"{file}: image {listed}, shape {number}", listed, labels)


def _add_frames(
    index: IndexBuilder, tree: Any, file: Path, finder: ImageFinder, subset: str | None, labels: Mapping[str, int]
) -> None:
    """Add the frames of a video's tracks; frames whose image is there and that no box is in are background."""
    tracks = [track for track in tree.iterfind("track") if subset is None or _subset_of(track, tree) == subset]
    if not tracks:
        return
    size = size_in({side: tree.findtext(f"./meta//original_size/{side}") for side in ("height", "width")})
    frames = _Frames(finder, index.root)
    rows: dict[int, int | None] = {}
    for frame in sorted(frames.there() | {place for _, place, _ in _placed(tracks)}):
        where = f"{file}: frame {frame}"
        found = index.check_found(frames.find(frame), finder, f"frame_{frame:06d}", where, f"frame {frame}")
        rows[frame] = None if found is None else index.add_image(found.name, found, file, size)
    for number, frame, (track, thing) in _placed(tracks):
        row = rows[frame]
        if row is not None:
            thing.set("label", track.get("label") or "")
            where = f"{file}: track {track.get('id')}, frame {frame}"
            _add_shape(index, row, thing, number, where, f"frame {frame}", labels)
    if frames.guessed:
        one, many = "frame was found by the number", "frames were found by the numbers"
        end = "at the end of the images' names"
        index.notes.append(counted(frames.guessed, f"{one} {end}", f"{many} {end}"))


def _placed(tracks: list[Any]) -> Iterator[tuple[int, int, tuple[Any, Any]]]:
    """Yield number, frame, track and shape of all shapes that are in view."""
    number = 0
    for track in tracks:
        for thing in track:
            number += 1
            frame = thing.get("frame") or ""
            if frame.isdecimal() and len(frame) < 10 and not is_yes(thing.get("outside")):
                yield number, int(frame), (track, thing)


class _Frames:
    """The images of a video's frames: frame_000012.PNG as CVAT calls them, else by the number that a name ends in."""

    def __init__(self, finder: ImageFinder, root: Path) -> None:
        self.finder, self.guessed = finder, 0
        self.by_number: dict[int, Path | None] = {}
        names = files_below(root, *IMAGE_SUFFIXES)
        self.exact = {stem_of(name).rpartition("/")[2] for name in names}
        for name in names:
            match = re.search(r"(\d{1,9})$", stem_of(name))
            if match:
                number = int(match[1])
                self.by_number[number] = None if number in self.by_number else root / name

    def there(self) -> set[int]:
        """Return the frames whose images are there under CVAT's name."""
        return {int(stem[6:]) for stem in self.exact if re.fullmatch(r"frame_\d{6,9}", stem)}

    def find(self, frame: int) -> Path | None:
        """Return the image of a frame, or None."""
        exact = self.finder.find_stem(f"frame_{frame:06d}")
        if exact is None and self.by_number.get(frame) is not None:
            self.guessed += 1
            return self.by_number[frame]
        return exact


def _add_shape(
    index: IndexBuilder, row: int, thing: Any, number: int, where: str, subject: str, labels: Mapping[str, int]
) -> None:
    if thing.tag in _NOT_BOXES:
        index.count(NOT_A_BOX, subject)
        return
    index.image = row
    with index.skipping(BROKEN_BOX, subject):
        shape = _read_shape(thing, where)
        flags = {"difficult": shape.difficult, "crowd": shape.crowd, "outline": shape.outline}
        index.add_box(row, shape.box_xyxy, labels[shape.label], line=number, **flags)
        if shape.outline:
            index.count(OUTLINE, subject)


def _read_shape(thing: Any, where: str) -> _Shape:
    label = (thing.get("label") or "").strip()
    if not label:
        raise DataError(f"{where}: <{thing.tag}> has no label; {ADVICE}", kind="missing-category")
    try:
        box, outline = _place(thing)
    except (TypeError, ValueError, OverflowError):
        values = ", ".join(f"{key}={shown(value, 30)}" for key, value in thing.items() if key != "label")
        raise DataError(
            f"{where}: <{thing.tag}> should say its place in numbers, got {values[:120]}; {ADVICE}", kind="not-a-number"
        ) from None
    marks = {one.get("name"): one.text for one in thing.iterfind("attribute")}
    crowd = is_yes(marks.get("crowd")) or is_yes(marks.get("is_crowd")) or is_yes(marks.get("iscrowd"))
    return _Shape(label, box, outline, is_yes(marks.get("difficult")), crowd)


def _place(thing: Any) -> tuple[tuple[float, float, float, float], bool]:
    """Return the box around a shape, and whether the shape is another than this box.

    Raises:
        TypeError, ValueError or OverflowError: a value is missing or no number, or the shape is unknown.
    """
    turned = float(thing.get("rotation") or 0.0)
    match thing.tag:
        case "box":
            x1, y1, x2, y2 = (float(thing.get(name)) for name in _CORNERS)
            centre = ((x1 + x2) / 2, (y1 + y2) / 2)
            box = around_turned(x1, y1, x2 - x1, y2 - y1, turned, centre) if turned else (x1, y1, x2, y2)
            return box, bool(turned)
        case "polygon":
            pairs = (pair.split(",") for pair in (thing.get("points") or "").split(";"))
            return around([(float(x), float(y)) for x, y in pairs]), True
        case "mask":
            left, top, width, height = (float(thing.get(name)) for name in ("left", "top", "width", "height"))
            return (left, top, left + width, top + height), True
        case "ellipse":
            cx, cy, rx, ry = (float(thing.get(name)) for name in ("cx", "cy", "rx", "ry"))
            return around_ellipse(cx, cy, rx, ry, turned), True
        case "cuboid":
            values = [float(thing.get(name)) for name in _CUBOID]
            return around(zip(values[0::2], values[1::2], strict=True)), True
        case _:
            raise ValueError


def _subset_of(thing: Any, tree: Any) -> str:
    own = (thing.get("subset") or "").strip()
    return (
        own or (tree.findtext("./meta/task/subset") or tree.findtext("./meta/job/subset") or "").strip() or _NO_SUBSET
    )


def _subsets(tree: Any) -> list[str]:
    """Return the subset of each image and track of a file."""
    return [_subset_of(thing, tree) for thing in (*tree.iterfind("image"), *tree.iterfind("track"))]


def _parsed(file: Path) -> Any:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); {ADVICE}") from None
    tree = parse_xml(data, str(file))
    if tree.tag != "annotations":
        raise DataError(f"{file} is no CVAT label file: expected <annotations> outermost, got <{tree.tag}>")
    return tree


def _is_cvat(file: Path) -> bool:
    return file.suffix.lower() == ".xml" and xml_root(file) == "annotations"


def _finder(source: _Split, file: Path, split: str) -> ImageFinder:
    subset = source.subset or split
    places = dict.fromkeys((file.parent, source.root))
    by_subset = [place / name / subset for place in places for name in IMAGE_FOLDERS]
    return ImageFinder(source.root, [*by_subset, *(place / name for place in places for name in IMAGE_FOLDERS)], split)


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write annotations.xml, with the splits as subsets, and the images in images/SPLIT."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += ["  <meta>", "    <project>", "      <labels>"]
    lines += [f"        {label_line(name)}" for name in next(iter(splits.values())).class_names]
    lines += ["      </labels>", "      <tasks>"]
    lines += [f"        <task><name>{name}</name><subset>{name}</subset></task>" for name in map(escape, splits)]
    lines += ["      </tasks>", "    </project>", "  </meta>"]
    number = 0
    for split, dataset in splits.items():
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            place_image(sample, folder / "images" / split / name, link=link)
            size = sample.size or shown_size(sample)
            about = f'id="{number}" name={quoteattr(name)} subset={quoteattr(split)}'
            lines.append(f'  <image {about} width="{size.width}" height="{size.height}">')
            lines += box_lines(sample, dataset.class_names)
            lines.append("  </image>")
            number += 1
    write_lines(folder / "annotations.xml", [*lines, "</annotations>"])
    return []


_CHECKBOX = "<mutable>False</mutable><input_type>checkbox</input_type><default_value>false</default_value><values />"


def label_line(name: str, more: str = "") -> str:
    """Return the element that declares a class, its two flags and `more` attributes."""
    marks = "".join(f"<attribute><name>{mark}</name>{_CHECKBOX}</attribute>" for mark in ("difficult", "is_crowd"))
    return f"<label><name>{escape(name)}</name><attributes>{marks}{more}</attributes></label>"


def box_lines(sample: Sample, class_names: tuple[str, ...]) -> Iterator[str]:
    """Yield one line per box, the element from `<box` to `</box>`."""
    labels: list[int] = sample.labels.tolist()
    for row, label in enumerate(labels):
        corners = zip(_CORNERS, sample.boxes_xyxy[row].tolist(), strict=True)
        place = " ".join(f'{name}="{number_text(value)}"' for name, value in corners)
        flags = {"difficult": sample.difficult[row], "is_crowd": sample.crowd[row]}
        marks = "".join(f'<attribute name="{name}">true</attribute>' for name, is_set in flags.items() if is_set)
        about = f'label={quoteattr(class_names[label])} source="manual" occluded="0"'
        yield f'    <box {about} {place} z_order="0">{marks}</box>'
