"""A training run on the console: a bar on a terminal, a log line now and then elsewhere."""

import shlex
import time
from contextlib import nullcontext
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from multibox.errors import MultiboxError
from multibox.tensors import LossParts
from multibox.training.reporter import Reporter, Row
from multibox.training.run import RunOptions, prepare
from multibox.training.trainer import Trainer

REFRESH = 0.5
"""Seconds between looks at the loss: each one makes the host wait for the device."""


class BarReporter(Reporter):
    """Shows a bar with losses, images per second and the time left; prints notes and validations above it."""

    def __init__(self, console: Console, bar: Progress) -> None:
        super().__init__(lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False))
        self.bar = bar
        self.task: TaskID | None = None

    def begin(self, trainer: Trainer) -> None:
        """Show the bar."""
        super().begin(trainer)
        self.task = self.bar.add_task("training", total=trainer.pace.total, completed=trainer.pace.step, metrics="")

    def step(self, trainer: Trainer, parts: LossParts) -> None:
        """Move the bar on."""
        now = time.monotonic()
        if now - self.last >= REFRESH and self.task is not None:
            metrics = self._progress(trainer, parts, now)
            self.bar.update(
                self.task,
                description="training",
                completed=trainer.pace.step,
                total=trainer.pace.total,
                metrics=metrics,
            )

    def row(self, trainer: Trainer, row: Row) -> None:
        """Print what an epoch brought."""
        super().row(trainer, row)
        if self.task is not None:
            self.bar.update(self.task, completed=trainer.pace.step, total=trainer.pace.total)

    def waiting(self, what: str) -> None:
        """Say in the bar what takes a while."""
        if self.task is not None:
            self.bar.update(self.task, description=what)


def train_with_progress(data: Path | None, options: RunOptions) -> Trainer:
    """Train and return what did it; Ctrl-C leaves a resumable run and exits with 130."""
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, refresh_per_second=2)
    live = console.is_terminal
    reporter = BarReporter(console, bar) if live else Reporter(typer.echo)
    trainer = prepare(data, options, reporter)
    try:
        with bar if live else nullcontext():
            trainer.fit()
    except KeyboardInterrupt:
        typer.echo(
            f"stopped after step {trainer.pace.step}{_of(trainer)}; go on with: {resume_command(trainer.folder)}",
            err=True,
        )
        raise typer.Exit(130) from None
    except (MultiboxError, OSError) as error:
        saved = f"its last saved state can be resumed: {resume_command(trainer.folder)}"
        if isinstance(error, OSError):
            raise MultiboxError(
                f"{error.filename or trainer.folder} cannot be written ({error.strerror or error}); make room or mend "
                f"the permissions; {saved}"
            ) from None
        raise
    _draw_curves(trainer)
    return trainer


def resume_command(folder: Path) -> str:
    """Return the command that goes on with a run; everything it needs stands in the folder."""
    return shlex.join(["multibox", "train", "--resume", str(folder)])


def _of(trainer: Trainer) -> str:
    total = trainer.pace.total
    return "" if total is None else f" of {total}"


def _draw_curves(trainer: Trainer) -> None:
    from multibox.plots.curves import plot_training

    rows = trainer.records.rows
    names = dict.fromkeys(name for row in rows for name in row)
    plot_training(trainer.folder / "images" / "curves.png", {n: [row.get(n) for row in rows] for n in names})
