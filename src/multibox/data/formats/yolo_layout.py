"""Layouts of YOLO data sets: ultralytics' data.yaml, Darknet's obj.data and lists, and folders alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.formats.text import (
    canonical,
    child,
    exists,
    files_below,
    files_in,
    first_line,
    folders_in,
    holds_files,
    is_list,
    is_mapping,
    is_split_name,
    name_splits,
    read_lines,
    read_text,
    split_folders,
    tails,
)
from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.errors import DataError, MissingExtraError

CLASS_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")
YAML = (".yaml", ".yml")
_YAML_NAMES = ("data", "dataset")
_DEEPEST = 50
"""Brackets that may be open at once in a data.yaml, which needs 2: PyYAML's time grows with their number squared."""
_LABEL_LINE = re.compile(r"\s*\d+(\.0*)?(\s+-?[\d.]+(e[-+]?\d+)?){4,}\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Where a YOLO data set keeps its parts."""

    root: Path
    classes: dict[int, str] | None
    """Class index to name; None if no file names them."""
    classes_file: Path | None
    sources: dict[str, list[Path]]
    """Each split's image folders and list files."""
    keypoints: tuple[int, int] | None = None
    """data.yaml's kpt_shape: key points per object, and numbers per key point."""
    note: str = ""
    """A choice made, as a sentence."""


def find_layout(path: Path) -> Layout | None:
    """Return the layout of a folder, data.yaml or obj.data, or None if it is no YOLO data set.

    Raises:
        DataError: for a file that says nothing usable.
        MissingExtraError: for a data.yaml without pyyaml.
    """
    if path.is_file():
        if path.suffix.lower() in YAML:
            return _from_yaml(path)
        return _from_darknet(path) if path.suffix.lower() == ".data" else None
    settings = [file for file in files_in(path, *YAML) if _is_data_yaml(file)]
    settings = [file for file in settings if file.stem.lower() in _YAML_NAMES] or settings
    darknet = [file for file in files_in(path, ".data") if re.search(r"(?m)^\s*names\s*=", _text_of(file))]
    for files in (settings, darknet):
        if len(files) > 1:
            raise DataError(f"{path} holds {' and '.join(file.name for file in files)}; give the one that is meant")
    if settings:
        return _from_yaml(settings[0])
    return _from_darknet(darknet[0]) if darknet else _from_folders(path)


def looks_like_labels(path: Path) -> bool:
    """Return whether the first line of a text file is one of a YOLO label file."""
    return _LABEL_LINE.fullmatch(first_line(path)) is not None


def label_folder(folder: Path, root: Path) -> Path:
    """Return where the labels of an image folder lie: the last folder called images below the root is labels there."""
    if not folder.is_relative_to(root):
        return Path(twin(f"{folder}/")[:-1])
    place = root
    for part in Path(twin(f"/{folder.relative_to(root).as_posix()}/").strip("/")).parts:
        place = child(place, part) or place / part  # Labels may stand beside images
    return place


def images_beside(folder: Path) -> Path:
    """Return where images are expected: the folder itself, or the folder called images beside one called labels."""
    if folder.name.lower() == "labels":
        return folder.with_name("images")
    parent = folder.parent
    return parent.with_name("images") / folder.name if parent.name.lower() == "labels" else folder


def twin(path: str) -> str:
    """Replace the last folder called images by labels, as every YOLO does."""
    parts = path.split("/")
    for at in range(len(parts) - 2, 0, -1):
        if parts[at].lower() in ("images", "jpegimages"):
            parts[at] = "Labels" if parts[at] == "Images" else "labels"
            break
    return "/".join(parts)


def _is_data_yaml(path: Path) -> bool:
    text, called_data = _text_of(path), path.stem.lower() in _YAML_NAMES
    has_classes = re.search(r"(?m)^\s*(names|nc)\s*:", text) is not None
    has_splits = re.search(r"(?m)^\s*(train|val|test)\s*:", text) is not None
    return (has_classes and has_splits) or (called_data and (has_classes or has_splits))


def _text_of(path: Path) -> str:
    try:
        return read_text(path)
    except DataError:
        return ""  # some other program's file


def _from_yaml(path: Path) -> Layout:
    content = _load_yaml(path)
    classes = _yaml_classes(content, path)
    base = _existing(path.parent, [_text(content.get("path")) or "."]) or path.parent
    sources: dict[str, list[Path]] = {}
    for split, entry in content.items():
        if not (is_split_name(split) or _is_folder_entry(entry, base)):
            continue
        entries = [text for one in (entry if is_list(entry) else [entry]) if (text := _text(one))]
        places = [_existing(base, [one]) or _existing(path.parent, _tails(one, split)) for one in entries]
        if split == "test" and None in places:
            continue  # exporters write a test line whether or not there is a test folder
        for one, place in zip(entries, places, strict=True):
            if place is None:
                raise DataError(
                    f"{path} says {split}: {one}, which does not exist below {base}; correct it or add the folder",
                    kind="list-names-missing-file",
                )
        if entries:
            sources[split] = [_inner(place) for place in places if place is not None]
    if not sources:
        plain = _from_folders(path.parent)
        if plain is None:
            raise DataError(f"{path} names no images; add train: and val: with their folders")
        sources = plain.sources
    root = path.parent if base.is_relative_to(path.parent) else base
    if classes is not None:
        return Layout(root, classes, path, sources, _keypoints(content, path), _other_list(path, classes))
    file = _class_file_in(path.parent)
    known = "classes are called by their numbers" if file is None else f"they were taken from {file.name}"
    note = f"{path.name} has no names: for the classes, so {known}; add it"
    return Layout(root, None if file is None else _read_classes(file), file, sources, _keypoints(content, path), note)


def _other_list(path: Path, classes: dict[int, str] | None) -> str:
    """Return what to say if a classes.txt beside a data.yaml names other classes."""
    file = _class_file_in(path.parent)
    if file is None or classes is None or read_lines(file) == list(classes.values()):
        return ""
    return f"{file.name} names other classes than {path.name}, which was taken"


def _is_folder_entry(entry: Any, base: Path) -> bool:
    # A split of any name, such as "fold1: images/fold1", beside keys that are no splits.
    return isinstance(entry, str) and entry.startswith("images/") and exists(base / entry) and (base / entry).is_dir()


def _text(value: Any) -> str:
    # A list in place of a text may be an alias of an alias ..., which str() would write out at any length.
    return value if isinstance(value, str) else ""


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("Reading data.yaml", "train") from None
    text = read_text(path)
    if (depth := _open_brackets(text)) > _DEEPEST:
        raise DataError(f"{path} is no YAML of a data set ({depth} brackets are open at once); correct it")
    try:
        # Plain strings: YAML would make the class "no" False and the class "007" 7.
        content: Any = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} is no YAML ({' '.join(str(error).split())}); correct it") from None
    if not is_mapping(content) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path} should hold lines like train: images/train and names: [...]; got something else")
    return content


def _open_brackets(text: str) -> int:
    """Return how many brackets are open at once, at most; those in texts and comments count, too."""
    depth = most = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        most = max(most, depth)
    return most


def _yaml_classes(content: Mapping[str, Any], path: Path) -> dict[int, str] | None:
    names: Any = content.get("names")
    count: Any = content.get("nc")
    pairs: list[tuple[int, Any]]
    try:
        if is_mapping(names):
            pairs = [(int(number), name) for number, name in names.items()]
        elif is_list(names):
            entries: list[Any] = names
            pairs = list(enumerate(entries))
        elif count is not None and not names:
            return {number: str(number) for number in range(int(count))}
        elif "names" not in content:
            return None
        else:
            raise ValueError
        if not all(isinstance(name, str) for _, name in pairs):
            raise ValueError
        declared = None if count is None else int(count)
    except (TypeError, ValueError):
        raise DataError(
            f"{path}: names should be a list, or numbers with a name each, and nc a number; correct it"
        ) from None
    if declared is not None and declared != len(pairs):
        raise DataError(f"{path} says nc: {declared} but names {len(pairs)} classes; make them agree")
    return {number: name.strip() for number, name in sorted(pairs)}


def _keypoints(content: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    shape: Any = content.get("kpt_shape")
    if not shape:
        return None
    try:
        points, numbers = map(int, shape)
        if points < 1 or numbers not in (2, 3):
            raise ValueError
    except (TypeError, ValueError):
        raise DataError(f"{path}: kpt_shape should be like [17, 3], key points and 2 or 3; correct it") from None
    return points, numbers


def _from_darknet(path: Path) -> Layout:
    pairs = (line.partition("=") for line in read_lines(path) if "=" in line)
    content = {key.strip(): value.strip() for key, _, value in pairs}
    names = _existing(path.parent, _tails(content.get("names", "obj.names")))
    sources: dict[str, list[Path]] = {}
    for key, split in (("train", "train"), ("valid", "val"), ("val", "val"), ("test", "test")):
        place = _existing(path.parent, _tails(content[key])) if key in content else None
        if place is not None:
            sources.setdefault(split, [place])
    if names is None or not sources:
        raise DataError(f"{path} names no existing class file or image list; expected names = ... and train = ...")
    return Layout(path.parent, _read_classes(names), names, sources)


def _from_folders(path: Path) -> Layout | None:
    images, labels = child(path, "images"), child(path, "labels")
    sources: dict[str, list[Path]] = {}
    places = [path, *([labels] if labels else [])]
    if images and labels and _holds_labels(labels, images):
        sources = _twins(path, images)
    elif parts := _parts(path):
        sources = {name: [child(part, "images") or part] for name, part in name_splits(parts).items()}
        places += [place for part in parts.values() for place in (part, child(part, "labels")) if place]
    elif lists := _image_lists(path):
        sources = {name: [file] for name, file in name_splits(lists).items()}
    elif images and _holds_labels(images, images):
        sources = _twins(path, images)
        places.append(images)
    elif any(map(looks_like_labels, files_in(path, ".txt"))):
        sources = {"all": [path]}
    if not sources:
        return None
    classes_file = _class_file(places)
    return Layout(path, None if classes_file is None else _read_classes(classes_file), classes_file, sources)


def _class_file(folders: Iterable[Path]) -> Path | None:
    """Return the class list of the first folder that has one; the others, such as val's, must say the same.

    Raises:
        DataError: two lists differ.
    """
    found = [file for folder in folders if (file := _class_file_in(folder)) is not None]
    for other in found[1:]:
        if read_lines(other) != read_lines(found[0]):
            raise DataError(f"{found[0]} and {other} name different classes; make them agree, or leave one of them")
    return found[0] if found else None


def _class_file_in(folder: Path) -> Path | None:
    known = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    names = files_in(folder, ".names")
    return known or (names[0] if len(names) == 1 else None)


def _twins(path: Path, images: Path) -> dict[str, list[Path]]:
    lists = {file.stem: file for file in files_in(path, ".txt") if is_split_name(file.stem)}
    if lists:
        return {name: [file] for name, file in name_splits(lists).items()}
    parts = {part.name: part for part in folders_in(images) if is_split_name(part.name)}
    if parts and not holds_files(images, *IMAGE_SUFFIXES):
        return {name: [part] for name, part in name_splits(parts).items()}
    return {"all": [images]}


def _parts(path: Path) -> dict[str, Path]:
    """Return the split folders if one of them holds labels: in labels/ beside images/, or beside the images."""
    parts: dict[str, Path] = {}
    convinced = False
    for name, part in split_folders(path).items():
        images = child(part, "images") or part
        labels = child(part, "labels") or images
        if images == part != labels:
            continue
        texts = files_below(labels, ".txt") if labels != part else [file.name for file in files_in(part, ".txt")]
        # A split without any object has empty label files alone, but is a split.
        if texts and files_below(images, *IMAGE_SUFFIXES):
            parts[name] = part
            convinced = convinced or _any_label(labels, texts)
    return parts if convinced else {}


def _image_lists(path: Path) -> dict[str, Path]:
    """Return Darknet's lists train.txt, valid.txt ... of images that have their labels beside them."""
    files = [file for file in files_in(path, ".txt") if is_split_name(file.stem)]
    lists = {file.stem: file for file in files if first_line(file).strip().lower().endswith(IMAGE_SUFFIXES)}
    held = files_below(path, ".txt") if lists else []
    return lists if _any_label(path, held) else {}


def _holds_labels(labels: Path, images: Path) -> bool:
    texts = files_below(labels, ".txt")
    if _any_label(labels, texts):
        return True
    # Labels of a set without objects are empty; they are labels if images of the same names lie beside.
    empty = {name[:-4] for name in texts if name not in CLASS_FILES and (labels / name).stat().st_size == 0}
    return labels != images and any(name.rpartition(".")[0] in empty for name in files_below(images, *IMAGE_SUFFIXES))


def _any_label(folder: Path, texts: Iterable[str]) -> bool:
    # All are asked until one says yes: hundreds of empty ones, of images without objects, may come first.
    return any(looks_like_labels(folder / name) for name in texts if name not in CLASS_FILES)


def _read_classes(path: Path) -> dict[int, str]:
    return dict(enumerate(read_lines(path)))


def _tails(text: str, split: str = "") -> list[str]:
    clean = "/".join(part for part in text.replace("\\", "/").split("/") if part not in ("", ".", ".."))
    whole, *rest = tails(clean)
    # The last part alone is too little for a folder, unless it names the split: every data set has an images.
    return [
        whole,
        *(tail for tail in rest if "/" in tail or "." in tail or (split and canonical(tail) == canonical(split))),
    ]


def _existing(base: Path, texts: Iterable[str]) -> Path | None:
    places = (base / text.replace("\\", "/") for text in texts if text)
    return next((place for place in places if exists(place)), None)


def _inner(place: Path) -> Path:
    # "train: train" may mean the folder that holds images and labels.
    if place.is_dir() and not holds_files(place, *IMAGE_SUFFIXES):
        return child(place, "images") or place
    return place
