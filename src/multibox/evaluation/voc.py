"""Average precision as PASCAL VOC measures it, in 2007 (eleven points) and since 2010 (the area).

Source: "The PASCAL Visual Object Classes Challenge", section 4.2, and its development kit, followed to the letter: the
corners of a box are numbers of pixels, both inside, so its width is x2 - x1 + 1. Label files in VOC's format mean them
so and are read as written, and to be comparable with published metrics is what these two are for. Labels of every
other format mean places, and x2 - x1 is the width, as in COCO's metrics. So the format of the labels decides
(`counts_pixels`), in training's validations as in `eval`. Whoever reads VOC labels with `one_based`, which turns pixels
into places, gives `plus_one=False`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation.pairing import Columns, Overlaps, columns, overlaps
from multibox.structures import Dataset, Detections, Flags, Sample

ELEVEN = np.arange(11) / 10


class VocFigures(TypedDict):
    """Mean and per-class average precision, 0 to 1; None for a class without objects, which the mean leaves out."""

    mAP: float | None
    per_class: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of one class as the score threshold falls from one detection to the next."""

    recall: NDArray[np.float64]
    """[N], rising."""
    precision: NDArray[np.float64]
    """[N]"""
    scores: NDArray[np.float64]
    """[N], falling."""
    objects: int
    """Objects that count; without any there is no recall and no average precision."""

    @property
    def ap07(self) -> float | None:
        """Return the mean over recalls 0, 0.1 ... 1 of the best precision at that recall or above."""
        if not self.objects:
            return None
        envelope = np.append(_envelope(self.precision), 0.0)
        return float(envelope[np.searchsorted(self.recall, ELEVEN)].mean())

    @property
    def ap12(self) -> float | None:
        """Return the area below the curve, its precision raised to the best at that recall or above."""
        if not self.objects:
            return None
        return float(np.diff(self.recall, prepend=0.0) @ _envelope(self.precision))

    @property
    def f1(self) -> NDArray[np.float64]:
        """Return F1 of the detections down to each score, [N]; -1 where the next one has the same score."""
        # 2 tp / (detections + objects): equal fractions give equal numbers, products of rounded ones would not
        true = np.rint(self.recall * self.objects)
        f1 = 2 * true / (np.arange(1, len(true) + 1) + self.objects)
        f1[:-1][self.scores[:-1] == self.scores[1:]] = -1.0
        return f1


def voc_figures(
    table: Columns, *, iou: float = 0.5, inclusive: bool = False, plus_one: bool = True
) -> dict[str, VocFigures]:
    """Return the figures of both protocols under `voc07` and `voc12`.

    Args:
        table: Detections and objects.
        iou: A detection is right when it overlaps an object by more than this.
        inclusive: Or by exactly this, as Caffe's evaluation has it.
        plus_one: Widths as the VOC development kit has them; see the module.
    """
    found = curves(table, overlaps(table, plus_one=plus_one), iou=iou, inclusive=inclusive)
    return {"voc07": voc07(found), "voc12": voc12(found)}


def voc07(found: Mapping[str, Curve]) -> VocFigures:
    """Return the eleven-point figures of these curves."""
    return _figures({name: curve.ap07 for name, curve in found.items()})


def voc12(found: Mapping[str, Curve]) -> VocFigures:
    """Return the areas below these curves."""
    return _figures({name: curve.ap12 for name, curve in found.items()})


def counts_pixels(samples: Sequence[Sample] | Dataset) -> bool:
    """Say whether box corners are numbers of pixels, both inside: in VOC's labels, and where no format is known."""
    return not isinstance(samples, Dataset) or samples.format in ("voc", "")


def precision_recall(
    detections: Sequence[Detections],
    samples: Sequence[Sample] | Dataset,
    class_names: Sequence[str],
    *,
    iou: float = 0.5,
    inclusive: bool = False,
    plus_one: bool | None = None,
) -> dict[str, Curve]:
    """Return each class's precision and recall; the arguments are those of `evaluate` and `voc_figures`."""
    table = columns(detections, samples, class_names)
    plus_one = counts_pixels(samples) if plus_one is None else plus_one
    return curves(table, overlaps(table, plus_one=plus_one), iou=iou, inclusive=inclusive)


def curves(table: Columns, pairs: Overlaps, *, iou: float = 0.5, inclusive: bool = False) -> dict[str, Curve]:
    """Return each class's curve.

    Detections of a class stand in falling order of score, equal ones in the order in which they came. The first that
    overlaps an object enough finds it, later ones are false; one on a difficult object or a crowd counts for nothing.
    """
    order = np.lexsort((-table.scores, table.labels))
    hit, ignored = outcomes(table, pairs, order, iou=iou, inclusive=inclusive)
    order = order[~ignored[order]]
    objects = np.bincount(table.gt_labels[table.gt_scored], minlength=len(table.class_names))
    ends = np.cumsum(np.bincount(table.labels[order], minlength=len(table.class_names)))
    found = {}
    for number, name in enumerate(table.class_names):
        rows = order[ends[number - 1] if number else 0 : ends[number]]
        true = np.cumsum(hit[rows])
        found[name] = Curve(
            recall=true / max(1, objects[number]),
            precision=true / np.arange(1, len(rows) + 1),
            scores=table.scores[rows],
            objects=int(objects[number]),
        )
    return found


def outcomes(
    table: Columns, pairs: Overlaps, order: NDArray[np.int64], *, iou: float = 0.5, inclusive: bool = False
) -> tuple[Flags, Flags]:
    """Return which detections find an object and which count for nothing, [N] each; the rest are false.

    Args:
        table: Detections and objects.
        pairs: Each detection's best object.
        order: [N], the detections in falling order of score within each class.
        iou: Overlap from which a detection is right.
        inclusive: Whether exactly `iou` is enough.
    """
    close = (pairs.gt >= 0) & ((pairs.iou >= iou) if inclusive else (pairs.iou > iou))
    scored = np.append(table.gt_scored, False)[pairs.gt]
    claims = order[(close & scored)[order]]
    _, first = np.unique(pairs.gt[claims], return_index=True)
    hit = np.zeros(len(close), np.bool_)
    hit[claims[first]] = True
    return hit, close & ~scored


def mean(figures: Iterable[float | None]) -> float | None:
    """Return the mean of the figures that exist."""
    real = [figure for figure in figures if figure is not None]
    return float(np.mean(real)) if real else None


def _figures(per_class: dict[str, float | None]) -> VocFigures:
    """Add the mean."""
    return {"mAP": mean(per_class.values()), "per_class": per_class}


def _envelope(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best precision at each recall or above."""
    return np.maximum.accumulate(precision[::-1])[::-1]
