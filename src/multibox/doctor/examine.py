"""Examine a data set of any format: read every split as written, and run all checks on it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from multibox.data.formats import DataPaths, locate, read_raw
from multibox.data.formats.joining import Joined
from multibox.data.formats.locating import Found
from multibox.data.formats.raw_labels import Problem, RawLabels
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, LABELLED_TWICE, MISSING_IMAGE, UNREADABLE_IMAGE
from multibox.doctor.box_checks import Faults, check_boxes, find_faults
from multibox.doctor.class_checks import check_classes
from multibox.doctor.coco_ids import COCO_KINDS, check_coco
from multibox.doctor.findings import KINDS, Finding, finding, without_path, worst_first
from multibox.doctor.frames import check_orientations, check_sizes
from multibox.doctor.image_files import check_image_files, look_at_images
from multibox.doctor.readings import Reading, find_reading
from multibox.doctor.split_checks import check_splits
from multibox.doctor.survey import Survey, survey_split
from multibox.doctor.twins import Roles, check_twins, joined_roles
from multibox.errors import DataError
from multibox.presets import resolve

Progress = Callable[[int, int], None]
"""Takes the images done so far and all images."""

_KIND_OF_REASON = {
    BROKEN_FILE: "unreadable-label",
    MISSING_IMAGE: "label-without-image",
    UNREADABLE_IMAGE: "unreadable-image",
    LABELLED_TWICE: "name-collision",
    BROKEN_BOX: "not-a-number",
}
"""The kind of a reader's problem that names none itself."""


@dataclass(frozen=True)
class SplitDiagnosis:
    """One split, and what is wrong with its boxes."""

    survey: Survey
    reading: Reading
    faults: Faults


@dataclass(frozen=True)
class Diagnosis:
    """What an examination found."""

    findings: list[Finding]
    """The worst first, grouped by kind."""
    splits: dict[str, SplitDiagnosis]
    """Those that can be read."""


def examine(
    data: DataPaths,
    *,
    split: str | None = None,
    preset: str | None = None,
    format: str | None = None,
    fast: bool = False,
    progress: Progress | None = None,
) -> list[Finding]:
    """Return what is wrong with a data set, the worst first, grouped by kind; the arguments are those of `diagnose`.

    Raises:
        DataError: There is no data set, or none of its splits can be read.
        ConfigError: An unknown format or preset.
    """
    return diagnose(data, split=split, preset=preset, format=format, fast=fast, progress=progress).findings


def diagnose(
    data: DataPaths,
    *,
    split: str | None = None,
    preset: str | None = None,
    format: str | None = None,
    fast: bool = False,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine a data set and return all that a repair and a contact sheet need.

    Args:
        data: The folder or file of a data set, or several that are joined by class name.
        split: The only split to examine; None takes all.
        preset: A preset, such as "tinyssd", whose network and anchors the boxes are compared with.
        format: The data set's format; None recognises it.
        fast: Labels and image headers only, without decoding images.
        progress: Called now and then with the images done and all images.

    Raises:
        DataError: There is no data set, or none of its splits can be read.
        ConfigError: An unknown format or preset.
    """
    if preset is not None:
        resolve(preset)  # an unknown one is refused before anything is read
    found = locate(data, format)
    surveys, findings = _read(found, Path(data) if isinstance(data, str | Path) else found.path, split, fast)
    examined = {name: _diagnose_split(survey) for name, survey in surveys.items()}
    findings += [one for one_split in examined.values() for one in _of_split(one_split)]
    findings += _of_set(surveys, whole=split is None)
    findings += _of_images(surveys, joined_roles(found), fast, progress)
    if preset is not None:
        from multibox.doctor.preset_fit import check_preset  # needs torch

        findings += check_preset(surveys, preset)
    # An image may belong to several splits, as to VOC's train and trainval
    return Diagnosis(worst_first(dict.fromkeys(findings)), examined)


def find_twins(
    data: DataPaths, *, split: str, most: int, format: str | None = None, progress: Progress | None = None
) -> list[Finding]:
    """Return what `diagnose` finds about the same image twice, and about images that two splits share.

    Args:
        data: As `diagnose` takes it, as are `format` and `progress`.
        split: The split of interest.
        most: Images of all splits above which only this split is looked at.
        format: The data set's format.
        progress: Called now and then with the images done and all images.

    Raises:
        DataError: There is no data set.
    """
    found = locate(data, format)
    raws: dict[str, RawLabels] = {}
    for name in found.splits():
        with contextlib.suppress(DataError):  # the other splits are looked at
            raw = read_raw(found, name)
            raws[raw.split] = raw
    if sum(len(raw.image_names) for raw in raws.values()) > most:
        raws = {name: raw for name, raw in raws.items() if name == split}
    surveys = {name: survey_split(raw, fast=True) for name, raw in raws.items()}
    looks = look_at_images(surveys, progress)
    return worst_first(dict.fromkeys(check_twins(surveys, looks, joined_roles(found))))


def _diagnose_split(survey: Survey) -> SplitDiagnosis:
    reading = find_reading(survey)
    return SplitDiagnosis(survey, reading, find_faults(survey, reading))


def _read(found: Found | Joined, path: Path, split: str | None, fast: bool) -> tuple[dict[str, Survey], list[Finding]]:
    """Return every split that can be read, and findings about the others; `path` is what the user gave."""
    names = [split] if split is not None else found.splits()
    surveys: dict[str, Survey] = {}
    findings: list[Finding] = []
    problem: DataError | None = None
    for name in names:
        try:
            raw = read_raw(found, name)
        except DataError as error:
            problem = problem or error
            what = without_path(str(error), path)
            findings.append(finding(_known(error.kind) or "unreadable-label", path, what, f"split {name}"))
            continue
        surveys[raw.split] = survey_split(raw, fast=fast)
    if not surveys and problem is not None:
        raise problem
    return surveys, findings


def _of_split(split: SplitDiagnosis) -> Iterator[Finding]:
    """Yield what one split shows by itself."""
    yield from reader_problems(split.survey.raw)
    yield from check_boxes(split.survey, split.reading, split.faults)
    yield from check_sizes(split.survey)
    yield from check_coco(split.survey)


def _of_set(surveys: Mapping[str, Survey], *, whole: bool) -> Iterator[Finding]:
    """Yield what the splits show together; `whole` says that they are all splits of the data set."""
    yield from check_classes(surveys)
    yield from check_splits(surveys, whole=whole)


def _of_images(surveys: Mapping[str, Survey], roles: Roles, fast: bool, progress: Progress | None) -> Iterator[Finding]:
    """Yield what the image files show; if `fast`, only those are opened whose headers cannot be read."""
    looks = look_at_images(surveys, progress, fast=fast)
    yield from check_image_files(looks)
    if not fast:
        yield from check_twins(surveys, looks, roles)
        for survey in surveys.values():
            yield from check_orientations(survey, looks)


def reader_problems(raw: RawLabels) -> Iterator[Finding]:
    """Yield what the reader could not use."""
    for problem in raw.problems:
        if raw.format == "coco" and problem.kind in COCO_KINDS:
            continue  # `check_coco` says it
        kind = kind_of(problem)
        severity = "error" if kind == "huge-image" else None  # it is refused
        what = without_path(problem.message, problem.source).removeprefix(f"{problem.subject}: ")
        yield finding(kind, problem.source, what, problem.subject, severity=severity)


def kind_of(problem: Problem) -> str:
    """Return the kind of what a reader could not use."""
    return _known(problem.kind) or _KIND_OF_REASON.get(problem.reason, "unreadable-label")


def _known(kind: str) -> str:
    return kind if kind in KINDS else ""
