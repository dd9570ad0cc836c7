"""`multibox train`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from multibox.training.repeats import Run
    from multibox.training.run import RunOptions
    from multibox.training.trainer import Trainer


class OnBad(StrEnum):
    """What to do about a broken file."""

    stop = "stop"
    skip = "skip"


PresetName = Annotated[
    str | None, typer.Option(help="Network; see `multibox list presets`. Default: the weights', or tinyssd.")
]
RecipeName = Annotated[str | None, typer.Option(help="How to train it; see `multibox list recipes`. Default: default.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the pictures; the schedule scales with it.")]
ValSplit = Annotated[
    str | None, typer.Option(help="Split to validate on; 'none' for none; default val, or a held-out tenth.")
]
Format = Annotated[str | None, typer.Option(help="voc, coco, yolo, csv or recordio, where it cannot be told.")]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="So many runs with train.seed 0, 1 ... in OUT/seed-0 ..., and their spread.")
]
Ablate = Annotated[
    str | None,
    typer.Option(help="A run for every combination of loss, localization, matcher; such as loss=focal/ohem,matcher."),
]


def train(
    data: Annotated[Path, typer.Argument(help="Data set: a folder or file in a known format.")],
    preset: PresetName = None,
    recipe: RecipeName = None,
    epochs: Epochs = None,
    weights: Annotated[Path | None, typer.Option(help="Start from a detector, or from the weights of a body.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/PRESET-N.")] = None,
    train_split: Annotated[str | None, typer.Option(help="Split to learn from.")] = None,
    val_split: ValSplit = None,
    format: Format = None,
    on_bad: Annotated[OnBad, typer.Option(help="A broken file: stop, or skip it and count.")] = OnBad.stop,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as train.lr=0.001; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seeds: Seeds = None,
    ablate: Ablate = None,
) -> None:
    """Train a detector on DATA; leaves a run folder with best and last weights, metrics and a resumable state."""
    from multibox.settings import parse_assignments
    from multibox.training.run import RunOptions

    options = RunOptions(
        preset=preset,
        recipe=recipe,
        epochs=epochs,
        weights=weights,
        out=out,
        train_split=train_split,
        val_split=val_split,
        format=format,
        on_bad=on_bad.value,
        changes=dict(parse_assignments(set_ or [])),
        resume=resume,
        device=device,
    )
    if ablate is not None:
        _ablate(data, options, ablate, seeds or 1)
    elif seeds is not None:
        _repeat(data, options, seeds)
    else:
        _once(data, options)


def _once(data: Path, options: "RunOptions") -> None:
    from multibox.cli.progress import train_with_progress

    trainer = train_with_progress(data, options)
    held = None if trainer.validation is None else trainer.validation.dataset.split
    if held == trainer.training.split:
        # A score on that split would be one of pictures that it has learnt
        following = f"predict {trainer.folder} PICTURES"
    else:
        following = f"eval {trainer.folder} {data}" + (f" --split {held}" if held else "")
    typer.echo(f"weights, metrics and state are in {trainer.folder}; next: multibox {following}")


def _repeat(data: Path, options: "RunOptions", seeds: int) -> None:
    from multibox.training.repeats import repeat

    runs = repeat(data, options, seeds, train=_train_one, say=typer.echo)
    print_runs(runs)
    typer.echo(f"written to {options.out}/seeds.csv")


def _ablate(data: Path, options: "RunOptions", names: str, seeds: int) -> None:
    from rich.table import Table

    from multibox.cli.tables import table_console
    from multibox.training.ablation import ablate, ablation_rows, parse_axes
    from multibox.training.repeats import FIGURES

    grid = parse_axes(names)
    found = ablate(data, options, grid, seeds, train=_train_one, say=typer.echo)
    table = Table(*grid, *FIGURES, "runs")
    for values, figures, runs in ablation_rows(found, ("[bold]", "[/bold]")):
        table.add_row(*values, *figures, runs)
    table_console().print(table, highlight=False)
    typer.echo(f"written to {options.out}/ablation.md and ablation.csv")


def _train_one(data: Path, options: "RunOptions") -> "Trainer":
    from multibox.cli.progress import train_with_progress

    try:
        trainer = train_with_progress(data, options)
        if trainer.interrupted:
            raise typer.Exit(130)
        return trainer
    except typer.Exit:
        typer.echo("stopped; give the same command again, and it goes on with all runs", err=True)
        raise


def print_runs(runs: "list[Run]") -> None:
    """Print each run's figures, and their mean, standard deviation and interval."""
    from rich.table import Table

    from multibox.cli.tables import table_console
    from multibox.training.repeats import FIGURES, spread

    table = Table("run", *FIGURES)
    for run in runs:
        table.add_row(f"seed {run.seed}", *(_figure(run.figures.get(name)) for name in FIGURES))
    table.add_section()
    spreads = [spread([run.figures.get(name) for run in runs]) for name in FIGURES]
    table.add_row("mean", *(_figure(one and one.mean) for one in spreads), style="bold")
    table.add_row("standard deviation", *(_figure(one and one.deviation) for one in spreads))
    ends = ("-" if one is None or one.low is None else f"{one.low:.3f} to {one.high:.3f}" for one in spreads)
    table.add_row("95 % of the mean", *ends)
    table_console().print(table, highlight=False)
    for run in runs:
        if run.problem:
            typer.echo(f"seed {run.seed} failed: {run.problem}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
