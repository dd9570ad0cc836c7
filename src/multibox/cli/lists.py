"""`multibox list`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multibox.cli.console import print_rows

if TYPE_CHECKING:
    from multibox.config import Config

CLASSES = 20
"""As many as PASCAL VOC has."""


def show(
    what: Annotated[
        str, typer.Argument(help="models, presets, recipes, settings, findings, backbones, formats or importers.")
    ],
    diff: Annotated[
        tuple[str, str] | None, typer.Option("--diff", help="Two recipes: print the settings in which they differ.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Settings: write them here, or - for standard output.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Settings, findings: print their page of docs/.")
    ] = False,
) -> None:
    """List the names that other commands take.

    Example: multibox list settings
    """
    from multibox.errors import ConfigError, did_you_mean

    tables: dict[str, Callable[[], None]] = {
        "models": _models,
        "presets": _presets,
        "recipes": lambda: _recipes(diff),
        "settings": lambda: _settings(json_file, markdown),
        "findings": lambda: _findings(markdown),
        "backbones": _backbones,
        "formats": _formats,
        "importers": _importers,
    }
    if what not in tables:
        raise ConfigError(f"cannot list {what!r}{did_you_mean(what, tables)}; known: {', '.join(tables)}")
    if what != "settings" and (json_file is not None or (markdown and what != "findings")):
        raise ConfigError(f"--json and --markdown belong to `multibox list settings`, not to {what}")
    tables[what]()


def _models() -> None:
    from multibox.builtin import MODELS, about, size_on_disk

    rows: list[tuple[str, ...]] = []
    for name, model in MODELS.items():
        metadata = about(name)
        height, width = metadata["config"]["model"]["input_size"]
        classes = sum(not each.startswith("unused ") for each in metadata["names"])
        sizes = (f"{classes:,}", f"{width}x{height}", f"{size_on_disk(name) / 1e6:.1f} MB")
        rows.append((name, model.network, *sizes, model.license, model.use, model.accuracy))
    columns = ["model", "network", ">classes", ">input", ">size", "licence", "good for", "measured"]
    sources = "\n".join(f"{name}: weights from {model.source}" for name, model in MODELS.items())
    print_rows(columns, rows, f"a name stands wherever a model or --weights is taken; ./coco is a path\n{sources}")


def _presets() -> None:
    from multibox.models.build import measure
    from multibox.presets import PRESETS, resolve

    rows: list[tuple[str, ...]] = []
    for name, preset in PRESETS.items():
        config = resolve(name, changes={"anchors.fit": "none"})
        size = measure(config, CLASSES)
        height, width = config.model.input_size
        billions = size.multiply_adds / 1e9
        sizes = (f"{size.parameters / 1e6:.2f}", f"{billions:.2f}", f"{2 * billions:.2f}", f"{size.anchors:,}")
        rows.append((name, f"{width}x{height}", *sizes, config.model.backbone, preset.origin))
    columns = ["preset", ">input", ">M parameters", ">GMACs", ">GFLOPs", ">anchors", "backbone", "origin"]
    print_rows(columns, rows, f"for {CLASSES} classes and one image; a multiply-add (MAC) is two FLOPs")


def _recipes(diff: tuple[str, str] | None) -> None:
    from multibox.errors import ConfigError, did_you_mean
    from multibox.presets import RECIPES, fitting, resolve
    from multibox.settings import flatten

    if diff is None:
        rows = [(name, ", ".join(recipe.fits) or "every preset") for name, recipe in RECIPES.items()]
        return print_rows(["recipe", "fits"], rows)
    for name in diff:
        if name not in RECIPES:
            raise ConfigError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; known: {', '.join(RECIPES)}")
    first, second = (fitting(name) for name in diff)
    # On a preset that both fit, or else each on its own, so that the networks differ as well
    presets = next(([preset, preset] for preset in first if preset in second), [first[0], second[0]])
    a, b = (flatten(resolve(preset, name).to_dict()) for preset, name in zip(presets, diff, strict=True))
    titles = (f"{name} ({preset})" for name, preset in zip(diff, presets, strict=True))
    differing = [(key, str(a[key]), str(b[key])) for key in a if "." in key and a[key] != b[key]]
    print_rows(["setting", *titles], differing)


def _settings(json_file: Path | None, markdown: bool) -> None:
    import json

    from rich.markup import escape

    from multibox.cli.settings_page import defaults_text, settings_json, settings_markdown, settings_rows
    from multibox.files import write_text_whole

    if markdown:
        return typer.echo(settings_markdown(), nl=False)
    if json_file is None:
        rows = [(row.setting, row.expected, escape(defaults_text(row)), row.meaning) for row in settings_rows()]
        return print_rows(["setting", "value", "default", "meaning"], rows)
    text = json.dumps(settings_json(), indent=1) + "\n"
    if str(json_file) == "-":
        return typer.echo(text, nl=False)
    write_text_whole(json_file, text)


def _findings(markdown: bool) -> None:
    from multibox.doctor.findings import KINDS, kinds_markdown

    if markdown:
        return typer.echo(kinds_markdown(), nl=False)
    rows = [(kind, about.severity, about.fix, about.why) for kind, about in KINDS.items()]
    print_rows(["kind", "severity", "--fix", "why it matters"], rows, "multibox doctor DATA looks for all of them")


def _backbones() -> None:
    from multibox.models.backbones import BACKBONES, WITH_WIDTH

    rows = [(name, "model.width" if name in WITH_WIDTH else "") for name in BACKBONES]
    note = "timm:NAME takes a model of timm, such as timm:resnet18 (pip install timm)"
    print_rows(["backbone", "settings"], rows, note)


def _formats() -> None:
    from multibox.data.formats import FORMATS

    rows = [
        (name, one.title, "read, written" if one.write else "read", one.looked_for.removeprefix(f"{name}: "))
        for name, one in FORMATS.items()
    ]
    print_rows(["format", "title", "multibox", "recognised by"], rows)


def _importers() -> None:
    from multibox.importers import IMPORTERS

    rows = [(name, one.what, one.verified or "UNVERIFIED: no foreign numbers") for name, one in IMPORTERS.items()]
    print_rows(["kind", "reads", "verified against"], rows)


def print_layers(config: "Config", origins: Mapping[str, str]) -> None:
    """Print every setting, its value and the layer that set it.

    Args:
        config: The config of `resolve_layers`.
        origins: Its layers: the name of one by dotted key.
    """
    from rich.markup import escape

    from multibox.settings import as_text, get_setting, list_settings

    rows: list[tuple[str, ...]] = []
    for key in list_settings(type(config)):
        value: Any = get_setting(config, key)
        rows.append((key, escape(as_text(value)), origins.get(key, "default")))
    print_rows(["setting", "value", "from"], rows)
