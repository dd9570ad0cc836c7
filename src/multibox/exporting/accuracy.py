"""What a quantised file loses: its average precision beside eager's on labelled pictures."""

from typing import Any

import numpy as np

from multibox.data.samples import load_picture
from multibox.evaluation.report import Figures, evaluate
from multibox.exporting.runtimes import Run
from multibox.inference.detector import Detector
from multibox.structures import Dataset, Detections


def measure_loss(run: Run, detector: Detector, data: Dataset) -> dict[str, Any]:
    """Return COCO's AP and AP50 of eager and of the file (dialect plain) on a labelled split."""
    post = detector.config.post
    limits = {
        "score_threshold": np.array(post.score_threshold, np.float32),
        "nms_threshold": np.array(post.nms_threshold, np.float32),
        "max_detections": np.array(post.max_detections, np.int64),
    }
    eager: list[Detections] = []
    file: list[Detections] = []
    for sample in data:
        pixels = np.asarray(load_picture(sample))
        eager.append(detector.predict(pixels, post.score_threshold))
        found = run({"images": pixels[None], **limits})
        file.append(Detections(found["boxes"][0], found["scores"][0], found["labels"][0], detector.names))
    ours, its = (_figures(evaluate(each, data, detector.names)) for each in (eager, file))
    return {"pictures": len(data), **{f"{k}_eager": v for k, v in ours.items()}, **its}


def _figures(figures: Figures) -> dict[str, float | None]:
    return {name: figures["coco"][name] for name in ("AP", "AP50")}
