"""A data set in a .zip: unpacked once into the user's cache folder, and nothing outside it."""

import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

from multibox.data.unpacking import Allowance, unpacked_folder
from multibox.errors import DataError

_MOST_FILES = 3_000_000
_LEFT_OUT = frozenset({"__macosx", ".ds_store", "thumbs.db", "desktop.ini"})
"""Entries, in small letters, that file managers add."""
_NOTES = ".unpacked-notes"
_BIG = 64 << 20
"""Bytes of a .zip from which on its unpacking is announced."""
_CHUNK = 1 << 20
_ENCRYPTED, _UTF_8 = 0x1, 0x800


def unpack_zip(path: Path) -> tuple[Path, list[str]]:
    """Return the folder that holds the files of a .zip, and notes on guesses; it is unpacked the first time.

    What file managers add (`__MACOSX`, `.DS_Store`) is left out. A big archive is announced on standard error.

    Raises:
        DataError: it is no .zip, is damaged, encrypted, names files outside of its folder or links, or unpacks to too
            much.
    """

    def fill(folder: Path, allowance: Allowance) -> None:
        notes = _unpack(path, folder, allowance)
        (folder / _NOTES).write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")

    folder = unpacked_folder(path, fill)
    try:
        return folder, (folder / _NOTES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return folder, []


def _unpack(path: Path, folder: Path, allowance: Allowance) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_FILES:
                raise DataError(f"{path} names {len(entries):,} files, at most {_MOST_FILES:,} are unpacked")
            names, notes = _names_of(path, entries)
            places = [(entry, place) for entry, place in zip(entries, names, strict=True) if place is not None]
            if sum(entry.file_size for entry, _ in places) > allowance.limit:
                allowance.take(allowance.limit + 1)
            tell = _announce(path, folder, sum(entry.file_size for entry, _ in places))
            for entry, place in places:
                _write(archive, entry, folder / place, allowance)
                tell(allowance.used)
            return notes
    except NotImplementedError as error:
        raise DataError(
            f"{path} is packed in a way that is not read ({error}); unpack it and give the folder"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is no .zip that can be read ({error}); download or make it again") from None


def _names_of(path: Path, entries: list[zipfile.ZipInfo]) -> tuple[list[str | None], list[str]]:
    """Return where each entry belongs below the folder, None for one that is left out, and notes on guesses.

    Raises:
        DataError: an entry is encrypted, a link, or belongs outside.
    """
    names: list[str | None] = []
    guessed: dict[str, int] = {}
    for entry in entries:
        name, encoding = _decoded(entry)
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if _LEFT_OUT.intersection(part.lower() for part in parts):
            names.append(None)
            continue
        if entry.flag_bits & _ENCRYPTED:
            raise DataError(f"{path} is encrypted (file {name!r}); unpack it with its password and give the folder")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{path} holds a symbolic link ({name!r}), which is not followed; pack the file itself")
        if name.startswith(("/", "\\")) or ".." in parts or any(":" in part for part in parts[:1]) or "\0" in name:
            raise DataError(f"{path} names a file outside of its own folder ({name!r}), which may be an attack")
        guessed[encoding] = guessed.get(encoding, 0) + (encoding != "")
        names.append(None if entry.is_dir() or name.endswith("\\") or not parts else "/".join(parts))
    notes = [
        f"{path}: {count} file names without a stated encoding were read as {encoding}"
        for encoding, count in guessed.items()
        if count
    ]
    return names, notes


def _decoded(entry: zipfile.ZipInfo) -> tuple[str, str]:
    """Return an entry's name, and the encoding if it had to be guessed.

    Without the flag for UTF-8 the standard says code page 437, which zipfile applies and hardly any program means:
    macOS and Info-ZIP write UTF-8, Windows in China GBK.
    """
    if entry.flag_bits & _UTF_8 or entry.orig_filename.isascii():
        return entry.orig_filename, ""
    try:
        raw = entry.orig_filename.encode("cp437")
    except UnicodeEncodeError:
        return entry.orig_filename, ""
    for encoding in ("UTF-8", "GBK"):
        try:
            return raw.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    return entry.orig_filename, "code page 437"


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path, allowance: Allowance) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # "x": two entries of one name, or of names that this file system takes for one
        with archive.open(entry) as packed, place.open("xb") as file:
            for chunk in _chunks(packed.read):
                allowance.take(len(chunk))
                file.write(chunk)
    except (FileExistsError, NotADirectoryError):
        raise DataError(f"{archive.filename} holds two files named {entry.filename!r}; pack it again") from None


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := read(_CHUNK):
        yield chunk


def _announce(path: Path, folder: Path, total: int) -> Callable[[int], None]:
    """Say on standard error that a big archive is unpacked; return what shows how far it is, on a terminal."""
    if total < _BIG:
        return lambda done: None
    sys.stderr.write(f"unpacking {path} ({total / 1e9:.1f} GB) into {folder.parent}, once\n")
    last = monotonic()

    def tell(done: int) -> None:
        nonlocal last
        if monotonic() - last > 1 and sys.stderr.isatty():
            last = monotonic()
            sys.stderr.write(f"\r{done / total:4.0%}\r")

    return tell
