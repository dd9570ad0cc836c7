"""All figures of a detector on a data set, as `multibox eval --json` writes them."""

from collections.abc import Sequence
from typing import TypedDict

from multibox.evaluation.coco import CocoFigures, coco_figures
from multibox.evaluation.pairing import columns
from multibox.evaluation.voc import VocFigures, voc_figures
from multibox.structures import Dataset, Detections, Sample


class Figures(TypedDict):
    """What `evaluate` returns; every figure runs from 0 to 1 and is None where it does not exist."""

    pictures: int
    coco: CocoFigures
    voc07: VocFigures
    """Eleven-point average precision at IoU .5."""
    voc12: VocFigures
    """Area below the curve at IoU .5."""


def evaluate(
    detections: Sequence[Detections],
    samples: Sequence[Sample] | Dataset,
    class_names: Sequence[str],
    *,
    max_detections: int = 100,
    plus_one: bool = True,
) -> Figures:
    """Measure detections against labels.

    Args:
        detections: One for each sample, in the same order, in pixels of the original pictures. Low scores belong in
            them: a threshold of .01 or so, for average precision is about the order and not about one threshold.
        samples: The labelled pictures.
        class_names: The data set's classes; a detector's other order is matched by name.
        max_detections: COCO's limit a picture and class; the VOC figures have none.
        plus_one: Widths of the VOC figures as the VOC development kit has them; see `multibox.evaluation.voc`.

    Raises:
        ValueError: If there are not as many detections as samples.
        DataError: If detector and data set share no class.
        MissingExtraError: If faster-coco-eval is not installed.
    """
    table = columns(detections, samples, class_names)
    voc = voc_figures(table, plus_one=plus_one)
    coco = coco_figures(table, max_detections=max_detections)
    return {"pictures": table.pictures, "coco": coco, "voc07": voc["voc07"], "voc12": voc["voc12"]}
