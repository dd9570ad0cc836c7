"""A repaired copy of a data set, and a log of each change; the data set itself is never touched.

Boxes take the reading that fits them, corners are sorted, edges clipped; what teaches nothing is left out. What only
a person can decide stays as it is: the last column of `findings.KINDS` says which kinds these are.
"""

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.columns import Numbers, Texts
from multibox.data.convert import check_destination, write_dataset
from multibox.data.formats import FORMATS
from multibox.data.formats.finder import ROUNDING_PX, fit_name
from multibox.data.formats.sizes import TURNED
from multibox.data.formats.text import fit_text, number_text, safe_name, stem_of
from multibox.data.images import orientation_of
from multibox.doctor.class_checks import class_counts, twins
from multibox.doctor.examine import Diagnosis, SplitDiagnosis, kind_of
from multibox.doctor.findings import KINDS, Finding, without_path
from multibox.doctor.frames import stored_boxes
from multibox.errors import DataError
from multibox.files import same_name, write_text_whole
from multibox.structures import Boxes, Dataset, Flags, Sizes

CHANGES = "doctor-changes.csv"
"""The log's name, in the copy."""
_FALLBACK = "coco"
"""Written where the data set's own format is only read."""
_DROPPED = ("not-a-number", "empty-box", "outside-box", "tiny-box")
_SHARED = ("leaked-image", "split-overlap")
"""Kinds of which a split loses images, unless it would lose most of them."""
_LEFT_OUT = frozenset(("unreadable-image", "truncated-image", "empty-file", "huge-image", "duplicate-image", *_SHARED))
"""Kinds whose finding names an image to leave out."""
_WRITTEN_ANEW = {
    "text-id": "numbers",
    "category-zero": "counted from 1",
    "missing-area": "the area of each box",
    "size-mismatch": "the size of the image",
}
"""What a format's writer makes of kinds that are no image's or box's."""
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}


class Change(NamedTuple):
    """One line of the log."""

    file: str
    where: str
    kind: str
    before: str
    after: str


@dataclass(frozen=True)
class Repair:
    """What `repair` wrote."""

    folder: Path
    format: str
    changes: list[Change]
    notes: list[str]
    """What was left to a person for want of images, and what the written format could not hold."""


class _Plan(NamedTuple):
    """What is mended in all splits alike."""

    joined: dict[str, str]
    """The common spelling of each misspelt class name."""
    mistaken: dict[str, str]
    """The right ending of each file with a wrong one."""


def repair(diagnosis: Diagnosis, destination: str | Path) -> Repair:
    """Write a repaired copy of the examined splits, in their own format where it can be written.

    Args:
        diagnosis: What `diagnose` found, with images decoded (not `fast`), else damaged images are copied as well.
        destination: A folder that is not there yet, or is empty.

    Raises:
        DataError: The destination is in use, or nothing is left to write.
    """
    check_destination(destination)
    plan = _Plan(_joined_classes(diagnosis), _mistaken(diagnosis.findings))
    changes = _lost_on_reading(diagnosis)
    advice: list[str] = []
    datasets: dict[str, Dataset] = {}
    for name, split in diagnosis.splits.items():
        dataset, changed, shared = _repaired(split, diagnosis.findings, plan)
        changes += changed
        if shared:
            advice.append(
                f"split {name}: {shared} of its {len(split.survey.raw.image_names)} images are in another split, too; "
                "they are left to you: divide all images anew with multibox data split"
            )
        if len(dataset):
            datasets[name] = dataset
        else:
            changes.append(Change(str(dataset.root), f"split {name}", "empty-split", "no usable image", "left out"))
    if not datasets:
        raise DataError(f"{destination}: nothing is left to write once all that is broken is left out")
    own = next(iter(datasets.values())).format
    # Several sets that are examined as one may have several formats
    written = own if own in FORMATS and FORMATS[own].write is not None else _FALLBACK
    changes += _written_anew(diagnosis.findings)
    changes += [one for dataset in datasets.values() for one in _renamed(dataset)]
    changes = list(dict.fromkeys(changes))  # an image may belong to several splits
    notes = write_dataset(datasets, destination, written)
    write_text_whole(Path(destination) / CHANGES, _as_csv(changes))
    return Repair(Path(destination), written, changes, [*advice, *notes])


def remaining_kinds() -> frozenset[str]:
    """Return the kinds that a repaired copy may still have: those that are left to a person."""
    return frozenset(kind for kind, about in KINDS.items() if about.fix in ("left to you", "in part"))


def _lost_on_reading(diagnosis: Diagnosis) -> list[Change]:
    """Return what the reader could not use, or read as something else: the splits hold no trace of it."""
    changes = [
        Change(
            str(problem.source),
            problem.subject,
            kind_of(problem),
            without_path(problem.message, problem.source),
            problem.became,
        )
        for split in diagnosis.splits.values()
        for problem in split.survey.raw.problems
        if problem.became
    ]
    for one in diagnosis.findings:
        _, apart, name = one.where.partition("split ")
        if one.where.startswith("split ") and apart and name not in diagnosis.splits:
            changes.append(Change(one.file, one.where, one.kind, one.what, "left out"))
    return changes


def _written_anew(findings: Iterable[Finding]) -> Iterator[Change]:
    """Yield what every copy has otherwise, as sizes and ids are written anew."""
    for one in findings:
        after = _WRITTEN_ANEW.get(one.kind, "")
        if one.kind == "duplicate-id" and one.where.startswith("annotations"):
            after = "an id of its own"
        if after:
            yield Change(one.file, one.where, one.kind, one.what, after)


def _renamed(dataset: Dataset) -> Iterator[Change]:
    """Yield the names of classes and images that no label file can hold."""
    for name in dataset.class_names:
        if fit_text(name) != name:
            yield Change(str(dataset.root), f"class {name}", "renamed", name, fit_text(name))
    for path, name in zip(dataset.paths, dataset.image_names, strict=True):
        if fit_name(name) != safe_name(name):
            yield Change(str(path), name, "renamed", name, fit_name(name))


def _images_out(split: SplitDiagnosis, findings: Iterable[Finding]) -> tuple[dict[int, str], int]:
    """Return the images of a split that are left out, and for which kind, and how many shared ones are not.

    The file of such a finding is the image's, or the container's; then the image's name comes first in `where`. A split
    may come last in it: the image may stay in the others.
    """
    raw = split.survey.raw
    images: dict[str, list[int]] = {}
    for image, path in enumerate(raw.paths):
        images.setdefault(str(path), []).append(image)
    out: dict[int, str] = {}
    for one in findings:
        name, apart, only = one.where.rpartition("split ")
        if one.kind not in _LEFT_OUT or (apart and only != raw.split):
            continue
        if one.kind == "huge-image" and one.severity != "error":
            continue  # it can be decoded
        name = name.removesuffix(", ") if apart else one.where
        for image in images.get(one.file, ()):
            if raw.offsets[image] is None or raw.image_names[image] == name:
                out.setdefault(image, one.kind)
    shared = [image for image, kind in out.items() if kind in _SHARED]
    if 2 * len(shared) <= len(raw.image_names):
        return out, 0
    return {image: kind for image, kind in out.items() if kind not in _SHARED}, len(shared)


def _unlabelled(split: SplitDiagnosis, keep: Flags) -> dict[int, str]:
    """Return the images of which no box is left because some cannot be read, and the kind: they are no background."""
    raw = split.survey.raw
    lost = {one.image: kind_of(one) for one in raw.problems if one.image >= 0 and one.became == "left out"}
    unread = split.faults.boxes.get("not-a-number")
    if unread is not None:
        lost |= dict.fromkeys(raw.owners[unread].tolist(), "not-a-number")
    left = np.bincount(raw.owners[keep], minlength=len(raw.image_names))
    return {image: kind for image, kind in lost.items() if not left[image]}


def _joined_classes(diagnosis: Diagnosis) -> dict[str, str]:
    """Return the commonest spelling of each class name that differs from another in capitals and spaces only."""
    counts: dict[str, int] = {}
    for split in diagnosis.splits.values():
        for name, count in class_counts(split.survey).items():
            counts[name] = counts.get(name, 0) + count
    joined = {rare: common for rare, common, certain in twins(counts) if certain}
    for rare in joined:
        while joined[rare] in joined and joined[joined[rare]] != rare:
            joined[rare] = joined[joined[rare]]
    return joined


def _repaired(split: SplitDiagnosis, findings: Sequence[Finding], plan: _Plan) -> tuple[Dataset, list[Change], int]:
    """Return a split with its boxes, classes and images mended, the changes, and the shared images that stay."""
    out, shared = _images_out(split, findings)
    survey, raw, joined = split.survey, split.survey.raw, plan.joined
    boxes, keep, changes = _repaired_boxes(split, _images_turned(split, findings))
    out = _unlabelled(split, keep) | out
    names = list(dict.fromkeys(joined.get(name, name) for name in raw.class_names))
    table = np.array([names.index(joined.get(name, name)) for name in raw.class_names], np.int64)
    misspelt = [name for name in raw.class_names if name in joined]
    changes += [Change(str(raw.root), f"class {old}", "misspelt-class", old, joined[old]) for old in misspelt]
    sizes = [own or declared for own, declared in zip(survey.shown, raw.sizes, strict=True)]
    image_names, renamed = _image_names(split, plan.mistaken)
    changes += renamed
    changes += [
        Change(str(raw.paths[one]), raw.image_names[one], kind, "image", "left out") for one, kind in out.items()
    ]
    dataset = Dataset(
        root=raw.root,
        format=raw.format,
        split=raw.split,
        class_names=tuple(names),
        image_names=Texts.of(image_names),
        paths=raw.paths,
        sizes=Sizes.of(sizes),
        offsets=raw.offsets,
        starts=np.searchsorted(raw.owners[keep], np.arange(len(image_names) + 1)).astype(np.int64),
        boxes_xyxy=boxes[keep],
        labels=table[raw.labels[keep]] if len(table) else raw.labels[keep],
        difficult=raw.difficult[keep],
        crowd=raw.crowd[keep],
        lengths=raw.lengths if any(length is not None for length in raw.lengths) else Numbers.of(()),
    )
    kept = [image for image in range(len(dataset)) if image not in out]
    return (dataset.subset(kept) if out else dataset), changes, shared


def _repaired_boxes(split: SplitDiagnosis, turned: Collection[int]) -> tuple[Boxes, Flags, list[Change]]:
    """Return the boxes [N, 4] as they should be, which of them are kept [N], and the changes.

    Args:
        split: Whose boxes they are.
        turned: Images whose boxes are turned with them, beside those that the reader turns.
    """
    survey, faults = split.survey, split.faults.boxes
    boxes = split.reading.boxes_xyxy.copy()
    for image in turned:
        rows = slice(*np.searchsorted(survey.raw.owners, (image, image + 1)).tolist())
        boxes[rows] = stored_boxes(survey, image, orientation_of(survey.raw.sample(image)))
    why = np.full(len(boxes), "", "U32")
    for kind, rows in split.reading.kinds.items():
        why[rows] = kind
    follows = (survey.fit.done == TURNED) | np.isin(np.arange(len(survey.image_wh)), list(turned))
    why[(why == "") & follows[survey.raw.owners]] = "exif-mismatch"
    why[why == ""] = "size-mismatch"  # said of those that are changed by nothing else
    reversed_rows = faults.get("reversed-box")
    if reversed_rows is not None:
        low = np.minimum(boxes[:, :2], boxes[:, 2:])
        high = np.maximum(boxes[:, :2], boxes[:, 2:])
        boxes = np.where(reversed_rows[:, None], np.concatenate([low, high], axis=1), boxes)
        why[reversed_rows] = "reversed-box"
    edges = np.concatenate([survey.box_wh, survey.box_wh], axis=1)
    clipped = faults.get("clipped-box")
    if survey.raw.fractions:  # whose writers cut what is over the edge, however little
        over = np.asarray((np.abs(np.clip(boxes, 0, edges) - boxes) > ROUNDING_PX).any(axis=1))
        clipped = over if clipped is None else clipped | over
    if clipped is not None:
        boxes = np.where(clipped[:, None], np.clip(boxes, 0, edges), boxes)
        why[clipped] = "clipped-box"
    keep = np.ones(len(boxes), np.bool_)
    for kind in _DROPPED:
        if kind in faults:
            keep &= ~faults[kind]
            why[faults[kind]] = kind
    twice = [pair.second for pair in split.faults.pairs if pair.kind == "duplicate-box"]
    keep[twice] = False
    why[twice] = "duplicate-box"
    boxes, keep = _without_slivers(boxes, keep, why, clipped)
    return boxes, keep, list(_box_changes(split, boxes, keep, why))


def _without_slivers(boxes: Boxes, keep: Flags, why: NDArray[np.str_], clipped: Flags | None) -> tuple[Boxes, Flags]:
    """Leave out what is under a pixel once it is clipped."""
    if clipped is not None:
        thin = clipped & ((boxes[:, 2:] - boxes[:, :2]) < 1).any(axis=1)
        keep = keep & ~thin
        why[thin] = "outside-box"
    return boxes, keep


def _images_turned(split: SplitDiagnosis, findings: Iterable[Finding]) -> list[int]:
    """Return the images whose labels follow the stored orientation, which the reader cannot know."""
    raw, done = split.survey.raw, split.survey.fit.done
    named = {(one.file, one.where) for one in findings if one.kind == "exif-mismatch"}
    if not named:
        return []
    places = zip(raw.sources, raw.image_names, strict=True)
    return [row for row, (source, name) in enumerate(places) if (str(source), name) in named and done[row] != TURNED]


def _box_changes(split: SplitDiagnosis, boxes: Boxes, keep: Flags, why: NDArray[np.str_]) -> Iterator[Change]:
    survey = split.survey
    before = survey.raw.boxes_xyxy
    for row in np.flatnonzero(~keep | (boxes != before).any(axis=1)).tolist():
        after = _corners(boxes[row]) if keep[row] else "left out"
        yield Change(survey.file_of(row), survey.where_of(row), str(why[row]), _corners(before[row]), after)


def _corners(box: Boxes) -> str:
    return " ".join(number_text(round(value, 4)) if np.isfinite(value) else str(value) for value in box.tolist())


def _image_names(split: SplitDiagnosis, mistaken: Mapping[str, str]) -> tuple[list[str], list[Change]]:
    """Return names with the endings of what the files are, and of which no two share a label file.

    Args:
        split: Whose images they are.
        mistaken: Files with a wrong ending, and the right one.
    """
    raw = split.survey.raw
    names: list[str] = []
    changes: list[Change] = []
    taken: set[str] = set()
    for path, name in zip(map(str, raw.paths), raw.image_names, strict=True):
        suffix = mistaken.get(path, name[len(stem_of(name)) :])
        stem = stem_of(name)
        new, number = stem, 2
        while same_name(new) in taken:
            new, number = f"{stem}-{number}", number + 1
        taken.add(same_name(new))
        names.append(new + suffix)
        if new + suffix != name:
            kind = "wrong-extension" if path in mistaken else "name-collision"
            changes.append(Change(path, name, kind, name, new + suffix))
    return names, changes


def _mistaken(findings: Iterable[Finding]) -> dict[str, str]:
    """Return the right ending of each file whose ending is another format's."""
    endings: dict[str, str] = {}
    for one in findings:
        if one.kind == "wrong-extension":
            try:
                with Image.open(one.file) as image:
                    endings[one.file] = _ENDINGS.get(image.format or "", "")
            except (OSError, ValueError):
                continue
    return {file: ending for file, ending in endings.items() if ending}


def _as_csv(changes: Iterable[Change]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Change._fields)
    table.writerows(changes)
    return text.getvalue()
