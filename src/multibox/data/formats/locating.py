"""Where the data set at a path is, and of which format: in a file, a folder, a folder further down or a .zip."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from multibox.columns import Texts
from multibox.data.archives import unpack_zip
from multibox.data.formats import csv_boxes
from multibox.data.formats.agreement import differ
from multibox.data.formats.explaining import explain
from multibox.data.formats.text import ReadOptions, files_in, folders_in, in_order, is_split_name, split_in
from multibox.errors import DataError
from multibox.structures import Dataset

_PARTS = frozenset(
    (
        *("annotations", "imagesets", "jpegimages", "images", "image", "img", "imgs"),
        *("labels", "xmls", "xml", "obj_train_data"),
    )
)
"""Folders, in small letters, that belong to a data set and hold none."""
_LEVELS, _MOST_FOLDERS = 5, 300
"""How far below a folder its data set is searched, and among how many folders of one level."""


class Writer(Protocol):
    """Writes splits, whose classes are the same, into an empty folder; returns what has to be said about it."""

    def __call__(self, splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
        """Write; with `link` images become hard links if possible."""
        ...


@dataclass(frozen=True)
class Format:
    """What the toolkit needs from a label format."""

    title: str
    looked_for: str
    recognise: Callable[[Path], str | None]
    """What makes this folder or file one of the format, as shown to the user; None if it is none."""
    find_splits: Callable[[Path], Mapping[str, Any]]
    read: Callable[[Path, str, ReadOptions], Dataset]
    write: Writer | None = None
    """None for a format that is only read."""
    holds_difficult: bool = True
    """Whether the format can hold VOC's flag."""
    holds_crowd: bool = True
    """Whether the format can hold COCO's flag."""


@dataclass(frozen=True)
class Found:
    """A data set: its format, its root, and what gave it away."""

    format: str
    path: Path
    evidence: str
    reader: Format
    notes: tuple[str, ...] = ()
    """What was guessed on the way to it."""
    parts: tuple["Found", ...] = ()
    """Folders named like splits, such as `train` and `val`, each of which holds one of the data set's splits."""

    def splits(self) -> list[str]:
        """Return the names of the splits, train and val first."""
        return in_order(self._part_splits()) if self.parts else list(self.reader.find_splits(self.path))

    def read(self, split: str, options: ReadOptions) -> Dataset:
        """Read one split, as `open_dataset` does; the notes begin with those on where it was found."""
        if not self.parts:
            dataset = self.reader.read(self.path, split, options)
            if options.raw:
                options.raw[-1].notes[:0] = self.notes
            return replace(dataset, notes=(*self.notes, *dataset.notes))
        part, inner = self._part_splits()[split]
        dataset = part.read(inner, options)
        prefix = part.path.relative_to(self.path).as_posix()
        names = Texts.of(f"{prefix}/{name}" for name in dataset.image_names)
        if options.raw:
            raw = options.raw[-1]
            options.raw[-1] = replace(
                raw, root=self.path, split=split, image_names=names, notes=[*self.notes, *raw.notes]
            )
        return replace(dataset, root=self.path, split=split, image_names=names, notes=(*self.notes, *dataset.notes))

    def _part_splits(self) -> dict[str, tuple["Found", str]]:
        """Return the part that holds each split, and the split's name there."""
        found: dict[str, tuple[Found, str]] = {}
        for part in self.parts:
            inner = part.splits()
            for name in inner:
                own = _split_of(part.path.relative_to(self.path))
                found[own if len(inner) == 1 else f"{own}-{name}"] = (part, name)
        return found


def search(path: Path, formats: Mapping[str, Format]) -> Found:
    """Find the one data set at a path; see `locate`.

    Raises:
        DataError: there is none, or more than one.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give the folder or file of a data set")
    if path.is_file() and path.suffix.lower() == ".zip":
        folder, notes = unpack_zip(path)
        found = search(folder, formats)
        return replace(found, notes=(f"{path} was unpacked into {folder}", *notes, *found.notes))
    found = _near(path, formats)
    # The second time around a folder may be called images or labels: there is nothing else
    for parts, depth in product((False, True), range(1, _LEVELS + 1)):
        found = found or _at_depth(path, depth, formats, parts)
    if not found:
        raise DataError(_nothing(path, formats))
    chosen = found[0] if len(found) == 1 else _as_splits(found, path) or _with_same_labels(found, path)
    if not chosen.path.samefile(path) and chosen.path.is_dir():
        chosen = replace(chosen, notes=(*chosen.notes, f"{path}: the data set is in {_below(chosen, path)}"))
    return chosen


def _look(path: Path, formats: Mapping[str, Format]) -> list[Found]:
    """Return every format this folder or file can be, without looking into other folders."""
    evidence = {name: format.recognise(path) for name, format in formats.items()}
    return [Found(name, path, what, formats[name]) for name, what in evidence.items() if what is not None]


def _near(path: Path, formats: Mapping[str, Format]) -> list[Found]:
    """Return the data sets in a folder or file itself and in the folders directly in it."""
    here = _look(path, formats)
    below: list[Found] = []
    known = {one.format for one in here}
    for folder in folders_in(path) if path.is_dir() else []:
        if _may_hold_a_set(folder) and not (here and is_split_name(folder.name)):
            below += [found for found in _look(folder, formats) if found.format not in known]
    return here + below


def _at_depth(path: Path, depth: int, formats: Mapping[str, Format], parts: bool) -> list[Found]:
    """Return the data sets `depth` folders below a folder; with `parts` also in folders called images or the like."""
    folders = [path] if path.is_dir() else []
    for _ in range(depth):
        folders = [inner for folder in folders for inner in folders_in(folder) if parts or _may_hold_a_set(inner)]
        folders = folders[:_MOST_FOLDERS]
    return [found for folder in folders for found in _look(folder, formats)]


def _may_hold_a_set(folder: Path) -> bool:
    return folder.name.lower() not in _PARTS


def _as_splits(found: Sequence[Found], path: Path) -> Found | None:
    """Return one data set made of folders of one format that are named like splits, or None."""
    names = [_split_of(one.path.relative_to(path)) for one in found]
    if len({one.format for one in found}) > 1 or not all(map(is_split_name, names)) or len(set(names)) < len(names):
        return None
    evidence = " and ".join(one.path.relative_to(path).as_posix() for one in found)
    return Found(found[0].format, path, evidence, found[0].reader, parts=tuple(found))


def _split_of(folder: Path) -> str:
    """Return the split in the names of a folder and those around it, the innermost first; else the folder's name."""
    hits = [split for part in reversed(folder.parts) if is_split_name(split := split_in(part))]
    return hits[0].lower() if hits else folder.name


def _with_same_labels(found: Sequence[Found], path: Path) -> Found:
    """Return one of several data sets that hold the same boxes, the one with most splits and images.

    Raises:
        DataError: they hold different boxes.
    """
    read = [(one, _read_all(one)) for one in found] if len({one.format for one in found}) == len(found) else []
    reason = "" if read else "of one format"
    for _, other in read[1:]:
        reason = reason or differ(read[0][1], other)
    if reason:
        listing = " and ".join(f"{_shown(one, path)} ({one.format})" for one in found)
        raise DataError(
            f"{path} holds more than one data set: {listing}, {reason}; name one with --format, give its folder or "
            "file, or give several folders to join them"
        )
    # `max` takes the first of equals, and formats are listed from the richest
    chosen, _ = max(read, key=lambda pair: (len(pair[1]), sum(len(dataset) for dataset in pair[1])))
    others = " and ".join(f"{_shown(one, path)} ({one.format})" for one in found if one is not chosen)
    note = f"{path}: {_shown(chosen, path)} ({chosen.format}) is read; {others} holds the same boxes"
    return replace(chosen, notes=(*chosen.notes, note))


def _read_all(found: Found) -> list[Dataset]:
    """Return every split that can be read."""
    datasets: list[Dataset] = []
    for split in found.splits():
        try:
            datasets.append(found.read(split, ReadOptions(on_bad="skip")))
        except DataError:
            continue
    return datasets


def _below(found: Found, path: Path) -> str:
    return found.path.resolve().relative_to(path.resolve()).as_posix()


def _shown(found: Found, path: Path) -> str:
    inside = _of_all_splits(found) if found.path == path else found.path.relative_to(path).as_posix()
    return f"{path.name}/{inside}"


def _of_all_splits(found: Found) -> str:
    """Return what gave a data set away, for all its splits: {train,test}_labels.csv for train_labels.csv."""
    splits = found.splits()
    if len(splits) < 2 or found.parts:
        return found.evidence
    one = "|".join(map(re.escape, sorted(splits, key=len, reverse=True)))
    return re.sub(rf"(?<![^\W_])({one})(?![^\W_])", lambda _: f"{{{','.join(splits)}}}", found.evidence)


def _nothing(path: Path, formats: Mapping[str, Format]) -> str:
    looked_for = "; ".join(one.looked_for for one in formats.values())
    if path.is_file():
        what = explain(path, others=len(formats) > 1)
        return f"{path} is no label file that can be read{f' ({what})' if what else ''}; looked for {looked_for}"
    if (what := explain(path, others=len(formats) > 1)) is not None:
        return f"{path} is no data set: {what}; looked for {looked_for}; found {_held(path)}"
    tables = [csv_boxes.explain(file) for file in files_in(path, ".csv", ".tsv")] if "csv" in formats else []
    if tables:
        return f"{path} is no data set: {tables[0]}"
    return f"{path} is no data set; looked for {looked_for}; found {_held(path)}"


def _held(path: Path) -> str:
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return ", ".join(entries[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "") or "nothing"
