"""`multibox eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.cli.console import PLOTS, check_suffix, own_files
from multibox.cli.train import OnBad

if TYPE_CHECKING:
    from multibox.evaluation.report import Metrics


def evaluate(
    model: Annotated[str, typer.Argument(help="coco, face, a .safetensors, .onnx or .xml file, or a run folder.")],
    data: Annotated[Path, typer.Argument(help="Data set: a folder or file in a known format.")],
    split: Annotated[str | None, typer.Option(help="Split to score; needed where there are several.")] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A=B",
            help="The data set's class A is the model's B; A= leaves A out. May be given often; a .json file with "
            "such pairs will do.",
        ),
    ] = None,
    max_detections: Annotated[int, typer.Option(min=1, help="Detections kept per image.")] = 100,
    format: Annotated[str | None, typer.Option(help="The data set's format, where it cannot be told.")] = None,
    on_bad: Annotated[OnBad, typer.Option(help="A broken file: stop, or skip it and count.")] = OnBad.stop,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    flip: Annotated[bool, typer.Option("--flip", help="Average over mirror images too; takes twice as long.")] = False,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images for 95 % intervals, such as 300; 0 for none.")
    ] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw precision over recall, per class, to this PNG.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --json and --plot; a file of DATA never.")
    ] = False,
) -> None:
    """Score MODEL on a split of DATA: VOC 2007, VOC 2012 and COCO figures, also per class."""
    import json

    from multibox import api
    from multibox.files import check_outputs, write_text_whole
    from multibox.inference.load import load

    outputs = [path for path in (json_file, plot) if path is not None]
    inputs = [data, *own_files(model), *(Path(text) for text in rename or () if "=" not in text)]
    check_outputs(outputs, overwrite=overwrite, inputs=inputs)
    if plot is not None:
        check_suffix(plot, PLOTS)
    detector = load(model, device=device, flip=flip)
    names = read_rename(rename)
    dataset = api.open_for(detector, data, split=split, rename=names, format=format, on_bad=on_bad.value)
    found = api.find_all(detector, dataset, max_detections)
    figures = api.measure(found, dataset, detector.names, max_detections=max_detections, bootstrap=bootstrap)
    for note in dataset.notes:
        typer.echo(note)
    print_figures(figures, f"{model} on {data} ({dataset.split})")
    if "intervals" in figures:
        typer.echo(describe_intervals(figures, bootstrap))
    if json_file is not None:
        write_text_whole(json_file, json.dumps(figures, indent=1) + "\n")
    if plot is not None:
        from multibox.evaluation.voc_metrics import precision_recall
        from multibox.plots.curves import plot_precision_recall

        curves = precision_recall(found, dataset, detector.names)
        plot_precision_recall(plot, {n: (c.recall, c.precision, c.ap12) for n, c in curves.items()})


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
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--rename {path}: not a readable JSON file ({error})") from None
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise ConfigError(f'--rename {path}: expected an object such as {{"tvmonitor": "tv"}}')
    return names


def print_figures(figures: "Metrics", title: str) -> None:
    """Print a table of classes and the means below it."""
    from rich.table import Table

    from multibox.cli.console import table_console

    coco, voc07, voc12 = figures["coco"], figures["voc07"], figures["voc12"]
    table = Table()
    table.add_column("class")
    for column in ("VOC07 AP", "VOC12 AP", "COCO AP", "COCO AP50", "best F1 from", "precision", "recall"):
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    for name in voc07["per_class"]:
        mine = coco["per_class"].get(name, {})
        best = figures["thresholds"].get(name) or {}
        cells = (voc07["per_class"][name], voc12["per_class"][name], mine.get("AP"), mine.get("AP50"))
        there = (best.get(key) for key in ("threshold", "precision", "recall"))
        table.add_row(name, *map(_figure, (*cells, *there)))
    table.add_section()
    table.add_row("mean", *map(_figure, (voc07["mAP"], voc12["mAP"], coco["AP"], coco["AP50"])), style="bold")
    console = table_console()
    console.print(f"{title}, {figures['images']} images", highlight=False, soft_wrap=True)
    console.print(table)
    twelve = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    line = "  ".join(f"{name} {_figure(coco[name])}" for name in twelve)
    console.print(f"COCO: {line}", highlight=False, soft_wrap=True)


def describe_intervals(figures: "Metrics", resamples: int) -> str:
    """Return a line with each figure and the ends of its interval."""
    found = figures.get("intervals", {"coco": {}, "voc12": {}})
    named = {"VOC12 mAP": found["voc12"]["mAP"], **{f"COCO {name}": ends for name, ends in found["coco"].items()}}
    values = (figures["voc12"]["mAP"], figures["coco"]["AP"], figures["coco"]["AP50"], figures["coco"]["AP75"])
    each = (
        f"{name} {_figure(value)}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")
        for (name, ends), value in zip(named.items(), values, strict=True)
    )
    return f"with 95 % intervals of {resamples} resamples of the images: " + "  ".join(each)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
