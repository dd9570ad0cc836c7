"""Files written whole or not at all, and never over something of the user's."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, cast

from multibox.errors import ConfigError

LISTING = ".multibox-export.json"
"""Name of the file in which a folder of `listed_folder` lists its files, with the SHA-256 of each."""


def check_outputs(
    targets: Iterable[str | Path],
    *,
    overwrite: bool = False,
    inputs: Iterable[str | Path] = (),
    how: str = "--overwrite",
) -> None:
    """Refuse output files that exist or cannot be written. Call it before any work.

    Args:
        targets: all files that one command will write, so that two with one name are noticed.
        overwrite: replace existing files; an input is never replaced, whatever link or spelling leads to it.
        inputs: files that the command reads, and folders all of whose files count as inputs.
        how: what allows replacing, for the message.

    Raises:
        ConfigError: a target exists, is an input or a folder, has the name of another target, or lies where nothing
            can be written.
    """
    targets = [Path(target) for target in targets]
    _refuse_twins(targets)
    for folder in dict.fromkeys(target.parent for target in targets):
        _refuse_unwritable(folder)
    taken = [target for target in targets if os.path.lexists(target) and not _is_special(target)]
    if not taken:
        return
    for target in taken:
        if target.is_dir():
            raise ConfigError(f"{target} is a folder, expected the name of a file to write; give another name")
    files, folders = _identities(inputs)
    own = [target for target in taken if _identity(target) in files or folders.intersection(_above(target))]
    others = len(own or taken) - 1
    more = f" and {others} other {'file' if others == 1 else 'files'}" if others else ""
    if own:
        verbs = "belong to the input and are" if others else "belongs to the input and is"
        raise ConfigError(f"{own[0]}{more} {verbs} never replaced; give the results another place")
    if not overwrite:
        verb, them = ("exist", "them") if others else ("exists", "it")
        raise ConfigError(f"{taken[0]}{more} {verb} already; give another place, or {how} to replace {them}")


def free_path(path: str | Path) -> Path:
    """Return the first of `name`, `name-2`, `name-3` ... that does not exist; a file keeps its ending."""
    path = Path(path)
    names = (path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def make_numbered_folder(path: str | Path) -> Path:
    """Make and return the first of the folders `path`, `path-2`, `path-3` ... that does not exist.

    Two commands that call it at the same time get different folders.

    Raises:
        OSError: the place cannot be written to.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = free_path(path)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


@contextmanager
def whole_file(path: str | Path, *, durable: bool = False) -> Generator[BinaryIO, None, None]:
    """Yield a scratch file beside `path` that becomes `path` when the block ends well and vanishes otherwise.

    A reader of `path` sees the old file or the new one, never half of one. Parent folders are made. Special files, such
    as /dev/null or a pipe, are written to directly.

    Args:
        path: the file.
        durable: whether this holds through a power cut as well, and the new file is on the disk when the block has
            ended. It waits for the disk, some milliseconds per file.

    Raises:
        OSError: the place cannot be written to; nothing is left behind.
    """
    path = Path(path)
    if _is_special(path):
        with path.open("wb") as file:
            yield file
        return
    made = [folder for folder in path.absolute().parents if not folder.exists()] if durable else []
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        with part.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
        if durable:
            # The new name is on the disk when the folder is; a new folder when the one above it is
            for folder in (path.absolute(), *made):
                _sync_folder(folder.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            # The system names the scratch file, which the user does not know, or on a full disk no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_bytes_whole(path: str | Path, data: bytes, *, durable: bool = False) -> None:
    """Write `data` to `path`, making parent folders; a reader sees the old file or the new one, never half of one.

    Args:
        path: the file.
        data: its content.
        durable: whether this holds through a power cut, as in `whole_file`.

    Raises:
        OSError: the folder cannot be written to; nothing is left behind.
    """
    with whole_file(path, durable=durable) as file:
        file.write(data)


def write_text_whole(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write `text` as UTF-8 with the line ends it has; otherwise as `write_bytes_whole`."""
    write_bytes_whole(path, text.encode(), durable=durable)


def sync_file(path: Path) -> None:
    """Wait until what was appended to a file is on the disk; a file that does not exist is skipped."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so of a folder."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def whole_folder(path: str | Path) -> Generator[Path, None, None]:
    """Yield a scratch folder beside `path` that becomes `path` when the block ends well and vanishes otherwise.

    Raises:
        FileExistsError: `path` is a file, or a folder that holds something.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    part.mkdir()
    try:
        yield part
        if path.is_dir():
            path.rmdir()
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def check_output_folder(path: Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse a folder that `listed_folder` could not write. Call it before any work.

    Args:
        path: the folder.
        overwrite: replace a folder that `listed_folder` wrote, if no file in it was added or changed since.
        inputs: files and folders that the command reads; none may lie in the folder.

    Raises:
        ConfigError: the folder is a file, holds an input or something else of the user's, exists and may not be
            replaced, or lies where nothing can be written.
    """
    _refuse_unwritable(path.absolute().parent)
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        raise ConfigError(f"{path} is no folder, expected the name of a folder to write; give another name")
    held = {_identity(path)}
    if own := [each for each in map(Path, inputs) if _identity(each) in held or held.intersection(_above(each))]:
        raise ConfigError(f"{path} holds the input {own[0]} and is never replaced; give the results another place")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{path} exists already and is not empty; give another place, or --overwrite to replace it")
    listed = _listed(path)
    if foreign := _unlisted(path, listed):
        raise ConfigError(
            f"{path} holds {foreign[0]}, which no export wrote there, so the folder is not replaced; give another place"
        )
    if changed := [name for name, digest in listed.items() if digest is not None and _is_changed(path / name, digest)]:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"{path / changed[0]}{more} was changed since the export, so the folder is not replaced; move the file out "
            "of it, or give another --out"
        )


@contextmanager
def listed_folder(path: Path, *, overwrite: bool = False) -> Generator[Path, None, None]:
    """Yield a scratch folder as `whole_folder` does, and leave a list of its files in it (`LISTING`).

    The list tells later what is the user's: with `overwrite`, `path` is replaced if the list names all of its files and
    none was changed. For an instant between the old and the new folder there is none.

    Raises:
        ConfigError: as `check_output_folder`.
    """
    check_output_folder(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = _beside(path), _beside(path)
    part.mkdir()
    try:
        yield part
        files = {each.relative_to(part).as_posix(): _sha256(each) for each in part.rglob("*") if not each.is_dir()}
        text = json.dumps(files, ensure_ascii=False, indent=1, sort_keys=True)
        write_text_whole(part / LISTING, text + "\n")
        check_output_folder(path, overwrite=overwrite)  # something may have been put there meanwhile
        if path.exists():
            path.rename(old)
        part.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)


def _listed(folder: Path) -> dict[str, str | None]:
    """Return the SHA-256 of each file that a folder's list names; None where the list, an old one, has none."""
    try:
        listed: Any = json.loads((folder / LISTING).read_bytes())
        if isinstance(listed, dict):
            return {str(name): str(digest) for name, digest in cast("dict[str, Any]", listed).items()}
        return {str(name): None for name in listed}
    except (OSError, ValueError, TypeError):
        return {}


def _is_changed(file: Path, digest: str) -> bool:
    """Return whether a file has other bytes than the list says; one that is gone is no loss."""
    try:
        return file.is_file() and _sha256(file) != digest
    except OSError:
        return True


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _unlisted(folder: Path, listed: Iterable[str]) -> list[str]:
    """Return the files below a folder that its list does not name."""
    known = {LISTING, *listed}
    every = (each for each in sorted(folder.rglob("*")) if each.is_symlink() or not each.is_dir())
    return [name for each in every if (name := each.relative_to(folder).as_posix()) not in known]


def same_name(name: str) -> str:
    """Return a key that is equal for names that some file system treats as one: case and accents may not differ."""
    return unicodedata.normalize("NFC", name).casefold()


def _beside(path: Path) -> Path:
    # Not tempfile: its files are readable by their owner only, and replacing keeps that.
    # Not the whole name, which may have the greatest length a name can have.
    return path.absolute().with_name(f".{path.absolute().name[:40]}.{secrets.token_hex(6)}.part")


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _refuse_twins(targets: Iterable[Path]) -> None:
    seen: dict[str, Path] = {}
    for target in targets:
        first = seen.setdefault(same_name(os.path.normpath(target.absolute())), target)
        if first is not target and not _is_special(target):
            raise ConfigError(f"two outputs would be written to {first}; give each a name of its own")


def _refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that is a file, or cannot be made or written to."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(f"{there} is no folder, so nothing can be written below it; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there} is a folder that you may not write to; give another place")


def _identities(paths: Iterable[str | Path]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Return device and inode of the files and of the folders among `paths`."""
    files: set[tuple[int, int]] = set()
    folders: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        identity = _identity(path)
        if identity is not None:
            (folders if path.is_dir() else files).add(identity)
    return files, folders


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode, which links and other spellings of a path share; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _above(path: Path) -> Iterator[tuple[int, int] | None]:
    """Yield the identities of all folders that hold the file, as given and behind links."""
    for place in dict.fromkeys((*path.absolute().parents, *path.resolve().parents)):
        yield _identity(place)
