"""What is wrong with the data or would help a run most, in sentences: before training, during it, and at its end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.config import Config
from multibox.data.formats.text import counted
from multibox.data.images import image_size, sample_size
from multibox.errors import ImageError
from multibox.models.anchor_layout import cell_shapes
from multibox.structures import Boxes, Dataset, Sample

SAMPLED = 200
"""Images whose files are opened, for their sizes; evenly spaced over the data."""
MISFIT = 0.05
"""Share of the boxes from which a fault is said; single boxes are counted by the readers."""
TINY = 6.0
"""Pixels of the network's input (square root of the area) below which an object can hardly be learned."""
WANTED = 12.0
"""Pixels of the network's input that the median object should have."""
LARGEST = 1024
"""Side of the input up to which a larger one is advised; beyond it images should be cut into tiles."""
FEW = 20
"""Objects of a class below which it is named."""
SILENT = 30
"""Steps without any matched anchor after which a run says so."""
NEAR_ZERO = 0.02
"""mAP@0.5 below which a validation counts as nothing found."""
VALIDATIONS = 3
"""Validations near 0 after which a run says so."""

Row = Mapping[str, Any]


def look_at_boxes(dataset: Dataset, config: Config) -> list[str]:
    """Return what the boxes of the training images say about the success of a run, the gravest first.

    At most 200 images are opened, and of those only the headers.
    """
    sample = sample_boxes(dataset)
    found = [check(sample) for check in (_outside, _swapped)] if len(sample.boxes_xyxy) else []
    if len(sample.boxes_xyxy) and not any(found):
        found.append(_too_small(sample, config) or _beyond_anchors(sample, config))
    return [sentence for sentence in (*found, _rare_classes(dataset), _empty(dataset)) if sentence]


class _Boxes:
    """Boxes of some images with the size of their image, one row per object."""

    def __init__(self, samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]) -> None:
        kept = [~sample.crowd for sample in samples]
        self.boxes_xyxy: Boxes = np.concatenate(
            [np.zeros((0, 4)), *(sample.boxes_xyxy[keep] for sample, keep in zip(samples, kept, strict=True))]
        )
        counts = [int(keep.sum()) for keep in kept]
        self.sizes: NDArray[np.float64] = np.repeat(np.array(sizes, np.float64).reshape(-1, 2), counts, axis=0)
        self.images = len(samples)


def sample_boxes(dataset: Dataset) -> _Boxes:
    """Return the objects of up to 200 images, evenly spaced, with the real sizes of the images."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset))).astype(int)).tolist()
    samples: list[Sample] = []
    sizes: list[tuple[int, int]] = []
    for index in chosen:
        sample = dataset[index]
        try:
            # The header, not the label file: a run resizes what it reads
            size = image_size(sample.path) if sample.offset is None else sample_size(sample)
        except ImageError:
            continue
        samples.append(sample)
        sizes.append(size)
    return _Boxes(samples, sizes)


def median_side(dataset: Dataset, size: tuple[int, int]) -> float | None:
    """Return the median of the objects' sides (square root of the area) in pixels of an input of (height, width)."""
    some = sample_boxes(dataset)
    if not len(some.boxes_xyxy):
        return None
    scaled = (some.boxes_xyxy[:, 2:] - some.boxes_xyxy[:, :2]) / some.sizes * (size[1], size[0])
    return float(np.median(np.sqrt(scaled.prod(1))))


def _outside(some: _Boxes) -> str | None:
    """Say that boxes lie outside their images, and by which factor they seem too large."""
    visible = _visible(some.boxes_xyxy, some.sizes)
    out = visible < 0.5
    if out.mean() <= MISFIT or _swap_explains(some):
        return None
    reach = np.quantile((some.boxes_xyxy[:, 2:] / some.sizes).max(1), 0.99)
    scale = f"; the coordinates seem about {reach:.2g} times too large" if reach > 1.5 else ""
    width, height = some.sizes[int(np.argmax(out))].astype(int).tolist()
    corners = ", ".join(f"{value:g}" for value in some.boxes_xyxy[int(np.argmax(out))])
    return (
        f"{_share(out)} of the boxes lie mostly outside their images, such as ({corners}) in an image of {width} x "
        f"{height} pixels{scale}. Check that the labels belong to images of this size; nothing can be learned from them"
    )


def _swapped(some: _Boxes) -> str | None:
    """Say that x and y seem exchanged: boxes run out of their images and would fit the other way round."""
    if not _swap_explains(some):
        return None
    misfit = _misfit(some.boxes_xyxy, some.sizes)
    return (
        f"x and y of the boxes seem to be exchanged: {_share(misfit)} of the boxes run out of their images, and nearly "
        "all of those would fit with x and y swapped. Check the order of the coordinates in the labels"
    )


def _swap_explains(some: _Boxes) -> bool:
    misfit = _misfit(some.boxes_xyxy, some.sizes)
    turned = _misfit(some.boxes_xyxy[:, [1, 0, 3, 2]], some.sizes)
    return bool(misfit.mean() > MISFIT and (turned & misfit).sum() <= 0.1 * misfit.sum() and turned.mean() < MISFIT)


def _too_small(some: _Boxes, config: Config) -> str | None:
    """Say that objects are tiny at the network's input, and what would make them larger."""
    height, width = config.model.input_size
    scaled = (some.boxes_xyxy[:, 2:] - some.boxes_xyxy[:, :2]) / some.sizes * (width, height)
    sides = np.sqrt(scaled.prod(1))
    tiny = sides < TINY
    if tiny.mean() <= 0.25:
        return None
    median = float(np.median(sides))
    factor = WANTED / max(median, 1e-6)
    larger = [max(32, round(side * factor / 32) * 32) for side in (height, width)]
    tiles = f"cut the images into tiles of about {_tile(some, factor, min(height, width))} pixels"
    enlarge = f"give a larger input, such as --set model.input_size={larger}, or "
    image = np.median(some.sizes, axis=0).astype(int).tolist()
    return (
        f"{_share(tiny)} of the objects are smaller than {TINY:g} pixels at the network's input of {width} x {height} "
        f"(median {median:.2g}; images of {image[0]} x {image[1]} are reduced to it), too small to be learned well: "
        f"{enlarge if max(larger) <= LARGEST else ''}{tiles}"
    )


def _tile(some: _Boxes, factor: float, side: int) -> int:
    """Return the side of a tile whose objects have the wanted size at the network's input."""
    across = float(np.median(np.sqrt(some.sizes.prod(1))))
    return max(side // 2, round(across / factor / 32) * 32)


def _beyond_anchors(some: _Boxes, config: Config) -> str | None:
    """Say that no anchor has a shape near many of the objects."""
    fractions = np.clip((some.boxes_xyxy[:, 2:] - some.boxes_xyxy[:, :2]) / some.sizes, 1e-6, 1)
    shapes = np.array([shape for level in cell_shapes(config.anchors, config.model.input_size) for shape in level])
    if not len(shapes):
        return None
    # Of one centre: an upper bound of any overlap
    both = np.minimum(fractions[:, None], shapes[None]).prod(2)
    best = (both / (fractions.prod(1)[:, None] + shapes.prod(1)[None] - both)).max(1)
    missed = best < min(0.5, config.matching.threshold)
    if missed.mean() <= 0.25:
        return None
    narrow = np.median(fractions[missed].min(1) / fractions[missed].max(1)) < 0.3
    small = np.median(fractions[missed].prod(1)) < shapes.prod(1).min()
    kind = "elongated" if narrow else "small" if small else "large"
    return (
        f"no anchor has the shape of {_share(missed)} of the objects (overlap below {config.matching.threshold:g} at "
        f"any place), mostly {kind} ones; --set anchors.fit=4 fits the anchors to these boxes"
    )


def _rare_classes(dataset: Dataset) -> str | None:
    counts = np.bincount(dataset.labels[~dataset.crowd], minlength=len(dataset.class_names))
    rare = sorted((int(count), name) for name, count in zip(dataset.class_names, counts, strict=True) if count < FEW)
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
        steps: taken so far in this process.
        positives: sum of `LossParts.positives` over them.
        findings: what `look_at_boxes` returned.
    """
    if positives or steps < SILENT:
        return None
    return (
        f"no anchor has matched any object in {steps} steps, so nothing is learned about objects: "
        f"{_why(findings, 'look at the boxes with `multibox data show`')}"
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
        f"validations: {_why(findings, doubt)}"
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
    advice: tuple[Callable[[], str | None], ...] = (
        lambda: _weak_class(training, per_class or {}),
        lambda: _still_improving(scored, resume),
        lambda: _overfitted(rows, scored, training),
    )
    return next((sentence for each in advice if (sentence := each())), None)


def _weak_class(training: Dataset, per_class: Mapping[str, float | None]) -> str | None:
    scores = {name: score for name, score in per_class.items() if score is not None and name in training.class_names}
    if len(scores) < 2:
        return None
    owner = np.repeat(np.arange(len(training)), np.diff(training.starts))
    real = ~training.crowd
    counts = np.bincount(training.labels[real], minlength=len(training.class_names))
    name = min(scores, key=lambda each: scores[each])
    label = training.class_names.index(name)
    others = float(np.mean([score for each, score in scores.items() if each != name]))
    # Few of them, and clearly worse than the others: more of another class would not help this one
    if scores[name] >= 0.75 * others or counts[label] >= max(100, np.median(counts) / 2):
        return None
    images = len(np.unique(owner[real & (training.labels == label)]))
    return (
        f"more images of {name!r} would help most: it has {counts[label]} objects in "
        f"{counted(images, 'image', 'images')}, and its AP is {scores[name]:.2f} where the other classes have "
        f"{others:.2f}"
    )


def _still_improving(scored: Sequence[Row], resume: str) -> str | None:
    if len(scored) < 4:
        return None
    end = scored[-1]["step"]
    before = [row["val_map50"] for row in scored if row["step"] <= 0.75 * end]
    last = max(row["val_map50"] for row in scored[-2:])
    if not before or last - max(before) < max(0.01, 0.02 * last):
        return None
    how = f": {resume}" if resume else ""
    return (
        f"more training time would help most: mAP@0.5 still rose from {max(before):.3f} to {last:.3f} in the last "
        f"quarter of the run{how}"
    )


def _overfitted(rows: Sequence[Row], scored: Sequence[Row], training: Dataset) -> str | None:
    losses = [row["total_loss"] for row in rows if row.get("total_loss") is not None]
    validated = [row["val_loss"] for row in scored if row.get("val_loss") is not None]
    if len(validated) < 3 or not losses:
        return None
    # Augmented images are harder, so a validation loss above the training loss means images learned by heart
    if validated[-1] < 1.5 * losses[-1] or validated[-1] < 1.05 * min(validated):
        return None
    return (
        f"more images would help most: the loss is {losses[-1]:.3f} in training and {validated[-1]:.3f} in validation, "
        f"so the {len(training)} training images are learned by heart"
    )


def _why(findings: Sequence[str], otherwise: str) -> str:
    return findings[0] if findings else otherwise


def _visible(boxes_xyxy: Boxes, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each box's area that lies inside its image."""
    inside = np.clip(boxes_xyxy, 0, sizes[:, [0, 1, 0, 1]])
    area = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
    return np.prod(inside[:, 2:] - inside[:, :2], axis=1) / np.maximum(area, 1e-12)


def _misfit(boxes_xyxy: Boxes, sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which boxes run out of their image by more than a rounding."""
    return np.any(boxes_xyxy[:, 2:] > 1.01 * sizes + 1, axis=1)


def _share(chosen: NDArray[np.bool_]) -> str:
    share = float(chosen.mean())
    return "all" if share == 1 else f"{100 * share:.0f} %"
