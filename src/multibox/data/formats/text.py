"""Text and numbers of label files, and the names of splits, files and folders around them."""

import codecs
import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO

from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from multibox.data.formats.raw_labels import RawLabels

SKIP = "leave it out with --on-bad skip"
ADVICE = f"correct it, or {SKIP}"
OnBad = Literal["stop", "skip"]
Unknown = Literal["refuse", "drop"]

_CANONICAL = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_SPLIT_WORDS = ("train", "val", "trainval", "test", "minival", "default", "all", *_CANONICAL)
_SPLIT_PATTERN = re.compile(rf"({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})((19|20)\d\d)?")
_LITTER = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini"))
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_MOST_TAILS = 64
_ORDER = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class ReadOptions:
    """How a reader treats what the label files say; see `open_dataset`."""

    on_bad: OnBad = "stop"
    class_names: tuple[str, ...] | None = None
    rename: Mapping[str, str] | None = None
    merge: Mapping[str, str] | None = None
    """As `rename`, but for classes that the data need not have."""
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
        raise DataError(f"{where} holds several splits ({listing}); name one of them with --split")
    if wanted in available:
        return wanted
    alike = [split for split in available if canonical(split) == canonical(wanted)]
    if len(alike) == 1:
        return alike[0]
    raise DataError(f"{where} has no split {wanted!r}{did_you_mean(wanted, available)}; it holds: {listing}")


_watched: list[set[str]] = []


@contextmanager
def folders_read() -> Generator[set[str], None, None]:
    """Collect the folders whose text files are read in this block, in any thread: a cache has to watch them."""
    folders: set[str] = set()
    _watched.append(folders)
    try:
        yield folders
    finally:
        _watched[:] = [one for one in _watched if one is not folders]


def read_text(path: Path, tell: Callable[[Path, str], None] | None = None) -> str:
    """Read a text file as people's tools write it: UTF-8, UTF-16, or an older encoding that is guessed.

    Args:
        path: the file.
        tell: called with the file and the encoding where that was guessed.

    Raises:
        DataError: the file is missing or is no such text.
    """
    for folders in _watched:
        folders.add(str(path.parent))
    text, guess = decoded(read_bytes(path), path)
    if guess and tell is not None:
        tell(path, guess)
    return text


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check that it exists and is a file") from None


def decoded(data: bytes, where: Path | str) -> tuple[str, str]:
    """Return the text of a file's bytes, and the encoding's name if it was guessed; empty if the bytes tell it.

    Raises:
        DataError: they are no text in any known encoding.
    """
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16"), ""
        wide = _wide_encoding(data)
        if wide:
            return data.decode(wide), wide
        return data.decode("utf-8-sig"), ""
    except UnicodeError:
        pass
    for encoding in ("gb18030", "cp1252") if _is_chinese(data) else ("cp1252",):
        try:
            text = data.decode(encoding)
        except UnicodeError:
            continue
        if not _CONTROL.search(text):
            return text, encoding
    raise DataError(f"{where} is not UTF-8 text; save it as UTF-8", kind="unknown-encoding")


def open_text(path: Path, tell: Callable[[Path, str], None] | None = None) -> TextIO:
    """Open a text file of any size for reading, in the encoding that `read_text` would find.

    Raises:
        DataError: as `read_text`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1 << 20)
            is_utf8 = _is_utf8(head, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check that it exists and is a file") from None
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding, guess = "utf-16", ""
    elif is_utf8 and b"\0" not in head:
        encoding, guess = "utf-8-sig", ""
    else:
        guess = decoded(head if len(head) < 1 << 20 else head[: head.rfind(b"\n") + 1], path)[1]
        encoding = guess or "utf-8"
    if guess and tell is not None:
        tell(path, guess)
    return path.open(encoding=encoding, newline="")


def _is_utf8(head: bytes, rest: BinaryIO) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
        while block := rest.read(1 << 20):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def _wide_encoding(data: bytes) -> str:
    """Return UTF-16's byte order, or "", of text without a mark: bytes of 0 stand at odd or at even places only."""
    head = data[: min(4096, len(data) // 2 * 2)]
    if b"\0" not in head:
        return ""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if even and odd:
        return ""
    return "utf-16-le" if odd else "utf-16-be"


def _is_chinese(data: bytes) -> bool:
    """Return whether bytes above 127 come in pairs of GB 2312's frequent characters, which Latin letters hardly do."""
    runs: list[bytes] = re.findall(rb"[\x80-\xff]+", data)
    pairs = [run[at] for run in runs if len(run) % 2 == 0 for at in range(0, len(run), 2)]
    frequent = sum(0xB0 <= lead <= 0xD7 or 0xA1 <= lead <= 0xA9 for lead in pairs)
    return all(len(run) % 2 == 0 for run in runs) and frequent >= 0.8 * len(pairs)


def first_line(path: Path) -> str:
    """Return the first line of a file that is not empty, from its first 4 KB; "" if it has none or is no text."""
    return next((line for line in head_lines(path, 4096) if line.strip()), "")


def head_lines(path: Path, size: int = 1 << 16) -> list[str]:
    """Return the whole lines in the first `size` bytes of a text file; none if it cannot be read or is no text."""
    try:
        with path.open("rb") as file:
            data = file.read(size)
            whole = len(data) < size
        # A cut may go through a character.
        text, _ = decoded(data if whole else data[: data.rfind(b"\n") + 1 or size], path)
    except (OSError, DataError):
        return []
    return text.splitlines()


def read_lines(path: Path, tell: Callable[[Path, str], None] | None = None) -> list[str]:
    """Read a list file: one entry per line, stripped, without empty lines; `tell` as for `read_text`."""
    return [line.strip() for line in read_text(path, tell).splitlines() if line.strip()]


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
    return bool(text) and text.strip().lower() in ("1", "true", "yes")


def is_set(value: Any) -> bool:
    """Return whether a flag read from JSON is set: as true, as a number, or as a text such as "1"."""
    return is_yes(value) if isinstance(value, str) else isinstance(value, int | float) and value > 0


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is a file manager's or meant to be passed over."""
    # macOS puts ._name beside name on foreign disks, and __MACOSX into archives.
    return name[0] == "." or name in _LITTER


def exists(path: Path) -> bool:
    """Return whether a path as a label file writes it exists; Path.exists fails for a name that is too long."""
    return os.path.exists(path)  # noqa: PTH110


def child(folder: Path, name: str) -> Path | None:
    """Return the sub-folder of this name, exact spelling first, then with other capitals."""
    if (folder / name).is_dir():
        return folder / name
    return next((path for path in folders_in(folder) if path.name.lower() == name.lower()), None)


def folders_in(folder: Path) -> list[Path]:
    """Return the sub-folders by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    except OSError:
        return []


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the sub-folders whose names tell a split, by name: `train`, `cats_train`, and `train_zip/train`."""
    found: dict[str, Path] = {}
    for part in folders_in(folder):
        split = canonical(split_in(part.name))
        if is_split_name(split):
            inner = [one for one in folders_in(part) if canonical(split_in(one.name)) == split]
            # An archive that was unpacked into a folder of its own name.
            found[part.name] = inner[0] if len(inner) == 1 and not files_in(part) else part
    return found


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files directly in a folder with one of these suffixes (any, without), by name, not hidden ones."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_file()]
    except OSError:
        return []
    wanted = suffixes or ("",)
    return [folder / name for name in sorted(names) if name.lower().endswith(wanted)]


def holds_files(folder: Path, *suffixes: str) -> bool:
    """Return whether a folder holds a file with one of these suffixes directly; it is read no further than to one."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(suffixes) and not is_hidden(entry.name) for entry in entries)
    except OSError:
        return False


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
        folders[:] = [name for name in folders if not is_hidden(name)]
        prefix = Path(place).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        found += [prefix + name for name in names if not is_hidden(name) and name.lower().endswith(suffixes)]
    return sorted(found)


def safe_name(listed: str) -> str:
    """Turn an image's path as a label file wrote it into a relative name that stays below its root."""
    text = re.sub(r"^[A-Za-z]:", "", listed.strip().replace("\\", "/"))
    return "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def fit_text(text: str) -> str:
    """Return a name of an image or class with `_` for what label files cannot hold: control characters, odd bytes."""
    return _UNFIT.sub("_", text)


def tails(name: str) -> list[str]:
    """Return a/b/c.jpg, b/c.jpg and c.jpg: what is left of a path when its first folders are from elsewhere."""
    parts = name.split("/")
    # Time for each grows with its length: of a hostile path with thousands of folders not all are tried
    deep = len(parts) - _MOST_TAILS
    return [name] * (deep > 0) + ["/".join(parts[start:]) for start in range(max(0, deep), len(parts))]


def stem_of(name: str) -> str:
    """Return an image's name without its image suffix; a name without one is returned whole."""
    base, suffix = os.path.splitext(name)  # noqa: PTH122 (a million names: no Path objects)
    return base if suffix.lower() in IMAGE_SUFFIXES else name
