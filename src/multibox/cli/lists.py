"""`multibox list`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from multibox.config import Config

CLASSES = 20
"""As many as PASCAL VOC has."""


def show(
    what: Annotated[str, typer.Argument(help="models, presets, recipes, settings, backbones, formats or importers.")],
    diff: Annotated[
        tuple[str, str] | None, typer.Option("--diff", help="Two recipes: print the settings in which they differ.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Settings: write them here, or - for standard output.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Settings: print docs/settings.md.")] = False,
) -> None:
    """Show what can be named in other commands. Example: multibox list settings."""
    from multibox.errors import ConfigError, did_you_mean

    tables: dict[str, Callable[[], None]] = {
        "models": _models,
        "presets": _presets,
        "recipes": lambda: _recipes(diff),
        "settings": lambda: _settings(json_file, markdown),
        "backbones": _backbones,
        "formats": _formats,
        "importers": _importers,
    }
    if what not in tables:
        raise ConfigError(f"cannot list {what!r}{did_you_mean(what, tables)}; known: {', '.join(tables)}")
    if what != "settings" and (json_file is not None or markdown):
        raise ConfigError(f"--json and --markdown belong to `multibox list settings`, not to {what}")
    tables[what]()


def _print(columns: list[str], rows: list[tuple[str, ...]], note: str = "") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column.startswith(">") else "left", no_wrap=column == columns[0])
        table.columns[-1].header = column.removeprefix(">")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width: nothing is cut there
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    console.print(table, highlight=False)
    if note:
        console.print(note, highlight=False)


def _models() -> None:
    from multibox.builtin import MODELS, about, size_on_disk

    rows: list[tuple[str, ...]] = []
    for name, model in MODELS.items():
        said = about(name)
        height, width = said["config"]["model"]["input_size"]
        classes = sum(not each.startswith("unused ") for each in said["names"])
        figures = (f"{classes:,}", f"{width}x{height}", f"{size_on_disk(name) / 1e6:.1f} MB")
        rows.append((name, model.network, *figures, model.license, model.use, model.accuracy))
    columns = ["model", "network", ">classes", ">input", ">size", "licence", "good for", "measured"]
    sources = "\n".join(f"{name}: weights from {model.source}" for name, model in MODELS.items())
    _print(columns, rows, f"a name stands wherever a model or --weights is taken; ./coco is a path\n{sources}")


def _presets() -> None:
    from multibox.models.build import measure
    from multibox.presets import PRESETS, resolve

    rows: list[tuple[str, ...]] = []
    for name, preset in PRESETS.items():
        config = resolve(name, changes={"anchors.fit": "none"})
        size = measure(config, CLASSES)
        height, width = config.model.input_size
        billions = size.multiply_adds / 1e9
        figures = (f"{size.parameters / 1e6:.2f}", f"{billions:.2f}", f"{2 * billions:.2f}", f"{size.anchors:,}")
        rows.append((name, f"{width}x{height}", *figures, config.model.backbone, preset.origin))
    columns = ["preset", ">input", ">M parameters", ">GMACs", ">GFLOPs", ">anchors", "backbone", "origin"]
    _print(columns, rows, f"for {CLASSES} classes and one image; a multiply-add (MAC) is two FLOPs")


def _recipes(diff: tuple[str, str] | None) -> None:
    from multibox.errors import ConfigError, did_you_mean
    from multibox.presets import RECIPES, fitting, resolve

    if diff is None:
        rows = [(name, ", ".join(recipe.fits) or "every preset") for name, recipe in RECIPES.items()]
        return _print(["recipe", "fits"], rows)
    for name in diff:
        if name not in RECIPES:
            raise ConfigError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; known: {', '.join(RECIPES)}")
    fits = [fitting(name) for name in diff]
    # On a preset that both fit, or else each on its own, so that the networks differ as well
    shared = next(([preset, preset] for preset in fits[0] if preset in fits[1]), [fits[0][0], fits[1][0]])
    first, second = (resolve(preset, name) for preset, name in zip(shared, diff, strict=True))
    titles = (f"{name} ({preset})" for name, preset in zip(diff, shared, strict=True))
    _print(["setting", *titles], _differences(first, second))


def _differences(first: "Config", second: "Config") -> list[tuple[str, ...]]:
    a, b = first.to_dict(), second.to_dict()
    return [
        (f"{section}.{key}", str(value), str(b[section][key]))
        for section, values in a.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != b[section][key]
    ]


def _settings(json_file: Path | None, markdown: bool) -> None:
    import json

    from rich.markup import escape

    from multibox.cli.settings_page import defaults_text, settings_json, settings_markdown, settings_rows
    from multibox.files import write_text_whole

    if markdown:
        return typer.echo(settings_markdown(), nl=False)
    if json_file is None:
        rows = [(row.key, row.expected, escape(defaults_text(row)), row.meaning) for row in settings_rows()]
        return _print(["setting", "value", "default", "meaning"], rows)
    text = json.dumps(settings_json(), indent=1) + "\n"
    if str(json_file) == "-":
        return typer.echo(text, nl=False)
    write_text_whole(json_file, text)


def _backbones() -> None:
    from multibox.models.backbones import BACKBONES, WITH_WIDTH

    rows = [(name, "model.width" if name in WITH_WIDTH else "") for name in BACKBONES]
    _print(["backbone", "settings"], rows, "timm:NAME takes a model of timm, such as timm:resnet18 (pip install timm)")


def _formats() -> None:
    from multibox.data.formats import FORMATS

    _print(["format"], [(name,) for name in FORMATS])


def _importers() -> None:
    from multibox.importers import IMPORTERS

    rows = [(name, one.what, one.verified or "UNVERIFIED: no foreign numbers") for name, one in IMPORTERS.items()]
    _print(["kind", "reads", "verified against"], rows)


def print_layers(config: "Config", origins: Mapping[str, str]) -> None:
    """Print every setting, its value and the layer that it came from.

    Args:
        config: what `resolve_layers` returned.
        origins: the same: by dotted key the name of the layer.
    """
    from rich.markup import escape
    from rich.table import Table

    from multibox.cli.console import table_console
    from multibox.settings import as_text, get_setting, list_settings

    table = Table("setting", "value", "from", box=None, pad_edge=False)
    section = None
    for key in list_settings(type(config)):
        if key.partition(".")[0] != section and "." in key:
            section = key.partition(".")[0]
            table.add_section()
        table.add_row(key, escape(as_text(get_setting(config, key))), origins.get(key, "default"))
    table_console().print(table, highlight=False)
