"""YOLO: one text file per image, each line a class number and a box as fractions of the image."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.finder import Fractions, ImageFinder, own_places, place_image, target_names
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import (
    ADVICE,
    SKIP,
    ReadOptions,
    files_below,
    in_order,
    is_split_name,
    read_lines,
    read_text,
    safe_name,
    stem_of,
    tails,
    write_lines,
)
from multibox.data.formats.yolo_layout import (
    CLASS_FILES,
    YAML,
    Layout,
    find_layout,
    images_beside,
    label_folder,
    looks_like_labels,
    twin,
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
    Reason,
)
from multibox.errors import DataError, ImageError
from multibox.files import same_name
from multibox.structures import Dataset, Size

_SLACK = 0.01  # tools round a box at the edge to 1.001; pixels in place of fractions are far beyond
_SAMPLE = 200
"""Objects looked at to tell key points from outlines where data.yaml does not say it."""
_OTHER_CAPITALS = Reason(
    "label file was taken for an image whose name is spelt differently",
    "label files were taken for images whose names are spelt differently",
)
_OTHER_KEYPOINTS = Reason(
    "line has another number of key points than kpt_shape says; its box was taken",
    "lines have other numbers of key points than kpt_shape says; their boxes were taken",
)
_TWO_LABELS = Reason(
    "image has a second label file beside it, which was not taken",
    "images have second label files beside them, which were not taken",
)
_SHARED_LABEL = Reason("label file serves several images", "label files serve several images each")
_LABEL_ELSEWHERE = Reason("label file was found in another folder", "label files were found in other folders")


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    label: Path
    """The label file, which need not exist: an image without one shows no objects."""


class _Box(NamedTuple):
    label: int
    fractions: tuple[float, float, float, float]
    """xyxy."""
    outline: bool
    """Made of a polygon's corners."""
    line: int


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder a YOLO data set, or None."""
    if path.is_file():
        return path.name if path.suffix.lower() in (*YAML, ".data") else None
    try:
        layout = find_layout(path)
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
        DataError: for a line that is no box, a class index without a name, a label file without an image.
    """
    layout = _layout(path)
    index = IndexBuilder(layout.root, "yolo", split, options, shared=False, fractions=True)
    entries = _entries(layout, split, index)
    if entries and options.raw is None and not any(entry.label.is_file() for entry in entries):
        raise DataError(
            f"{layout.root}: none of the {len(entries)} images of split {split!r} has a label file; "
            f"looked for {entries[0].label} and so on; put the labels there"
        )
    classes = layout.classes if layout.classes is not None else _numbers(layout, entries)
    if layout.classes is not None and layout.classes_file is not None:
        _note_classes(index, layout.classes, layout.classes_file)
    index.notes += [layout.note] if layout.note else []
    places = {number: place for place, number in enumerate(classes)}
    keypoints = cache(lambda: layout.keypoints or _guess_keypoints(entries, index))
    for entry in entries:
        index.source = entry.label
        with index.skipping(BROKEN_FILE, entry.label.name):
            _add(index, entry, _read_label(entry.label, index, keypoints), places, layout)
    return index.finish(list(classes.values()))


def _note_classes(index: IndexBuilder, classes: Mapping[int, str], file: Path) -> None:
    read_text(file, index.tell_encoding)
    for name, count in Counter(classes.values()).items():
        if count > 1:
            index.notes.append(f"class {name!r} stands in {file.name} more than once; its boxes were joined")


def _add(index: IndexBuilder, entry: _Entry, boxes: list[_Box], places: Mapping[int, int], layout: Layout) -> None:
    size: Size | None = None
    if boxes:
        with index.skipping(UNREADABLE_IMAGE, entry.path.name, entry.path):
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


def _read_label(path: Path, index: IndexBuilder, keypoints: Callable[[], tuple[int, int] | None]) -> list[_Box]:
    """Return the boxes of a label file; none if there is no such file. `keypoints` is asked at the first long line."""
    boxes: list[_Box] = []
    lines = read_text(path, index.tell_encoding).splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        tokens = line.split()
        if tokens:
            with index.skipping(BROKEN_BOX, path.name):
                where = f"{path}, line {number}"
                label, place = _numbers_in(tokens, where)
                if len(place) > 4 and (shape := keypoints()) is not None:
                    if len(place) != 4 + shape[0] * shape[1]:
                        index.guessed(_OTHER_KEYPOINTS, f"{path.name}, line {number}")
                    place = place[:4]
                boxes.append(_box(label, place, where, number, any_size=index.options.raw is not None))
    return boxes


def _numbers_in(tokens: list[str], where: str) -> tuple[int, list[float]]:
    try:
        values = [float(token) for token in tokens]
        if not values[0].is_integer():
            raise ValueError
    except ValueError:
        raise DataError(
            f"{where}: expected a class number and fractions, got {' '.join(tokens)[:60]!r}; {ADVICE}",
            kind="not-a-number" if any(map(str.isdigit, "".join(tokens))) else "unreadable-label",
        ) from None
    return int(values[0]), values[1:]


def _box(label: int, place: list[float], where: str, line: int, *, any_size: bool) -> _Box:
    if len(place) != 4 and (len(place) < 6 or len(place) % 2):
        raise DataError(
            f"{where}: expected class cx cy w h, got {len(place) + 1} values; {ADVICE}", kind="unreadable-label"
        )
    wild = [value for value in place if value > 1 + _SLACK or (value < -_SLACK and len(place) > 4)]
    if wild and not any_size:
        raise DataError(
            f"{where}: expected fractions of the image from 0 to 1, got {wild[0]:g}; divide pixels by its size",
            kind="pixel-boxes",
        )
    if len(place) == 4:
        cx, cy, width, height = place
        return _Box(label, (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), False, line)
    if not all(map(math.isfinite, place)):
        return _Box(label, (math.nan, math.nan, math.nan, math.nan), False, line)
    xs, ys = place[0::2], place[1::2]
    return _Box(label, (min(xs), min(ys), max(xs), max(ys)), True, line)


def _guess_keypoints(entries: Sequence[_Entry], index: IndexBuilder) -> tuple[int, int] | None:
    """Tell `class cx cy w h` with key points behind from an outline, if no kpt_shape says which it is; note the guess.

    They are key points if all such lines are equally long, every point lies in the box of the first four numbers, and
    in many lines that box's size, read as a corner, lies far from the other points.
    """
    rows: list[list[float]] = []
    for place in _long_lines(entries):
        rows.append(place)
        if len(rows) == _SAMPLE:
            break
    if len({len(row) for row in rows}) != 1:
        return None
    values = np.array(rows, dtype=np.float64)
    for numbers in (3, 2):
        points, rest = divmod(values.shape[1] - 4, numbers)
        if points > 0 and not rest and _fits_keypoints(values, points, numbers):
            index.notes.append(
                f"lines of {values.shape[1] + 1} numbers were read as a box and {points} key points, as they look; "
                "say kpt_shape in data.yaml, or leave the box alone"
            )
            index.report(BROKEN_BOX, "keypoints-as-outline", f"{len(rows)} objects", index.notes[-1])
            return points, numbers
    return None


def _long_lines(entries: Sequence[_Entry]) -> Iterator[list[float]]:
    for entry in entries:
        try:
            lines = read_text(entry.label).splitlines() if entry.label.is_file() else []
        except DataError:
            continue
        for tokens in map(str.split, lines):
            if len(tokens) > 7:
                try:
                    place = [float(token) for token in tokens[1:]]
                except ValueError:
                    continue
                if all(map(math.isfinite, place)):
                    yield place


def _fits_keypoints(values: NDArray[np.float64], points: int, numbers: int) -> bool:
    objects = len(values)
    centre, extent = values[:, None, 0:2], values[:, None, 2:4]
    places = values[:, 4:].reshape(objects, points, numbers)
    if numbers == 3 and not np.isin(places[..., 2], (0, 1, 2)).all():
        return False
    # The third number is 0 for a point that is not in the image; of two, both are.
    seen = np.asarray(places[..., 2] > 0 if numbers == 3 else (places != 0).any(axis=-1))
    offsets = np.abs(places[..., :2] - centre)
    inside = (offsets <= extent / 2 + _SLACK).all(axis=-1) | ~seen
    low, high = values[:, 0:2].copy(), values[:, 0:2].copy()
    for number in range(points):
        shown = seen[:, number, None]
        low = np.where(shown, np.minimum(low, places[:, number, :2]), low)
        high = np.where(shown, np.maximum(high, places[:, number, :2]), high)
    gap = np.maximum(low - values[:, 2:4], values[:, 2:4] - high).max(axis=1)
    far = gap > (high - low).max(axis=1) + _SLACK
    return bool(inside.all() and (numbers == 3 or (objects >= 3 and far.mean() > 0.25)))


def _numbers(layout: Layout, entries: list[_Entry]) -> dict[int, str]:
    """Return "0", "1" ... up to the highest class index of all splits, if no file names the classes."""
    quiet = IndexBuilder(layout.root, "yolo", "", ReadOptions(on_bad="skip"), shared=False)
    labels = {entry.label for entry in entries}
    for split in layout.sources:
        labels |= {entry.label for entry in _entries(layout, split, quiet)}
    highest = max(
        (box.label for label in labels for box in _read_label(label, quiet, lambda: layout.keypoints)), default=-1
    )
    return {number: str(number) for number in range(highest + 1)}


def _entries(layout: Layout, split: str, index: IndexBuilder) -> list[_Entry]:
    entries: list[_Entry] = []
    for source in layout.sources[split]:
        if source.is_file():
            entries += _listed(layout, source, split, index)
        else:
            entries += _in_folder(source, layout.root, index)
    used = Counter(entry.label for entry in entries)
    for label in (label for label, count in used.items() if count > 1 and label.is_file()):
        images = [entry.path.name for entry in entries if entry.label == label]
        if len(set(images)) > 1:
            index.guessed(_SHARED_LABEL, f"{label.name} ({' and '.join(images)})")
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        whole = [_Entry(safe_name(str(_relative(one.path, layout.root))), one.path, one.label) for one in entries]
        return list({entry.name: entry for entry in whole}.values())
    return entries


def _in_folder(folder: Path, root: Path, index: IndexBuilder) -> list[_Entry]:
    """Return the images of a folder, each with its label file: in the twin folder first, else beside."""
    images = files_below(folder, *IMAGE_SUFFIXES)
    free = set(images)
    chosen: dict[str, Path] = {}
    labels = label_folder(folder, root)
    orphans: list[Path] = []
    for place in dict.fromkeys((labels, folder)):
        texts = [name for name in files_below(place, ".txt") if name.rpartition("/")[2].lower() not in CLASS_FILES]
        pairs = _pairs(free, texts, index)
        chosen |= {image: place / text for image, text in pairs.items()}
        used = set(pairs.values())
        stems = {stem_of(name) for name in chosen}
        for text in (text for text in texts if text not in used):
            if text[:-4] not in stems:
                orphans.append(place / text)
            elif place != labels and looks_like_labels(place / text):
                index.guessed(_TWO_LABELS, text)
        free -= pairs.keys()
    for orphan in orphans:
        if looks_like_labels(orphan):
            index.source = orphan
            with index.skipping(MISSING_IMAGE, orphan.name):
                raise ImageError(
                    f"{orphan}: its image is missing from {images_beside(folder)}; put it there, or {SKIP}",
                    kind="label-without-image",
                )
    return [_Entry(name, folder / name, chosen.get(name, labels / f"{stem_of(name)}.txt")) for name in images]


def _pairs(images: Iterable[str], texts: list[str], index: IndexBuilder) -> dict[str, str]:
    """Return the label file of each image: of its name exactly, else in other capitals if only one image fits."""
    exact = {text[:-4]: text for text in sorted(texts, key=lambda text: text.endswith(".txt"))}
    pairs = {name: exact[key] for name in images for key in (name, stem_of(name)) if key in exact}
    left = [text for text in texts if text not in set(pairs.values())] if len(pairs) < len(texts) else []
    if left:
        wanted: dict[str, list[str]] = {}
        for name in images:
            if name not in pairs:
                wanted.setdefault(same_name(unquote(stem_of(name))), []).append(name)
        found = Counter(same_name(unquote(text[:-4])) for text in left)
        for text in left:
            key = same_name(unquote(text[:-4]))
            if found[key] == 1 and len(wanted.get(key, ())) == 1:
                pairs[wanted[key][0]] = text
                index.guessed(_OTHER_CAPITALS, f"{text} ({wanted[key][0]})")
    return pairs


def _listed(layout: Layout, source: Path, split: str, index: IndexBuilder) -> list[_Entry]:
    finder = ImageFinder(layout.root, [source.parent, layout.root], split)
    labels = _LabelFinder(layout.root, index)
    entries: dict[str, _Entry] = {}
    index.source = source
    for line in read_lines(source, index.tell_encoding):
        name = _short_name(safe_name(line))
        found = index.check_found(finder.find(line), finder, line, str(source), name, "list-names-missing-file")
        if found is None:
            continue
        if name in entries and entries[name].path == found:
            index.count(LISTED_TWICE, name)
            continue
        key = name if name not in entries else safe_name(line)
        entries[key] = _Entry(key, found, labels.find(line, found))
    return list(entries.values())


class _LabelFinder:
    """Finds the label files of listed images: all text files below the root are listed once."""

    def __init__(self, root: Path, index: IndexBuilder) -> None:
        self.root, self.index = root, index
        self.known = set(files_below(root, ".txt"))
        self.loose: dict[str, list[str]] = {}
        self.bases: dict[str, list[str]] = {}
        for name in sorted(self.known):
            self.loose.setdefault(same_name(name), []).append(name)
            self.bases.setdefault(name.rpartition("/")[2], []).append(name)

    def find(self, line: str, found: Path) -> Path:
        """Return the label file of the image that `line` names, or where it would be if it is missing."""
        at_home = found.is_relative_to(self.root)
        place = f"/{found.relative_to(self.root).as_posix()}" if at_home else found.as_posix()
        beside, usual = (f"{stem_of(one)}.txt".removeprefix("/" if at_home else "") for one in (place, twin(place)))
        listed = stem_of(safe_name(line)) + ".txt"
        wanted = [usual, beside] if at_home else []
        for tail in (*wanted, *tails(twin("/" + listed)[1:]), *tails(listed)):
            if tail in self.known:
                return self.root / tail
        if not at_home and (there := [text for text in (usual, beside) if Path(text).is_file()]):
            return Path(there[0])
        for tail in wanted:
            if len(self.loose.get(same_name(tail), ())) == 1:
                text = self.loose[same_name(tail)][0]
                self.index.guessed(_OTHER_CAPITALS, f"{text} ({found.name})")
                return self.root / text
        base = listed.rpartition("/")[2]
        if len(self.bases.get(base, ())) == 1 and not _apart(self.bases[base][0], listed):
            self.index.guessed(_LABEL_ELSEWHERE, self.bases[base][0])
            return self.root / self.bases[base][0]
        return self.root / usual  # which is the path itself where that is absolute


def _apart(text: str, listed: str) -> bool:
    """Return whether a label file lies in the folder of another split than the listed image."""
    there = {part for part in text.split("/")[:-1] if is_split_name(part)}
    return bool(there) and not there & set(listed.split("/"))


def _short_name(name: str) -> str:
    for folder in ("images/", "Images/", "JPEGImages/", "obj_train_data/", "obj_valid_data/", "obj_test_data/"):
        name = name.rpartition(folder)[2]
    head, _, tail = name.partition("/")
    return tail if tail and is_split_name(head) else name


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _layout(path: Path) -> Layout:
    layout = find_layout(path)
    if layout is None:
        raise DataError(f"{path} is no YOLO data set; expected data.yaml, or images and labels side by side")
    return layout


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
    _write_yaml(folder, {split: f"images/{split}" for split in splits}, next(iter(splits.values())).class_names)
    return fractions.sentences("YOLO")


def write_lists(splits: Mapping[str, Dataset], folder: Path) -> None:
    """Write data.yaml and SPLIT.txt, which list images of a YOLO data set where they are, with labels beside them."""
    for split, dataset in splits.items():
        write_lines(folder / f"{split}.txt", own_places(dataset))
    _write_yaml(folder, {split: f"{split}.txt" for split in splits}, next(iter(splits.values())).class_names)


def _write_yaml(folder: Path, sources: Mapping[str, str], class_names: Iterable[str]) -> None:
    # A list in JSON's spelling is YAML too, and quotes names like "no" and "007".
    listing = ", ".join(json.dumps(name, ensure_ascii=False) for name in class_names)
    lines = [f"{split}: {source}" for split, source in sources.items()]
    write_lines(folder / "data.yaml", [*lines, f"names: [{listing}]"])
