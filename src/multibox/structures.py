"""What flows between the parts, as numpy: labelled pictures in, detections out. Importable without torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled picture: where its pixels are and what is in it.

    Boxes are xyxy in pixels of the picture as shown (after EXIF orientation), as the label file wrote them.
    """

    name: str
    """The picture's name inside its data set, unique there: a path below the root, or a record's key."""
    path: Path
    """The file that holds the picture."""
    boxes_xyxy: Boxes
    """[N, 4]; every box has an area."""
    labels: Labels
    """[N]; 0-based, no background."""
    difficult: Flags
    """[N]; VOC's flag: not scored."""
    crowd: Flags
    """[N]; COCO's flag: a region of many objects, neither trained on nor scored."""
    size: tuple[int, int] | None = None
    """Width and height, where the label file says them."""
    offset: int | None = None
    """Byte position of the picture's record in `path` for RecordIO; None when `path` is the picture."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """An index of labelled pictures, held as columns, so that a million of them fit in memory.

    Indexing makes a `Sample`; pixels are read by `multibox.data.pictures`.
    """

    root: Path
    format: str
    """voc, coco, yolo, csv or recordio."""
    split: str
    class_names: tuple[str, ...]
    names: list[str]
    paths: list[Path]
    sizes: list[tuple[int, int] | None]
    offsets: list[int | None]
    starts: Labels
    """[pictures + 1]; picture i owns the rows starts[i] .. starts[i + 1] of the four columns below."""
    boxes_xyxy: Boxes
    labels: Labels
    difficult: Flags
    crowd: Flags
    notes: tuple[str, ...] = field(default=())
    """What the reader had to say: dropped boxes, skipped pictures."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Return picture `index` with its labels."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return Sample(
            name=self.names[index],
            path=self.paths[index],
            boxes_xyxy=self.boxes_xyxy[rows],
            labels=self.labels[rows],
            difficult=self.difficult[rows],
            crowd=self.crowd[rows],
            size=self.sizes[index],
            offset=self.offsets[index],
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """Return a data set of the chosen pictures, in the order given."""
        chosen = (self[index] for index in indices)
        return pack(
            chosen,
            root=self.root,
            format=self.format,
            split=self.split,
            class_names=self.class_names,
            notes=self.notes,
        )


def pack(
    samples: Iterable[Sample],
    *,
    root: Path,
    format: str,
    split: str,
    class_names: Iterable[str],
    notes: Iterable[str] = (),
) -> Dataset:
    """Pack samples into one columnar `Dataset`, in the order given."""
    held = list(samples)
    counts = [len(sample.labels) for sample in held]
    return Dataset(
        root=root,
        format=format,
        split=split,
        class_names=tuple(class_names),
        names=[sample.name for sample in held],
        paths=[sample.path for sample in held],
        sizes=[sample.size for sample in held],
        offsets=[sample.offset for sample in held],
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=np.concatenate([s.boxes_xyxy for s in held]) if held else np.zeros((0, 4)),
        labels=np.concatenate([s.labels for s in held]) if held else np.zeros(0, np.int64),
        difficult=np.concatenate([s.difficult for s in held]) if held else np.zeros(0, np.bool_),
        crowd=np.concatenate([s.crowd for s in held]) if held else np.zeros(0, np.bool_),
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one picture, best first.

    `boxes` are xyxy in pixels of the ORIGINAL picture, `labels` are 0-based without background.
    """

    boxes: NDArray[np.float32]
    """[N, 4]"""
    scores: NDArray[np.float32]
    """[N], 0 to 1"""
    labels: Labels
    """[N]"""
    names: tuple[str, ...]
    """The detector's class names; `names[labels[i]]` is the i-th detection's."""

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise ValueError(
                f"Detections need boxes [N, 4], scores [N] and labels [N], "
                f"got {self.boxes.shape}, {self.scores.shape} and {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, mask: Flags | NDArray[np.int64] | slice) -> "Detections":
        """Select by boolean mask, indices or slice: `found[found.scores > 0.5]`."""
        return Detections(self.boxes[mask], self.scores[mask], self.labels[mask], self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        return (
            self.names == other.names
            and np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.labels, other.labels)
        )
