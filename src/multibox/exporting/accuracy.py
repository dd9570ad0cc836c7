"""What a quantised file loses: against the float file it was made from, and against labels where there are any."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.samples import load_picture
from multibox.evaluation.report import Figures, evaluate
from multibox.evaluation.voc import precision_recall
from multibox.exporting.compare import VerificationError
from multibox.exporting.runtimes import Run
from multibox.inference.detector import Detector
from multibox.inference.thresholds import class_thresholds
from multibox.structures import Dataset, Detections, Sample

LEAST_AGREEMENT = 0.8
"""Below this an INT8 file is not written; a network whose numbers
do not fit 8 bits, or wrong calibration images, end far below."""
FEWEST = 3
"""Detections per image that serve as objects at least, on average; thresholds are lowered until there are as many."""


def measure_agreement(run: Run, reference: Run, detector: Detector, images: Iterable[Image.Image]) -> dict[str, Any]:
    """Return how well a file finds what its float twin finds.

    The detections that the float file reports serve as objects. The agreement is the average precision at IoU .5 of the
    file's detections, per class, weighted by objects.

    Args:
        run: the file, of dialect plain.
        reference: its float twin.
        detector: what was exported.
        images: such as the calibration images.

    Raises:
        VerificationError: the agreement is below `LEAST_AGREEMENT`.
    """
    found: list[Detections] = []
    wanted: list[Detections] = []
    for image in images:
        pixels = np.asarray(image)
        found.append(_detect(run, detector, pixels))
        wanted.append(_detect(reference, detector, pixels))
    objects = _reported(wanted, np.array(class_thresholds(detector.thresholds, detector.names)))
    curves = precision_recall(found, objects, detector.names, plus_one=False)
    scores = [(curve.ap12 or 0.0, curve.objects) for curve in curves.values() if curve.objects]
    total = sum(count for _, count in scores)
    agreement = sum(score * count for score, count in scores) / total if total else 1.0
    if agreement < LEAST_AGREEMENT:
        raise VerificationError(
            f"INT8 differs: its detections agree with the float file's to {agreement:.2f} (AP at IoU .5 on "
            f"{len(found)} calibration images), expected at least {LEAST_AGREEMENT}; calibrate on more images like "
            "those that the detector will see, or export with --fp16"
        )
    return {"agreement": agreement, "images": len(found), "objects": total}


def measure_loss(run: Run, detector: Detector, data: Dataset) -> dict[str, Any]:
    """Return COCO's AP and AP50 of eager and of the file (dialect plain) on a labelled split."""
    eager: list[Detections] = []
    file: list[Detections] = []
    for sample in data:
        pixels = np.asarray(load_picture(sample))
        eager.append(detector.predict(pixels, detector.config.post.score_threshold))
        file.append(_detect(run, detector, pixels))
    ours, its = (_figures(evaluate(each, data, detector.names)) for each in (eager, file))
    return {"labelled_images": len(data), **{f"{k}_eager": v for k, v in ours.items()}, **its}


def _detect(run: Run, detector: Detector, pixels: NDArray[np.uint8]) -> Detections:
    """Return what a file finds in one image, down to the config's lowest score."""
    post = detector.config.post
    limits = {
        "score_threshold": np.array(post.score_threshold, np.float32),
        "nms_threshold": np.array(post.nms_threshold, np.float32),
        "max_detections": np.array(post.max_detections, np.int64),
    }
    answer = run({"images": pixels[None], **limits})
    return Detections(answer["boxes"][0], answer["scores"][0], answer["labels"][0], detector.names)


def _reported(found: list[Detections], thresholds: NDArray[np.float64]) -> list[Sample]:
    """Return the detections from their class's threshold on as labelled images; from a lower one if those are few."""
    excess = np.concatenate([each.scores - thresholds[each.labels] for each in found] or [np.zeros(0)])
    few = FEWEST * len(found)
    lowest = 0.0 if (excess >= 0).sum() >= few or len(excess) < few else float(np.sort(excess)[-few])
    kept = [each[each.scores - thresholds[each.labels] >= lowest] for each in found]
    return [
        Sample(
            name=str(index),
            path=Path(str(index)),
            boxes_xyxy=each.boxes.astype(np.float64),
            labels=each.labels,
            difficult=np.zeros(len(each), np.bool_),
            crowd=np.zeros(len(each), np.bool_),
        )
        for index, each in enumerate(kept)
    ]


def _figures(figures: Figures) -> dict[str, float | None]:
    return {name: figures["coco"][name] for name in ("AP", "AP50")}
