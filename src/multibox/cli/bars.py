"""Progress of work that is counted in images: a bar on a terminal, now and then a line elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

EVERY = 30.0
"""Seconds between two lines where there is no terminal, as in a log file."""


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error while the block runs; the function it yields takes the number done so far."""
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    # Drawn rarely, for it takes time from the work
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total: int) -> Callable[[int], None]:
    """Return a function that prints the number done, the speed and the time left, at most every `EVERY` seconds."""
    import typer

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
