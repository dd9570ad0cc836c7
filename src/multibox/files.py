"""Files and folders that are written whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes_whole(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, making parent folders; a reader sees the old file or the new one, never half of one.

    Raises:
        OSError: the folder cannot be written to; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        part.write_bytes(data)
        os.replace(part, path)  # noqa: PTH105 - named as in the project's rule
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        # Nobody has asked for the scratch file that the system names
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text_whole(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 with the line ends it has; otherwise as `write_bytes_whole`."""
    write_bytes_whole(path, text.encode())


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
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


def _beside(path: Path) -> Path:
    # Not tempfile: it makes files that only their owner may read, and os.replace would keep that.
    return path.absolute().with_name(f".{path.absolute().name}.{secrets.token_hex(6)}.part")
