"""Confidence intervals of average precision, by resampling the images (B. Efron, "Bootstrap methods", 1979).

Images are drawn with replacement, as many as there are. Detections are matched once; a resample is then a weight per
image, and average precision a weighted cumulative sum. An image drawn twice stands twice at the same places of the
ranking. That changes no best precision at a recall or above it, so weights give what copies of the images would.
"""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.coco_metrics import coco_outcomes
from multibox.evaluation.table import Columns, Outcomes
from multibox.evaluation.voc_metrics import overlaps, voc_outcomes

CONFIDENCE = 0.95
CELLS = 2_000_000
"""Detections times resamples held in memory together; about 50 MB with the temporaries."""
RECALLS = np.linspace(0.0, 1.0, 101)

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Summary = Callable[[Floats, Floats, Floats], Floats]
"""From true positives [B, H] and best precisions [B, H] at H places, and objects [B], to average precision [B]."""


class Intervals(TypedDict):
    """Lower and upper end of each metric's interval, 0 to 1; None for a metric that does not exist."""

    coco: dict[str, Interval | None]
    """AP, AP50 and AP75."""
    voc12: dict[str, Interval | None]
    """mAP at IoU .5."""
    per_class: dict[str, dict[str, Interval | None]]
    """COCO's AP and AP50 of each class."""


def intervals(
    table: Columns, resamples: int, *, max_detections: int = 100, plus_one: bool = True, seed: int = 0
) -> Intervals:
    """Return 95 % intervals over the choice of images; the chance in a training run is not in them.

    Args:
        table: Detections and objects.
        resamples: A few hundred fix the ends to about a hundredth of the interval's width.
        max_detections: COCO's limit per image and class.
        plus_one: Widths of the VOC metric, as in `overlaps`.
        seed: The same seed draws the same images.
    """
    weights = draw_images(table.images, resamples, seed)
    coco = class_precisions(table, weights, max_detections=max_detections)
    metrics = _means(table, weights, coco, plus_one)
    ends = {name: interval_of(values) for name, values in metrics.items()}
    return {
        "coco": {name: ends[name] for name in ("AP", "AP50", "AP75")},
        "voc12": {"mAP": ends["mAP"]},
        "per_class": {
            name: {"AP": interval_of(mean_of_rows(coco[:, label])), "AP50": interval_of(coco[:, label, 0])}
            for label, name in enumerate(table.class_names)
        },
    }


def draw_images(images: int, resamples: int, seed: int = 0) -> NDArray[np.integer]:
    """Return how often each resample draws each image, [B, images]; as many as there are, with replacement."""
    drawn = np.random.default_rng(seed).integers(0, max(1, images), (resamples, images))
    rows = np.arange(resamples)[:, None] * images
    return np.bincount((drawn + rows).ravel(), minlength=resamples * images).reshape(resamples, images)


def weighted_metrics(
    table: Columns, weights: NDArray[np.integer], *, max_detections: int = 100, plus_one: bool = True
) -> dict[str, Floats]:
    """Return COCO's AP, AP50 and AP75 and VOC12's mAP for each row of weights, [B] each; NaN where no object was drawn.

    Args:
        table: Detections and objects.
        weights: [B, images]; how often each image counts.
        max_detections: COCO's limit per image and class.
        plus_one: Widths of the VOC metric, as in `overlaps`.
    """
    return _means(table, weights, class_precisions(table, weights, max_detections=max_detections), plus_one)


def _means(table: Columns, weights: NDArray[np.integer], coco: Floats, plus_one: bool) -> dict[str, Floats]:
    """Return the metrics of `weighted_metrics`, given COCO's average precision of each class [B, classes, 10]."""
    voc = _average_precisions(table, weights, voc_outcomes(table, overlaps(table, plus_one=plus_one)), _area_below)
    return {
        "AP": mean_of_rows(coco.reshape(len(weights), -1)),
        "AP50": mean_of_rows(coco[..., 0]),
        "AP75": mean_of_rows(coco[..., 5]),
        "mAP": mean_of_rows(voc[..., 0]),
    }


def class_precisions(table: Columns, weights: NDArray[np.integer], *, max_detections: int = 100) -> Floats:
    """Return COCO's average precision of each class at IoU .50, .55 ... .95 for each row of weights, [B, classes, 10].

    NaN for a class of which no object was drawn; the arguments are those of `weighted_metrics`.
    """
    outcomes = coco_outcomes(table, max_detections=max_detections)
    return _average_precisions(table, weights, outcomes, _mean_at_101_recalls)


def coco_precisions(table: Columns, outcomes: Outcomes) -> Floats:
    """Return COCO's average precision [classes, T] that these outcomes give; NaN for a class without objects."""
    everything = np.ones((1, table.images), np.int64)
    return _average_precisions(table, everything, outcomes, _mean_at_101_recalls)[0]


def _average_precisions(table: Columns, weights: NDArray[np.integer], outcomes: Outcomes, summarize: Summary) -> Floats:
    """Return average precision [B, classes, T]; NaN for a class of which no object was drawn."""
    classes, thresholds = len(table.class_names), outcomes.matched.shape[1]
    precisions = np.full((len(weights), classes, thresholds), np.nan)
    order = np.lexsort((-table.scores, table.labels))
    ends = np.cumsum(np.bincount(table.labels, minlength=classes))
    for label in range(classes):
        rows = order[ends[label - 1] if label else 0 : ends[label]]
        matched, ignored = (flags[rows] for flags in outcomes)
        scored = table.gt_scored & (table.gt_labels == label)
        objects = weights @ np.bincount(table.gt_image[scored], minlength=table.images).astype(np.float64)
        block = max(1, CELLS // max(1, len(rows)))
        for start in range(0, len(weights), block):
            part = slice(start, start + block)
            drawn = weights[part][:, table.image[rows]].astype(np.float64)
            for threshold in range(thresholds):
                true, envelope = _curve(drawn, matched[:, threshold], ignored[:, threshold])
                precisions[part, label, threshold] = summarize(true, envelope, objects[part])
        precisions[objects == 0, label] = np.nan
    return precisions


def _curve(drawn: Floats, matched: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return true positives and the best precision from there on, [B, H] each, at the H matched detections.

    Recall rises at these places alone.

    Args:
        drawn: [B, N]; how often each detection counts, in falling order of score.
        matched: [N]
        ignored: [N]
    """
    places, skipped = np.flatnonzero(matched), np.flatnonzero(ignored)
    positives = drawn.cumsum(1)[:, places]
    if len(skipped):
        before = np.searchsorted(skipped, places)
        positives = positives - np.pad(drawn[:, skipped].cumsum(1), ((0, 0), (1, 0)))[:, before]
    true = drawn[:, places].cumsum(1)
    precision = true / np.maximum(positives, 1)
    return true, np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def _mean_at_101_recalls(true: Floats, envelope: Floats, objects: Floats) -> Floats:
    """Return COCO's average precision [B]."""
    if not true.shape[1]:
        return np.zeros(len(true))
    total = np.maximum(objects, 1)[:, None]
    # The fewest true positives whose recall, as a rounded quotient, reaches each point
    least = np.ceil(RECALLS * total)
    least -= (least - 1) / total >= RECALLS
    least += least / total < RECALLS
    # One search for all rows: each row is lifted above the one before it; whole numbers stay exact
    row = np.arange(len(true), dtype=np.int64)[:, None]
    lift = row * (total.max() + 2)
    place = np.asarray(np.searchsorted((true + lift).ravel(), least + lift), np.int64) - row * true.shape[1]
    padded = np.pad(envelope, ((0, 0), (0, 1)))
    return np.take_along_axis(padded, place, axis=1).mean(1)


def _area_below(true: Floats, envelope: Floats, objects: Floats) -> Floats:
    """Return VOC's average precision since 2010 [B]."""
    return (np.diff(true, axis=1, prepend=0.0) * envelope).sum(1) / np.maximum(objects, 1)


def mean_of_rows(values: Floats) -> Floats:
    """Return the mean of each row's values that exist."""
    real = ~np.isnan(values)
    count = real.sum(1)
    return np.divide(np.where(real, values, 0.0).sum(1), count, out=np.full(len(values), np.nan), where=count > 0)


def interval_of(values: Floats) -> Interval | None:
    """Return between which values 95 % of the resamples [B] lie; None where there is no object."""
    real = values[~np.isnan(values)]
    if not len(real):
        return None
    low, high = np.quantile(real, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
