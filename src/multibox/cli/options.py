"""Arguments and options that several verbs take, and checks of the files they name."""

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from multibox.builtin import MODELS


class OnBad(StrEnum):
    """What to do about a broken file."""

    stop = "stop"
    skip = "skip"


Model = Annotated[str, typer.Argument(help="coco, face, a .safetensors, .onnx or .xml file, or a run folder.")]
Data = Annotated[Path, typer.Argument(help="Data set: a folder or file in a known format.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average over mirror images too; takes twice as long.")]
Format = Annotated[str | None, typer.Option(help="voc, coco, yolo, csv or recordio, where it cannot be recognised.")]
WrittenFormat = Annotated[str, typer.Option(help="voc, coco, yolo, csv or recordio.")]
SkipOrStop = Annotated[OnBad, typer.Option(help="A broken file: stop, or skip it and count.")]

PLOTS = (".png", ".svg", ".pdf")
"""Suffixes of plots."""
IMAGES = (".png", ".jpg", ".jpeg")
"""Suffixes of contact sheets."""


def check_suffix(path: Path, known: Collection[str]) -> None:
    """Refuse a file name whose suffix is not among the known ones.

    Raises:
        ConfigError: Another suffix.
    """
    from multibox.errors import ConfigError

    if path.suffix.lower() not in known:
        raise ConfigError(f"{path}: expected a file name that ends in {', '.join(known)}")


def own_files(model: str | Path) -> list[Path]:
    """Return the user's files of a model, which no result may replace; a built-in model has none.

    Of a run folder these are the files directly in it. Results may lie in folders below it.
    """
    if model in MODELS:
        return []
    model = Path(model)
    return [path for path in (model.iterdir() if model.is_dir() else (model,)) if path.is_file()]
