"""Local paths and addresses of object stores (`s3://bucket/key`) behind one set of functions.

An address may end in options of the store after a question mark, as pyarrow takes them:
`s3://bucket/photos?region=eu-central-1`, or `?endpoint_override=HOST:PORT&scheme=http`. Names in results have none.
"""

import re
import secrets
from collections.abc import Iterable
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from multibox.errors import DataError
from multibox.files import write_bytes_whole

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/?]*)/?([^?]*)(?:\?(.*))?", re.DOTALL)
_STORES = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "az"})
"""Schemes of stores where an object appears whole; elsewhere a scratch file is renamed."""


class Entry(NamedTuple):
    """A file of a listing."""

    name: str
    """Local path, or address without options."""
    size: int | None
    """Bytes, where the listing tells them."""


def is_address(place: str) -> bool:
    """Return whether a text is an address such as `s3://bucket/key`, not a local path."""
    return _ADDRESS.fullmatch(place) is not None


def split_options(place: str) -> tuple[str, str]:
    """Return an address without its options, and the options; a local path has none."""
    if not is_address(place):
        return place, ""
    address, _, options = place.partition("?")
    return address, options


def join(folder: str, name: str) -> str:
    """Return the place of a name in a folder, options of the folder's address kept; a whole place stays as it is."""
    if is_address(name) or Path(name).is_absolute():
        return name
    if not is_address(folder):
        return str(Path(folder, name))
    address, options = split_options(folder)
    return f"{address.rstrip('/')}/{name}" + (f"?{options}" if options else "")


def parent(place: str) -> str:
    """Return the folder that holds a place, options kept."""
    if not is_address(place):
        return str(Path(place).parent)
    address, options = split_options(place)
    return address.rpartition("/")[0] + (f"?{options}" if options else "")


def read_bytes(place: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: it cannot be read; FileNotFoundError if there is none.
    """
    if not is_address(place):
        return Path(place).read_bytes()
    store, path = _store(place)
    with store.open_input_stream(path) as stream:
        return stream.read()


def open_binary(place: str) -> Any:
    """Return an open binary file, in which positions can be sought.

    Raises:
        OSError: it cannot be read.
    """
    if not is_address(place):
        return Path(place).open("rb")
    store, path = _store(place)
    return store.open_input_file(path)


def write_whole(place: str, data: bytes) -> None:
    """Write a file that appears whole or not at all, making parent folders.

    Raises:
        OSError: a local place cannot be written to.
        DataError: a store cannot be reached, or refuses.
    """
    if not is_address(place):
        write_bytes_whole(place, data)
        return
    store, path = _store(place)
    with _told(place):
        if place.partition("://")[0] in _STORES:
            stream = store.open_output_stream(path)
            # Not a `with` block: it would close the stream after an error, too, and so publish half of the object
            stream.write(data)
            stream.close()
            return
        folder, _, name = path.rpartition("/")
        store.create_dir(folder, recursive=True)
        scratch = f"{folder}/.{name}.{secrets.token_hex(6)}.part"
        with store.open_output_stream(scratch) as stream:
            stream.write(data)
        store.move(scratch, path)


def remove(place: str) -> None:
    """Remove a file."""
    if not is_address(place):
        Path(place).unlink(missing_ok=True)
        return
    store, path = _store(place)
    store.delete_file(path)


def kind_of(place: str) -> str:
    """Return "file", "folder" or "nothing"."""
    if not is_address(place):
        path = Path(place)
        return "file" if path.is_file() else "folder" if path.is_dir() else "nothing"
    store, path = _store(place)
    with _told(place):
        found = store.get_file_info(path)
    return {"File": "file", "Directory": "folder"}.get(found.type.name, "nothing")


def list_folder(place: str, *, deep: bool = False) -> list[Entry]:
    """Return the files directly in a folder, or with `deep` those below it as well, sorted by name.

    Raises:
        DataError: the store cannot be reached, or refuses.
    """
    if not is_address(place):
        paths = Path(place).rglob("*") if deep else Path(place).iterdir()
        files = sorted(path for path in paths if path.is_file())
        return [Entry(str(path), path.stat().st_size) for path in files]
    store, path = _store(place)
    selector = import_module("pyarrow.fs").FileSelector(path, recursive=deep, allow_not_found=True)
    with _told(place):
        found = [info for info in store.get_file_info(selector) if info.type.name == "File"]
    address, _ = split_options(place)
    # What `_store` put before the key: bucket and slash in s3, a slash alone in other systems
    start = len(path.rstrip("/"))
    return sorted(Entry(f"{address.rstrip('/')}/{info.path[start:].lstrip('/')}", info.size) for info in found)


def matching(pattern: str) -> list[Entry]:
    """Return the files of a store that match a pattern: `*` and `[..]` within a name, `**` across folders."""
    address, options = split_options(pattern)
    fixed = re.split(r"[*\[]", address, maxsplit=1)[0].rpartition("/")[0]
    folder = fixed + (f"?{options}" if options else "")
    deep = "/" in address[len(fixed) + 1 :]
    wanted = re.compile(_as_regex(address))
    return [entry for entry in list_folder(folder, deep=deep) if wanted.fullmatch(entry.name)]


def names_in(place: str) -> set[str]:
    """Return the names of the files directly in a folder that may not exist yet."""
    if not is_address(place) and not Path(place).is_dir():
        return set()
    return {re.split(r"[/\\]", entry.name)[-1] for entry in list_folder(place)}


def with_options(entries: Iterable[str], options: str) -> list[str]:
    """Return addresses with the options of their store; a local path takes none."""
    return [f"{name}?{options}" if options and is_address(name) else name for name in entries]


def _as_regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\[[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(known.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)


def _store(place: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it."""
    match = _ADDRESS.fullmatch(place)
    assert match is not None, place
    scheme, host, key, options = match.groups()
    if "@" in host:
        raise DataError(
            f"{scheme}://...@{host.rpartition('@')[2]} holds credentials, which would stand in the results; give them "
            "in the environment (AWS_ACCESS_KEY_ID ...) or as a role of the nodes"
        )
    store, prefix = _opened(scheme, host, options or "")
    return store, (prefix + key).rstrip("/")


@cache
def _opened(scheme: str, host: str, options: str) -> tuple[Any, str]:
    """Return a file system and what stands before a key in its paths.

    The key itself is never parsed as an address: it may hold blanks and percent signs.

    Raises:
        DataError: nothing here opens such addresses.
    """
    if scheme in ("http", "https", "ftp"):
        raise DataError(f"{scheme}://{host} is a web address, and nothing is downloaded: fetch it, or use a store (s3)")
    address = f"{scheme}://{host}/x" + (f"?{options}" if options else "")
    with _told(address):
        fs = import_module("pyarrow.fs")
        try:
            store, path = fs.FileSystem.from_uri(address)
        except import_module("pyarrow").ArrowInvalid:
            store, path = _by_fsspec(fs, scheme, address)
    return store, path[:-1]


def _by_fsspec(fs: Any, scheme: str, address: str) -> tuple[Any, str]:
    try:
        opened, path = import_module("fsspec.core").url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{scheme}:// cannot be opened here ({error}); pyarrow opens s3, gs and hdfs, packages of fsspec the others"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(opened)), path


@contextmanager
def _told(place: str) -> Any:
    """Turn what a store says into one sentence."""
    try:
        yield
    except OSError as error:
        where, _ = split_options(place)
        raise DataError(
            f"{where} cannot be reached: {error}; look at the address, and at the credentials and region in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_REGION ...)"
        ) from None
