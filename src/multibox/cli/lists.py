"""`multibox list`."""

from typing import Annotated

import typer


def show(
    what: Annotated[str, typer.Argument(help="presets, recipes, backbones, formats or importers.")],
    diff: Annotated[
        tuple[str, str] | None, typer.Option("--diff", help="Two recipes: print the settings in which they differ.")
    ] = None,
) -> None:
    """Show what can be named in other commands."""
    from multibox.errors import ConfigError, did_you_mean

    tables = {
        "presets": _presets,
        "recipes": lambda: _recipes(diff),
        "backbones": _backbones,
        "formats": _formats,
        "importers": _importers,
    }
    if what not in tables:
        raise ConfigError(f"cannot list {what!r}{did_you_mean(what, tables)}; known: {', '.join(tables)}")
    for line in tables[what]():
        typer.echo(line)


def _presets() -> list[str]:
    from multibox.models.anchors import make_anchors
    from multibox.models.build import build_model
    from multibox.presets import PRESETS, resolve

    lines = []
    for name in PRESETS:
        config = resolve(name, changes={"anchors.fit": 0})
        height, width = config.model.input_size
        model = build_model(config, 1)
        import torch

        with torch.inference_mode():
            outputs = model.eval()(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        anchors = len(make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size))
        parameters = sum(p.numel() for p in model.parameters())
        lines.append(f"{name}: input {width}x{height}, {anchors} anchors, {parameters:,} parameters for one class")
    return lines


def _recipes(diff: tuple[str, str] | None) -> list[str]:
    from multibox.presets import FITS, RECIPES, resolve

    if diff is None:
        return [f"{name}: for {', '.join(FITS[name])}" for name in RECIPES]
    first, second = (resolve(FITS[name][0] if name in FITS else "tinyssd", name).to_dict() for name in diff)
    lines = [f"setting: {diff[0]} | {diff[1]}"]
    for section, values in first.items():
        if isinstance(values, dict):
            pairs = ((f"{section}.{key}", value, second[section][key]) for key, value in values.items())
            lines += [f"{key}: {a} | {b}" for key, a, b in pairs if a != b]
    return lines


def _backbones() -> list[str]:
    from multibox.models.backbones import BACKBONES

    return list(BACKBONES)


def _formats() -> list[str]:
    from multibox.data.formats import FORMATS

    return list(FORMATS)


def _importers() -> list[str]:
    from multibox.importers import IMPORTERS

    return [f"{name}: {what}" for name, (_, what) in IMPORTERS.items()]
