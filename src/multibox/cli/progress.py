"""A training run on the console: a bar with losses, pictures a second and the time left; a line per validation."""

import shlex
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from multibox.tensors import LossParts
from multibox.training.records import Row, d2l_line
from multibox.training.run import RunOptions, prepare
from multibox.training.trainer import Trainer

REFRESH = 0.5
"""Seconds between looks at the loss: each one makes the host wait for the device."""


def train_with_progress(data: Path, options: RunOptions) -> Trainer:
    """Train and return what did it; Ctrl-C leaves a resumable run and exits with 130."""
    console = Console()
    trainer = prepare(data, options, lambda line: console.print(line, highlight=False, soft_wrap=True))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, refresh_per_second=2) as bar:
            _watch(trainer, bar)
            trainer.fit()
    except KeyboardInterrupt:
        command = resume_command(data, options, trainer.folder)
        typer.echo(f"stopped after step {trainer.step} of {trainer.steps}; go on with: {command}", err=True)
        raise typer.Exit(130) from None
    _draw_curves(trainer)
    return trainer


def resume_command(data: Path, options: RunOptions, folder: Path) -> str:
    """Return the command that goes on with a run: the same data; its settings stand in its folder."""
    words = ["multibox", "train", str(data)]
    for name in ("train_split", "val_split", "format"):
        if value := getattr(options, name):
            words += [f"--{name.replace('_', '-')}", value]
    if options.on_bad != "stop":
        words += ["--on-bad", options.on_bad]
    return shlex.join([*words, "--out", str(folder), "--resume"])


def _watch(trainer: Trainer, bar: Progress) -> None:
    task = bar.add_task("step", total=trainer.steps, completed=trainer.step, figures="")
    clock = {"time": time.monotonic(), "step": trainer.step}

    def watch(_: Trainer, parts: LossParts) -> None:
        now = time.monotonic()
        if now - clock["time"] < REFRESH:
            return
        rate = (trainer.step - clock["step"]) * trainer.batches.batch_size / (now - clock["time"])
        clock.update(time=now, step=trainer.step)
        figures = (
            f"loss {parts.total:.3f} = class {parts.classification:.3f} + box {parts.localization:.3f}, "
            f"{rate:.0f} pictures/s"
        )
        bar.update(task, completed=trainer.step, figures=figures)

    def say(row: Row) -> None:
        bar.update(task, completed=trainer.step)
        if trainer.config.train.report == "d2l" and int(row["epoch"] or 0) % 5 == 0:
            bar.console.print(d2l_line(trainer.records.rows), highlight=False)
        if "val_map50" in row or trainer.step == trainer.steps:
            bar.console.print(epoch_line(row), highlight=False, soft_wrap=True)

    trainer.watch, trainer.say = watch, say


def epoch_line(row: Row) -> str:
    """Return one epoch's figures as a line."""
    line = (
        f"epoch {row['epoch']:>4}  loss {row['total_loss']:.3f} (class {row['cross_entropy_loss']:.3f}, "
        f"box {row['location_loss']:.3f})  error on objects {row['positive_class_error']:.3f}"
    )
    if row.get("val_loss") is not None:
        score = row["val_map50"]
        line += f"  validation loss {row['val_loss']:.3f}  mAP@0.5 " + ("-" if score is None else f"{score:.3f}")
    return line


def _draw_curves(trainer: Trainer) -> None:
    from multibox.plots.curves import plot_training

    rows = trainer.records.rows
    names = dict.fromkeys(name for row in rows for name in row)
    plot_training(trainer.folder / "pictures" / "curves.png", {n: [row.get(n) for row in rows] for n in names})
