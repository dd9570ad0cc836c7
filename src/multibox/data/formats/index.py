"""The index of a split while a reader builds it: images and boxes in columns, checked all at once at the end."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.finder import ImageFinder
from multibox.data.formats.sizes import fit_to_images
from multibox.data.formats.text import ADVICE, SKIP, ReadOptions
from multibox.data.left_out import (
    BROKEN_BOX,
    CLIPPED,
    LABELLED_TWICE,
    MISSING_IMAGE,
    NO_AREA,
    OTHER_CLASS,
    OUTSIDE_IMAGE,
    OVER_EDGE,
    REASONS,
    counted,
)
from multibox.errors import DataError, ImageError, did_you_mean
from multibox.structures import Boxes, Dataset, Flags, Labels, Sample, Size

_ROUNDING_PX = 0.01  # less than this over the edge is rounding in the label file, not worth a note


class Problem(NamedTuple):
    """Something a reader could not use."""

    reason: str
    """Of `left_out.REASONS`, under which a reader that skips counts it."""
    kind: str
    """The doctor's id for it; empty where the reason tells."""
    source: Path
    """The label file, or the folder that was read."""
    subject: str
    """The image, line or object in it."""
    message: str


@dataclass(frozen=True)
class RawLabels:
    """One split as its label files say it: nothing dropped, clipped or renamed, but what could not be read at all.

    Boxes are xyxy in pixels; a format of fractions multiplied them by the image's size.
    """

    root: Path
    format: str
    split: str
    class_names: list[str]
    """As declared, or in the order met; `labels` index it."""
    image_names: list[str]
    paths: list[Path]
    sources: list[Path]
    """The label file of each image."""
    sizes: list[Size | None]
    """As the label file declares it; of the image itself where the format holds fractions."""
    offsets: list[int | None]
    lengths: list[int | None]
    boxes_xyxy: Boxes
    """[N, 4]"""
    owners: Labels
    """[N]; index of each box's image, ascending."""
    labels: Labels
    """[N]"""
    lines: Labels
    """[N]; line, annotation id or number of the object in its label file; 0 where the reader does not say it."""
    difficult: Flags
    crowd: Flags
    outline: Flags
    """[N]; whether the box was made of a polygon, a mask or key points."""
    fractions: bool
    """Whether the label files hold fractions of the image instead of pixels."""
    problems: list[Problem]

    def sample(self, image: int) -> Sample:
        """Return an image with its boxes as written, some of which may have no area."""
        rows = slice(*np.searchsorted(self.owners, (image, image + 1)).tolist())
        return Sample(
            name=self.image_names[image],
            path=self.paths[image],
            boxes_xyxy=self.boxes_xyxy[rows],
            labels=self.labels[rows],
            difficult=self.difficult[rows],
            crowd=self.crowd[rows],
            size=self.sizes[image],
            offset=self.offsets[image],
            length=self.lengths[image],
        )


class Skipping:
    """A block whose `DataError` is counted under a reason if `on_bad` is "skip", and raised if it is "stop"."""

    def __init__(self, index: "IndexBuilder", reason: str, subject: str) -> None:
        self.index, self.reason, self.subject = index, reason, subject

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, DataError) or self.index.options.on_bad != "skip":
            return False
        self.index.count(self.reason, self.subject)
        self.index.problems.append(Problem(self.reason, error.kind, self.index.source, self.subject, str(error)))
        return True


class IndexBuilder:
    """Images and boxes of one split on their way into a `Dataset`.

    `shared` says that one label file describes all images, so that messages name the image too. `fractions` says that
    the format holds boxes as fractions of the image. `source` is the label file being read, for problems.
    """

    def __init__(
        self, root: Path, format: str, split: str, options: ReadOptions, *, shared: bool, fractions: bool = False
    ) -> None:
        self.root, self.format, self.split, self.options, self.shared = root, format, split, options, shared
        self.fractions = fractions
        self.source = root
        self.problems: list[Problem] = []
        self.image_names: list[str] = []
        self.paths: list[Path] = []
        self.sizes: list[Size | None] = []
        self.offsets: list[int | None] = []
        self.lengths: list[int | None] = []
        self.notes: list[str] = []
        self._sources: list[Path] = []
        self._labelled: dict[str, Path] = {}
        self._boxes, self._owners, self._labels, self._lines = array("d"), array("q"), array("q"), array("q")
        self._difficult, self._crowd, self._outline = bytearray(), bytearray(), bytearray()
        self._subjects: dict[str, list[str]] = {}

    def skipping(self, reason: str, subject: str) -> Skipping:
        """Return a block that turns a `DataError` into a count under `reason`, if the options say so."""
        return Skipping(self, reason, subject)

    def count(self, reason: str, subject: str) -> None:
        """Count something under a reason of `left_out`, with the file or image that it concerns."""
        self._subjects.setdefault(reason, []).append(subject)

    def find_image(self, finder: ImageFinder, listed: str, where: str) -> Path | None:
        """Return the file of the image that `where` lists, or None if it is missing and skipped.

        Raises:
            ImageError: it is missing, and `on_bad` is "stop".
        """
        path = finder.find(listed)
        return self.check_found(path, finder, listed, where, listed)

    def check_found(self, path: Path | None, finder: ImageFinder, listed: str, where: str, subject: str) -> Path | None:
        """Return `path`, an image's file as found; None counts the image as missing under `subject`, or raises."""
        if path is None:
            with self.skipping(MISSING_IMAGE, subject):
                raise ImageError(
                    f"{where}: image {listed!r} is missing; looked in {finder.places()}; put it there, or {SKIP}"
                )
        return path

    def add_image(
        self,
        name: str,
        path: Path,
        source: Path,
        size: Size | None = None,
        offset: int | None = None,
        length: int | None = None,
    ) -> int | None:
        """Add an image and return its row, or None if it was there already and is skipped.

        Raises:
            DataError: it was there already, and `on_bad` is "stop".
        """
        keys = (f"name {name}", f"file {path}@{offset}")
        first = next((self._labelled[key] for key in keys if key in self._labelled), None)
        if first is not None:
            other = f"{first} and {source}" if source != first else f"{source}, twice"
            with self.skipping(LABELLED_TWICE, name):
                raise DataError(f"image {name} is labelled by {other}; leave one of them, or {SKIP}")
            return None
        self._labelled |= dict.fromkeys(keys, source)
        self.image_names.append(name)
        self.paths.append(path)
        self.sizes.append(size)
        self.offsets.append(offset)
        self.lengths.append(length)
        self._sources.append(source)
        return len(self.image_names) - 1

    def add_box(
        self,
        image: int,
        box_xyxy: Sequence[float],
        label: int,
        *,
        difficult: bool = False,
        crowd: bool = False,
        outline: bool = False,
        line: int = 0,
    ) -> None:
        """Add a box of an image in pixels.

        Args:
            image: row that `add_image` returned.
            box_xyxy: may be nonsense; `finish` checks it.
            label: a place in the names that `finish` gets.
            difficult: VOC's flag.
            crowd: COCO's flag.
            outline: made of a polygon, a mask or key points; the caller counts it under `OUTLINE` as well.
            line: where the label file has it: a line, an annotation's id, the number of an object.
        """
        self._boxes.extend(box_xyxy)
        self._owners.append(image)
        self._labels.append(label)
        self._lines.append(line)
        self._difficult.append(difficult)
        self._crowd.append(crowd)
        self._outline.append(outline)

    def finish(self, declared: Sequence[str], *, order: Sequence[str] | None = None, clip: bool = True) -> Dataset:
        """Check every box and return the data set.

        Args:
            declared: the name of each label given to `add_box`.
            order: the data set's own order of classes where that differs from `declared`.
            clip: cut boxes at the image's edge where its size is known, instead of keeping them as written.

        Raises:
            DataError: for a box that is no box (under on_bad "stop"), a class that the model lacks, an empty split.
        """
        if self.options.raw is not None:
            self.options.raw.append(self._as_written(declared))
        if not self.image_names:
            skipped = f" ({'; '.join(self._sentences())})" if self._subjects else ""
            raise DataError(f"{self.root}: split {self.split!r} holds no images{skipped}; check its list or folder")
        boxes = np.array(self._boxes, dtype=np.float64).reshape(-1, 4)
        owners = np.array(self._owners, dtype=np.int64)
        rows = np.argsort(owners, kind="stable")
        boxes, owners = boxes[rows], owners[rows]
        boxes = self._as_shown(boxes, owners)
        keep = self._with_area(boxes, owners)
        boxes = self._at_the_edge(boxes, owners, keep, clip)
        owners = owners[keep]
        labels, class_names = self._mapped(np.array(self._labels, np.int64)[rows][keep], owners, declared, order)
        keep[keep] = labels >= 0
        owners = owners[labels >= 0]
        return Dataset(
            root=self.root,
            format=self.format,
            split=self.split,
            class_names=class_names,
            image_names=self.image_names,
            paths=self.paths,
            sizes=self.sizes,
            offsets=self.offsets,
            starts=np.searchsorted(owners, np.arange(len(self.image_names) + 1)).astype(np.int64),
            boxes_xyxy=boxes[keep],
            labels=labels[labels >= 0],
            difficult=np.frombuffer(bytes(self._difficult), np.bool_)[rows][keep],
            crowd=np.frombuffer(bytes(self._crowd), np.bool_)[rows][keep],
            notes=(*self.notes, *self._sentences()),
            left_out=self._left_out(int((labels < 0).sum())),
            lengths=self.lengths if any(length is not None for length in self.lengths) else (),
        )

    def _as_written(self, declared: Sequence[str]) -> RawLabels:
        owners = np.array(self._owners, dtype=np.int64)
        rows = np.argsort(owners, kind="stable")
        flags = (self._difficult, self._crowd, self._outline)
        difficult, crowd, outline = (np.frombuffer(bytes(flag), np.bool_)[rows] for flag in flags)
        return RawLabels(
            root=self.root,
            format=self.format,
            split=self.split,
            class_names=list(declared),
            image_names=self.image_names,
            paths=self.paths,
            sources=self._sources,
            sizes=self.sizes,
            offsets=self.offsets,
            lengths=self.lengths,
            boxes_xyxy=np.array(self._boxes, dtype=np.float64).reshape(-1, 4)[rows],
            owners=owners[rows],
            labels=np.array(self._labels, np.int64)[rows],
            lines=np.array(self._lines, np.int64)[rows],
            difficult=difficult,
            crowd=crowd,
            outline=outline,
            fractions=self.fractions,
            problems=list(self.problems),
        )

    def _sentences(self) -> list[str]:
        return [
            counted(len(subjects), REASONS[reason].one, REASONS[reason].many, subjects)
            for reason, subjects in self._subjects.items()
        ]

    def _left_out(self, other_classes: int) -> dict[str, int]:
        counts = {reason: len(subjects) for reason, subjects in self._subjects.items()}
        return counts | ({OTHER_CLASS: other_classes} if other_classes else {})

    def _where(self, image: int) -> str:
        """Return the label file, and the image where the file describes many."""
        source = str(self._sources[image])
        return f"{source}: image {self.image_names[image]}" if self.shared else source

    def _count_rows(self, reason: str, rows: Flags, owners: Labels) -> None:
        for image in owners[rows].tolist():
            self.count(reason, self._subject(image))

    def _subject(self, image: int) -> str:
        return self.image_names[image] if self.shared else self._sources[image].name

    def _as_shown(self, boxes: Boxes, owners: Labels) -> Boxes:
        """Return the boxes in pixels of the images themselves, whose sizes take the place of those declared."""
        if self.fractions or not any(self.sizes):
            return boxes
        fit, sizes = fit_to_images(boxes, owners, self.sizes, self.image_names, self._image)
        self.sizes = [own or declared for own, declared in zip(sizes, self.sizes, strict=True)]
        self.notes += fit.notes
        return fit.boxes_xyxy

    def _image(self, row: int) -> Sample:
        """Return an image without its labels."""
        none = np.zeros(0, np.bool_)
        place = self.paths[row], np.zeros((0, 4)), np.zeros(0, np.int64), none, none
        return Sample(self.image_names[row], *place, offset=self.offsets[row], length=self.lengths[row])

    def _with_area(self, boxes: Boxes, owners: Labels) -> Flags:
        """Return which boxes have finite corners in order and an area."""
        x1, y1, x2, y2 = boxes.T
        keep = np.ones(len(boxes), dtype=np.bool_)
        for faulty, what in (
            (~np.isfinite(boxes).all(axis=1), "a coordinate is not a finite number"),
            (x1 > x2, "xmin is above xmax"),
            (y1 > y2, "ymin is above ymax"),
        ):
            for row in np.flatnonzero(faulty & keep).tolist():
                image = int(owners[row])
                number = row - int(np.searchsorted(owners, image)) + 1
                corners = ", ".join(f"{value:g}" for value in boxes[row])
                with self.skipping(BROKEN_BOX, self._subject(image)):
                    raise DataError(f"{self._where(image)}, object {number}: {what} in ({corners}); {ADVICE}")
            keep &= ~faulty
        flat = keep & ((x1 == x2) | (y1 == y2))
        self._count_rows(NO_AREA, flat, owners)
        return keep & ~flat

    def _at_the_edge(self, boxes: Boxes, owners: Labels, keep: Flags, clip: bool) -> Boxes:
        """Return the boxes cut at their images' edges, or as written; clear `keep` of those outside, in place."""
        edges = np.array([(size.width, size.height) if size else (np.inf, np.inf) for size in self.sizes])[owners]
        sound = np.where(keep[:, None], boxes, 0.0)
        inside: NDArray[np.float64] = np.clip(sound, 0.0, edges[:, [0, 1, 0, 1]])
        over = keep & (np.abs(inside - sound) > _ROUNDING_PX).any(axis=1)
        if not clip:
            self._count_rows(OVER_EDGE, over, owners)
            return boxes
        outside = keep & ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
        self._count_rows(OUTSIDE_IMAGE, outside, owners)
        self._count_rows(CLIPPED, over & ~outside, owners)
        keep &= ~outside
        return inside

    def _mapped(
        self, labels: Labels, owners: Labels, declared: Sequence[str], order: Sequence[str] | None
    ) -> tuple[Labels, tuple[str, ...]]:
        """Return each object's index among the classes, -1 if it is dropped, and the classes."""
        rename = self.options.rename or {}
        for old in (name for name in rename if name not in (*declared, *(order or ()))):
            self.notes.append(f"the data has no class {old!r} to rename{did_you_mean(old, declared)}")
        names = [rename.get(name, name) for name in declared]
        own = tuple(dict.fromkeys(new for name in (order or declared) if (new := rename.get(name, name))))
        class_names = own if self.options.class_names is None else tuple(self.options.class_names)
        index = {name: number for number, name in enumerate(class_names)}
        mapped = np.array([index.get(name, -1) for name in names], dtype=np.int64)[labels]
        unknown = np.flatnonzero((mapped < 0) & np.array([name != "" for name in names], dtype=np.bool_)[labels])
        if len(unknown) and self.options.unknown == "refuse":
            name = names[int(labels[unknown[0]])]
            raise DataError(
                f"{self._where(int(owners[unknown[0]]))}: class {name!r} is not among the model's classes "
                f"({_listing(class_names)}){did_you_mean(name, class_names)}; rename it with --rename {name}=NAME, or "
                f"leave it out with --rename {name}="
            )
        if own and self.options.unknown == "drop" and not index.keys() & set(own):
            raise DataError(
                f"{self.root} ({self.split}) shares no class with the model: it has {_listing(own) or 'none'}, the "
                f"model {_listing(class_names)}; name the same class on both sides with --rename DATA=MODEL"
            )
        self._note_dropped(np.bincount(labels[mapped < 0], minlength=len(names)), declared)
        return mapped, class_names

    def _note_dropped(self, counts: Labels, declared: Sequence[str]) -> None:
        """Note how many objects of which classes are left out; `counts` has one entry per declared class."""
        if not counts.any():
            return
        most = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        shown = ", ".join(f"{declared[label]} ({counts[label]})" for label in most[:5])
        more = f" and {len(most) - 5} more classes" if len(most) > 5 else ""
        objects = "object was" if counts.sum() == 1 else "objects were"
        self.notes.append(f"{counts.sum()} {objects} left out, of other classes than asked for: {shown}{more}")


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
