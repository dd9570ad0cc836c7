"""`multibox anchors`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multibox.cli.options import PLOTS, Classes, DataSets, Format, Merge, OnBad, SkipOrStop, check_suffix, class_list

if TYPE_CHECKING:
    from multibox.analysis.anchor_search import Anchors

_PRESET = "Network whose anchors are measured; see `multibox list presets`. Default: multibox-fine."
_FIT = "Fit the anchors to the boxes and write them here, as a config for train --config."


def anchors(
    data: DataSets,
    preset: Annotated[str | None, typer.Option(help=_PRESET)] = None,
    fit: Annotated[Path | None, typer.Option(metavar="OUT.toml", help=_FIT)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw boxes, anchors and overlaps to this PNG.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to measure. Default: train, or the only one.")] = None,
    format: Format = None,
    on_bad: SkipOrStop = OnBad.stop,
    classes: Classes = None,
    merge: Merge = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings, such as one that --fit wrote.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as model.input_size=[256,448]; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search; the same one gives the same anchors.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers here; - for standard output.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --fit, --plot and --json; a file of DATA never.")
    ] = False,
) -> None:
    """Measure how well a preset's anchors cover the boxes of DATA, and fit better ones.

    Example: multibox anchors data/cells --fit cells.toml --plot cells.png, then multibox train data/cells --config
    cells.toml
    """
    from multibox.analysis.anchor_search import config_text, examine_anchors
    from multibox.cli.console import write_json
    from multibox.errors import ConfigError
    from multibox.files import check_outputs, write_text_whole
    from multibox.settings import parse_assignments
    from multibox.training.run import RunOptions, resolve_options

    to_stdout = json_file == Path("-")
    outputs = [path for path in (fit, plot, None if to_stdout else json_file) if path is not None]
    check_outputs(outputs, overwrite=overwrite, inputs=[*data, *([config] if config else [])])
    if plot is not None:
        check_suffix(plot, PLOTS)
    if fit is not None and fit.suffix != ".toml":
        raise ConfigError(f"--fit {fit}: expected a file name that ends in .toml")
    changes = dict(parse_assignments(set_ or []))
    settings, origins = resolve_options(None, RunOptions(preset=preset, config=config, changes=changes))
    found = examine_anchors(
        data, settings, split=split, format=format, on_bad=on_bad.value, classes=class_list(classes) or (),
        merge=merge or (), fit=fit is not None, seed=seed,
    )  # fmt: skip
    write_json(json_file, found.report)
    print_coverage(found, stderr=to_stdout)
    if fit is not None:
        own = {key for key, layer in origins.items() if layer in ("--set", str(config))}
        given = {key: _value(settings, key) for key in own if "." in key}
        write_text_whole(fit, config_text(found, shlex.join(["multibox", *sys.argv[1:]]), given))
        next_command = shlex.join(["multibox", "train", *map(str, data), "--config", str(fit)])
        typer.echo(f"wrote {fit}; next: {next_command}", err=to_stdout)
    if plot is not None:
        _draw(found, plot)
        typer.echo(f"wrote {plot}", err=to_stdout)


def _value(settings: Any, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def print_coverage(found: "Anchors", *, stderr: bool = False) -> None:
    """Print what anchors make of the boxes: of all, by class, size and feature map; input sizes; fits."""
    report = found.report
    height, width = report["input"]
    for note in report["notes"]:
        typer.echo(note, err=stderr)
    typer.echo(
        f"{report['data']} ({report['split']}): {report['images']:,} images, {report['boxes']:,} boxes; "
        f"{report['preset']} at {height}x{width} has {report['anchors']:,} anchors, {report['matcher']} matching",
        err=stderr,
    )
    missed = f"no anchor reaches {_percent(report['unreached50'])} of the boxes at IoU 0.5"
    if report["matcher"] in ("bipartite", "dual_max"):
        missed += (
            ", the matching threshold" if report["threshold"] == 0.5 else
            f" and {_percent(report['unreached'])} at the matching threshold of {report['threshold']:g}"
        )  # fmt: skip
    typer.echo(f"{missed}; {_number(report['positives'])} anchors learn a box on average", err=stderr)
    columns = (">boxes", ">best IoU", ">reached", ">at IoU 0.5", ">anchors per box")
    rows = [(name, *_cells(group)) for name, group in report["by_class"].items()]
    _table(("class", *columns), [*rows, ("all", *_cells(report))], stderr)
    sizes = [(_range(row), *_cells(row)) for row in report["by_size"] if row["boxes"]]
    _table(("pixels of the input", *columns), sizes, stderr)
    levels = [
        (
            f"{row['rows']}x{row['columns']}", f"{row['stride'][0]:.3g}", str(row["anchors_per_cell"]),
            f"{row['anchors']:,}", _percent(row["best_of"]), _number(row["positives"]),
        )
        for row in report["by_level"]
    ]  # fmt: skip
    heads = ("map", ">stride", ">anchors per cell", ">anchors", ">boxes best here", ">positives per image")
    _table(heads, levels, stderr)
    _print_inputs(report["suggested"], stderr)
    if "fit" in report:
        _print_fit(report["fit"], stderr)


def _print_inputs(suggested: dict[str, Any], stderr: bool) -> None:
    rows = [
        (
            f"{row['input'][0]}x{row['input'][1]}" + (" *" if row["input"] == suggested["input"] else ""),
            f"{row['cost']:.1f}x", f"{row['median_side']:.0f}", _percent(row["large_enough"]),
            _percent(row["reached50"]), _percent(row["seen"]),
        )
        for row in suggested["tried"]
    ]  # fmt: skip
    heads = ("input", ">work", ">median side", ">from 12 pixels", ">at IoU 0.5", ">both")
    _table(heads, rows, stderr)
    unfitted = " without a fit" if suggested["fit_first"] else ""
    if suggested["fit_first"]:
        height, width = suggested["tried"][0]["input"]
        typer.echo(
            f"first fit the anchors with --fit OUT.toml, at no more work: at {height}x{width} "
            f"{_percent(suggested['fitted_seen'])} of the boxes then have 12 pixels and an anchor from IoU 0.5 on, now "
            f"{_percent(suggested['tried'][0]['seen'])}",
            err=stderr,
        )
    height, width = suggested["input"]
    typer.echo(
        f"suggested input{unfitted}: {height}x{width} (aspect {suggested['aspect']:.2f}, that of the images is "
        f"{suggested['image_aspect']:.2f}), --set {suggested['setting']}: {suggested['why']}",
        err=stderr,
    )


def _print_fit(fit: dict[str, Any], stderr: bool) -> None:
    rows: list[tuple[str, ...]] = []
    for row in fit["tried"]:
        held = row["held_out"] or {"reached50": None, "best_iou": None}
        marks = "before" if row["anchors"] == fit["before"]["anchors"] else ""
        marks = "after" if row["anchors"] == fit["method"] else marks
        values = (row["reached"], row["reached50"])
        rows.append(
            (row["anchors"], marks, *map(_fine, values), f"{row['best_iou']:.3f}", _fine(held["reached50"]),
             _number(held["best_iou"], 3))
        )  # fmt: skip
    heads = ("anchors", "", ">reached", ">at IoU 0.5", ">best IoU", ">held out: at IoU 0.5", ">best IoU")
    _table(heads, rows, stderr)
    before, after = fit["before"], fit["after"]
    on = f"chosen on {fit['held_out']:,} boxes of images that were held out" if fit["held_out"] else (
        "chosen on the boxes that they were fitted to: there are too few to hold some out"
    )  # fmt: skip
    typer.echo(
        f"boxes reached at IoU 0.5: {_fine(before['reached50'])} before, {_fine(after['reached50'])} after "
        f"({fit['method']}, {on})",
        err=stderr,
    )


def _draw(found: "Anchors", path: Path) -> None:
    import numpy as np

    from multibox.analysis.anchor_fit import level_shapes
    from multibox.plots.anchor_plot import AnchorPlot, plot_anchors

    height, width = found.before.model.input_size

    def shapes(config: Any) -> Any:
        return np.concatenate([np.array(level) for level in level_shapes(config)]) * (width, height)

    objects, fit = found.objects, found.fit
    shown = AnchorPlot(
        objects.wh * (width, height), objects.labels, found.class_names, shapes(found.before), found.before_iou,
        None if fit is None else shapes(fit.config), None if fit is None else fit.best_iou,
        found.before.matching.threshold,
    )  # fmt: skip
    plot_anchors(path, shown)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]], stderr: bool) -> None:
    from multibox.cli.console import print_rows

    print_rows(heads, rows, stderr=stderr)
    typer.echo(err=stderr)


def _cells(group: Any) -> tuple[str, ...]:
    shares = (group["reached"], group["reached50"])
    return (
        f"{group['boxes']:,}", _number(group["best_iou"], 3), *map(_percent, shares), _number(group["positives"]),
    )  # fmt: skip


def _range(row: Any) -> str:
    return f"{row['from']} to {row['to']}" if row["to"] is not None else f"{row['from']} and more"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _fine(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
