"""Hints for options that a command does not have: other programs' names for our settings."""

import shlex
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand


class HintedCommand(TyperCommand):
    """A command whose message about an unknown option names the setting that was probably meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments as typer does.

        Raises:
            ConfigError: an unknown option that is one of our settings under this or another name, or --resume without
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
            hint = option_hint(option, given) if option else None
            if hint is None:
                raise
            raise ConfigError(hint) from None


def option_hint(option: str, args: Sequence[str] = ()) -> str | None:
    """Return the sentence about an unknown option that stands for a setting; None where it stands for none.

    Args:
        option: as given, such as --imgsz.
        args: the whole command line, where its value follows.
    """
    from multibox.config import Config
    from multibox.settings import NO_SETTING, assigned, list_settings, meant_settings, plain_name

    name = plain_name(option)
    if name in NO_SETTING:
        return f"{option} is no option of this command; {NO_SETTING[name]}"
    known = list_settings(Config)
    meant = meant_settings(name, known, near=False)
    if not meant:
        return None
    value = _value(option, args)
    examples = " or ".join(f"--set {key}{assigned(known[key], value) or '=VALUE'}" for key in meant)
    return f"{option} is no option of this command; did you mean {examples}?"


def _resumed_without_folder(args: Sequence[str]) -> str | None:
    """Return the run that --resume was meant for if no folder follows it, as in the days when --out named it."""
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
