"""Options of `multibox train` under other programs' names, and those that stand for a setting."""

import sys

import pytest
import typer

from multibox.cli import main
from multibox.cli.lists import print_layers
from multibox.cli.main import option_hint
from multibox.config import Config
from multibox.presets import resolve_layers
from multibox.settings import list_settings

SETTINGS = {
    "preset": "preset",
    "recipe": "recipe",
    "epochs": "train.epochs",
    "minutes": "train.minutes",
    "weights": "train.weights",
    "train_split": "data.train_split",
    "val_split": "data.val_split",
    "format": "data.format",
    "on_bad": "data.on_bad",
    "on_nan": "train.on_nan",
    "background": "model.background",
    "classes": "data.classes",
    "merge": "data.merge",
    "cache_gb": "data.cache_gb",
    "cache_dir": "data.cache_dir",
    "data": "data.path",
}
"""Options and arguments of `train` that are settings under their own or another name."""
OTHERS = {
    "out", "set_", "resume", "device", "seeds", "ablate", "config", "dry_run", "moved", "open", "open_",
    "replay",
}  # fmt: skip
"""What a command is asked for that is no setting."""


def test_an_option_of_our_own_is_named_before_its_setting(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["multibox", "train", "DATA", "--minute", "1"])
    with pytest.raises(SystemExit):
        main.main()
    assert "did you mean --minutes 1?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "args", "words"),
    [
        ("--batch", ["--batch", "16"], "did you mean --set train.batch_size=16?"),
        ("--imgsz", ["--imgsz=640"], "did you mean --set model.input_size=[640,640]?"),
        ("--lr0", ["--lr0"], "did you mean --set train.lr=VALUE?"),
        ("--batch-size", ["--batch-size", "big"], "did you mean --set train.batch_size=VALUE?"),
        ("--name", ["--name", "x"], "give --out DIR"),
        ("--clip", [], "did you mean --set anchors.clip=VALUE or --set post.clip=VALUE?"),
    ],
)
def test_an_option_of_another_program_is_recognised(option, args, words, monkeypatch, capsys):
    assert words in (option_hint(option, args) or "")
    monkeypatch.setattr(sys, "argv", ["multibox", "train", "DATA", *(args or [option])])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_any_other_unknown_option_is_left_to_typer(monkeypatch, capsys):
    assert option_hint("--epoc") is None and option_hint("--zzz") is None
    monkeypatch.setattr(sys, "argv", ["multibox", "train", "DATA", "--zzz"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert "--zzz" in capsys.readouterr().err


def options_of_train():
    command = typer.main.get_command(main.app).commands["train"]
    return {parameter.name: parameter for parameter in command.params}


def test_every_option_of_train_is_a_setting_or_known_to_be_none():
    known = list_settings(Config)
    assert set(SETTINGS.values()) <= known.keys()
    for name, parameter in options_of_train().items():
        assert name in SETTINGS or name in OTHERS or name == "help", f"{name}: a setting? name it in SETTINGS"
        if name in SETTINGS and name not in ("data", "on_bad"):
            # Not given, it leaves the setting to the layers below
            assert parameter.default is None, name


def test_run_options_and_train_in_python_have_the_options_of_the_command():
    import dataclasses
    import inspect

    from multibox import api
    from multibox.training.run import RunOptions

    fields = {field.name for field in dataclasses.fields(RunOptions)}
    shared = {name for name in options_of_train() if name in SETTINGS} - {"data", "classes", "merge"}
    assert shared <= fields
    given = inspect.signature(api.train).parameters
    if "options" not in given:
        assert shared <= given.keys()


def test_a_dry_run_prints_each_setting_with_its_layer(capsys):
    config, origins = resolve_layers("tinyssd", layers=[("--set", {"train.lr": "0.5", "post.clip": "before_nms"})])
    print_layers(config, origins)
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.split()}
    assert list_settings(Config).keys() <= lines.keys()
    assert lines["train.lr"] == ["train.lr", "0.5", "--set"]
    assert lines["train.ema"] == ["train.ema", "0.998", "recipe", "default"]
    assert lines["model.input_size"] == ["model.input_size", "[256,", "256]", "preset", "tinyssd"]
