"""The options that say what a training run is, for the commands that train and those that look at one before."""

from pathlib import Path
from typing import Annotated

import typer

from multibox.cli.options import OnBad

_DATA = "Data set: a folder or file in a known format, or a .zip of one; several are joined by class name."
_PRESET = "Network; see `multibox list presets`. Default: the weights' own, or multibox-fine."
_WEIGHTS = "What to start from: coco, none, a detector's file or run folder, or a backbone's weights."
_CACHE_GB = "Most GB of decoded images to keep. Default: half of the free memory, or of the free disk of --cache-dir."
_CACHE_DIR = "Folder in which decoded images are kept for later runs. Default: in memory, for this run."

DataSets = Annotated[list[Path] | None, typer.Argument(metavar="DATA...", help=_DATA)]
Preset = Annotated[str | None, typer.Option(help=_PRESET)]
Recipe = Annotated[str | None, typer.Option(help="How to train it; see `multibox list recipes`. Default: default.")]
Minutes = Annotated[float | None, typer.Option(help="Train for so many minutes, start-up and validation included.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the images instead; excludes --minutes.")]
Weights = Annotated[str | None, typer.Option(help=_WEIGHTS)]
TrainSplit = Annotated[str | None, typer.Option(help="Split to learn from. Default: train.")]
ValSplit = Annotated[
    str | None, typer.Option(help="Split to validate on; 'none' for none. Default: val, or a held-out tenth.")
]
OnBadFile = Annotated[OnBad | None, typer.Option(help="A broken file: stop (default), or skip it and count.")]
CacheGb = Annotated[float | None, typer.Option(min=0, help=_CACHE_GB)]
CacheDir = Annotated[Path | None, typer.Option(help=_CACHE_DIR)]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file with settings, such as a run's config.toml.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A setting, such as train.lr=0.001; repeatable.")]
