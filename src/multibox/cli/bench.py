"""`multibox bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.cli.options import Model

if TYPE_CHECKING:
    from multibox.benchmarking.clock import Spread
    from multibox.benchmarking.measurement import Report


def bench(
    model: Model,
    against: Annotated[
        str | None, typer.Option(help="torchvision: its network with the same weights, in the same run.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", "--pictures", help="Folder of images. Default: synthetic ones of 500x375."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: the engine's choice.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. Default: the engine's choice; --against takes both.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 10,
) -> None:
    """Measure the speed of MODEL on this machine's processor, part by part.

    Example: multibox bench runs/cells --threads 1
    """
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
    """Print the times as a table, with the notes below it."""
    from multibox.cli.console import print_rows

    columns = ["part", ">batch", *(f">{name}" for name in report.subjects)]
    rows = [(row.part, str(row.batch), *_cells(row.times)) for row in report.rows]
    print_rows(columns, rows, "\n".join(report.notes), "milliseconds: median (10th to 90th percentile)")


def _cells(times: "tuple[Spread | None, ...]") -> list[str]:
    """Return a row's times; behind each but the first, how many times as fast it is as the first."""
    first, *others = times
    return [_cell(first), *(_cell(other) + _ratio(first, other) for other in others)]


def _cell(times: "Spread | None") -> str:
    return f"{times.median * 1e3:.2f} ({times.low * 1e3:.2f} to {times.high * 1e3:.2f})" if times else "-"


def _ratio(first: "Spread | None", other: "Spread | None") -> str:
    return f" {first.median / other.median:.1f}x" if first and other else ""
