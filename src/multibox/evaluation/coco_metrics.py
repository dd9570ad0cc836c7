"""COCO's metrics, computed by hotcoco; tests hold them equal to those of pycocotools."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MissingExtraError
from multibox.evaluation.table import Columns, Outcomes
from multibox.structures import Boxes, Labels

if TYPE_CHECKING:
    from hotcoco import COCOeval

THRESHOLDS = 10
"""IoU .50, .55 ... .95."""
ALL_AREAS = [0.0, 1e10]
"""Objects and unmatched detections with another area in square pixels count for nothing."""
IMAGES_AT_ONCE = 200
"""Images whose matches are held as Python lists together."""


class ClassMetrics(TypedDict):
    """Average precision of one class: over the ten IoU thresholds, and at .5."""

    AP: float | None
    AP50: float | None


class CocoMetrics(TypedDict):
    """COCO's metrics, 0 to 1; None where there is no object. AP and AR are means over IoU .50, .55 ... .95."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    """Recall with `max_detections` per image and class, 100 by default."""
    ARs: float | None
    ARm: float | None
    ARl: float | None
    per_class: dict[str, ClassMetrics]


def coco_metrics(table: Columns, *, max_detections: int = 100, areas: NDArray[np.float64] | None = None) -> CocoMetrics:
    """Return COCO's metrics.

    A detection inside a crowd counts for nothing, however many there are. A difficult object is treated like an object
    outside the area range: the detection that matches it counts for nothing, and a second one is false.

    Args:
        table: Detections and objects.
        max_detections: Best detections per image and class that count; 100 in published metrics.
        areas: [M], areas of the objects in square pixels; by default those of their boxes.

    Raises:
        MissingExtraError: hotcoco is not installed.
    """
    evaluation = _evaluation(table, max_detections, areas)
    evaluation.evaluate()
    evaluation.accumulate()
    results = evaluation.eval or {}
    # [IoU, recall, class, area, limit] and [IoU, class, area, limit]; -1 where there is no object
    precision, recall = np.asarray(results["precision"])[..., -1], np.asarray(results["recall"])
    return {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[5, :, :, 0]),
        "APs": _mean(precision[:, :, :, 1]),
        "APm": _mean(precision[:, :, :, 2]),
        "APl": _mean(precision[:, :, :, 3]),
        "AR1": _mean(recall[:, :, 0, 0]),
        "AR10": _mean(recall[:, :, 0, 1]),
        "AR100": _mean(recall[:, :, 0, 2]),
        "ARs": _mean(recall[:, :, 1, 2]),
        "ARm": _mean(recall[:, :, 2, 2]),
        "ARl": _mean(recall[:, :, 3, 2]),
        "per_class": {
            name: {"AP": _mean(precision[:, :, label, 0]), "AP50": _mean(precision[0, :, label, 0])}
            for label, name in enumerate(table.class_names)
        },
    }


def coco_outcomes(table: Columns, *, max_detections: int = 100) -> Outcomes:
    """Return what became of each detection under COCO's rules, at the ten IoU thresholds."""
    shape = (len(table.labels), THRESHOLDS)
    # Those beyond `max_detections` appear in no match and stay ignored
    outcomes = Outcomes(np.zeros(shape, np.bool_), np.ones(shape, np.bool_))
    for match in _matches(_evaluation(table, max_detections), table.images):
        rows = np.array(match["dtIds"], np.int64) - 1
        ignored = np.array(match["dtIgnore"], np.bool_).T
        outcomes.ignored[rows] = ignored
        outcomes.matched[rows] = np.array(match["dtMatched"], np.bool_).T & ~ignored
    return outcomes


def coco_pairs(table: Columns, *, max_detections: int = 100) -> tuple[Outcomes, Labels]:
    """Return what became of each detection at IoU .5 alone, and which object it matched.

    Returns:
        The outcomes, [N, 1]; and a row of the objects for each detection that matches one, [N], -1 for the others. A
        detection that matches a crowd or a difficult object has it, and is ignored.
    """
    evaluation = _evaluation(table, max_detections)
    evaluation.params.iou_thrs = [0.5]
    outcomes = Outcomes(np.zeros((len(table.labels), 1), np.bool_), np.ones((len(table.labels), 1), np.bool_))
    gt = np.full(len(table.labels), -1)
    for match in _matches(evaluation, table.images):
        rows = np.array(match["dtIds"], np.int64) - 1
        ignored = np.array(match["dtIgnore"], np.bool_).T
        outcomes.ignored[rows] = ignored
        outcomes.matched[rows] = np.array(match["dtMatched"], np.bool_).T & ~ignored
        gt[rows] = np.array(match["dtMatches"][0], np.int64) - 1
    return outcomes, gt


def _matches(evaluation: "COCOeval", images: int) -> Iterator[dict[str, Any]]:
    """Yield hotcoco's matches of each image and class, whatever the objects' areas."""
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [ALL_AREAS], ["all"]
    for start in range(1, images + 1, IMAGES_AT_ONCE):
        evaluation.params.img_ids = list(range(start, min(start + IMAGES_AT_ONCE, images + 1)))
        evaluation.evaluate()
        yield from (match for match in evaluation.eval_imgs if match is not None)


def _evaluation(table: Columns, max_detections: int, areas: NDArray[np.float64] | None = None) -> "COCOeval":
    """Return hotcoco's evaluation of the table, before matching; its ids are our rows, counted from 1."""
    try:
        from hotcoco import COCO, COCOeval
    except ImportError as missing:
        raise MissingExtraError("Computing COCO metrics", "train") from missing
    images = [{"id": number} for number in range(1, table.images + 1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(table.class_names, start=1)]
    gt_xywh = _xywh(table.gt_xyxy)
    # An area outside every range makes COCO ignore an object without making it a crowd
    areas = np.where(table.gt_difficult, -1.0, gt_xywh[:, 2:].prod(1) if areas is None else areas)
    objects = COCO.from_arrays(
        images, categories, table.gt_image + 1, table.gt_labels + 1, gt_xywh, area=areas, iscrowd=table.gt_crowd
    )
    rows = np.column_stack([table.image + 1, _xywh(table.boxes_xyxy), table.scores, table.labels + 1])
    evaluation = COCOeval(objects, objects.load_res(rows), "bbox")
    evaluation.params.max_dets = [1, min(10, max_detections), max_detections]
    return evaluation


def _xywh(boxes_xyxy: Boxes) -> Boxes:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the values that exist: hotcoco writes -1 for those that do not."""
    real = values[values > -1]
    return float(real.mean()) if real.size else None
