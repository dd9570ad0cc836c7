"""`multibox eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.cli.options import (
    PLOTS,
    DataSets,
    Device,
    Flip,
    Format,
    MaxDetections,
    Model,
    OnBad,
    Rename,
    SkipOrStop,
    check_suffix,
    own_files,
    read_rename,
    rename_files,
)

if TYPE_CHECKING:
    from multibox.evaluation.report import Metrics

TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate(
    model: Model,
    data: DataSets,
    split: Annotated[str | None, typer.Option(help="Split to score; needed where there are several.")] = None,
    rename: Rename = None,
    max_detections: MaxDetections = 100,
    format: Format = None,
    on_bad: SkipOrStop = OnBad.stop,
    device: Device = "auto",
    flip: Flip = False,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images for 95 % intervals, such as 300; 0 for none.")
    ] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all metrics here; - for standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw precision over recall, per class, to this PNG.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --json and --plot; a file of DATA never.")
    ] = False,
) -> None:
    """Score MODEL on a split of DATA: VOC 2007, VOC 2012 and COCO metrics, also per class.

    Example: multibox eval runs/cells data/cells --split test --json scores.json
    """
    from multibox.api import open_for
    from multibox.cli.console import write_json
    from multibox.evaluation.report import evaluate as measure
    from multibox.files import check_outputs
    from multibox.inference.detector import find_all
    from multibox.inference.load import load

    to_stdout = json_file == Path("-")
    outputs = [path for path in (None if to_stdout else json_file, plot) if path is not None]
    inputs = [*data, *own_files(model), *rename_files(rename)]
    check_outputs(outputs, overwrite=overwrite, inputs=inputs)
    if plot is not None:
        check_suffix(plot, PLOTS)
    detector = load(model, device=device, flip=flip)
    names = read_rename(rename)
    dataset = open_for(detector, data, split=split, rename=names, format=format, on_bad=on_bad.value)
    detections = find_all(detector, dataset, max_detections)
    metrics = measure(detections, dataset, detector.names, max_detections=max_detections, bootstrap=bootstrap)
    write_json(json_file, metrics)
    for note in dataset.notes:
        typer.echo(note, err=to_stdout)
    print_metrics(metrics, f"{model} on {', '.join(map(str, data))} ({dataset.split})", stderr=to_stdout)
    if "intervals" in metrics:
        typer.echo(describe_intervals(metrics, bootstrap), err=to_stdout)
    if plot is not None:
        from multibox.evaluation.voc_metrics import precision_recall
        from multibox.plots.curves import plot_precision_recall

        curves = precision_recall(detections, dataset, detector.names)
        plot_precision_recall(plot, {n: (c.recall, c.precision, c.ap12) for n, c in curves.items()})


def print_metrics(metrics: "Metrics", title: str, *, stderr: bool = False) -> None:
    """Print a table of classes, their means and COCO's twelve metrics."""
    from rich.table import Table

    from multibox.cli.console import metric_text, table_console

    coco, voc07, voc12 = metrics["coco"], metrics["voc07"], metrics["voc12"]
    table = Table("class")
    for column in ("VOC07 AP", "VOC12 AP", "COCO AP", "COCO AP50", "best F1 from", "precision", "recall"):
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    for name in voc07["per_class"]:
        of_class, best = coco["per_class"][name], metrics["thresholds"][name]
        precisions = (voc07["per_class"][name], voc12["per_class"][name], of_class["AP"], of_class["AP50"])
        at_best = (best["threshold"], best["precision"], best["recall"]) if best else (None, None, None)
        table.add_row(name, *map(metric_text, (*precisions, *at_best)))
    table.add_section()
    table.add_row("mean", *map(metric_text, (voc07["mAP"], voc12["mAP"], coco["AP"], coco["AP50"])), style="bold")
    console = table_console(stderr=stderr)
    console.print(f"{title}, {metrics['images']} images", highlight=False, soft_wrap=True)
    console.print(table)
    line = "  ".join(f"{name} {metric_text(coco[name])}" for name in TWELVE)
    console.print(f"COCO: {line}", highlight=False, soft_wrap=True)


def describe_intervals(metrics: "Metrics", resamples: int) -> str:
    """Return a line with each metric and the ends of its interval."""
    from multibox.cli.console import metric_text

    coco, voc12 = (metrics.get("intervals", {}).get(key, {}) for key in ("coco", "voc12"))
    named = {"VOC12 mAP": (metrics["voc12"]["mAP"], voc12["mAP"])}
    named |= {f"COCO {name}": (metrics["coco"][name], ends) for name, ends in coco.items()}
    parts = (
        f"{name} {metric_text(value)}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")
        for name, (value, ends) in named.items()
    )
    return f"with 95 % intervals of {resamples} resamples of the images: " + "  ".join(parts)
