"""Statistics of what a run learned from, for its checkpoints: predictions far from them get a warning."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from multibox.analysis.drift import box_sizes, measure_image, summarize
from multibox.data.decoded import DecodedImages
from multibox.limits import decoding_threads
from multibox.structures import Dataset, Detections, Size
from multibox.thresholds import drop_low_scores

MOST = 200
"""Training images measured, spread over the split: their means are known to a fourteenth of the deviation."""

Summaries = dict[str, dict[str, Any]]


def image_statistics(dataset: Dataset, decoded: DecodedImages) -> Summaries:
    """Return the statistics of the training images, and of the objects labelled in each, which nothing compares.

    Args:
        dataset: The training split.
        decoded: Its images; what is decoded here is kept in its store.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(MOST, len(dataset))).astype(np.int64))

    def measure(row: int) -> dict[str, float]:
        found = decoded[row]
        return measure_image(Image.fromarray(found.pixels), found.original)

    with ThreadPoolExecutor(decoding_threads()) as pool:
        measured = list(pool.map(measure, rows.tolist()))
    summaries = {name: summarize([one[name] for one in measured]) for name in measured[0]}
    return {**summaries, "labelled": summarize(np.diff(dataset.starts).astype(np.float64))}


def detection_statistics(
    detections: Sequence[Detections], sizes: Sequence[Size], thresholds: Sequence[float]
) -> Summaries:
    """Return the statistics of what was found in the validation images.

    Args:
        detections: In each image.
        sizes: Of each image.
        thresholds: Lowest score of each class that counts.
    """
    lowest = np.array(thresholds, np.float32)
    kept = [drop_low_scores(found, lowest) for found in detections]
    values = {
        "detections": np.array([len(found) for found in kept], np.float64),
        "score": np.concatenate([found.scores for found in kept]).astype(np.float64),
        "box_size": np.concatenate([box_sizes(found, size) for found, size in zip(kept, sizes, strict=True)]),
    }
    return {name: summarize(column) for name, column in values.items() if len(column)}
