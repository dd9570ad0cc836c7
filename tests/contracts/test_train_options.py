"""`multibox train`, `RunOptions` and `multibox.train` are one list of options, with the same names and defaults."""

import dataclasses
import inspect
import typing
from pathlib import Path

import typer

from multibox import api
from multibox.cli.main import app
from multibox.training.run import RunOptions

ELSEWHERE = {"seeds", "ablate", "dry_run", "open_", "replay"}
"""What the command does with more than one run, without any, or beside one."""
NAMES = {"set_": "changes", "moved": "data"}
"""Options of the command under their names in Python."""
SET_BY_THE_PROGRAM = ("started", "cache")


def command_line():
    parameters = typer.main.get_command(app).commands["train"].params
    kept = {p.name: p.default for p in parameters if p.name not in ELSEWHERE and p.name != "help"}
    return {NAMES.get(name, name): None if default in ((), []) else default for name, default in kept.items()}


def run_options():
    fields = {field.name: field for field in dataclasses.fields(RunOptions) if field.name not in SET_BY_THE_PROGRAM}
    values = dataclasses.asdict(RunOptions())
    # `prepare` takes the data beside the options
    return {"data": None} | {name: None if values[name] == {} else values[name] for name in fields}


def in_python():
    return {name: parameter.default for name, parameter in inspect.signature(api.train).parameters.items()}


def test_all_three_have_the_same_options_and_defaults():
    assert command_line() == run_options() == in_python()


def test_every_argument_of_train_is_spelled_out_with_its_type_and_told():
    for name, parameter in inspect.signature(api.train).parameters.items():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        assert parameter.annotation is not inspect.Parameter.empty, name
        assert f"\n        {name}: " in api.train.__doc__, name


def test_a_path_in_run_options_may_be_a_text_in_python():
    options, python = (typing.get_type_hints(each) for each in (RunOptions, api.train))
    for name in ("out", "config", "resume"):
        assert Path in typing.get_args(options[name])
        assert {str, Path} <= set(typing.get_args(python[name]))


def test_every_option_has_a_help_text():
    for parameter in typer.main.get_command(app).commands["train"].params:
        assert parameter.help, parameter.name
