"""`multibox doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.cli.options import IMAGES, DataSets, Format, check_suffix
from multibox.errors import DataError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multibox.doctor.examine import Diagnosis
    from multibox.doctor.findings import Finding
    from multibox.doctor.repair import Repair

LINES = 20
"""Findings of one kind on the screen; all are in --json."""


def doctor(
    data: DataSets,
    split: Annotated[str | None, typer.Option(help="The only split to examine. Default: all.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Compare the boxes with this preset's network and anchors.")
    ] = None,
    format: Format = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all findings here; - for standard output.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Folder for a repaired copy; must not hold anything.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw the worst findings to this PNG or JPEG.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --json and --sheet; a file of DATA never.")
    ] = False,
) -> None:
    """Find what is wrong with DATA: files, labels, boxes, classes, splits; exit 1 for errors and warnings.

    Example: multibox doctor data/cells --json findings.json --fix data/cells-repaired
    """
    from multibox.cli.console import counting_up, write_json
    from multibox.data.convert import check_destination
    from multibox.doctor.examine import diagnose
    from multibox.doctor.repair import repair
    from multibox.files import check_outputs

    to_stdout = json_file == Path("-")
    outputs = [path for path in (None if to_stdout else json_file, sheet) if path is not None]
    check_outputs(outputs, overwrite=overwrite, inputs=data)
    if sheet is not None:
        check_suffix(sheet, IMAGES)
    if fix is not None:
        check_destination(fix, data)
    with counting_up("examining") as progress:
        diagnosis = diagnose(data, split=split, preset=preset, format=format, progress=progress)
    named = " ".join(map(str, data))
    findings = diagnosis.findings
    guesses = dict.fromkeys(note for one in diagnosis.splits.values() for note in one.survey.raw.notes)
    write_json(json_file, [one.to_dict() for one in findings])
    _say([*describe(findings), *guesses, summary(findings, named)], err=to_stdout)
    if sheet is not None:
        _say([_draw(diagnosis, sheet)], err=to_stdout)
    ill = any(one.severity != "note" for one in findings)
    if fix is not None:
        try:
            done = repair(diagnosis, fix)
            with counting_up("examining the copy") as progress:
                left = diagnose(fix, preset=preset, format=done.format, progress=progress).findings
            _say(_describe_repair(done, left), err=to_stdout)
        except DataError as error:
            if not ill:
                raise
            _say([f"there is no healthy copy: {error}"], err=True)  # 2 would say that DATA cannot be read
    if ill:
        raise typer.Exit(1)


def _say(lines: "Iterable[str]", *, err: bool) -> None:
    for line in lines:
        typer.echo(one_line(line), err=err)


def describe(findings: "list[Finding]", lines: int = LINES) -> list[str]:
    """Return the lines on the screen: each kind with its reason and advice, and at most `lines` findings of it."""
    from itertools import groupby

    from multibox.doctor.findings import KINDS

    shown: list[str] = []
    for kind, group in groupby(findings, key=lambda one: one.kind):
        held = list(group)
        count = f" ({len(held)})" if len(held) > 1 else ""
        alike = len({one.fix for one in held}) == 1
        advice = held[0].fix if alike else KINDS[kind].mend
        shown.append(f"{held[0].severity}: {kind}{count}: {held[0].why} {advice}")
        for one in held[:lines]:
            shown.append(f"  {_place(one)}: {one.what}{'' if alike else f'. {one.fix}'}")
        if len(held) > lines:
            shown.append(f"  and {len(held) - lines:,} more; all in --json")
    return shown


def _place(one: "Finding") -> str:
    """Return a file and the place in it, without a name that the file's path ends with already."""
    where, parts = one.where, Path(one.file).parts
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if f"{one.where}, ".startswith(f"{name}, "):
            where = one.where[len(name) + 2 :]
            break
    return ", ".join(part for part in (one.file, where) if part)


def summary(findings: "list[Finding]", what: str) -> str:
    """Return the line with the counts by severity."""
    counts = {name: sum(one.severity == name for one in findings) for name in ("error", "warning", "note")}
    if not findings:
        return f"{what} is healthy: nothing found"
    parts = [f"{count:,} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count]
    healthy = "" if counts["error"] or counts["warning"] else " is healthy"
    return f"{what}{healthy}: {', '.join(parts)}"


def _describe_repair(done: "Repair", left: "list[Finding]") -> list[str]:
    from collections import Counter

    from multibox.doctor.repair import CHANGES

    changed = Counter(change.kind for change in done.changes)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in changed.most_common())
    many = "change" if len(done.changes) == 1 else "changes"
    lines = [*done.notes, f"wrote {done.folder} as {done.format}; {len(done.changes):,} {many}: {counts or 'none'}"]
    lines.append(f"each change stands in {done.folder / CHANGES}")
    rest = Counter(one.kind for one in left if one.severity != "note")
    if rest:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in rest.most_common())
        lines.append(f"left to you: {kinds}; see multibox doctor {done.folder}")
    else:
        lines.append("the copy is healthy")
    return lines


def _draw(diagnosis: "Diagnosis", path: Path) -> str:
    """Write the contact sheet and return what to say about it."""
    import io

    from multibox.doctor.sheet import worst_sheet
    from multibox.files import write_bytes_whole

    drawn = worst_sheet(diagnosis)
    if drawn is None:
        return f"{path} was not written: no finding is about an image"
    image = io.BytesIO()
    drawn.save(image, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    write_bytes_whole(path, image.getvalue())
    return f"wrote {path}"
