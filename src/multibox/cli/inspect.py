"""`multibox inspect`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from multibox.cli.options import (
    DataSets,
    Device,
    Format,
    Model,
    OnBad,
    Rename,
    SkipOrStop,
    own_files,
    read_rename,
    rename_files,
)

_IMAGE = "Show this image: its name, or the end of its path that no other image has. Repeatable."
_WORST = "Show so many images with the most missed objects and false detections. Default: 8, unless --image is given."
_OUT = "Folder for index.html and two PNGs per image. Default: inspection, or inspection-2 and so on."
_EXPLAIN = "For up to 6 boxes of each image: what the network looks at, and similar training objects; about 1 s each."
_TRAINING = "Data that MODEL learnt from, for --explain; repeatable. Default: that of a run folder."
PAGE = "index.html"


def inspect(
    model: Model,
    data: DataSets,
    image: Annotated[list[str] | None, typer.Option(metavar="NAME", help=_IMAGE)] = None,
    worst: Annotated[int | None, typer.Option(min=1, help=_WORST)] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help=_OUT)] = None,
    split: Annotated[str | None, typer.Option(help="Split of the images; needed where there are several.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest score of a detection, 0 to 1. Default: the model's for each class.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help=_EXPLAIN)] = False,
    training: Annotated[list[Path] | None, typer.Option(metavar="DATA", help=_TRAINING)] = None,
    rename: Rename = None,
    format: Format = None,
    on_bad: SkipOrStop = OnBad.stop,
    device: Device = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all that the page shows here; - for standard output.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist; a file of DATA never.")
    ] = False,
) -> None:
    """Show why MODEL finds or misses the objects of images: matching, losses and suppression, on one page.

    Example: multibox inspect runs/cells data/cells --split val --worst 12
    """
    import shlex
    import sys

    from multibox.analysis.inspection_plots import write_pictures
    from multibox.api import inspect_matches
    from multibox.cli.console import counting_more, write_json
    from multibox.cli.predict import check_threshold
    from multibox.files import check_outputs, free_path, make_numbered_folder, write_text_whole
    from multibox.pages.inspector import inspector_page
    from multibox.pages.page import plain

    check_threshold(threshold)
    to_stdout = json_file == Path("-")
    folder = free_path("inspection") if out is None else out
    outputs = [folder / PAGE, *([json_file] if json_file is not None and not to_stdout else [])]
    check_outputs(outputs, overwrite=overwrite, inputs=[*data, *own_files(model), *rename_files(rename)])
    rows = inspect_matches(
        model,
        data,
        images=image,
        worst=worst,
        split=split,
        threshold=threshold,
        rename=read_rename(rename),
        format=format,
        on_bad=on_bad.value,
        explain=explain,
        training=training,
        device=device,
        counting=counting_more,
    )
    page = inspector_page(
        rows,
        model=model,
        data=", ".join(map(str, data)),
        command=shlex.join(["multibox", *sys.argv[1:]]),
    )
    folder = make_numbered_folder("inspection") if out is None else out
    write_text_whole(folder / PAGE, page)
    write_pictures(rows, folder, overwrite=overwrite)
    write_json(json_file, plain(rows))
    print_summary(rows, f"look at {folder / PAGE}", stderr=to_stdout)


def print_summary(rows: Sequence[Mapping[str, Any]], note: str, *, stderr: bool) -> None:
    """Print a table: each image with its objects, those found, those missed by reason, and false detections."""
    from rich.markup import escape

    from multibox.cli.console import print_rows
    from multibox.pages.inspector import SHORT, summarise

    summaries = [summarise(row) for row in rows]
    reasons = [name for name in SHORT if any(name in one.missed for one in summaries)]
    lines = [
        [
            escape(row["file"]),
            *map(str, (one.objects, one.found, *(one.missed.get(name, 0) for name in reasons), one.false)),
        ]
        for row, one in zip(rows, summaries, strict=True)
    ]
    columns = ["image", ">objects", ">found", *(f">{name}" for name in reasons), ">false"]
    print_rows(columns, lines, note, stderr=stderr)
