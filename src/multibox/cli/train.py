"""`multibox train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.cli.monitor import monitor_beside
from multibox.cli.options import Background, Classes, Device, Format, Merge, OnBad, class_list
from multibox.cli.train_options import (
    CacheDir,
    CacheGb,
    ConfigFile,
    DataSets,
    Epochs,
    Minutes,
    OnBadFile,
    Preset,
    Recipe,
    Settings,
    TrainSplit,
    ValSplit,
    Weights,
)

if TYPE_CHECKING:
    from multibox.experiments.seeds import Run
    from multibox.structures import Dataset
    from multibox.training.run import Data, RunOptions
    from multibox.training.trainer import Trainer

_RESUME = "Go on with this run folder; it needs nothing else. --minutes or --epochs prolong."
_ON_NAN = "A loss or gradient that is not finite: stop (default), or skip its batch, a few times at most."
_REPLAY = "Repeat a step that was not finite, and say why; needs nothing but its folder."
_SEEDS = "So many runs with train.seed 0, 1 ... in OUT/seed-0 ..., and their spread."
_ABLATE = "A run for every combination of loss, localization, matcher; such as loss=focal/ohem,matcher."


def train(
    data: DataSets = None,
    preset: Preset = None,
    recipe: Recipe = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/PRESET-N.")] = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    format: Format = None,
    on_bad: OnBadFile = None,
    classes: Classes = None,
    merge: Merge = None,
    background: Background = None,
    cache_gb: CacheGb = None,
    cache_dir: CacheDir = None,
    config: ConfigFile = None,
    set_: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every setting with the layer it came from, and end.")
    ] = False,
    on_nan: Annotated[OnBad | None, typer.Option(help=_ON_NAN)] = None,
    resume: Annotated[Path | None, typer.Option(help=_RESUME)] = None,
    replay: Annotated[Path | None, typer.Option(metavar="RUN/nan-STEP", help=_REPLAY)] = None,
    moved: Annotated[
        list[Path] | None, typer.Option("--data", help="With --resume: where the same data lies now; repeatable.")
    ] = None,
    device: Device = "auto",
    seeds: Annotated[int | None, typer.Option(min=1, help=_SEEDS)] = None,
    ablate: Annotated[str | None, typer.Option(help=_ABLATE)] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the run as a live page until it ends.")] = False,
) -> None:
    """Train a detector on DATA; leaves a run folder with best and last weights, metrics and a resumable state.

    Without options it starts from the built-in model `coco`. Example: multibox train photos --minutes 10
    """
    from multibox.cli.main import STARTED
    from multibox.errors import ConfigError
    from multibox.settings import parse_assignments
    from multibox.training.run import RunOptions

    if replay is not None:
        _replay(replay, device)
        return
    if moved and (resume is None or data):
        raise ConfigError("--data belongs to --resume, where the same data lies elsewhere; otherwise give DATA alone")
    options = RunOptions(
        preset=preset,
        recipe=recipe,
        minutes=minutes,
        epochs=epochs,
        weights=weights,
        out=out,
        train_split=train_split,
        val_split=val_split,
        format=format,
        on_bad=on_bad.value if on_bad else None,
        on_nan=on_nan.value if on_nan else None,
        classes=class_list(classes),
        merge=None if merge is None else tuple(merge),
        background=background,
        cache_gb=cache_gb,
        cache_dir=cache_dir,
        config=config,
        changes=dict(parse_assignments(set_ or [])),
        resume=resume,
        device=device,
        started=STARTED,
    )
    if dry_run:
        _print_settings(data, options)
    elif ablate is None and seeds is None:
        _once(data or moved or None, options, open_)
    elif not data:
        raise ConfigError("train needs DATA, a data set's folder or file")
    else:
        with monitor_beside(out if open_ else None):
            if ablate is not None:
                _ablate(data, options, ablate, seeds or 1)
            else:
                _repeat(data, options, seeds or 1)


def _print_settings(data: list[Path] | None, options: "RunOptions") -> None:
    from multibox.cli.lists import print_layers
    from multibox.training.run import resolve_options

    config, origins = resolve_options(data, options)
    print_layers(config, origins)


def _replay(folder: Path, device: str) -> None:
    from multibox.training.nan_report import describe
    from multibox.training.replay import replay

    again = replay(folder, device)
    typer.echo(describe(again.again), nl=False)
    typer.echo(f"\nRepeated: {again.comparison}.")


def _once(data: list[Path] | None, options: "RunOptions", watched: bool) -> None:
    from multibox.cli.progress import train_with_progress

    trainer = train_with_progress(data, options, watched=watched)
    if trainer.ranks.writes:
        typer.echo(f"weights, metrics and state are in {trainer.folder}; next: {next_command(trainer)}")


def next_command(trainer: "Trainer") -> str:
    """Return the command to use the run: score it on a split without training images, or predict."""
    import shlex

    split = _unseen_split(trainer)
    if split is None:
        return shlex.join(["multibox", "predict", str(trainer.folder)]) + " IMAGES"
    return shlex.join(["multibox", "eval", str(trainer.folder), *trainer.config.data.path, "--split", split])


def _unseen_split(trainer: "Trainer") -> str | None:
    """Return a split without any training image: val, else test, else another."""
    from multibox.data.formats import find_layout, find_splits, open_dataset
    from multibox.errors import DataError
    from multibox.training.run import cache_folder

    data = trainer.config.data
    format = None if data.format == "auto" else data.format
    cache = cache_folder(trainer.config, trainer.folder)
    learned = _image_places(trainer.training)
    splits = find_layout(data.path[0], format, cache).splits if len(data.path) == 1 else find_splits(data.path, format)
    for split in sorted(splits, key=lambda name: (name != "val", name != "test", splits.index(name))):
        try:
            places = _image_places(open_dataset(data.path, split, format=format, on_bad=data.on_bad, cache=cache))
        except DataError:
            continue
        if learned.isdisjoint(places):
            return split
    return None


def _image_places(dataset: "Dataset") -> set[tuple[Path, int | None]]:
    """Return where each image lies; images of two splits may share a name."""
    return set(zip(dataset.paths, dataset.offsets, strict=True))


def _repeat(data: list[Path], options: "RunOptions", seeds: int) -> None:
    from multibox.experiments.seeds import repeat
    from multibox.training.reporter import Reporter

    print_runs(repeat(data, options, seeds, train=_train_one, reporter=Reporter(typer.echo)))
    typer.echo(f"written to {options.out}/seeds.csv")


def _ablate(data: list[Path], options: "RunOptions", names: str, seeds: int) -> None:
    from rich.table import Table

    from multibox.cli.console import table_console
    from multibox.experiments.ablation import ablate, ablation_rows, parse_axes
    from multibox.experiments.seeds import METRICS
    from multibox.training.reporter import Reporter

    grid = parse_axes(names)
    results = ablate(data, options, grid, seeds, train=_train_one, reporter=Reporter(typer.echo))
    table = Table(*grid, *METRICS, "runs")
    for values, metrics, runs in ablation_rows(results, ("[bold]", "[/bold]")):
        table.add_row(*values, *metrics, runs)
    table_console().print(table, highlight=False)
    typer.echo(f"written to {options.out}/ablation.md and ablation.csv")


def _train_one(data: "Data", options: "RunOptions") -> "Trainer":
    from multibox.cli.progress import train_with_progress
    from multibox.training.stopping import exit_code

    try:
        trainer = train_with_progress(data, options)
        if trainer.interrupted:
            raise typer.Exit(exit_code(trainer.interrupt.reason()))
        return trainer
    except typer.Exit:
        typer.echo("stopped; give the same command again, and it goes on with all runs", err=True)
        raise


def print_runs(runs: "list[Run]") -> None:
    """Print each run's metrics, and their mean, standard deviation and interval."""
    from rich.table import Table

    from multibox.cli.console import metric_text, table_console
    from multibox.experiments.seeds import METRICS, spread

    table = Table("run", *METRICS)
    for run in runs:
        table.add_row(f"seed {run.seed}", *(metric_text(run.metrics.get(name)) for name in METRICS))
    table.add_section()
    spreads = [spread([run.metrics.get(name) for run in runs]) for name in METRICS]
    table.add_row("mean", *(metric_text(one and one.mean) for one in spreads), style="bold")
    table.add_row("standard deviation", *(metric_text(one and one.deviation) for one in spreads))
    ends = ("-" if one is None or one.low is None else f"{one.low:.3f} to {one.high:.3f}" for one in spreads)
    table.add_row("95 % of the mean", *ends)
    table_console().print(table, highlight=False)
    for run in runs:
        if run.problem:
            typer.echo(f"seed {run.seed} failed: {run.problem}")
