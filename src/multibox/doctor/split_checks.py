"""Splits and names: empty and tiny splits, images that no label file names, names that collide in another format."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from multibox.data.formats.text import IMAGE_SUFFIXES, files_in
from multibox.data.left_out import counted
from multibox.doctor.findings import Finding, finding
from multibox.doctor.survey import Survey
from multibox.files import same_name

FEW_IMAGES = 10
"""Images of a split below which it is called tiny, if another split has more."""


def check_splits(surveys: Mapping[str, Survey], *, whole: bool) -> Iterator[Finding]:
    """Yield what the splits' images say by their number and names.

    Args:
        surveys: the splits.
        whole: whether no split of the data set is missing from them.
    """
    sizes = {split: len(survey.raw.image_names) for split, survey in surveys.items()}
    for split, count in sizes.items():
        raw = surveys[split].raw
        if not count:
            source = raw.problems[0].source if raw.problems else raw.root
            yield finding("empty-split", source, f"split {split} holds no images", f"split {split}")
        elif count < FEW_IMAGES and count < max(sizes.values()):
            what = f"split {split} holds {counted(count, 'image', 'images')}"
            yield finding("tiny-split", raw.root, what, f"split {split}")
    for split, survey in surveys.items():
        yield from _collisions(split, survey)
    if whole:
        yield from _without_labels(surveys)


def _collisions(split: str, survey: Survey) -> Iterator[Finding]:
    """Yield images of one split that would share a label file, or a file name where capitals do not count."""
    raw = survey.raw
    stems: dict[str, str] = {}
    for row, name in enumerate(raw.image_names):
        first = stems.setdefault(same_name(_stem(name)), name)
        if first == name:
            continue
        if same_name(first) == same_name(name):
            what = f"{first} and {name} differ in capitals alone, and are one file on Windows and macOS"
        else:
            what = f"{first} and {name} would share one label file in VOC and YOLO"
        file = raw.paths[row] if raw.offsets[row] is None else raw.sources[row]
        yield finding("name-collision", file, what, f"{name}, split {split}")


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name


def _without_labels(surveys: Mapping[str, Survey]) -> Iterator[Finding]:
    """Yield image files in the folders of the labelled images that no split names."""
    folders: dict[Path, dict[str, str]] = {}
    spoken_of: set[str] = set()
    for survey in surveys.values():
        raw = survey.raw
        for row, (path, source) in enumerate(zip(raw.paths, raw.sources, strict=True)):
            if raw.offsets[row] is not None:
                continue
            held = folders.setdefault(path.parent, {})
            held[path.name] = same_name(_stem(path.name))
            if raw.format == "yolo" and not source.is_file():
                what = f"{path.name} has no label file {source.name}: it counts as background"
                yield finding("image-without-label", path, what, path.name)
        for problem in raw.problems:  # what a reader left out is said by it
            names = (problem.subject, problem.source.name)
            spoken_of |= {same_name(_stem(PurePosixPath(name).stem)) for name in names}
    for folder, held in folders.items():
        stems = {stem: name for name, stem in held.items()}
        for path in files_in(folder, *IMAGE_SUFFIXES):
            stem = same_name(_stem(path.name))
            if path.name in held or stem in spoken_of:
                continue
            if stem in stems:
                what = f"{path.name} has no labels of its own: those of {stems[stem]} may be meant for it"
                yield finding("name-collision", path, what, path.name)
            else:
                yield finding(
                    "image-without-label",
                    path,
                    f"{path.name} is in no split: no label file or list names it",
                    path.name,
                )
