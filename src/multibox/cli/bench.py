"""`multibox bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from multibox.benchmarking.clock import Spread
    from multibox.benchmarking.measurement import Report


def bench(
    model: Annotated[str, typer.Argument(help="coco, face, a .safetensors, .onnx or .xml file, or a run folder.")],
    against: Annotated[
        str | None, typer.Option(help="torchvision: its network with the same weights, in the same run.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to show. Default: synthetic ones of 500x375.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: the engine's choice.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. Default: the engine's choice; --against takes both.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 10,
) -> None:
    """Measure MODEL's speed on this machine's processor, part by part."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from multibox.benchmarking.measurement import bench as measure
    from multibox.benchmarking.subjects import DisagreementError

    try:
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as bar:
            task = bar.add_task("opening")
            report = measure(
                model,
                against=against,
                images=images,
                threads=threads,
                precision=precision,
                rounds=rounds,
                tick=lambda done: bar.update(task, description=f"{done}: done"),
            )
    except DisagreementError as error:
        typer.echo(f"multibox: {error}", err=True)
        raise typer.Exit(1) from None
    print_report(report)


def print_report(report: "Report") -> None:
    """Print times as a table and the notes below it."""
    from rich.table import Table

    from multibox.cli.console import table_console

    table = Table(
        box=None, pad_edge=False, title="milliseconds: median (10th to 90th percentile)", title_justify="left"
    )
    table.add_column("part", no_wrap=True)
    table.add_column("batch", justify="right")
    for name in report.subjects:
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(row.part, str(row.batch), *_cells(row.times))
    console = table_console()
    console.print(table, highlight=False)
    for note in report.notes:
        console.print(note, highlight=False)


def _cells(times: "tuple[Spread | None, ...]") -> list[str]:
    """Return a row's times, those behind the first with how many times as fast they are as it."""
    first, *others = times
    return [_cell(first), *(_cell(each) + _ratio(first, each) for each in others)]


def _cell(times: "Spread | None") -> str:
    if times is None:
        return "-"
    return f"{times.median * 1e3:.2f} ({times.low * 1e3:.2f} to {times.high * 1e3:.2f})"


def _ratio(first: "Spread | None", other: "Spread | None") -> str:
    return f" {first.median / other.median:.1f}x" if first and other else ""
