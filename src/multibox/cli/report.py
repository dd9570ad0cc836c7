"""`multibox report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multibox.cli.options import DataSets, Device, Flip, Format, Model, OnBad, SkipOrStop, own_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multibox.analysis.temperature import Calibrated

_RENAME = "The data set's class A is the model's B; A= leaves A out. Repeatable; also a .json file of such pairs."
FOLDER = "report"
ENOUGH = 20
"""Objects of a class below which a better threshold is chance."""
_SUSPECTS = {"missing": "perhaps missing", "location": "perhaps badly placed", "class": "perhaps of the wrong class"}


def report(
    model: Model,
    data: DataSets,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page and its data. Default: report, or report-2 and so on."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to report on; needed where there are several.")] = None,
    rename: Annotated[list[str] | None, typer.Option(metavar="A=B", help=_RENAME)] = None,
    max_detections: Annotated[int, typer.Option(min=1, help="Detections kept per image.")] = 100,
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
        typer.Option(
            "--overwrite", help="Replace an earlier report in --out, --json and NEWMODEL; a file of DATA never."
        ),
    ] = False,
) -> None:
    """Show what MODEL does well and badly on a split of DATA, why, and what to do, as one HTML page.

    Example: multibox report runs/cells data/cells --split test --out cells-report
    """
    import json

    from multibox.analysis.temperature import check_calibrated
    from multibox.api import open_for
    from multibox.cli.console import counting
    from multibox.cli.evaluate import read_rename
    from multibox.files import check_outputs, make_numbered_folder, write_text_whole
    from multibox.inference.load import load
    from multibox.pages.report_data import Subject, calibrate, make_report_data, predict, report_files, write_report

    to_stdout = json_file == Path("-")
    outputs = [] if json_file is None or to_stdout else [json_file]
    outputs += [] if out is None else report_files(out)
    outputs += [] if temperature is None else [temperature]
    inputs = [*data, *own_files(model), *(Path(text) for text in rename or () if "=" not in text)]
    check_outputs(outputs, overwrite=overwrite, inputs=inputs)
    checkpoint = None if temperature is None else check_calibrated(model, temperature)
    names = read_rename(rename or ())
    detector = load(model, device=device, flip=flip)
    dataset = open_for(detector, data, split=split, rename=names, format=format, on_bad=on_bad.value)
    paths = [str(path) for path in data]
    subject = Subject(
        detector, dataset, model, paths, format, max_detections, bootstrap, command=command_line(), counting=counting
    )
    detections = predict(subject)
    made = make_report_data(subject, detections)
    folder = out or make_numbered_folder(FOLDER)
    write_report(made, subject, detections, folder)
    lines = [*dataset.notes, *findings(made)]
    if made["relabel"]["images"]:
        lines.append(f"{made['relabel']['images']:,} images to relabel: {folder / made['relabel']['folder']}")
    if checkpoint is not None and temperature is not None:
        lines.append(_copied(calibrate(subject, detections, checkpoint, temperature), temperature))
    for line in (*lines, f"the page: {folder / 'index.html'}"):
        typer.echo(line, err=to_stdout)
    text = json.dumps(made, indent=1)
    if to_stdout:
        typer.echo(text)
    elif json_file is not None:
        write_text_whole(json_file, text + "\n")


def command_line() -> str:
    """Return the command that was given."""
    import shlex
    import sys

    return shlex.join(["multibox", *sys.argv[1:]])


def findings(made: "Mapping[str, Any]") -> list[str]:
    """Return the main findings, a line each."""
    lines = [_precision(made["metrics"], made["images"]), _costliest(made["errors"])]
    lines += [_worst_class(made), *_thresholds(made), _calibration(made), _suspects(made["suspects"])]
    return [line for line in lines if line]


def _suspects(suspects: "Sequence[Mapping[str, Any]]") -> str:
    from collections import Counter

    kinds = Counter(one["kind"] for one in suspects)
    parts = ", ".join(f"{count:,} {words}" for kind, words in _SUSPECTS.items() if (count := kinds[kind]))
    return f"labels to look at: {parts}" if parts else "labels to look at: none"


def _precision(metrics: "Mapping[str, Any]", images: int) -> str:
    from multibox.cli.console import metric_text

    parts: list[str] = []
    for name in ("AP", "AP50"):
        ends = metrics.get("intervals", {}).get("coco", {}).get(name)
        spread = f" (95 % of resamples: {ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        parts.append(f"{name} {metric_text(metrics['coco'][name])}{spread}")
    return f"{', '.join(parts)} on {images:,} images"


def _costliest(errors: "Mapping[str, Any]") -> str:
    # The last two count what the others divide
    kinds = [one for one in errors["kinds"][:-2] if one["count"]]
    if not kinds:
        return "no errors"
    worst = max(kinds, key=lambda one: one["ap_cost"])
    return f"costliest errors: {worst['kind']} ({worst['count']:,}, {worst['ap_cost']:.3f} of AP50). {worst['meaning']}"


def _worst_class(made: "Mapping[str, Any]") -> str:
    per_class = made["metrics"]["coco"]["per_class"]
    scored = {name: one["AP50"] for name, one in per_class.items() if one["AP50"] is not None}
    if len(scored) < 2:
        return ""
    worst = min(scored, key=lambda name: scored[name])
    objects = made["curves"][worst]["objects"]
    return f"worst class: {worst}, AP50 {scored[worst]:.3f}, of {objects:,} {'object' if objects == 1 else 'objects'}"


def _thresholds(made: "Mapping[str, Any]") -> list[str]:
    """Return advice where another threshold would raise the F1 of a class with enough objects."""
    gains: list[tuple[float, str]] = []
    for name, best in made["thresholds"].items():
        curve = made["curves"][name]
        if best is None or curve["objects"] < ENOUGH:
            continue
        reported = [f1 for score, f1 in zip(curve["scores"], curve["f1"], strict=True) if score >= best["model"]]
        now = reported[-1] if reported else 0.0
        text = f"{name} from {best['threshold']:.2f} instead of {best['model']:.2f} (F1 {now:.2f} to {best['f1']:.2f})"
        gains.append((best["f1"] - now, text))
    better = [text for gain, text in sorted(gains, reverse=True) if gain > 0.01]
    if not better:
        return ["thresholds: no other would raise the F1 of a class by more than 0.01"] if gains else []
    more = f", and {len(better) - 3} more classes" if len(better) > 3 else ""
    return [f"better thresholds: {'; '.join(better[:3])}{more}"]


def _copied(copy: "Calibrated", path: Path) -> str:
    from multibox.cli.console import metric_text

    (ece, ap), (new_ece, new_ap) = (tuple(map(metric_text, one)) for one in (copy.before, copy.after))
    changes = f"calibration error {ece} to {new_ece}, AP {ap} to {new_ap}"
    return f"wrote {path}, a copy with temperature {copy.temperature:.2f}; detecting anew: {changes}"


def _calibration(made: "Mapping[str, Any]") -> str:
    found = made["calibration"]
    if found["ece"] is None:
        return ""
    mend = ""
    if found["temperature"] is not None:
        halves = " and ".join(f"{one['ece']:.3f} to {one['ece_after']:.3f}" for one in found["halves"])
        mend = f"; a temperature would bring it from {halves} on the half that it was not fitted on (--temperature)"
    return f"scores are off by {found['ece']:.3f} on average (calibration error){mend}"
