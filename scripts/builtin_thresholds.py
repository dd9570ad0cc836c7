"""Find the score thresholds of the built-in model `coco`, and measure what they change.

    python scripts/builtin_thresholds.py

Thresholds come from the 50 val2017 images of ../shared/data/tiny_coco alone: its train images may have taught the
network. Each class with at least `ENOUGH` objects gets the threshold of its best F1 at IoU 0.5, all other classes share
the one of their pooled best F1. The script prints a cross-validation of `ENOUGH` within these 50 images, and
precision, recall and F1 on VOC's 100 images before (0.3 for every class) and after.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox import api
from multibox.evaluation.report import best_threshold
from multibox.evaluation.table import Columns, columns
from multibox.evaluation.voc_metrics import Curve, overlaps, voc_curves
from multibox.inference.detector import Detector, find_all, open_checkpoint
from multibox.thresholds import DEFAULT_THRESHOLD

DATA = Path(__file__).resolve().parents[2] / "shared/data"
ENOUGH = 20
"""Objects of a class from which it has a threshold of its own; see docs/decisions.md."""
FACE_THRESHOLD = 0.7
"""Of upstream's detect_imgs_onnx.py, and of the reference outputs; no labelled faces are at hand."""
DIGITS = 3
VOC_TO_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
CANDIDATES = (5, 10, 15, 20, 30, 1_000_000)
FOLDS, REPEATS = 5, 30

Thresholds = NDArray[np.float64]


class Score(NamedTuple):
    """Detections at or above the thresholds, over all classes together, and F1 as the mean over the classes."""

    boxes: int
    precision: float
    recall: float
    f1: float
    mean_f1: float


def find_thresholds(detector: Detector, enough: int = ENOUGH) -> tuple[float, ...]:
    """Return one threshold per class of a detector that knows COCO's classes."""
    return tuple(choose(found_in(detector, DATA / "tiny_coco", "val2017"), enough).round(DIGITS).tolist())


def found_in(detector: Detector, data: Path, split: str | None, rename: dict[str, str] | None = None) -> Columns:
    """Return detections down to the config's lowest score, beside the labels."""
    dataset = api.open_for(detector, data, split=split, rename=rename)
    return columns(find_all(detector, dataset), dataset, detector.names)


def choose(table: Columns, enough: int) -> Thresholds:
    """Return the threshold of best F1: of each class with enough objects, and of all others together."""
    found = voc_curves(table, overlaps(table, plus_one=False))
    own = {name: best_threshold(curve) for name, curve in found.items() if curve.objects >= enough}
    others = best_threshold(_pooled([curve for name, curve in found.items() if not own.get(name)]))
    shared = DEFAULT_THRESHOLD if others is None else others["threshold"]
    return np.array([best["threshold"] if (best := own.get(name)) else shared for name in found])


def _pooled(found: list[Curve]) -> Curve:
    """Return the curve of several classes' detections in one list."""
    hits = [np.diff(np.rint(curve.recall * curve.objects), prepend=0) for curve in found]
    scores = np.concatenate([np.zeros(0), *(curve.scores for curve in found)])
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(np.concatenate([np.zeros(0), *hits])[order])
    objects = sum(curve.objects for curve in found)
    return Curve(true / max(1, objects), true / np.arange(1, len(true) + 1), scores[order], objects)


def measure(table: Columns, thresholds: Thresholds) -> Score:
    """Return the score of what lies at or above the thresholds, for the classes that have objects."""
    kept = _chosen(table, table.scores >= thresholds[table.labels])
    found = [curve for curve in voc_curves(kept, overlaps(kept, plus_one=False)).values() if curve.objects]
    boxes = np.array([len(curve.scores) for curve in found])
    objects = np.array([curve.objects for curve in found])
    true = np.array([curve.recall[-1] * curve.objects if len(curve.recall) else 0 for curve in found])
    f1 = 2 * true.sum() / (boxes.sum() + objects.sum())
    each = 2 * true / (boxes + objects)
    return Score(int(boxes.sum()), true.sum() / boxes.sum(), true.sum() / objects.sum(), f1, each.mean())


def cross_validate(table: Columns, enough: int) -> tuple[float, float]:
    """Return mean and deviation, over repeats, of F1 on images that did not take part in choosing."""
    rng, scores = np.random.default_rng(0), []
    for _ in range(REPEATS):
        fold = rng.permutation(np.arange(table.images) % FOLDS)
        found = [_counts(_part(table, fold == k), choose(_part(table, fold != k), enough)) for k in range(FOLDS)]
        true, boxes, objects = np.sum(found, 0)
        scores.append(2 * true / (boxes + objects))
    return float(np.mean(scores)), float(np.std(scores))


def _counts(table: Columns, thresholds: Thresholds) -> tuple[float, int, int]:
    """Return right detections, detections and objects of all classes."""
    kept = _chosen(table, table.scores >= thresholds[table.labels])
    found = voc_curves(kept, overlaps(kept, plus_one=False)).values()
    true = sum(curve.recall[-1] * curve.objects for curve in found if len(curve.recall))
    return true, sum(len(curve.scores) for curve in found), sum(curve.objects for curve in found)


def _part(table: Columns, keep: NDArray[np.bool_]) -> Columns:
    """Return the rows of some images; `keep` says of each image whether it is one of them."""
    rows = keep[table.gt_image]
    names = ("gt_xyxy", "gt_labels", "gt_image", "gt_difficult", "gt_crowd")
    table = dataclasses.replace(table, **{name: getattr(table, name)[rows] for name in names})
    return _chosen(table, keep[table.image])


def _chosen(table: Columns, rows: NDArray[np.bool_]) -> Columns:
    names = ("boxes_xyxy", "scores", "labels", "image")
    return dataclasses.replace(table, **{name: getattr(table, name)[rows] for name in names})


def main() -> None:
    detector = open_checkpoint("coco")
    table = found_in(detector, DATA / "tiny_coco", "val2017")
    print(f"F1 on held-out images of val2017, {REPEATS} repeats of {FOLDS} folds, by `ENOUGH`:")
    for enough in CANDIDATES:
        mean, deviation = cross_validate(table, enough)
        print(f"  {enough:>9,}: {mean:.3f} +- {deviation:.3f}")
    thresholds = choose(table, ENOUGH).round(DIGITS)
    values, counts = np.unique(thresholds, return_counts=True)
    shared = values[counts.argmax()]
    own = ", ".join(f"{n} {t:g}" for n, t in zip(detector.names, thresholds, strict=True) if t != shared)
    print(f"thresholds: {own}, all others {shared:g}")
    voc = found_in(detector, DATA / "voc100/gts/coco_format_v1", None, VOC_TO_COCO)
    for what, used in (("0.3 for all", np.full(len(thresholds), 0.3)), ("thresholds", thresholds)):
        print(f"voc100, {what}: {dict(zip(Score._fields, np.round(measure(voc, used), 3).tolist(), strict=True))}")


if __name__ == "__main__":
    main()
