"""Gathering what a reader finds into columns, and checking all boxes at once."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.text import ADVICE, SKIP, ReadOptions, counted
from multibox.errors import DataError, ImageError, did_you_mean
from multibox.structures import Boxes, Dataset, Flags, Labels, Size

_OUTSIDE_PX = 0.01  # less than this over the edge is rounding in the label file, not worth a note


class Columns:
    """Images and boxes of one split on their way into a `Dataset`.

    `shared` says that one label file speaks of all images, so that messages name the image too.
    """

    def __init__(self, root: Path, format: str, split: str, options: ReadOptions, *, shared: bool) -> None:
        self.root, self.format, self.split, self.options, self.shared = root, format, split, options, shared
        self.image_names: list[str] = []
        self.paths: list[Path] = []
        self.sizes: list[Size | None] = []
        self.offsets: list[int | None] = []
        self.sources: list[Path] = []
        self._seen: dict[str, Path] = {}
        self._files: dict[str, Path] = {}
        self._boxes, self._owners, self._labels = array("d"), array("q"), array("q")
        self._difficult, self._crowd = bytearray(), bytearray()
        self._counts: dict[tuple[str, str], list[str]] = {}
        self._notes: list[str] = []

    def add_image(
        self, name: str, path: Path, source: Path, size: Size | None = None, offset: int | None = None
    ) -> int | None:
        """Add an image and return its row, or None where the name was there already and is skipped."""
        key = f"{path}@{offset}"
        first = self._seen.get(name) or self._files.get(key)
        if first is not None:
            other = f"{first} and {source}" if source != first else f"{source}, twice"
            self.bad(f"image {name} is labelled by {other}; leave one of them, or {SKIP}", name, "duplicate")
            return None
        self._seen[name] = self._files[key] = source
        self.image_names.append(name)
        self.paths.append(path)
        self.sizes.append(size)
        self.offsets.append(offset)
        self.sources.append(source)
        return len(self.image_names) - 1

    def add_box(
        self, image: int, box_xyxy: Sequence[float], label: int, *, difficult: bool = False, crowd: bool = False
    ) -> None:
        """Add a box of an image; `label` counts in the names that `finish` is told."""
        self._boxes.extend(box_xyxy)
        self._owners.append(image)
        self._labels.append(label)
        self._difficult.append(difficult)
        self._crowd.append(crowd)

    def bad(self, sentence: str, file: str, kind: str = "broken") -> None:
        """Raise the sentence, or count the image or box as skipped.

        Kinds: broken, missing, image and duplicate for images, box for a box.
        """
        if self.options.on_bad != "skip":
            raise (ImageError if kind in ("missing", "image") else DataError)(sentence)
        one, many = _SKIPPED[kind]
        self.count(file, one, many)

    def count(self, file: str, one: str, many: str) -> None:
        """Count something worth a note, with the file it was found in."""
        self._counts.setdefault((one, many), []).append(file)

    def note(self, sentence: str) -> None:
        """Add a sentence to the data set's notes."""
        self._notes.append(sentence)

    def finish(self, declared: Sequence[str], *, order: Sequence[str] | None = None, clip: bool = True) -> Dataset:
        """Check every box and make the data set.

        Args:
            declared: the name of each label that `add_box` was told.
            order: the data set's own order of classes where that differs from `declared`.
            clip: cut boxes at the image's edge where its size is known.

        Raises:
            DataError: for a box that is no box (under on_bad "stop"), a class that the model lacks, an empty split.
        """
        if not self.image_names:
            skipped = f" ({'; '.join(self._sentences())})" if self._counts else ""
            raise DataError(f"{self.root}: split {self.split!r} holds no images{skipped}; check its list or folder")
        boxes = np.array(self._boxes, dtype=np.float64).reshape(-1, 4)
        owners = np.array(self._owners, dtype=np.int64)
        rows = np.argsort(owners, kind="stable")
        boxes, owners = boxes[rows], owners[rows]
        numbers = np.arange(len(owners)) - np.searchsorted(owners, owners) + 1
        boxes, keep = self._checked(boxes, owners, numbers, clip)
        owners = owners[keep]
        labels = np.array(self._labels, dtype=np.int64)[rows][keep]
        labels, class_names = self._mapped(labels, owners, declared, order)
        # Of a class that was dropped
        keep[keep] = labels >= 0
        labels, owners = labels[labels >= 0], owners[labels >= 0]
        starts = np.searchsorted(owners, np.arange(len(self.image_names) + 1)).astype(np.int64)
        return Dataset(
            root=self.root,
            format=self.format,
            split=self.split,
            class_names=class_names,
            image_names=self.image_names,
            paths=self.paths,
            sizes=self.sizes,
            offsets=self.offsets,
            starts=starts,
            boxes_xyxy=boxes[keep],
            labels=labels,
            difficult=np.frombuffer(bytes(self._difficult), np.bool_)[rows][keep],
            crowd=np.frombuffer(bytes(self._crowd), np.bool_)[rows][keep],
            notes=(*self._notes, *self._sentences()),
        )

    def where(self, image: int) -> str:
        """Name the label file, and the image where the file speaks of many."""
        source = str(self.sources[image])
        return f"{source}: image {self.image_names[image]}" if self.shared else source

    def _short(self, image: int) -> str:
        return self.image_names[image] if self.shared else self.sources[image].name

    def _sentences(self) -> list[str]:
        return [counted(len(files), one, many, files) for (one, many), files in self._counts.items()]

    def _checked(self, boxes: Boxes, owners: Labels, numbers: Labels, clip: bool) -> tuple[Boxes, Flags]:
        x1, y1, x2, y2 = boxes.T
        no_number = ~np.isfinite(boxes).all(axis=1)
        faults = (
            (no_number, "a coordinate is no number"),
            (x1 > x2, "xmin is above xmax"),
            (y1 > y2, "ymin is above ymax"),
        )
        keep = np.ones(len(boxes), dtype=np.bool_)
        for faulty, what in faults:
            for row in np.flatnonzero(faulty & keep):
                image = int(owners[row])
                corners = ", ".join(f"{value:g}" for value in boxes[row])
                self.bad(
                    f"{self.where(image)}, object {numbers[row]}: {what} in ({corners}); {ADVICE}",
                    self._short(image),
                    "box",
                )
            keep &= ~faulty
        flat = keep & ((x1 == x2) | (y1 == y2))
        self._count_rows(flat, owners, "box without area was dropped", "boxes without area were dropped")
        keep &= ~flat
        return self._at_the_edge(boxes, owners, keep, clip), keep

    def _at_the_edge(self, boxes: Boxes, owners: Labels, keep: Flags, clip: bool) -> Boxes:
        """Clip boxes to their images, or only count those that run out."""
        edges = np.array([(s.width, s.height) if s else (np.inf, np.inf) for s in self.sizes], dtype=np.float64)[owners]
        sound = np.where(keep[:, None], boxes, 0.0)
        clipped: NDArray[np.float64] = np.clip(sound, 0.0, edges[:, [0, 1, 0, 1]])
        over = keep & (np.abs(clipped - sound) > _OUTSIDE_PX).any(axis=1)
        gone = keep & ~((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
        if clip:
            self._count_rows(
                gone, owners, "box outside its image was dropped", "boxes outside their images were dropped"
            )
            keep &= ~gone
            over &= keep
        done = "clipped" if clip else "kept as written"
        one, many = f"box ran out of its image and was {done}", f"boxes ran out of their images and were {done}"
        self._count_rows(over, owners, one, many)
        return clipped if clip else boxes

    def _count_rows(self, rows: Flags, owners: Labels, one: str, many: str) -> None:
        for row in np.flatnonzero(rows):
            self.count(self._short(int(owners[row])), one, many)

    def _mapped(
        self, labels: Labels, owners: Labels, declared: Sequence[str], order: Sequence[str] | None
    ) -> tuple[Labels, tuple[str, ...]]:
        """Return each object's class index among the data set's or the model's classes, -1 for what is dropped."""
        rename = self.options.rename or {}
        for old in (name for name in rename if name not in (*declared, *(order or ()))):
            self.note(f"the data has no class {old!r} to rename{did_you_mean(old, declared)}")
        names = [rename.get(name, name) for name in declared]
        own = tuple(dict.fromkeys(new for name in (order or declared) if (new := rename.get(name, name))))
        class_names = own if self.options.class_names is None else tuple(self.options.class_names)
        index = {name: number for number, name in enumerate(class_names)}
        table = np.array([index.get(name, -1) for name in names], dtype=np.int64)
        mapped = table[labels] if len(labels) else labels
        asked_to_drop = np.array([not name for name in names], dtype=np.bool_)
        strange = np.flatnonzero((mapped < 0) & ~asked_to_drop[labels]) if len(labels) else labels
        if len(strange) and self.options.unknown == "refuse":
            row = int(strange[0])
            name = names[int(labels[row])]
            raise DataError(
                f"{self.where(int(owners[row]))}: class {name!r} is not among the model's classes "
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
        self.note(f"{counts.sum()} {objects} left out, of other classes than asked for: {shown}{more}")


_SKIPPED = {
    "broken": ("broken label file was skipped", "broken label files were skipped"),
    "missing": ("image without a file was skipped", "images without a file were skipped"),
    "image": ("unreadable image was skipped", "unreadable images were skipped"),
    "duplicate": ("second labelling of an image was skipped", "second labellings of images were skipped"),
    "box": ("broken box was skipped", "broken boxes were skipped"),
}


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
