"""A training run on the console: a bar on a terminal, else a line now and then."""

import shlex
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from multibox.cli.monitor import monitor_beside
from multibox.errors import MultiboxError
from multibox.tensors import LossParts
from multibox.training.metric_files import Row
from multibox.training.reporter import Reporter
from multibox.training.run import Data, RunOptions, prepare
from multibox.training.stopping import exit_code
from multibox.training.trainer import Trainer

REFRESH = 0.5
"""Seconds between reads of the loss: each one makes the host wait for the device."""


class BarReporter(Reporter):
    """A bar with losses, images per second and the time left; notes and validations are printed above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False))
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=2,
        )
        self.task = self.bar.add_task("training", total=None, start=False, metrics="")

    def begin(self, trainer: Trainer) -> None:
        """Show the bar."""
        super().begin(trainer)
        self.bar.start_task(self.task)
        self._update(trainer)

    def step(self, trainer: Trainer, parts: LossParts) -> None:
        """Advance the bar."""
        if time.monotonic() - self.last >= REFRESH:
            self._update(trainer, description="training", metrics=self.progress(trainer, parts))

    def row(self, trainer: Trainer, row: Row) -> None:
        """Print the metrics of an epoch."""
        super().row(trainer, row)
        self._update(trainer)

    @contextmanager
    def counting(self, what: str, total: int) -> Generator[Callable[[int], None], None, None]:
        """Show a bar that vanishes at the end."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.bar.console, transient=True, refresh_per_second=2) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)

    def waiting(self, what: str) -> None:
        """Show in the bar what takes a while."""
        self.bar.update(self.task, description=what)

    def _update(self, trainer: Trainer, **shown: Any) -> None:
        self.bar.update(self.task, completed=trainer.pace.step, total=trainer.pace.total, **shown)


def train_with_progress(data: Data | None, options: RunOptions, *, watched: bool = False) -> Trainer:
    """Train and return the trainer; Ctrl-C (exit 130), SIGTERM (143) and SIGHUP (129) leave a resumable run.

    Args:
        data: The data set, or several that are joined.
        options: Of the run.
        watched: Whether a live page shows the run while it trains.
    """
    console = Console()
    reporter = BarReporter(console) if console.is_terminal else Reporter(typer.echo)
    trainer = prepare(data, options, reporter)
    try:
        # Of processes that train together only one shows how it goes
        bar = reporter.bar if isinstance(reporter, BarReporter) and trainer.ranks.writes else nullcontext()
        with monitor_beside(trainer.folder.parent if watched and trainer.ranks.writes else None), bar:
            trainer.fit()
    except KeyboardInterrupt as stop:
        total = trainer.pace.total
        step = str(trainer.pace.step) if total is None else f"{trainer.pace.step} of {total}"
        if trainer.ranks.writes:
            by = f", by torchrun with {trainer.ranks.count} processes again" if trainer.ranks.count > 1 else ""
            typer.echo(f"stopped after step {step}; go on with: {resume_command(trainer.folder)}{by}", err=True)
        raise typer.Exit(exit_code(stop)) from None
    except OSError as error:
        raise MultiboxError(
            f"{error.filename or trainer.folder} cannot be written ({error.strerror or error}); make room or mend the "
            f"permissions, then go on from its state of step {max(0, trainer.saved_at[0])}: "
            f"{resume_command(trainer.folder)}"
        ) from None
    if trainer.ranks.writes:
        _draw_curves(trainer)
    return trainer


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run; everything else it needs stands in the folder."""
    return shlex.join(["multibox", "train", "--resume", str(folder)])


def _draw_curves(trainer: Trainer) -> None:
    from multibox.plots.curves import plot_training

    rows = trainer.records.rows
    names = dict.fromkeys(name for row in rows for name in row)
    plot_training(trainer.folder / "images" / "curves.png", {n: [row.get(n) for row in rows] for n in names})
