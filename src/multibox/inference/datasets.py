"""A detector over a whole labelled split."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.data.pictures import resize_picture
from multibox.data.samples import load_picture
from multibox.inference.detect import detect
from multibox.inference.detector import Detector
from multibox.inference.exported import ExportedDetector
from multibox.inference.inputs import in_batches
from multibox.structures import Dataset, Detections, Sample

Resized = tuple[NDArray[np.uint8], tuple[int, int]]


def find_all(detector: Detector | ExportedDetector, dataset: Dataset, max_detections: int = 100) -> list[Detections]:
    """Return the detections in every image of `dataset`, in order, down to the config's lowest score.

    Images are decoded ahead in threads, not in processes: a script that calls this needs no `__main__` guard.
    """
    found = _exported(detector, dataset) if isinstance(detector, ExportedDetector) else _eager(detector, dataset)
    return [each[:max_detections] for each in found]


def _exported(detector: ExportedDetector, dataset: Dataset) -> Iterator[Detections]:
    above = detector.about["post"]["score_threshold"]
    for images in in_batches(dataset, lambda sample: np.asarray(load_picture(sample))):
        yield from detector.detect(images, above)


def _eager(detector: Detector, dataset: Dataset) -> Iterator[Detections]:
    for resized in in_batches(dataset, partial(_resized, detector.config.model.input_size)):
        pixels, sizes = zip(*resized, strict=True)
        # Entered for each batch: a generator would leave its caller within it
        with torch.inference_mode():
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(detector.device)
            found = detect(detector.answer(images), sizes, detector.config, detector.names)
        yield from found


def _resized(size: tuple[int, int], sample: Sample) -> Resized:
    """Return the pixels of a sample at the network's (height, width), and the (width, height) of the original."""
    picture = load_picture(sample)
    return np.asarray(resize_picture(picture, size)), picture.size
