"""`multibox report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multibox.cli.options import (
    DataSets,
    Device,
    Flip,
    Format,
    MaxDetections,
    Model,
    OnBad,
    Rename,
    SkipOrStop,
    own_files,
    read_rename,
    rename_files,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multibox.analysis.temperature import Calibrated

FOLDER = "report"


def report(
    model: Model,
    data: DataSets,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page and its data. Default: report, or report-2 and so on."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to report on; needed where there are several.")] = None,
    rename: Rename = None,
    max_detections: MaxDetections = 100,
    format: Format = None,
    on_bad: SkipOrStop = OnBad.stop,
    device: Device = "auto",
    flip: Flip = False,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images for 95 % intervals; 0 for none.")
    ] = 300,
    temperature: Annotated[
        Path | None,
        typer.Option(metavar="NEWMODEL", help="Write a copy of the checkpoint with calibrated scores."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all that the page shows here, too; - for standard output.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier report in --out, --json and NEWMODEL; your files never."),
    ] = False,
) -> None:
    """Show what MODEL does well and badly on a split of DATA, why, and what to do, as one HTML page.

    Example: multibox report runs/cells data/cells --split test --out cells-report
    """
    from multibox.analysis.temperature import check_calibrated
    from multibox.api import open_for
    from multibox.cli.console import counting, write_json
    from multibox.files import check_outputs, make_numbered_folder
    from multibox.inference.load import load
    from multibox.pages.report_data import Subject, calibrate, make_report_data, predict, report_files, write_report

    to_stdout = json_file == Path("-")
    outputs = [] if json_file is None or to_stdout else [json_file]
    outputs += [] if out is None else report_files(out)
    outputs += [] if temperature is None else [temperature]
    inputs = [*data, *own_files(model), *rename_files(rename)]
    check_outputs(outputs, overwrite=overwrite, inputs=inputs)
    checkpoint = None if temperature is None else check_calibrated(model, temperature)
    names = read_rename(rename)
    detector = load(model, device=device, flip=flip)
    dataset = open_for(detector, data, split=split, rename=names, format=format, on_bad=on_bad.value)
    paths = [str(path) for path in data]
    subject = Subject(
        detector, dataset, model, paths, format, max_detections, bootstrap, command=command_line(), counting=counting
    )
    detections = predict(subject)
    made = make_report_data(subject, detections)
    folder = out or make_numbered_folder(FOLDER)
    write_report(made, subject, detections, folder, overwrite=overwrite)
    write_json(json_file, made)
    lines = [*dataset.notes, *findings(made, folder)]
    if checkpoint is not None and temperature is not None:
        lines.append(_copied(calibrate(subject, detections, checkpoint, temperature), temperature))
    for line in (*lines, f"the page: {folder / 'index.html'}"):
        typer.echo(line, err=to_stdout)


def command_line() -> str:
    """Return the command that was given."""
    import shlex
    import sys

    return shlex.join(["multibox", *sys.argv[1:]])


def findings(made: "Mapping[str, Any]", folder: Path) -> list[str]:
    """Return the verdict of the page, a line each, with the place of the relabel list."""
    from multibox.pages.report_words import verdict

    relabel = made["relabel"]
    images = relabel["images"]
    place = f" {images:,} {'image' if images == 1 else 'images'} to relabel: {folder / relabel['folder'] / 'labels'}"
    stays = [note for note in relabel["notes"] if note.endswith("so it stays")]
    place += "".join(f" ({note})" for note in stays)
    return [line.text + (place if line.link == "suspects" and images else "") for line in verdict(made)]


def _copied(copy: "Calibrated", path: Path) -> str:
    from multibox.cli.console import metric_text

    (ece, ap), (new_ece, new_ap) = (tuple(map(metric_text, one)) for one in (copy.before, copy.after))
    changes = f"calibration error {ece} to {new_ece}, AP {ap} to {new_ap}"
    return f"wrote {path}, a copy with temperature {copy.temperature:.2f}; detecting anew: {changes}"
