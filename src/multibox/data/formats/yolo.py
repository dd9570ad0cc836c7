"""YOLO: one text file per image, each line a class number and a box as fractions of the image."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.formats.finder import Fractions, ImageFinder, place_image, target_names
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
    is_list,
    is_mapping,
    is_split_name,
    name_splits,
    read_lines,
    read_text,
    safe_name,
    stem_of,
    tails,
    write_lines,
)
from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.data.images import image_size
from multibox.data.left_out import (
    BROKEN_BOX,
    BROKEN_FILE,
    LISTED_TWICE,
    MISSING_IMAGE,
    OUTLINE,
    UNREADABLE_IMAGE,
)
from multibox.errors import DataError, ImageError, MissingExtraError
from multibox.structures import Dataset, Size

_CLASS_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt")
_YAML = (".yaml", ".yml")
_YAML_NAMES = ("data", "dataset")
_LABEL_LINE = re.compile(r"\s*\d+(\.0*)?(\s+-?[\d.]+(e[-+]?\d+)?){4,}\s*", re.IGNORECASE)
_SLACK = 0.01  # tools round a box at the edge to 1.001; pixels in place of fractions are far beyond


@dataclass(frozen=True)
class _Layout:
    root: Path
    classes: dict[int, str] | None
    """Class number to name; None if no file names them."""
    classes_file: Path | None
    sources: dict[str, list[Path]]
    """Each split's image folders and list files."""


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    label: Path
    """The label file, which need not exist: an image without one shows no objects."""


@dataclass(frozen=True)
class _Box:
    label: int
    fractions: tuple[float, float, float, float]
    """xyxy."""
    outline: bool
    """Made of a polygon's corners."""
    line: int = 0


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder a YOLO data set, or None."""
    if path.is_file():
        return path.name if path.suffix.lower() in (*_YAML, ".data") else None
    try:
        layout = _find_layout(path)
    except DataError:
        return "data.yaml"  # it is one, and reading it says what is wrong
    if layout is None:
        return None
    return layout.classes_file.name if layout.classes_file is not None else "labels/*.txt"


def find_splits(path: Path) -> dict[str, list[Path]]:
    """Return each split's image folders and list files.

    Raises:
        DataError: for a data.yaml that says nothing usable.
    """
    layout = _layout(path)
    return {name: layout.sources[name] for name in in_order(layout.sources)}


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split; the header of every image with objects is opened for its size.

    Raises:
        DataError: for a line that is no box, a class number without a name, a label file without an image.
    """
    layout = _layout(path)
    index = IndexBuilder(layout.root, "yolo", split, options, shared=False, fractions=True)
    entries = _entries(layout, layout.sources[split], index)
    if entries and not any(entry.label.is_file() for entry in entries):
        raise DataError(
            f"{layout.root}: none of the {len(entries)} images of split {split!r} has a label file; "
            f"looked for {entries[0].label} and so on; put the labels there"
        )
    classes = layout.classes if layout.classes is not None else _numbers(layout, entries)
    places = {number: place for place, number in enumerate(classes)}
    for entry in entries:
        index.source = entry.label
        with index.skipping(BROKEN_FILE, entry.label.name):
            _add(index, entry, _read_label(entry.label, index), places, layout)
    return index.finish(list(classes.values()))


def _add(index: IndexBuilder, entry: _Entry, boxes: list[_Box], places: Mapping[int, int], layout: _Layout) -> None:
    size: Size | None = None
    if boxes:
        with index.skipping(UNREADABLE_IMAGE, entry.path.name):
            size = image_size(entry.path)
        if size is None:
            return
    row = index.add_image(entry.name, entry.path, entry.label, size)
    if row is None or size is None:
        return
    for number, box in enumerate(boxes, start=1):
        with index.skipping(BROKEN_BOX, entry.label.name):
            if box.label not in places:
                raise DataError(
                    f"{entry.label}, object {number}: class {box.label} is not among the {len(places)} classes of "
                    f"{layout.classes_file}; {ADVICE}",
                    kind="class-out-of-range",
                )
            corners = zip(box.fractions, (size.width, size.height) * 2, strict=True)
            # A millionth of a pixel is below what fractions hold, and whole pixels come back whole.
            pixels = [round(value * edge, 6) for value, edge in corners]
            index.add_box(row, pixels, places[box.label], outline=box.outline, line=box.line)
            if box.outline:
                index.count(OUTLINE, entry.label.name)


def _read_label(path: Path, index: IndexBuilder) -> list[_Box]:
    """Return the boxes of a label file; none if there is no such file."""
    boxes: list[_Box] = []
    lines = read_text(path).splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            with index.skipping(BROKEN_BOX, path.name):
                box = _read_line(line.split(), f"{path}, line {number}", any_size=index.options.raw is not None)
                boxes.append(replace(box, line=number))
    return boxes


def _read_line(tokens: list[str], where: str, *, any_size: bool) -> _Box:
    try:
        values = [float(token) for token in tokens]
        if not values[0].is_integer():
            raise ValueError
    except ValueError:
        raise DataError(
            f"{where}: expected a class number and fractions, got {' '.join(tokens)[:60]!r}; {ADVICE}"
        ) from None
    label, place = int(values[0]), values[1:]
    if len(place) != 4 and (len(place) < 6 or len(place) % 2):
        raise DataError(f"{where}: expected class cx cy w h, got {len(tokens)} values; {ADVICE}")
    wild = [value for value in place if value > 1 + _SLACK or (value < -_SLACK and len(place) > 4)]
    if wild and not any_size:
        raise DataError(
            f"{where}: expected fractions of the image from 0 to 1, got {wild[0]:g}; divide pixels by its size"
        )
    if len(place) == 4:
        cx, cy, width, height = place
        return _Box(label, (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), False)
    if not all(map(math.isfinite, place)):
        return _Box(label, (math.nan, math.nan, math.nan, math.nan), False)
    xs, ys = place[0::2], place[1::2]
    return _Box(label, (min(xs), min(ys), max(xs), max(ys)), True)


def _numbers(layout: _Layout, entries: list[_Entry]) -> dict[int, str]:
    """Return "0", "1" ... up to the highest class number of all splits, if no file names the classes."""
    quiet = IndexBuilder(layout.root, "yolo", "", ReadOptions(on_bad="skip"), shared=False)
    labels = {entry.label for entry in entries}
    for sources in layout.sources.values():
        labels |= {entry.label for entry in _entries(layout, sources, quiet)}
    highest = max((box.label for label in labels for box in _read_label(label, quiet)), default=-1)
    return {number: str(number) for number in range(highest + 1)}


def _entries(layout: _Layout, sources: list[Path], index: IndexBuilder) -> list[_Entry]:
    entries: list[_Entry] = []
    for source in sources:
        entries += _listed(layout, source, index) if source.is_file() else _in_folder(source, index)
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        whole = [_Entry(safe_name(str(_relative(one.path, layout.root))), one.path, one.label) for one in entries]
        return list({entry.name: entry for entry in whole}.values())
    return entries


def _in_folder(folder: Path, index: IndexBuilder) -> list[_Entry]:
    labels = Path(_twin(str(folder) + "/")[:-1])
    texts = set(files_below(labels, ".txt")) if labels != folder else set[str]()
    beside = set(files_below(folder, ".txt"))
    entries: list[_Entry] = []
    for name in files_below(folder, *IMAGE_SUFFIXES):
        text = stem_of(name) + ".txt"
        place = folder if text in beside and text not in texts else labels
        entries.append(_Entry(name, folder / name, place / text))
    used = {entry.label for entry in entries}
    for place, held in ((labels, texts), (folder, beside)):
        for text in sorted(held):
            orphan = place / text
            if orphan not in used and orphan.name not in _CLASS_FILES and _looks_like_labels(orphan):
                with index.skipping(MISSING_IMAGE, text):
                    raise ImageError(f"{orphan}: its image is missing from {folder}; put it there, or {SKIP}")
    return entries


def _listed(layout: _Layout, source: Path, index: IndexBuilder) -> list[_Entry]:
    finder = ImageFinder(layout.root, [source.parent, layout.root])
    texts = {name.rpartition("/")[2]: name for name in files_below(layout.root, ".txt")}
    known = set(texts.values())
    entries: dict[str, _Entry] = {}
    for line in read_lines(source):
        name = _short_name(safe_name(line))
        found = index.check_found(finder.find(line), finder, line, str(source), name)
        if found is None:
            continue
        if name in entries and entries[name].path == found:
            index.count(LISTED_TWICE, name)
            continue
        key = name if name not in entries else safe_name(line)
        entries[key] = _Entry(key, found, layout.root / _listed_label(line, known, texts, found, layout.root))
    return list(entries.values())


def _listed_label(line: str, known: set[str], texts: Mapping[str, str], found: Path, root: Path) -> str | Path:
    twin = Path(_twin(stem_of(str(found)) + ".txt"))
    if twin.is_file() or not known:
        return twin
    stem = stem_of(safe_name(line)) + ".txt"
    for tail in (*tails(_twin("/" + stem)[1:]), *tails(stem)):
        if tail in known:
            return root / tail
    return texts.get(stem.rpartition("/")[2], twin)


def _twin(path: str) -> str:
    """Replace the last folder called images by labels, as every YOLO does."""
    for name, twin in (("/images/", "/labels/"), ("/Images/", "/Labels/")):
        head, found, tail = path.rpartition(name)
        if found:
            return head + twin + tail
    return path


def _short_name(name: str) -> str:
    for folder in ("images/", "Images/", "obj_train_data/"):
        name = name.rpartition(folder)[2]
    head, _, tail = name.partition("/")
    return tail if tail and is_split_name(head) else name


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _layout(path: Path) -> _Layout:
    layout = _find_layout(path)
    if layout is None:
        raise DataError(f"{path} is no YOLO data set; expected data.yaml, or images and labels side by side")
    return layout


def _find_layout(path: Path) -> _Layout | None:
    """Return the layout of a folder, data.yaml or obj.data, or None if it is no YOLO data set.

    Raises:
        DataError: for a file that says nothing usable.
        MissingExtraError: for a data.yaml without pyyaml.
    """
    if path.is_file():
        if path.suffix.lower() in _YAML:
            return _from_yaml(path)
        return _from_darknet(path) if path.suffix.lower() == ".data" else None
    settings = [file for file in files_in(path, *_YAML) if _is_data_yaml(file)]
    settings = [file for file in settings if file.stem.lower() in _YAML_NAMES] or settings
    if len(settings) > 1:
        raise DataError(f"{path} holds {' and '.join(file.name for file in settings)}; give the one that is meant")
    if settings:
        return _from_yaml(settings[0])
    darknet = [file for file in files_in(path, ".data") if re.search(r"(?m)^\s*names\s*=", _text_of(file))]
    return _from_darknet(darknet[0]) if darknet else _from_folders(path)


def _looks_like_labels(path: Path) -> bool:
    """Return whether the first line of a text file is one of a YOLO label file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return _LABEL_LINE.fullmatch(file.readline(1000).rstrip("\r\n")) is not None
    except (OSError, UnicodeError):
        return False


def _is_data_yaml(path: Path) -> bool:
    text = _text_of(path)
    if not re.search(r"(?m)^\s*(names|nc)\s*:", text):
        return False
    return path.stem.lower() in _YAML_NAMES or re.search(r"(?m)^\s*(train|val|test)\s*:", text) is not None


def _text_of(path: Path) -> str:
    try:
        return read_text(path)
    except DataError:
        return ""  # some other program's file


def _from_yaml(path: Path) -> _Layout:
    content = _load_yaml(path)
    classes = _yaml_classes(content, path)
    base = _existing(path.parent, [str(content.get("path") or ".")]) or path.parent
    sources: dict[str, list[Path]] = {}
    for split, entry in content.items():
        if not (is_split_name(split) or _is_folder_entry(entry, base)):
            continue
        entries = [str(one) for one in (entry if is_list(entry) else [entry]) if one]
        places = [_existing(base, [one]) or _existing(path.parent, _tails(one)) for one in entries]
        if split == "test" and None in places:
            continue  # exporters write a test line whether or not there is a test folder
        for one, place in zip(entries, places, strict=True):
            if place is None:
                raise DataError(
                    f"{path} says {split}: {one}, which does not exist below {base}; correct it or add the folder"
                )
        if entries:
            sources[split] = [_inner(place) for place in places if place is not None]
    if not sources:
        plain = _from_folders(path.parent)
        if plain is None:
            raise DataError(f"{path} names no images; add train: and val: with their folders")
        sources = plain.sources
    return _Layout(path.parent, classes, path, sources)


def _is_folder_entry(entry: Any, base: Path) -> bool:
    # A split of any name, such as "fold1: images/fold1", beside keys that are no splits.
    return isinstance(entry, str) and entry.startswith("images/") and (base / entry).is_dir()


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("Reading data.yaml", "train") from None
    try:
        # Plain strings: YAML would make the class "no" False and the class "007" 7.
        content: Any = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is no YAML ({' '.join(str(error).split())}); correct it") from None
    if not is_mapping(content):
        raise DataError(f"{path} should hold lines like train: images/train and names: [...]; got something else")
    return content


def _yaml_classes(content: Mapping[str, Any], path: Path) -> dict[int, str] | None:
    names: Any = content.get("names")
    count: Any = content.get("nc")
    try:
        if is_mapping(names):
            classes = {int(number): str(name).strip() for number, name in names.items()}
        elif is_list(names):
            classes = {number: str(name).strip() for number, name in enumerate(names)}
        elif count is not None and not names:
            return {number: str(number) for number in range(int(count))}
        else:
            raise ValueError
        declared = None if count is None else int(count)
    except (TypeError, ValueError):
        raise DataError(
            f"{path}: names should be a list, or numbers with a name each, and nc a number; correct it"
        ) from None
    if declared is not None and declared != len(classes):
        raise DataError(f"{path} says nc: {declared} but names {len(classes)} classes; make them agree")
    return dict(sorted(classes.items()))


def _from_darknet(path: Path) -> _Layout:
    pairs = (line.partition("=") for line in read_lines(path) if "=" in line)
    content = {key.strip(): value.strip() for key, _, value in pairs}
    names = _existing(path.parent, _tails(content.get("names", "obj.names")))
    sources: dict[str, list[Path]] = {}
    for key, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        place = _existing(path.parent, _tails(content[key])) if key in content else None
        if place is not None:
            sources[split] = [place]
    if names is None or not sources:
        raise DataError(f"{path} names no existing class file or image list; expected names = ... and train = ...")
    return _Layout(path.parent, _read_classes(names), names, sources)


def _from_folders(path: Path) -> _Layout | None:
    classes_file = _class_file(path)
    images, labels = child(path, "images"), child(path, "labels")
    sources: dict[str, list[Path]] = {}
    if images and labels and _holds_labels(labels):
        sources = _twins(path, images)
        classes_file = classes_file or _class_file(labels)
    elif parts := [part for part in folders_in(path) if is_split_name(part.name) and _is_twin(part)]:
        named = name_splits({part.name: part for part in parts})
        sources = {name: [child(part, "images") or part] for name, part in named.items()}
    elif any(_looks_like_labels(file) for file in files_in(path, ".txt")[:20]):
        sources = {"all": [path]}
    if not sources:
        return None
    return _Layout(path, None if classes_file is None else _read_classes(classes_file), classes_file, sources)


def _class_file(folder: Path) -> Path | None:
    return next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)


def _twins(path: Path, images: Path) -> dict[str, list[Path]]:
    lists = {file.stem: file for file in files_in(path, ".txt") if is_split_name(file.stem)}
    if lists:
        return {name: [file] for name, file in name_splits(lists).items()}
    parts = {part.name: part for part in folders_in(images) if is_split_name(part.name)}
    if parts and not files_in(images, *IMAGE_SUFFIXES):
        return {name: [part] for name, part in name_splits(parts).items()}
    return {"all": [images]}


def _is_twin(folder: Path) -> bool:
    labels = child(folder, "labels")
    return labels is not None and child(folder, "images") is not None and _holds_labels(labels)


def _holds_labels(folder: Path) -> bool:
    texts = [name for name in files_below(folder, ".txt") if name not in _CLASS_FILES][:20]
    return any(_looks_like_labels(folder / name) for name in texts)


def _read_classes(path: Path) -> dict[int, str]:
    return dict(enumerate(read_lines(path)))


def _tails(text: str) -> list[str]:
    clean = "/".join(part for part in text.replace("\\", "/").split("/") if part not in ("", ".", ".."))
    whole, *rest = tails(clean)
    # The last part alone is too little for a folder: every data set has one called images.
    return [whole, *(tail for tail in rest if "/" in tail or "." in tail)]


def _existing(base: Path, texts: Iterable[str]) -> Path | None:
    places = (base / text.replace("\\", "/") for text in texts if text)
    return next((place for place in places if place.exists()), None)


def _inner(place: Path) -> Path:
    # "train: train" may mean the folder that holds images and labels.
    if place.is_dir() and not files_in(place, *IMAGE_SUFFIXES):
        return child(place, "images") or place
    return place


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write data.yaml, and images and labels with a folder for each split."""
    fractions = Fractions()
    for split, dataset in splits.items():
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            place_image(sample, folder / "images" / split / name, link=link)
            boxes, keep = fractions.of(sample)
            x1, y1, x2, y2 = boxes.T
            rows = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)[keep].tolist()
            labels = sample.labels[keep].tolist()
            path = (folder / "labels" / split / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = zip(labels, rows, strict=True)
            write_lines(path, (" ".join([str(label), *(f"{x:.12g}" for x in row)]) for label, row in lines))
    # A list in JSON's spelling is YAML too, and quotes names like "no" and "007".
    names = next(iter(splits.values())).class_names
    listing = ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
    write_lines(folder / "data.yaml", [*(f"{split}: images/{split}" for split in splits), f"names: [{listing}]"])
    return fractions.sentences("YOLO")
