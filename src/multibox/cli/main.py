"""The command `multibox`: its verbs, and how a mistake becomes one sentence."""

import io
import os
import shlex
import sys
import time
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from multibox import __version__
from multibox.cli import (
    anchors,
    bench,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    imports,
    inspect,
    lists,
    monitor,
    plot,
    predict,
    predict_ray,
    profile,
    report,
    serve,
    train,
)
from multibox.errors import MissingExtraError, MultiboxError, in_words
from multibox.limits import KEEP_MEMORY
from multibox.privacy import LIGHT_OPENVINO
from multibox.training.stopping import exit_code, terminable

STARTED = time.monotonic()
"""When the command began; the minutes of a run count from here."""
TRAIN_PACKAGES = ("torch", "torchvision", "jaxtyping", "hotcoco", "matplotlib", "defusedxml", "yaml")
"""Packages of the extra `train`."""


class Verbs(TyperGroup):
    """The verbs; Ctrl-C ends each with a word and exit code 130, an output that nobody reads any more with 141."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was given.

        Raises:
            Exit: Ctrl-C, where the verb has no word of its own about it; or whoever read the output went away.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo("multibox: stopped before the end; no half-written file is left", err=True)
            raise typer.Exit(exit_code(stop)) from None
        except BrokenPipeError:
            # As the shell reports SIGPIPE: 0 and 1 are a verb's verdict, which was not reached
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None


class TrainCommand(TyperCommand):
    """The verbs `train` and `profile`: a message about an unknown option names the setting that was probably meant.

    SIGTERM and a lost terminal end it as Ctrl-C does, with exit codes 143 and 129.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with terminable():
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments as typer does.

        Raises:
            ConfigError: An unknown option that is one of our settings under this or another name, or --resume without
                the run folder.
        """
        from multibox.errors import ConfigError

        given = list(args)
        if (run := _resumed_without_folder(given)) is not None:
            raise ConfigError(f"--resume takes the run folder now: multibox train --resume {run}")
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # By name: newer versions of typer carry a click of their own
            option = getattr(error, "option_name", "") if type(error).__name__ == "NoSuchOption" else ""
            own = [name for parameter in self.params for name in parameter.opts]
            hint = option_hint(option, given, own) if option else None
            if hint is None:
                raise
            raise ConfigError(hint) from None


def option_hint(option: str, args: Sequence[str] = (), own: Collection[str] = ()) -> str | None:
    """Return the sentence about an unknown option that stands for a setting; None if it stands for none.

    Args:
        option: As given, such as --imgsz.
        args: The whole command line, for its value.
        own: The command's options, which are named in place of the settings that they set.
    """
    from multibox.config import Config
    from multibox.settings import NO_SETTING, assigned, list_settings, meant_settings, plain_name

    name = plain_name(option)
    if name in NO_SETTING and option not in NO_SETTING[name]:
        return f"{option} is no option of this command; {NO_SETTING[name]}"
    known = list_settings(Config)
    meant = meant_settings(name, known, near=False)
    if not meant:
        return None
    value = _value(option, args)
    examples: list[str] = []
    for key in meant:
        own_option = "--" + key.rpartition(".")[2].replace("_", "-")
        setting = f"--set {key}{assigned(known[key], value) or '=VALUE'}"
        examples.append(f"{own_option} {value or 'VALUE'}" if own_option in own else setting)
    return f"{option} is no option of this command; did you mean {' or '.join(examples)}?"


def _resumed_without_folder(args: Sequence[str]) -> str | None:
    """Return the run folder if --resume lacks it and --out names it, as in older versions; None if all is well."""
    if "--resume" not in args:
        return None
    following = args[args.index("--resume") + 1 :]
    if following and not following[0].startswith("-"):
        return None
    return shlex.quote(_value("--out", args) or "RUN")


def _value(option: str, args: Sequence[str]) -> str:
    for place, text in enumerate(args):
        if text.startswith(f"{option}="):
            return text.partition("=")[2]
        if text == option and place + 1 < len(args) and not args[place + 1].startswith("--"):
            return args[place + 1]
    return ""


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a single-shot detector (SSD) on your own images, see how good it is, and use it.",
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.command("doctor")(doctor.doctor)
app.command("train", cls=TrainCommand)(train.train)
app.command("profile", cls=TrainCommand)(profile.profile)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("predict", cls=predict_ray.PredictCommand)(predict.predict)
app.command("inspect")(inspect.inspect)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("anchors")(anchors.anchors)
app.command("import")(imports.import_weights)
app.command("list")(lists.show)
app.command("plot")(plot.plot)
app.command("monitor")(monitor.monitor)
app.command("serve")(serve.serve)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before the verb."""


def main() -> None:
    """Run the command; exit 0 fine, 1 findings, 2 wrong use or unreadable input (one sentence, no traceback)."""
    # On Windows a pipe or file may not know the letters of a name: print escapes instead
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # This process is ours alone, unlike that of a script
    for name in (KEEP_MEMORY, LIGHT_OPENVINO):
        os.environ.setdefault(name, "1")
    try:
        app()
    except (MultiboxError, ModuleNotFoundError, OSError) as error:
        message = _sentence(error)
        if message is None:
            raise
        typer.echo(f"multibox: {message}", err=True)
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """Return the message about a user's mistake; None for a defect of ours."""
    if isinstance(error, ModuleNotFoundError):
        return str(MissingExtraError("This command", "train")) if error.name in TRAIN_PACKAGES else None
    if not isinstance(error, OSError):
        return str(error)
    if error.errno is None:
        return None
    return f"{in_words(error)}; look at its permissions and the room on the disk, or give another path"
