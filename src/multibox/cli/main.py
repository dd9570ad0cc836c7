"""The command `multibox`: its verbs, and how a mistake becomes one sentence."""

import io
import os
import sys
import time
from typing import Annotated

import typer

from multibox import __version__
from multibox.cli import bench, data, demo, evaluate, export, hints, imports, lists, plot, predict, train
from multibox.errors import MissingExtraError, MultiboxError
from multibox.training.memory import VARIABLE

STARTED = time.monotonic()
"""When the command began; a run of so many minutes counts from here."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a single-shot detector (SSD) on your own pictures, see how good it is, and use it.",
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.command("train", cls=hints.HintedCommand)(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("import")(imports.import_weights)
app.command("list")(lists.show)
app.command("plot")(plot.plot)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Take the options that stand before the verb."""


def main() -> None:
    """Run the command; exit 0 fine, 1 findings, 2 wrong use or unreadable input (one sentence, no traceback)."""
    _allow_any_text()
    # This process is ours alone, unlike that of a script
    os.environ.setdefault(VARIABLE, "1")
    try:
        app()
    except MultiboxError as error:
        typer.echo(f"multibox: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in (
            "torch",
            "torchvision",
            "jaxtyping",
            "faster_coco_eval",
            "matplotlib",
            "defusedxml",
            "yaml",
        ):
            raise
        typer.echo(f"multibox: {MissingExtraError('This command', 'train')}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno is None:
            raise
        # Some calls do not say which file it was: a full disk, for instance
        what = (
            f"{error.filename} cannot be read or written" if error.filename is not None else "a file cannot be written"
        )
        typer.echo(
            f"multibox: {what} ({error.strerror}); look at its permissions and the room on the disk, or give another "
            "path",
            err=True,
        )
        sys.exit(2)


def _allow_any_text() -> None:
    """Print what an output's encoding lacks as escapes: on Windows, a pipe or file may not know a name's letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
