"""The folder of a run: made for a new one, found again for one that goes on."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multibox.config import Config
from multibox.errors import ConfigError


@contextmanager
def new_folder(out: Path | None, preset: str) -> Iterator[Path]:
    """Yield the run's folder, `out` or runs/PRESET-N; where nothing was written in it, all that was made goes again.

    Raises:
        ConfigError: there is something in it, or it cannot be made.
    """
    if out is not None and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; give another --out, or --resume to go on with the run there")
    number = 1
    while out is None and (Path("runs") / f"{preset}-{number}").exists():
        number += 1
    folder = out or Path("runs") / f"{preset}-{number}"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        raise ConfigError(
            f"the run's folder {folder} cannot be made ({error.strerror}: {error.filename}); give another --out"
        ) from None
    try:
        yield folder
    except BaseException:
        # Each is removed only if it is empty: the deepest one goes first
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def reopen(out: Path | None) -> tuple[Path, Config]:
    """Return the folder of the run to go on with, and its config: all that the run was asked for stands there.

    Raises:
        ConfigError: there is no run.
    """
    if out is None:
        raise ConfigError("--resume needs --out, the run folder to go on with")
    path = out / "config.toml"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, so {out} is no run to resume")
    try:
        return out, Config.from_toml(path.read_text(encoding="utf-8"), str(path))
    except ValueError as error:
        raise ConfigError(f"{path}: no text ({error}); put back the one that the run was started with") from None
