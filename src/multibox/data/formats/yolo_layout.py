"""Where a YOLO data set keeps its parts: data.yaml, darknet's obj.data, twins images and labels, or one folder."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.formats.common import (
    PICTURE_SUFFIXES,
    child,
    files_below,
    files_in,
    folders_in,
    in_order,
    is_split_name,
    name_splits,
    read_lines,
    read_text,
    tails,
)
from multibox.errors import DataError, MissingExtraError

_CLASS_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt")
_YAML = (".yaml", ".yml")
_YAML_NAMES = ("data", "dataset")
_LABEL_LINE = re.compile(r"\s*\d+(\.0*)?(\s+-?[\d.]+(e[-+]?\d+)?){4,}\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """A YOLO data set's parts."""

    root: Path
    classes: dict[int, str] | None
    """Class number to name; None where no file tells them."""
    classes_file: Path | None
    sources: dict[str, list[Path]]
    """Each split's picture folders and list files."""


def find_layout(path: Path) -> Layout | None:
    """Return the layout of a folder, data.yaml or obj.data, or None where it is no YOLO data set.

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


def looks_like_labels(path: Path) -> bool:
    """Say whether the first line of a text file is one of a YOLO label file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return _LABEL_LINE.fullmatch(file.readline(1000).rstrip("\r\n")) is not None
    except (OSError, UnicodeError):
        return False


def is_class_file(name: str) -> bool:
    """Say whether a text file lists classes rather than boxes."""
    return name in _CLASS_FILES


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


def _from_yaml(path: Path) -> Layout:
    content = _load_yaml(path)
    classes = _yaml_classes(content, path)
    base = _existing(path.parent, [str(content.get("path") or ".")]) or path.parent
    sources: dict[str, list[Path]] = {}
    for split, entry in content.items():
        if not (is_split_name(split) or _is_folder_entry(entry, base)):
            continue
        entries = [str(one) for one in (entry if isinstance(entry, list) else [entry]) if one]
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
            raise DataError(f"{path} names no pictures; add train: and val: with their folders")
        sources = plain.sources
    return Layout(path.parent, classes, path, sources)


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
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is no YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} should hold lines like train: images/train and names: [...]; got something else")
    return content


def _yaml_classes(content: dict[str, Any], path: Path) -> dict[int, str] | None:
    names, count = content.get("names"), content.get("nc")
    try:
        if isinstance(names, dict):
            classes = {int(number): str(name).strip() for number, name in names.items()}
        elif isinstance(names, list):
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


def _from_darknet(path: Path) -> Layout:
    pairs = (line.partition("=") for line in read_lines(path) if "=" in line)
    content = {key.strip(): value.strip() for key, _, value in pairs}
    names = _existing(path.parent, _tails(content.get("names", "obj.names")))
    sources: dict[str, list[Path]] = {}
    for key, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        place = _existing(path.parent, _tails(content[key])) if key in content else None
        if place is not None:
            sources[split] = [place]
    if names is None or not sources:
        raise DataError(f"{path} names no existing class file or picture list; expected names = ... and train = ...")
    return Layout(path.parent, _read_classes(names), names, sources)


def _from_folders(path: Path) -> Layout | None:
    classes_file = next((path / name for name in _CLASS_FILES if (path / name).is_file()), None)
    images, labels = child(path, "images"), child(path, "labels")
    sources: dict[str, list[Path]] = {}
    if images and labels and any(looks_like_labels(labels / name) for name in _some_texts(labels)):
        sources = _twins(path, images)
        classes_file = classes_file or next((labels / n for n in _CLASS_FILES if (labels / n).is_file()), None)
    elif parts := [part for part in folders_in(path) if is_split_name(part.name) and _is_twin(part)]:
        named = name_splits({part.name: part for part in parts})
        sources = {name: [child(part, "images") or part] for name, part in named.items()}
    elif any(looks_like_labels(file) for file in files_in(path, ".txt")[:20]):
        sources = {"all": [path]}
    if not sources:
        return None
    return Layout(path, None if classes_file is None else _read_classes(classes_file), classes_file, sources)


def _twins(path: Path, images: Path) -> dict[str, list[Path]]:
    lists = {file.stem: file for file in files_in(path, ".txt") if is_split_name(file.stem)}
    if lists:
        return {name: [file] for name, file in name_splits(lists).items()}
    parts = {part.name: part for part in folders_in(images) if is_split_name(part.name)}
    if parts and not files_in(images, *PICTURE_SUFFIXES):
        return {name: [part] for name, part in name_splits(parts).items()}
    return {"all": [images]}


def _is_twin(folder: Path) -> bool:
    labels = child(folder, "labels")
    return bool(
        child(folder, "images") and labels and any(looks_like_labels(labels / name) for name in _some_texts(labels))
    )


def _some_texts(folder: Path) -> list[str]:
    return [name for name in files_below(folder, ".txt") if not is_class_file(name)][:20]


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
    if place.is_dir() and not files_in(place, *PICTURE_SUFFIXES):
        return child(place, "images") or place
    return place


def split_order(layout: Layout) -> dict[str, list[Path]]:
    """Return the layout's splits, train and val first."""
    return {name: layout.sources[name] for name in in_order(layout.sources)}
