"""Arguments and options that several verbs take, and checks of the files they name."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from multibox.builtin import MODELS


class OnBad(StrEnum):
    """What to do about a broken file."""

    stop = "stop"
    skip = "skip"


Model = Annotated[str, typer.Argument(help="coco, face, a .safetensors, .onnx or .xml file, or a run folder.")]
_DATA = "Data set: a folder or file in a known format, or a .zip of one"
Data = Annotated[Path, typer.Argument(help=f"{_DATA}.")]
DataSets = Annotated[list[Path], typer.Argument(metavar="DATA...", help=f"{_DATA}; several are joined by class name.")]
Classes = Annotated[str | None, typer.Option(metavar="A,B", help="Take these classes only, after merging.")]
Merge = Annotated[
    list[str] | None, typer.Option(metavar="NEW=A,B", help="Join classes A and B under one name; repeatable.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average over mirror images too; takes twice as long.")]
# The names stand in one table, `FORMATS`, whose import would make --help slow
Format = Annotated[
    str | None,
    typer.Option(help="Where it cannot be recognised: voc, yolo or another of multibox list formats."),
]
WrittenFormat = Annotated[
    str, typer.Option(help="voc, coco, yolo or another that multibox list formats calls written.")
]
Background = Annotated[
    str | None,
    typer.Option(help="Colour behind transparent pixels: a name, #808080 or 128,128,128; else the model's."),
]
SkipOrStop = Annotated[OnBad, typer.Option(help="A broken file: stop, or skip it and count.")]
_RENAME = "The data set's class A is the model's B; A= leaves A out. Repeatable; also a .json file of such pairs."
Rename = Annotated[list[str] | None, typer.Option(metavar="A=B", help=_RENAME)]
MaxDetections = Annotated[int, typer.Option(min=1, help="Detections kept per image.")]

PLOTS = (".png", ".svg", ".pdf")
"""Suffixes of plots."""
IMAGES = (".png", ".jpg", ".jpeg")
"""Suffixes of contact sheets."""


def class_list(text: str | None) -> tuple[str, ...] | None:
    """Return the names that `--classes` gives, separated by commas; None if it is not given."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def rename_files(given: Sequence[str] | None) -> list[Path]:
    """Return the files that `--rename` names, which no result may replace."""
    return [Path(text) for text in given or () if "=" not in text]


def read_rename(given: Sequence[str] | None) -> dict[str, str] | None:
    """Return the names that `--rename` gives, each as A=B or in a JSON file; "" for a class to leave out."""
    from multibox.errors import ConfigError

    names: dict[str, str] = {}
    for text in given or ():
        old, equals, new = text.partition("=")
        if text.endswith(".json") and Path(text).is_file():
            names |= _read_names(Path(text))
        elif equals and old.strip():
            names[old.strip()] = new.strip()
        else:
            raise ConfigError(
                f"--rename {text}: expected A=B (the data's class A is the model's B), A= (leave A out) or a .json file"
            )
    return names or None


def _read_names(path: Path) -> dict[str, str]:
    import json

    from multibox.errors import ConfigError

    try:
        names: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--rename {path}: not a readable JSON file ({error})") from None
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in cast(dict[str, Any], names).values()):
        raise ConfigError(f'--rename {path}: expected an object such as {{"tvmonitor": "tv"}}')
    return cast(dict[str, str], names)


def check_suffix(path: Path, known: Collection[str]) -> None:
    """Refuse a file name whose suffix is not among the known ones.

    Raises:
        ConfigError: Another suffix.
    """
    from multibox.errors import ConfigError

    if path.suffix.lower() not in known:
        raise ConfigError(f"{path}: expected a file name that ends in {', '.join(known)}")


def background_colour(text: str) -> tuple[int, int, int]:
    """Return the colour that `--background` names.

    Raises:
        ConfigError: It is none.
    """
    from multibox.config import Config
    from multibox.data.pixels import as_colour
    from multibox.errors import ConfigError
    from multibox.settings import convert, list_settings

    setting = list_settings(Config)["model.background"]
    try:
        return as_colour(convert(setting, text))
    except ConfigError:
        raise ConfigError(f"--background {text}: expected {setting.expected}") from None


def own_files(model: str | Path) -> list[Path]:
    """Return the user's files of a model, which no result may replace; a built-in model has none.

    Of a run folder these are the files directly in it. Results may lie in folders below it.
    """
    if model in MODELS:
        return []
    model = Path(model)
    return [path for path in (model.iterdir() if model.is_dir() else (model,)) if path.is_file()]
