"""Text and numbers of label files, and the names of splits, files and folders around them."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from multibox.data.formats.index import RawLabels

SKIP = "leave it out with --on-bad skip"
ADVICE = f"correct it, or {SKIP}"
OnBad = Literal["stop", "skip"]
Unknown = Literal["refuse", "drop"]

_CANONICAL = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_SPLIT_WORDS = ("train", "val", "trainval", "test", "minival", "default", "all", *_CANONICAL)
_SPLIT_PATTERN = re.compile(rf"({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})((19|20)\d\d)?")
_ORDER = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class ReadOptions:
    """How a reader treats what the label files say; see `open_dataset`."""

    on_bad: OnBad = "stop"
    class_names: tuple[str, ...] | None = None
    rename: Mapping[str, str] | None = None
    unknown: Unknown = "refuse"
    one_based: bool = False
    raw: "list[RawLabels] | None" = None
    """Where given, the reader skips what is broken and puts what it read here, as written; see `read_raw`."""


def is_split_name(text: str) -> bool:
    """Return whether a folder or file of this name usually holds a split, such as `train2017` or `valid`."""
    return _SPLIT_PATTERN.fullmatch(text.lower()) is not None


def split_in(text: str) -> str:
    """Return the split in a name (`bananas_train` -> `train`), or the name itself."""
    hits = [token for token in re.split(r"[_\-. ]+", text.lower()) if is_split_name(token)]
    return hits[0] if len(hits) == 1 else text


def name_splits(sources: Mapping[str, Path]) -> dict[str, Path]:
    """Shorten names to the splits in them, where that leaves them different; in the order of splits."""
    short = {split_in(name): path for name, path in sources.items()}
    chosen = short if len(short) == len(sources) else dict(sources)
    return {name: chosen[name] for name in in_order(chosen)}


def in_order(splits: Iterable[str]) -> list[str]:
    """Sort splits as people name them: train, val, trainval, test, then by alphabet."""

    def rank(split: str) -> tuple[int, str]:
        word = canonical(split)
        return (_ORDER.index(word) if word in _ORDER else len(_ORDER), split)

    return sorted(splits, key=rank)


def canonical(split: str) -> str:
    """Return `val` for `valid`, `validation` and `val2017`, `train` for `train2017`, and so on."""
    match = _SPLIT_PATTERN.fullmatch(split.lower())
    return _CANONICAL.get(match[1], match[1]) if match else split


def split_for(splits: Iterable[str], purpose: str) -> str | None:
    """Return the first split named by its purpose ("train", "val"), `train2017` too; None without one."""
    return next((split for split in splits if canonical(split) == purpose), None)


def pick_split(available: Sequence[str], wanted: str | None, where: Path) -> str:
    """Return the one of the `available` splits that is meant.

    Raises:
        DataError: there is no such split, or several and none was named.
    """
    listing = ", ".join(available)
    if wanted is None:
        if len(available) == 1:
            return available[0]
        raise DataError(f"{where} holds several splits ({listing}); name one of them")
    if wanted in available:
        return wanted
    alike = [split for split in available if canonical(split) == canonical(wanted)]
    if len(alike) == 1:
        return alike[0]
    raise DataError(f"{where} has no split {wanted!r}{did_you_mean(wanted, available)}; it holds: {listing}")


def read_text(path: Path) -> str:
    """Read a text file as people's tools write it: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        DataError: the file is missing or is no such text.
    """
    try:
        data = path.read_bytes()
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeError:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check that it exists and is a file") from None


def read_lines(path: Path) -> list[str]:
    """Read a list file: one entry per line, stripped, without empty lines."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as UTF-8, each with a line feed after it."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def number_text(value: float) -> str:
    """Write 78.0 as "78" and every other number in the fewest digits that read back as the same."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)


def is_mapping(value: Any) -> bool:
    """Return whether a value read from JSON or YAML is an object; its type stays unknown to the type checker."""
    return isinstance(value, dict)


def is_list(value: Any) -> bool:
    """Return whether a value read from JSON or YAML is a list; see `is_mapping`."""
    return isinstance(value, list)


def is_yes(text: str | None) -> bool:
    """Return whether a flag in a label file is set."""
    return (text or "").strip().lower() in ("1", "true", "yes")


def child(folder: Path, name: str) -> Path | None:
    """Return the sub-folder of this name, exact spelling first, then with other capitals."""
    if (folder / name).is_dir():
        return folder / name
    return next((path for path in folders_in(folder) if path.name.lower() == name.lower()), None)


def folders_in(folder: Path) -> list[Path]:
    """Return the sub-folders by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name[0] != "." and entry.is_dir())
    except OSError:
        return []


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files directly in a folder with one of these suffixes, by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_file()]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if name.lower().endswith(suffixes)]


def files_below(folder: Path, *suffixes: str) -> list[str]:
    """Return the files anywhere below a folder, as sorted paths relative to it with forward slashes."""
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link may lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name[0] != "."]
        prefix = Path(place).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        found += [prefix + name for name in names if name[0] != "." and name.lower().endswith(suffixes)]
    return sorted(found)


def safe_name(listed: str) -> str:
    """Turn an image's path as a label file wrote it into a relative name that stays below its root."""
    text = re.sub(r"^[A-Za-z]:", "", listed.strip().replace("\\", "/"))
    return "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def tails(name: str) -> list[str]:
    """Return a/b/c.jpg, b/c.jpg and c.jpg: what is left of a path when its first folders are from elsewhere."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def stem_of(name: str) -> str:
    """Return an image's name without its image suffix; a name without one is returned whole."""
    base, suffix = os.path.splitext(name)  # noqa: PTH122 (a million names: no Path objects)
    return base if suffix.lower() in IMAGE_SUFFIXES else name
