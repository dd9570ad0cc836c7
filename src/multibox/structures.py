"""What flows between the parts, as numpy: labelled images in, detections out. Importable without torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from multibox.columns import Numbers, Paths, Texts, as_slice, local, portable, ragged, same_rows
from multibox.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

Boxes = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Size(NamedTuple):
    """Height and width of an image, an input or a feature map, in pixels or cells."""

    height: int
    width: int


class Sizes(Sequence[Size | None]):
    """Sizes of images, or None, as one array [N, 2] of height and width with -1 for None."""

    __slots__ = ("array",)

    def __init__(self, array: NDArray[np.int32]) -> None:
        self.array = array

    @classmethod
    def of(cls, sizes: Iterable[Size | None]) -> "Sizes":
        """Return `sizes` as a column; a column is returned as it is. Sides above 2**31 - 1 become that."""
        if isinstance(sizes, Sizes):
            return sizes
        sides = (side for size in sizes for side in ((-1, -1) if size is None else size))
        flat = np.fromiter((min(side, 2**31 - 1) for side in sides), np.int32)
        return cls(flat.reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> Size | None: ...
    @overload
    def __getitem__(self, index: slice) -> "Sizes": ...
    def __getitem__(self, index: "int | slice") -> "Size | Sizes | None":
        if isinstance(index, slice):
            return Sizes(self.array[index])
        height, width = self.array[index].tolist()
        return None if height < 0 else Size(height, width)

    def __eq__(self, other: object) -> bool:
        return same_rows(self, other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"Sizes({self.array.tolist()})" if len(self) < 4 else f"Sizes of {len(self)} images"

    def __getstate__(self) -> Any:
        return (portable(self.array),)

    def __setstate__(self, state: Any) -> None:
        self.array = local(state[0])

    def take(self, rows: Labels) -> "Sizes":
        """Return the sizes of these rows, in this order."""
        return Sizes(self.array[as_slice(rows) or rows])


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image: where its pixels are and what is in it.

    Boxes are xyxy in pixels of the image as shown (after EXIF orientation), as the label file wrote them.
    """

    name: str
    """The image's name inside its data set, unique there: a path below the root, or a record's key."""
    path: Path
    """The file that holds the image."""
    boxes_xyxy: Boxes
    """[N, 4]; every box has an area."""
    labels: Labels
    """[N]; 0-based, no background."""
    difficult: Flags
    """[N]; VOC's flag: not scored."""
    crowd: Flags
    """[N]; COCO's flag: a region of many objects, neither trained on nor scored."""
    size: Size | None = None
    """Of the image, where the label file says it."""
    offset: int | None = None
    """Byte position in `path` of the image, or for RecordIO of its record; None when `path` is the image."""
    length: int | None = None
    """Bytes of the image from `offset` on, for a container such as tar; None for RecordIO, whose records say it."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """An index of labelled images, held as columns, so that a million of them fit in memory.

    Indexing makes a `Sample`; pixels are read by `multibox.data.images`. Names, paths, sizes, offsets and lengths may
    be given as plain sequences and become columns. Columns in a mapped file are pickled as their place in it.
    """

    root: Path
    format: str
    """A name of `multibox.data.formats.FORMATS`."""
    split: str
    class_names: tuple[str, ...]
    image_names: Texts
    paths: Paths
    sizes: Sizes
    offsets: Numbers
    starts: Labels
    """[images + 1]; image i owns the rows starts[i] .. starts[i + 1] of the four columns below."""
    boxes_xyxy: Boxes
    labels: Labels
    difficult: Flags
    crowd: Flags
    notes: tuple[str, ...] = field(default=())
    """What the reader had to say: dropped boxes, skipped images."""
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many images and boxes were left out or changed, by the reasons of `multibox.data.left_out`."""
    lengths: Numbers = field(default_factory=lambda: Numbers.of(()))
    """Of each image in its container; empty where no image lies in one."""

    def __post_init__(self) -> None:
        for name, kind in _COLUMNS.items():
            object.__setattr__(self, name, kind.of(getattr(self, name)))

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: portable(getattr(self, name)) for name in _ARRAYS}
        return {**self.__dict__, **arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.update({name: local(state[name]) for name in _ARRAYS})

    def __len__(self) -> int:
        return len(self.image_names)

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` with its labels."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return Sample(
            name=self.image_names[index],
            path=self.paths[index],
            boxes_xyxy=self.boxes_xyxy[rows],
            labels=self.labels[rows],
            difficult=self.difficult[rows],
            crowd=self.crowd[rows],
            size=self.sizes[index],
            offset=self.offsets[index],
            length=self.lengths[index] if self.lengths else None,
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """Return a data set of the chosen images, in the order given."""
        images = np.fromiter(indices, np.int64)
        starts, places = ragged(self.starts, images)
        boxes = as_slice(places) or places
        return replace(
            self,
            image_names=self.image_names.take(images),
            paths=self.paths.take(images),
            sizes=self.sizes.take(images),
            offsets=self.offsets.take(images),
            lengths=self.lengths.take(images) if self.lengths else self.lengths,
            starts=starts,
            boxes_xyxy=self.boxes_xyxy[boxes],
            labels=self.labels[boxes],
            difficult=self.difficult[boxes],
            crowd=self.crowd[boxes],
        )

    def keep_boxes(self, keep: Flags, **changes: Any) -> "Dataset":
        """Return a data set of all images with those boxes that `keep` [boxes] marks, and with `changes` of fields."""
        if keep.all():
            # A copy would be private to this process, where the columns may lie in a shared file
            return replace(self, **changes)
        return replace(
            self,
            starts=np.concatenate([[0], np.cumsum(keep)])[self.starts].astype(np.int64),
            boxes_xyxy=self.boxes_xyxy[keep],
            labels=self.labels[keep],
            difficult=self.difficult[keep],
            crowd=self.crowd[keep],
            **changes,
        )


_COLUMNS = {"image_names": Texts, "paths": Paths, "sizes": Sizes, "offsets": Numbers, "lengths": Numbers}
_ARRAYS = ("starts", "boxes_xyxy", "labels", "difficult", "crowd")


def pack(
    samples: Iterable[Sample],
    *,
    root: Path,
    format: str,
    split: str,
    class_names: Iterable[str],
    notes: Iterable[str] = (),
    left_out: Mapping[str, int] | None = None,
) -> Dataset:
    """Pack samples into one columnar `Dataset`, in the order given."""
    held = list(samples)
    counts = [len(sample.labels) for sample in held]
    some_have_length = any(sample.length is not None for sample in held)
    return Dataset(
        root=root,
        format=format,
        split=split,
        class_names=tuple(class_names),
        image_names=Texts.of(sample.name for sample in held),
        paths=Paths.of(sample.path for sample in held),
        sizes=Sizes.of(sample.size for sample in held),
        offsets=Numbers.of(sample.offset for sample in held),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy=np.concatenate([s.boxes_xyxy for s in held]) if held else np.zeros((0, 4)),
        labels=np.concatenate([s.labels for s in held]) if held else np.zeros(0, np.int64),
        difficult=np.concatenate([s.difficult for s in held]) if held else np.zeros(0, np.bool_),
        crowd=np.concatenate([s.crowd for s in held]) if held else np.zeros(0, np.bool_),
        notes=tuple(notes),
        left_out=dict(left_out or {}),
        lengths=Numbers.of(sample.length for sample in held if some_have_length),
    )


def checked_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names as a tuple, if a detector can have them.

    Raises:
        ConfigError: `names` is one string, is empty, or holds something else than text, a blank name or a name twice.
    """
    if isinstance(names, str):
        raise ConfigError(f"class names are the text {names!r}, expected a list; for one class give [{names!r}]")
    found = tuple(names)
    if not found:
        raise ConfigError("a detector needs at least one class name, got none; give a list such as ['cat', 'dog']")
    for place, name in enumerate(found):
        # A name from outside may be anything, whatever the annotation says
        if not isinstance(name, str) or not name.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"class name {place} is {name!r}, expected text that is not blank")
        if found.index(name) != place:
            raise ConfigError(
                f"class name {name!r} is given twice (places {found.index(name)} and {place}); give each class once"
            )
    return found


def iou(a_xyxy: Boxes, b_xyxy: Boxes, extra: float = 0.0) -> NDArray[np.float64]:
    """Return the intersection over union of boxes, [...]; 0 for boxes without area.

    Args:
        a_xyxy: [..., 4]
        b_xyxy: [..., 4], broadcast against the first: `iou(a[:, None], b)` compares each with each.
        extra: Added to every width and height; 1 where corners are indices of pixels inside the box.
    """

    def area(low: Boxes, high: Boxes) -> NDArray[np.float64]:
        sides = np.maximum(high - low + extra, 0)
        return sides[..., 0] * sides[..., 1]

    a_low, a_high, b_low, b_high = a_xyxy[..., :2], a_xyxy[..., 2:], b_xyxy[..., :2], b_xyxy[..., 2:]
    shared = area(np.maximum(a_low, b_low), np.minimum(a_high, b_high))
    union = area(a_low, a_high) + area(b_low, b_high) - shared
    return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


class Detection(NamedTuple):
    """One detection: unpacks as `box, score, label, name`."""

    box: NDArray[np.float32]
    """[4]; xyxy in pixels of the original image"""
    score: float
    """0 to 1"""
    label: int
    """Class index; 0-based, no background"""
    name: str
    """Of the class"""


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image, best first.

    Iterating gives one `Detection` each: `for box, score, label, name in found`. `found[0]` is one `Detection`;
    `found[found.scores > 0.5]`, `found[:10]` and `found[[0, 2]]` are `Detections` again.
    """

    boxes: NDArray[np.float32]
    """[N, 4]; xyxy in pixels of the ORIGINAL image"""
    scores: NDArray[np.float32]
    """[N], 0 to 1"""
    labels: Labels
    """[N]; class indices, 0-based, no background"""
    names: tuple[str, ...]
    """The detector's class names; `names[labels[i]]` is that of detection i."""

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise ValueError(
                f"Detections need boxes [N, 4], scores [N] and labels [N], "
                f"got {self.boxes.shape}, {self.scores.shape} and {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes, self.scores.tolist(), self.labels.tolist(), strict=True)
        return (Detection(box, score, label, self.names[label]) for box, score, label in rows)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Detection: ...
    @overload
    def __getitem__(self, index: "Flags | NDArray[np.integer[Any]] | Sequence[int] | slice") -> "Detections": ...
    def __getitem__(
        self, index: "int | np.integer[Any] | Flags | NDArray[np.integer[Any]] | Sequence[int] | slice"
    ) -> "Detection | Detections":
        """Return detection `index`, or the `Detections` that a mask, a slice or a list of indices chooses."""
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            label = int(self.labels[index])
            return Detection(self.boxes[index], float(self.scores[index]), label, self.names[label])
        if not isinstance(index, slice):
            chosen = np.asarray(index)
            # An empty list has numpy's default type, which is no index
            index = chosen if chosen.size else chosen.astype(chosen.dtype if chosen.dtype == bool else np.int64)
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        return (
            self.names == other.names
            and np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.labels, other.labels)
        )

    def to_dict(self) -> dict[str, NDArray[Any]]:
        """Return `boxes`, `scores` and `labels` as a dict with torchvision's keys; the arrays are not copied.

        The values are numpy arrays, with and without PyTorch; `{key: torch.from_numpy(value) for ...}` makes tensors.
        Labels are 0-based, where torchvision's own detectors count the background as 0.
        """
        return {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return one entry of COCO's results format per detection.

        Args:
            image_id: of the image in the COCO file.

        Returns:
            Dicts of `image_id`, `category_id` (the label + 1, as in the files of `multibox data convert`), `bbox` (x,
            y, width and height in pixels) and `score`.
        """
        corners = self.boxes.astype(np.float64)
        corners[:, 2:] -= corners[:, :2]
        rows = zip(self.labels.tolist(), corners.tolist(), self.scores.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": label + 1, "bbox": bbox, "score": score}
            for label, bbox, score in rows
        ]

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections` with class names in `data["class_name"]`.

        Raises:
            MissingExtraError: the package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError:
            raise MissingExtraError("to_supervision()", "video") from None
        names = np.array([self.names[label] for label in self.labels.tolist()], dtype=np.str_)
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data={"class_name": names}
        )

    def draw(self, image: Any, threshold: float = 0.0) -> "Image.Image":
        """Return a copy of `image` with the boxes, names and scores drawn on it.

        Args:
            image: the image on which the detector ran, in any form that `predict` takes.
            threshold: lowest score to draw.

        Raises:
            ImageError: as `predict` does.
        """
        from multibox.inference.inputs import open_image
        from multibox.plots.detections import draw_detections

        return draw_detections(open_image(image), self, threshold)
