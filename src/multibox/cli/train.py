"""`multibox train`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class OnBad(StrEnum):
    """What to do about a broken file."""

    stop = "stop"
    skip = "skip"


def train(
    data: Annotated[Path, typer.Argument(help="Data set: a folder or file in a known format.")],
    preset: Annotated[
        str | None, typer.Option(help="Network; see `multibox list presets`. Default: the weights', or tinyssd.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="How to train it; see `multibox list recipes`.")] = "default",
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures; the schedule scales with it.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Start from a detector, or from the weights of a body.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/PRESET-N.")] = None,
    train_split: Annotated[str | None, typer.Option(help="Split to learn from.")] = None,
    val_split: Annotated[
        str | None, typer.Option(help="Split to validate on; 'none' for none; default val, or a held-out tenth.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="voc, coco, yolo, csv or recordio, where it cannot be told.")
    ] = None,
    on_bad: Annotated[OnBad, typer.Option(help="A broken file: stop, or skip it and count.")] = OnBad.stop,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as train.lr=0.001; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
) -> None:
    """Train a detector on DATA; leaves a run folder with best and last weights, metrics and a resumable state."""
    from multibox.cli.progress import train_with_progress
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
    trainer = train_with_progress(data, options)
    split = f" --split {trainer.validation.dataset.split}" if trainer.validation is not None else ""
    typer.echo(
        f"weights, metrics and state are in {trainer.folder}; next: multibox eval {trainer.folder} {data}{split}"
    )
