"""Tables and progress on the console."""

import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200
EVERY = 30.0
"""Seconds between two lines where there is no terminal, as in a log file."""


def write_json(file: Path | None, value: Any) -> None:
    """Write what a verb found where `--json` asks: `-` is standard output, None nowhere.

    Call it before anything is printed: whoever reads the output may go away, as `head` does.
    """
    from multibox.files import write_bytes_whole

    if file == Path("-"):
        typer.echo(json.dumps(value, indent=1))
    elif file is not None:
        # A file name may hold bytes that are no text
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        write_bytes_whole(file, text.encode("utf-8", "backslashreplace"))


def table_console(*, stderr: bool = False) -> Console:
    """Return a console that wraps nothing in a pipe, which has no width."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


def print_rows(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    note: str = "",
    title: str | None = None,
    *,
    stderr: bool = False,
) -> None:
    """Print a table without lines, and a note below it; a column whose name begins with ">" is aligned right."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for index, name in enumerate(columns):
        right = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if right else "left", no_wrap=not index)
    for row in rows:
        table.add_row(*row)
    console = table_console(stderr=stderr)
    console.print(table, highlight=False)
    if note:
        console.print(note, highlight=False, soft_wrap=True)


def metric_text(value: float | None) -> str:
    """Return a metric with three digits, - for one that does not exist."""
    return "-" if value is None else f"{value:.3f}"


class _Speed(ProgressColumn):
    """How many are done per second."""

    def render(self, task: Task) -> Text:
        """Return the speed so far, once there is one."""
        return Text(_pace(task.finished_speed or task.speed or 0.0))


@contextmanager
def counting(what: str, total: int | None) -> Generator[Callable[[int], None], None, None]:
    """Show progress on standard error while the block runs; the function it yields takes the number done so far.

    Args:
        what: the things that are counted.
        total: how many there are; None if nobody knows.
    """
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Speed(), TextColumn("left"), TimeRemainingColumn())
    # Drawn rarely: drawing takes time from the work
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def counting_up(what: str) -> Generator[Callable[[int, int], None], None, None]:
    """Show progress as `counting` does, where the total is known only later: the function takes both numbers."""
    with ExitStack() as stack:
        reports: list[Callable[[int], None]] = []

        def report(done: int, total: int) -> None:
            if not reports:
                reports.append(stack.enter_context(counting(what, total)))
            reports[0](done)

        yield report


@contextmanager
def counting_more(what: str, total: int) -> Generator[Callable[[int], None], None, None]:
    """Show progress as `counting` does; the function it yields takes how many more are done."""
    done = 0
    with counting(what, total) as report:

        def tell(more: int) -> None:
            nonlocal done
            done += more
            report(done)

        yield tell


def _lines(what: str, total: int | None) -> Callable[[int], None]:
    """Return a function that prints the number done, the speed and the time left, at most every `EVERY` seconds."""
    started = last = monotonic()

    def report(done: int) -> None:
        nonlocal last
        now = monotonic()
        if now - last < EVERY:
            return
        last = now
        speed = done / (now - started)
        of = "" if total is None else f" of {total:,}"
        left = f", {describe_seconds(max(0, total - done) / speed)} left" if done and total is not None else ""
        typer.echo(f"{what}: {done:,}{of}, {_pace(speed)}{left}", err=True)

    return report


def _pace(speed: float) -> str:
    return f"{speed:.3g} per second" if speed >= 1 or not speed else f"{1 / speed:.3g} s each"


def describe_seconds(seconds: float) -> str:
    """Return a time such as `40 s`, `3 min` or `2 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
