"""A detector over a whole labelled split."""

import torch

from multibox.data.loading import AugmentedPictures, choose_workers, in_order, load_batches
from multibox.inference.detect import detect
from multibox.inference.detector import BATCH, Detector
from multibox.structures import Dataset, Detections


@torch.inference_mode()
def find_all(detector: Detector, dataset: Dataset, max_detections: int = 100) -> list[Detections]:
    """Return the detections in every picture of `dataset`, in order, down to the config's lowest score."""
    pictures = AugmentedPictures(dataset, detector.config.model.input_size, (), cache_bytes=0)
    found: list[Detections] = []
    for batch in load_batches(pictures, in_order(len(dataset), BATCH), choose_workers(-1), pin=False):
        outputs = detector.answer(batch.images.to(detector.device))
        found += detect(outputs, batch.sizes, detector.config, detector.names)
    return [each[:max_detections] for each in found]
