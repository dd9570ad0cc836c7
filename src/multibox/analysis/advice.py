"""What is wrong with the data or would help a run most, in sentences: before training, during it, and at its end."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.anchor_fit import overlap
from multibox.config import Config
from multibox.data.images import image_size, sample_size
from multibox.data.left_out import counted
from multibox.errors import ImageError
from multibox.models.anchor_layout import cell_shapes
from multibox.structures import Boxes, Dataset, Size

SAMPLED = 200
"""Images whose files are opened, for their sizes; evenly spaced over the data."""
MISFIT = 0.05
"""Share of the boxes from which a fault is said; single boxes are counted by the readers."""
MANY = 0.25
"""Share of the objects from which the input size or the anchors are said not to fit."""
TINY = 6.0
"""Pixels of the network's input (square root of the area) below which an object can hardly be learned."""
WANTED = 12.0
"""Pixels of the network's input that the median object should have."""
LARGEST = 1024
"""Side of the input up to which a larger one is advised; beyond it images should be cut into tiles."""
FEW = 20
"""Objects of a class below which it is named."""
SMALL = 16.0
"""Pixels of the input that the median object should have, where `train.largest_input` allows it."""
STRIDE = 32
"""Sides of an enlarged input are multiples of it: backbones share this stride."""
SILENT = 30
"""Steps without any matched anchor after which a run says so."""
NEAR_ZERO = 0.02
"""mAP@0.5 below which a validation counts as nothing detected."""
VALIDATIONS = 3
"""Validations near 0 after which a run says so."""

Row = Mapping[str, Any]


class _Objects(NamedTuple):
    """Objects of some images, one row each."""

    boxes_xyxy: Boxes
    image_wh: NDArray[np.float64]
    """[N, 2] width and height of the image of each object."""

    @property
    def fractions_wh(self) -> NDArray[np.float64]:
        """Width and height of each box over those of its image."""
        return (self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]) / self.image_wh

    def sides(self, size: Size) -> NDArray[np.float64]:
        """Return the square root of each box's area in pixels of an input of (height, width)."""
        return np.sqrt((self.fractions_wh * (size.width, size.height)).prod(1))


def look_at_boxes(dataset: Dataset, config: Config) -> list[str]:
    """Return what the boxes of the training images say about the success of a run, the gravest first.

    At most 200 images are opened, and of those only the headers.
    """
    objects = sample_objects(dataset)
    sentences: list[str | None] = []
    if len(objects.boxes_xyxy):
        sentences = [_outside(objects), _swapped(objects)]
        if not any(sentences):
            sentences = [_too_small(objects, config) or _beyond_anchors(objects, config)]
    return [sentence for sentence in (*sentences, _rare_classes(dataset), _empty(dataset)) if sentence]


def sample_objects(dataset: Dataset) -> _Objects:
    """Return the objects of up to 200 images, evenly spaced, with the real sizes of the images."""
    boxes: list[Boxes] = [np.zeros((0, 4))]
    sizes: list[NDArray[np.float64]] = [np.zeros((0, 2))]
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset))).astype(int)).tolist():
        sample = dataset[index]
        try:
            # The header, not the label file: a run resizes what it reads
            size = image_size(sample.path) if sample.offset is None else sample_size(sample)
        except ImageError:
            continue
        boxes.append(sample.boxes_xyxy[~sample.crowd])
        sizes.append(np.tile(np.array([size.width, size.height], np.float64), (len(boxes[-1]), 1)))
    return _Objects(np.concatenate(boxes), np.concatenate(sizes))


def median_side(dataset: Dataset, size: Size) -> float | None:
    """Return the median of the objects' sides (square root of the area) in pixels of an input of (height, width)."""
    objects = sample_objects(dataset)
    return float(np.median(objects.sides(size))) if len(objects.boxes_xyxy) else None


def enlarged_size(config: Config, median: float | None) -> Size:
    """Return the input at which training works: a larger one where most objects are small, up to `train.largest_input`.

    Args:
        config: The settings.
        median: Median of the objects' sides in pixels of `model.input_size`, as `median_side` gives it; None without
            objects.
    """
    size = Size(*config.model.input_size)
    if config.train.largest_input == "none" or not median:
        return size
    scale = min(SMALL / median, config.train.largest_input / max(size))
    larger = Size(*(round(edge * scale / STRIDE) * STRIDE for edge in size))
    return size if scale <= 1 or larger <= size else larger


def _outside(objects: _Objects) -> str | None:
    """Say that boxes lie outside their images, and by which factor they seem too large."""
    boxes, sizes = objects
    inside = np.clip(boxes, 0, sizes[:, [0, 1, 0, 1]])
    visible = np.prod(inside[:, 2:] - inside[:, :2], axis=1)
    out = visible < 0.5 * np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1e-12)
    if out.mean() <= MISFIT or _swap_explains(objects):
        return None
    reach = np.quantile((boxes[:, 2:] / sizes).max(1), 0.99)
    scale = f"; the coordinates seem about {reach:.2g} times too large" if reach > 1.5 else ""
    width, height = sizes[int(np.argmax(out))].astype(int).tolist()
    corners = ", ".join(f"{value:g}" for value in boxes[int(np.argmax(out))])
    return (
        f"{_share(out)} of the boxes lie mostly outside their images, such as ({corners}) in an image of {width} x "
        f"{height} pixels{scale}. Check that the labels belong to images of this size; nothing can be learned from them"
    )


def _swapped(objects: _Objects) -> str | None:
    """Say that x and y seem exchanged: boxes run out of their images and would fit the other way round."""
    if not _swap_explains(objects):
        return None
    return (
        f"x and y of the boxes seem to be exchanged: {_share(_misfit(*objects))} of the boxes run out of their images, "
        "and nearly all of those would fit with x and y swapped. Check the order of the coordinates in the labels"
    )


def _swap_explains(objects: _Objects) -> bool:
    misfit = _misfit(*objects)
    turned = _misfit(objects.boxes_xyxy[:, [1, 0, 3, 2]], objects.image_wh)
    return bool(misfit.mean() > MISFIT and (turned & misfit).sum() <= 0.1 * misfit.sum() and turned.mean() < MISFIT)


def _misfit(boxes_xyxy: Boxes, image_wh: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which boxes run out of their image by more than a rounding."""
    return np.any(boxes_xyxy[:, 2:] > 1.01 * image_wh + 1, axis=1)


def _too_small(objects: _Objects, config: Config) -> str | None:
    """Say that objects are tiny at the network's input, and what would make them larger."""
    height, width = config.model.input_size
    sides = objects.sides(config.model.input_size)
    tiny = sides < TINY
    if tiny.mean() <= MANY:
        return None
    median = float(np.median(sides))
    # Where the median is large enough by itself, it is the small ones that need the room
    factor = WANTED / max(min(median, TINY), 1e-6)
    larger = [max(32, round(side * factor / 32) * 32) for side in (height, width)]
    enlarge = f"give a larger input, such as --set model.input_size={larger}, or " if max(larger) <= LARGEST else ""
    # In a tile of this side the objects have the wanted size at the network's input
    across = float(np.median(np.sqrt(objects.image_wh.prod(1))))
    tile = max(min(height, width) // 2, round(across / factor / 32) * 32)
    image = np.median(objects.image_wh, axis=0).astype(int).tolist()
    return (
        f"{_share(tiny)} of the objects are smaller than {TINY:g} pixels at the network's input of {width} x {height} "
        f"(median {median:.2g}; images of {image[0]} x {image[1]} are reduced to it), too small to be learned well: "
        f"{enlarge}cut the images into tiles of about {tile} pixels"
    )


def _beyond_anchors(objects: _Objects, config: Config) -> str | None:
    """Say that no anchor has a shape near many of the objects."""
    fractions = np.clip(objects.fractions_wh, 1e-6, 1)
    shapes = np.array([shape for level in cell_shapes(config.anchors, config.model.input_size) for shape in level])
    if not len(shapes):
        return None
    # Of one centre: an upper bound of any overlap
    best = overlap(fractions, np.zeros_like(fractions), shapes).max(0)
    missed = best < min(0.5, config.matching.threshold)
    if missed.mean() <= MANY:
        return None
    narrow = np.median(fractions[missed].min(1) / fractions[missed].max(1)) < 0.3
    small = np.median(fractions[missed].prod(1)) < shapes.prod(1).min()
    kind = "elongated" if narrow else "small" if small else "large"
    return (
        f"no anchor has the shape of {_share(missed)} of the objects (overlap below {config.matching.threshold:g} at "
        f"any place), mostly {kind} ones; --set anchors.fit=4 fits the anchors to these boxes"
    )


def _rare_classes(dataset: Dataset) -> str | None:
    counts = np.bincount(dataset.labels[~dataset.crowd], minlength=len(dataset.class_names)).tolist()
    rare = sorted((count, name) for name, count in zip(dataset.class_names, counts, strict=True) if count < FEW)
    if not rare:
        return None
    listed = ", ".join(f"{name} ({count})" for count, name in rare[:5])
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return (
        f"{counted(len(rare), 'class has', 'classes have')} fewer than {FEW} objects to learn from: {listed}{more}; "
        "expect little of them"
    )


def _empty(dataset: Dataset) -> str | None:
    empty = int((np.diff(dataset.starts) == 0).sum())
    if not empty:
        return None
    return f"{counted(empty, 'image has', 'images have')} no objects, of {len(dataset)}; all of them is background"


def nothing_matched(steps: int, positives: int, findings: Sequence[str] = ()) -> str | None:
    """Return a sentence if no anchor matched any object in all steps so far; to be said once.

    Args:
        steps: taken so far.
        positives: sum of `LossParts.positives` over them.
        findings: what `look_at_boxes` returned.
    """
    if positives or steps < SILENT:
        return None
    return (
        f"no anchor has matched any object in {steps} steps, so nothing is learned about objects: "
        f"{(*findings, 'look at the boxes with `multibox data show`')[0]}"
    )


def score_stays_low(rows: Sequence[Row], findings: Sequence[str] = ()) -> str | None:
    """Return a sentence if the last of at least 3 validations is still near 0; to be said once.

    Args:
        rows: of the metrics, those with `val_map50` count.
        findings: what `look_at_boxes` returned.
    """
    scored = [row for row in rows if row.get("val_map50") is not None and row["step"] > 0]
    if len(scored) < VALIDATIONS or max(row["val_map50"] for row in scored) >= NEAR_ZERO:
        return None
    doubt = "check boxes and class names with `multibox data show`, and give the run more steps or --weights coco"
    return (
        f"mAP@0.5 is still {scored[-1]['val_map50']:.3f} after {scored[-1]['step']} steps and {len(scored)} "
        f"validations: {(*findings, doubt)[0]}"
    )


def what_would_help(
    rows: Sequence[Row], training: Dataset, per_class: Mapping[str, float | None] | None = None, resume: str = ""
) -> str | None:
    """Return the one sentence that a finished run says about what would improve it most; None where nothing stands out.

    Args:
        rows: of the metrics: `step`, `val_map50`, `val_loss` and `total_loss`.
        training: what was learned from.
        per_class: AP of each class in the last validation, None where it has no objects.
        resume: command that prolongs the run, such as "multibox train --resume RUN --minutes 20".
    """
    scored = [row for row in rows if row.get("val_map50") is not None]
    return (
        _weak_class(training, per_class or {})
        or _still_improving(scored, resume)
        or _overfitted(rows, scored, len(training))
    )


def _weak_class(training: Dataset, per_class: Mapping[str, float | None]) -> str | None:
    scores = {name: score for name, score in per_class.items() if score is not None and name in training.class_names}
    if len(scores) < 2:
        return None
    learnt = ~training.crowd
    counts = np.bincount(training.labels[learnt], minlength=len(training.class_names))
    name = min(scores, key=lambda class_name: scores[class_name])
    label = training.class_names.index(name)
    others = float(np.mean([score for other, score in scores.items() if other != name]))
    # Few of them, and clearly worse than the others: more of another class would not help this one
    if scores[name] >= 0.75 * others or counts[label] >= max(100, np.median(counts) / 2):
        return None
    owner = np.repeat(np.arange(len(training)), np.diff(training.starts))
    images = len(np.unique(owner[learnt & (training.labels == label)]))
    return (
        f"more images of {name!r} would help most: it has {counts[label]} objects in "
        f"{counted(images, 'image', 'images')}, and its AP is {scores[name]:.2f} where the other classes have "
        f"{others:.2f}"
    )


def _still_improving(scored: Sequence[Row], resume: str) -> str | None:
    if len(scored) < 4:
        return None
    before = [row["val_map50"] for row in scored if row["step"] <= 0.75 * scored[-1]["step"]]
    last = max(row["val_map50"] for row in scored[-2:])
    if not before or last - max(before) < max(0.01, 0.02 * last):
        return None
    return (
        f"more training time would help most: mAP@0.5 still rose from {max(before):.3f} to {last:.3f} in the last "
        f"quarter of the run{resume and f': {resume}'}"
    )


def _overfitted(rows: Sequence[Row], scored: Sequence[Row], images: int) -> str | None:
    losses = [row["total_loss"] for row in rows if row.get("total_loss") is not None]
    validated = [row["val_loss"] for row in scored if row.get("val_loss") is not None]
    if len(validated) < 3 or not losses:
        return None
    # Augmented images are harder, so a validation loss above the training loss means images learned by heart
    if validated[-1] < 1.5 * losses[-1] or validated[-1] < 1.05 * min(validated):
        return None
    return (
        f"more images would help most: the loss is {losses[-1]:.3f} in training and {validated[-1]:.3f} in validation, "
        f"so the {images} training images are learned by heart"
    )


def _share(chosen: NDArray[np.bool_]) -> str:
    share = float(chosen.mean())
    return "all" if share == 1 else f"{100 * share:.0f} %"
