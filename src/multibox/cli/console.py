"""Where tables are printed."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from multibox.builtin import MODELS

PIPE_WIDTH = 200


def table_console() -> Console:
    """Return a console; a pipe has no width, so nothing is wrapped there."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


PLOTS = (".png", ".svg", ".pdf")
"""Endings that plots are written for."""
IMAGES = (".png", ".jpg", ".jpeg")
"""Endings that contact sheets are written for."""


def check_suffix(path: Path, known: Collection[str]) -> None:
    """Refuse a file name whose ending says a format that is not written.

    Raises:
        ConfigError: the ending is not among the known ones.
    """
    from multibox.errors import ConfigError

    if path.suffix.lower() not in known:
        raise ConfigError(f"{path}: expected a file name that ends in {', '.join(known)}")


def own_files(model: str | Path) -> list[Path]:
    """Return the files of a model: itself, or what lies directly in a run folder. Results may lie below that folder.

    Built-in models have none of the user's.
    """
    if model in MODELS:
        return []
    model = Path(model)
    return [path for path in (model.iterdir() if model.is_dir() else (model,)) if path.is_file()]


EVERY = 30.0
"""Seconds between two lines where there is no terminal, as in a log file."""


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error while the block runs; the function it yields takes the number done so far."""
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    # Drawn rarely, for it takes time from the work
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total: int) -> Callable[[int], None]:
    """Return a function that prints the number done, the speed and the time left, at most every `EVERY` seconds."""
    started = last = monotonic()

    def tell(done: int) -> None:
        nonlocal last
        now = monotonic()
        if now - last < EVERY:
            return
        last = now
        speed = done / (now - started)
        left = f", {describe_seconds((total - done) / speed)} left" if done else ""
        typer.echo(f"{what}: {done:,} of {total:,}, {speed:.3g} per second{left}", err=True)

    return tell


def describe_seconds(seconds: float) -> str:
    """Return a time as a person would say it, such as `40 s`, `3 min` or `2 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


"""Seconds between looks at the loss: each one makes the host wait for the device."""
