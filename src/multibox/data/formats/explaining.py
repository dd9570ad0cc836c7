"""Why a file is not read as labels: broken, empty or another tool's; asked where no data set was found."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from multibox.data.formats import csv_boxes, parquet, webdataset
from multibox.data.formats.documents import load_json, parse_xml, shown
from multibox.data.formats.text import files_in, folders_in, is_mapping, read_bytes
from multibox.errors import DataError, MissingExtraError

_MOST_FILES, _MOST_BYTES = 40, 64 << 20
_BESIDE = "expected images with a .json, .txt or .xml of the same name beside them"


def explain(path: Path, *, others: bool) -> str | None:
    """Return why a file that could hold labels is not read, with its name; None if there is none.

    Args:
        path: a file, or a folder: its files come first, then those of the folders in it.
        others: whether to say so of a file that is whole, but of no known tool, if none is broken.
    """
    whole: list[str] = []
    for file in islice(_files(path), _MOST_FILES):
        try:
            what = _about(file)
        except DataError as error:
            return str(error)
        whole += [] if what is None else [what]
    return whole[0] if whole and others else None


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder in (path, *folders_in(path)):
        yield from islice(files_in(folder, *_CHECKS), _MOST_FILES // 2)


def _about(file: Path) -> str | None:
    """Return what a file holds in place of labels; None if it is not known.

    Raises:
        DataError: it is broken.
    """
    check = next((check for suffix, check in _CHECKS.items() if file.name.lower().endswith(suffix)), None)
    if check is None:
        return None
    try:
        size = file.stat().st_size
        if not size:
            raise DataError(f"{file} is empty; get it again or export it anew")
        return check(file) if size < _MOST_BYTES or check in (_shard, _parquet) else None
    except MissingExtraError:
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); check its rights") from None


def _json(file: Path) -> str:
    content = load_json(file)
    held = f"an object with {shown(list(content))}" if is_mapping(content) else shown(content)
    coco = "COCO's is an object with images, annotations and categories"
    return f"{file} is JSON, but of no known tool ({coco}), got {held}"


def _xml(file: Path) -> str:
    tag = parse_xml(read_bytes(file), str(file)).tag
    return f"{file} is XML without labels: expected <annotation> or <annotations> outermost, got <{str(tag)[:60]}>"


def _shard(file: Path) -> str:
    try:
        with tarfile.open(file) as tar:  # of one that is compressed the first name alone needs no unpacking
            names = [member.name for member in islice(tar, 4 if file.suffix.lower() == ".tar" else 1)]
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{file} is no tar file that can be read ({error}); get it again") from None
    if file.name.lower().endswith(".tar"):
        webdataset.check_start(file)
    return f"{file} holds no labels: {_BESIDE}, found {', '.join(names)[:120] or 'nothing'}"


def _parquet(file: Path) -> str | None:
    parquet.check_columns(file)
    return None


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".json": _json,
    ".xml": _xml,
    ".csv": csv_boxes.explain,
    ".tsv": csv_boxes.explain,
    ".parquet": _parquet,
    ".tar": _shard,
    ".tar.gz": _shard,
    ".tgz": _shard,
}
"""Endings of files that hold labels."""
