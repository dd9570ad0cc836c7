"""The index of a split while a reader builds it: images and boxes in columns, checked all at once at the end."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from multibox.columns import GrowingPaths, GrowingTexts, Numbers
from multibox.data.formats.finder import ROUNDING_PX, ImageFinder
from multibox.data.formats.raw_labels import Problem, RawLabels
from multibox.data.formats.sizes import fit_to_images
from multibox.data.formats.text import ADVICE, SKIP, ReadOptions
from multibox.data.left_out import (
    BROKEN_BOX,
    BROKEN_FILE,
    CLIPPED,
    LABELLED_TWICE,
    MISSING_IMAGE,
    NO_AREA,
    OTHER_CLASS,
    OUTSIDE_IMAGE,
    OVER_EDGE,
    REASONS,
    Reason,
    counted,
)
from multibox.errors import DataError, ImageError, did_you_mean
from multibox.structures import Boxes, Dataset, Flags, Labels, Sample, Size, Sizes

_BLOCK = 1 << 18
"""Boxes checked at once, so that working memory stays small."""


class Skipping:
    """A block whose `DataError` is counted under a reason if `on_bad` is "skip", and raised if it is "stop"."""

    def __init__(self, index: "IndexBuilder", reason: str, subject: str, source: Path | None = None) -> None:
        self.index, self.reason, self.subject, self.source = index, reason, subject, source
        self.before = 0

    def __enter__(self) -> None:
        self.before = len(self.index.sizes)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, DataError) or self.index.options.on_bad != "skip":
            return False
        self.index.count(self.reason, self.subject)
        source = self.source or self.index.source
        image = self.index.image if self.reason == BROKEN_BOX and self.index.shared else -1
        if self.reason != BROKEN_BOX and len(self.index.sizes) > self.before:
            image = len(self.index.sizes) - 1  # its label broke after the image was added
        self.index.problems.append(Problem(self.reason, error.kind, source, self.subject, str(error), image))
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
        self.image = (
            -1
        )  # the row whose boxes are being read, for problems: that added last, if the reader sets no other
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.sizes: list[Size | None] = []
        self._names, self._paths, self._sources = GrowingTexts(), GrowingPaths(), GrowingPaths()
        self._offsets, self._lengths = array("q"), array("q")
        self._known_sizes: dict[Size | None, Size | None] = {}
        self._rows: dict[int, int] = {}
        self._boxes, self._owners, self._labels, self._lines = array("d"), array("q"), array("q"), array("q")
        self._difficult, self._crowd, self._outline = bytearray(), bytearray(), bytearray()
        self._counts: dict[str, _Count] = {}
        self._guesses: dict[Reason, _Count] = {}
        self._told: set[Path] = set()

    def skipping(self, reason: str, subject: str, source: Path | None = None) -> Skipping:
        """Return a block that turns a `DataError` into a count under `reason`, if the options say so.

        `source` is the file at fault where it is another than the label file being read.
        """
        return Skipping(self, reason, subject, source)

    def count(self, reason: str, subject: str) -> None:
        """Count something under a reason of `left_out`, with the file or image that it concerns."""
        self._counts.setdefault(reason, _Count()).add(1, (subject,))

    def guessed(self, guess: Reason, subject: str) -> None:
        """Note a choice that the label files leave open, with the file or image that it concerns."""
        self._guesses.setdefault(guess, _Count()).add(1, (subject,))

    def report(self, reason: str, kind: str, subject: str, message: str, became: str = "") -> None:
        """Tell the doctor of something in `source` that is read all the same, and what it became if it changed."""
        if self.options.raw is not None:
            self.problems.append(Problem(reason, kind, self.source, subject, message, became=became))

    def tell_encoding(self, path: Path, encoding: str) -> None:
        """Note the encoding that was guessed for a file; made for `read_text`."""
        if path in self._told:
            return
        self._told.add(path)
        one, many = f"file is not UTF-8 and was read as {encoding}", f"files are not UTF-8 and were read as {encoding}"
        self.guessed(Reason(one, many), path.name)
        if self.options.raw is not None:
            message = f"{path} is not UTF-8 and was read as {encoding}; save it as UTF-8"
            became = f"read as {encoding}"
            self.problems.append(Problem(BROKEN_FILE, "unknown-encoding", path, path.name, message, became=became))

    def find_image(self, finder: ImageFinder, listed: str, where: str) -> Path | None:
        """Return the file of the image that `where` lists, or None if it is missing and skipped.

        Raises:
            ImageError: it is missing, and `on_bad` is "stop".
        """
        path = finder.find(listed)
        return self.check_found(path, finder, listed, where, listed)

    def check_found(
        self,
        path: Path | None,
        finder: ImageFinder,
        listed: str,
        where: str,
        subject: str,
        kind: str = "label-without-image",
    ) -> Path | None:
        """Return `path`, an image's file as found; None counts the image as missing under `subject`, or raises."""
        for guess, what in finder.take_guesses():
            self.guessed(guess, what)
        if path is None:
            with self.skipping(MISSING_IMAGE, subject):
                raise ImageError(
                    f"{where}: image {listed!r} is missing; looked in {finder.places()}; put it there, or {SKIP}",
                    kind=kind,
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
        first = self._first_row(name, path, offset)
        if first is not None:
            before = self._sources[first]
            other = f"{before} and {source}" if source != before else f"{source}, twice"
            with self.skipping(LABELLED_TWICE, name):
                raise DataError(f"image {name} is labelled by {other}; leave one of them, or {SKIP}")
            return None
        row = self.image = len(self._names)
        self._rows[hash(name)] = self._rows[hash((str(path), offset))] = row
        self._names.append(name)
        self._paths.append(path)
        self._sources.append(source)
        # One object for each size, of which a data set has few
        self.sizes.append(self._known_sizes.setdefault(size, size))
        self._offsets.append(-1 if offset is None else offset)
        self._lengths.append(-1 if length is None else length)
        return row

    def _first_row(self, name: str, path: Path, offset: int | None) -> int | None:
        """Return the row that has this name or file already, or None.

        Only hashes are kept, as names would take gigabytes; what has the same hash is compared.
        """
        row = self._rows.get(hash(name))
        if row is not None and self._names[row] == name:
            return row
        row = self._rows.get(hash((str(path), offset)))
        same = row is not None and self._paths[row] == path and self._offsets[row] == (-1 if offset is None else offset)
        return row if same else None

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
        if not len(self._names):
            skipped = f" ({'; '.join(self._sentences())})" if self._counts else ""
            raise DataError(
                f"{self.root}: split {self.split!r} holds no images{skipped}; check its list or folder",
                kind="empty-split",
            )
        rows, owners = self._in_order()
        boxes, labels, _, flags = self._objects(rows)
        boxes = self._as_shown(boxes, owners)
        sizes = Sizes.of(self.sizes)
        keep = self._with_area(boxes, owners)
        boxes = self._at_the_edge(boxes, owners, sizes, keep, clip)
        boxes, owners, labels, flags = _only(keep, boxes, owners, labels, flags)
        labels, class_names = self._mapped(labels, owners, declared, order)
        known = labels >= 0
        others = len(known) - int(known.sum())
        lengths = np.frombuffer(self._lengths, np.int64)
        boxes, owners, labels, flags = _only(known, boxes, owners, labels, flags)
        return Dataset(
            root=self.root,
            format=self.format,
            split=self.split,
            class_names=class_names,
            image_names=self._names.column(),
            paths=self._paths.column(),
            sizes=sizes,
            offsets=Numbers(np.frombuffer(self._offsets, np.int64)),
            starts=np.searchsorted(owners, np.arange(len(self._names) + 1)).astype(np.int64),
            boxes_xyxy=boxes,
            labels=labels,
            difficult=flags[:, 0].copy(),
            crowd=flags[:, 1].copy(),
            notes=(*self.notes, *self._guess_sentences(), *self._sentences()),
            left_out=self._left_out(others),
            lengths=Numbers(lengths if (lengths >= 0).any() else lengths[:0]),
        )

    def _in_order(self) -> "tuple[slice | Labels, Labels]":
        """Return the order of the boxes that puts their images in order, and the image of each box in that order."""
        owners = np.frombuffer(self._owners, np.int64)
        if bool((owners[1:] >= owners[:-1]).all()):
            return slice(None), owners
        rows = np.argsort(owners, kind="stable")
        return rows, owners[rows]

    def _objects(self, rows: "slice | Labels") -> tuple[Boxes, Labels, Labels, Flags]:
        """Return boxes [N, 4], labels [N], lines [N] and the flags difficult, crowd and outline [N, 3], ordered."""
        flags = np.stack(
            [np.frombuffer(one, np.bool_) for one in (self._difficult, self._crowd, self._outline)], axis=1
        )
        boxes = np.frombuffer(self._boxes, np.float64).reshape(-1, 4)
        labels, lines = np.frombuffer(self._labels, np.int64), np.frombuffer(self._lines, np.int64)
        return boxes[rows], labels[rows], lines[rows], flags[rows]

    def _as_written(self, declared: Sequence[str]) -> RawLabels:
        rows, owners = self._in_order()
        boxes, labels, lines, flags = self._objects(rows)
        return RawLabels(
            root=self.root,
            format=self.format,
            split=self.split,
            class_names=list(declared),
            image_names=self._names.column(),
            paths=self._paths.column(),
            sources=self._sources.column(),
            sizes=Sizes.of(self.sizes),
            offsets=Numbers(np.frombuffer(self._offsets, np.int64)),
            lengths=Numbers(np.frombuffer(self._lengths, np.int64)),
            boxes_xyxy=boxes,
            owners=owners,
            labels=labels,
            lines=lines,
            difficult=flags[:, 0],
            crowd=flags[:, 1],
            outline=flags[:, 2],
            fractions=self.fractions,
            problems=list(self._placed_problems()),
            notes=[*self.notes, *self._guess_sentences()],
        )

    def _placed_problems(self) -> Iterator[Problem]:
        """Yield the problems, those of boxes for each image of their label file where each has its own."""
        images: dict[Path, list[int]] = {}
        if not self.shared and any(one.reason == BROKEN_BOX for one in self.problems):
            for row, source in enumerate(self._sources.column()):
                images.setdefault(source, []).append(row)
        for one in self.problems:
            rows = images.get(one.source, [one.image]) if one.reason == BROKEN_BOX else [one.image]
            yield from (one._replace(image=row) for row in rows)

    def _guess_sentences(self) -> list[str]:
        return [
            counted(one.total, *guess, one.first, len(one.seen) - len(one.first))
            for guess, one in self._guesses.items()
        ]

    def _sentences(self) -> list[str]:
        return [
            counted(one.total, REASONS[reason].one, REASONS[reason].many, one.first, len(one.seen) - len(one.first))
            for reason, one in self._counts.items()
        ]

    def _left_out(self, other_classes: int) -> dict[str, int]:
        counts = {reason: one.total for reason, one in self._counts.items()}
        return counts | ({OTHER_CLASS: other_classes} if other_classes else {})

    def _where(self, image: int) -> str:
        """Return the label file, and the image where the file describes many."""
        source = str(self._sources[image])
        return f"{source}: image {self._names[image]}" if self.shared else source

    def _count_rows(self, reason: str, rows: Flags, owners: Labels) -> None:
        images = np.unique(owners[rows]).tolist()
        if images:
            self._counts.setdefault(reason, _Count()).add(int(rows.sum()), map(self._subject, images))

    def _subject(self, image: int) -> str:
        return self._names[image] if self.shared else self._sources[image].name

    def _as_shown(self, boxes: Boxes, owners: Labels) -> Boxes:
        """Return the boxes in pixels of the images themselves, whose sizes take the place of those declared."""
        if self.fractions or not any(self.sizes):
            return boxes
        fit, sizes = fit_to_images(boxes, owners, self.sizes, self._names.column(), self._image)
        self.sizes = [own or declared for own, declared in zip(sizes, self.sizes, strict=True)]
        self.notes += fit.notes
        return fit.boxes_xyxy

    def _image(self, row: int) -> Sample:
        """Return an image without its labels."""
        none = np.zeros(0, np.bool_)
        place = self._paths[row], np.zeros((0, 4)), np.zeros(0, np.int64), none, none
        offset, length = (None if column[row] < 0 else column[row] for column in (self._offsets, self._lengths))
        return Sample(self._names[row], *place, offset=offset, length=length)

    def _with_area(self, boxes: Boxes, owners: Labels) -> Flags:
        """Return which boxes have finite corners in order and an area."""
        x1, y1, x2, y2 = boxes.T
        keep = np.ones(len(boxes), dtype=np.bool_)
        for faulty, what, kind in (
            (~np.isfinite(boxes).all(axis=1), "a coordinate is not a finite number", "not-a-number"),
            (x1 > x2, "xmin is above xmax", "reversed-box"),
            (y1 > y2, "ymin is above ymax", "reversed-box"),
        ):
            for row in np.flatnonzero(faulty & keep).tolist():
                image = int(owners[row])
                number = row - int(np.searchsorted(owners, image)) + 1
                corners = ", ".join(f"{value:g}" for value in boxes[row])
                with self.skipping(BROKEN_BOX, self._subject(image)):
                    raise DataError(
                        f"{self._where(image)}, object {number}: {what} in ({corners}); {ADVICE}", kind=kind
                    )
            keep &= ~faulty
        flat = keep & ((x1 == x2) | (y1 == y2))
        self._count_rows(NO_AREA, flat, owners)
        return keep & ~flat

    def _at_the_edge(self, boxes: Boxes, owners: Labels, sizes: Sizes, keep: Flags, clip: bool) -> Boxes:
        """Return the boxes cut at their images' edges, or as written; clear `keep` of those outside, in place."""
        edges = np.where(sizes.array < 0, np.inf, sizes.array)[:, ::-1]
        inside, over = np.zeros_like(boxes), np.zeros(len(boxes), np.bool_)
        for first in range(0, len(boxes), _BLOCK):
            rows = slice(first, first + _BLOCK)
            sound = np.where(keep[rows, None], boxes[rows], 0.0)
            np.clip(sound, 0.0, np.tile(edges[owners[rows]], 2), out=inside[rows])
            over[rows] = keep[rows] & (np.abs(inside[rows] - sound) > ROUNDING_PX).any(axis=1)
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
        asked = self.options.rename or {}
        for old in (name for name in asked if name not in (*declared, *(order or ()))):
            self.notes.append(f"the data has no class {old!r} to rename{did_you_mean(old, declared)}")
        rename = {**(self.options.merge or {}), **asked}
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


class _Count:
    """How often a reason occurred, the first three that it concerned, and hashes of all of them."""

    def __init__(self) -> None:
        self.total = 0
        self.first: list[str] = []
        self.seen: set[int] = set()

    def add(self, times: int, subjects: Iterable[str]) -> None:
        """Count so many occurrences, which concern `subjects`."""
        self.total += times
        for subject in subjects:
            if len(self.first) < 3 and subject not in self.first:
                self.first.append(subject)
            self.seen.add(hash(subject))


def _only(
    keep: Flags, boxes: Boxes, owners: Labels, labels: Labels, flags: Flags
) -> tuple[Boxes, Labels, Labels, Flags]:
    """Return the marked rows of columns about boxes; the columns themselves where all are marked."""
    return (boxes, owners, labels, flags) if keep.all() else (boxes[keep], owners[keep], labels[keep], flags[keep])


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
