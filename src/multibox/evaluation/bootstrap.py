"""How far average precision would move with other images of the same kind: percentile intervals by resampling.

The images are drawn with replacement, as many as there are (B. Efron, "Bootstrap methods", 1979). Detections are
matched once; a resample is then a weight for each image, the number of times it was drawn, and average precision a
weighted cumulative sum. An image drawn twice stands twice at the same places of the ranking, which changes neither
the best precision at a recall nor above it, so that weights give what copies of the images would.
"""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.coco_metrics import coco_outcomes, counted_objects
from multibox.evaluation.voc_metrics import Columns, outcomes, overlaps
from multibox.structures import Flags, Labels

CONFIDENCE = 0.95
CELLS = 2_000_000
"""Detections times resamples held in memory together; about 50 MB with the temporaries."""
RECALLS = np.linspace(0.0, 1.0, 101)

Figures = NDArray[np.float64]
Interval = tuple[float, float]


class Intervals(TypedDict):
    """Lower and upper end of each figure's interval, 0 to 1; None for a figure that does not exist."""

    coco: dict[str, Interval | None]
    """AP, AP50 and AP75."""
    voc12: dict[str, Interval | None]
    """mAP at IoU .5."""


def intervals(
    table: Columns, resamples: int, *, max_detections: int = 100, plus_one: bool = True, seed: int = 0
) -> Intervals:
    """Return 95 % intervals over images; what a training run's chance adds is not in them.

    Args:
        table: Detections and objects.
        resamples: A few hundred steady the ends to about a hundredth of the interval's width.
        max_detections: COCO's limit an image and class.
        plus_one: Widths of the VOC figure, as in `voc_figures`.
        seed: The same seed draws the same images.
    """
    images = table.images
    drawn = np.random.default_rng(seed).integers(0, max(1, images), (resamples, images))
    rows = np.arange(resamples)[:, None] * images
    weights = np.bincount((drawn + rows).ravel(), minlength=resamples * images).reshape(resamples, images)
    found = weighted_figures(table, weights, max_detections=max_detections, plus_one=plus_one)
    ends = {name: _ends(values) for name, values in found.items()}
    return {"coco": {name: ends[name] for name in ("AP", "AP50", "AP75")}, "voc12": {"mAP": ends["mAP"]}}


def weighted_figures(
    table: Columns, weights: NDArray[np.integer], *, max_detections: int = 100, plus_one: bool = True
) -> dict[str, Figures]:
    """Return COCO's AP, AP50 and AP75 and VOC12's mAP for each row of weights, [B] each; NaN where there is no object.

    Args:
        table: Detections and objects.
        weights: [B, images]; how often each image counts.
        max_detections: COCO's limit an image and class.
        plus_one: Widths of the VOC figure, as in `voc_figures`.
    """
    order = np.lexsort((-table.scores, table.labels))
    coco = coco_outcomes(table, max_detections=max_detections)
    aps = _average_precisions(
        table, weights, order, coco.hit, coco.ignored, counted_objects(table), _mean_at_101_recalls
    )
    voc_hit, voc_ignored = outcomes(table, overlaps(table, plus_one=plus_one), order)
    areas = _average_precisions(
        table, weights, order, voc_hit[:, None], voc_ignored[:, None], table.gt_scored, _area_below
    )
    return {
        "AP": _mean(aps.reshape(len(weights), -1)),
        "AP50": _mean(aps[..., 0]),
        "AP75": _mean(aps[..., 5]),
        "mAP": _mean(areas[..., 0]),
    }


def _average_precisions(
    table: Columns,
    weights: NDArray[np.integer],
    order: Labels,
    hit: Flags,
    ignored: Flags,
    scored: Flags,
    summarize: Callable[[Figures, Figures, Figures], Figures],
) -> Figures:
    """Return average precision [B, classes, thresholds]; NaN for a class of which no object was drawn."""
    classes, thresholds = len(table.class_names), hit.shape[1]
    found = np.full((len(weights), classes, thresholds), np.nan)
    ends = np.cumsum(np.bincount(table.labels, minlength=classes))
    for label in range(classes):
        rows = order[ends[label - 1] if label else 0 : ends[label]]
        mine = scored & (table.gt_labels == label)
        objects = weights @ np.bincount(table.gt_image[mine], minlength=table.images).astype(np.float64)
        block = max(1, CELLS // max(1, len(rows)))
        for start in range(0, len(weights), block):
            part = slice(start, start + block)
            drawn = weights[part][:, table.image[rows]].astype(np.float64)
            found[part, label] = _of_class(drawn, hit[rows], ignored[rows], objects[part], summarize)
    return found


def _of_class(
    drawn: Figures,
    hit: Flags,
    ignored: Flags,
    objects: Figures,
    summarize: Callable[[Figures, Figures, Figures], Figures],
) -> Figures:
    """Return average precision [B, thresholds] of one class, its detections [N] in falling order of score.

    Only right detections raise recall, so the curve is looked at where they stand.
    """
    found = np.zeros((len(drawn), hit.shape[1]))
    everything = drawn.cumsum(1)
    for threshold in range(hit.shape[1]):
        places = np.flatnonzero(hit[:, threshold])
        skipped = np.flatnonzero(ignored[:, threshold])
        seen = everything[:, places]
        if len(skipped):
            before = np.searchsorted(skipped, places)
            seen = seen - np.pad(drawn[:, skipped].cumsum(1), ((0, 0), (1, 0)))[:, before]
        true = drawn[:, places].cumsum(1)
        precision = true / np.maximum(seen, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found[:, threshold] = summarize(true, envelope, objects)
    found[objects == 0] = np.nan
    return found


def _mean_at_101_recalls(true: Figures, envelope: Figures, objects: Figures) -> Figures:
    """Return COCO's average precision [B] of rows of true counts and best precisions [B, H]."""
    if not true.shape[1]:
        return np.zeros(len(true))
    total = np.maximum(objects, 1)[:, None]
    # The fewest true ones whose recall, as a rounded quotient, reaches each point
    least = np.ceil(RECALLS * total)
    least -= (least - 1) / total >= RECALLS
    least += least / total < RECALLS
    # One search for all rows: each is lifted above the one before it; whole numbers stay exact
    lift = np.arange(len(true))[:, None] * (total.max() + 2)
    place = np.searchsorted((true + lift).ravel(), least + lift) - np.arange(len(true))[:, None] * true.shape[1]
    padded = np.pad(envelope, ((0, 0), (0, 1)))
    return np.take_along_axis(padded, place, axis=1).mean(1)


def _area_below(true: Figures, envelope: Figures, objects: Figures) -> Figures:
    """Return VOC's average precision [B] since 2010 of rows of true counts and best precisions [B, H]."""
    return (np.diff(true, axis=1, prepend=0.0) * envelope).sum(1) / np.maximum(objects, 1)


def _mean(figures: Figures) -> Figures:
    """Return the mean of each row's figures that exist."""
    real = ~np.isnan(figures)
    count = real.sum(1)
    return np.divide(np.where(real, figures, 0.0).sum(1), count, out=np.full(len(figures), np.nan), where=count > 0)


def _ends(values: Figures) -> Interval | None:
    real = values[~np.isnan(values)]
    if not len(real):
        return None
    low, high = np.quantile(real, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
