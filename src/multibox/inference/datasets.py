"""A detector over a whole labelled split."""

from collections.abc import Sequence

import torch

from multibox.data.loading import AugmentedPictures, choose_workers, in_order, load_batches
from multibox.data.samples import load_picture
from multibox.inference.detect import detect
from multibox.inference.detector import Detector
from multibox.inference.exported import ExportedDetector
from multibox.inference.inputs import BATCH
from multibox.structures import Dataset, Detections


def find_all(detector: Detector | ExportedDetector, dataset: Dataset, max_detections: int = 100) -> list[Detections]:
    """Return the detections in every picture of `dataset`, in order, down to the config's lowest score."""
    found = _exported(detector, dataset) if isinstance(detector, ExportedDetector) else _eager(detector, dataset)
    return [each[:max_detections] for each in found]


def _exported(detector: ExportedDetector, dataset: Dataset) -> Sequence[Detections]:
    lowest = detector.about["post"]["score_threshold"]
    found: list[Detections] = []
    for start in range(0, len(dataset), BATCH):
        some = range(start, min(start + BATCH, len(dataset)))
        found += detector.predict([load_picture(dataset[index]) for index in some], lowest)
    return found


@torch.inference_mode()
def _eager(detector: Detector, dataset: Dataset) -> Sequence[Detections]:
    pictures = AugmentedPictures(dataset, detector.config.model.input_size, (), cache_bytes=0)
    found: list[Detections] = []
    for batch in load_batches(pictures, in_order(len(dataset), BATCH), choose_workers("auto"), pin=False):
        outputs = detector.answer(batch.images.to(detector.device))
        found += detect(outputs, batch.sizes, detector.config, detector.names)
    return found
