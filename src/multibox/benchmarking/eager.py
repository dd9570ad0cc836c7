"""A detector in PyTorch, as what can be measured."""

import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from multibox.benchmarking.clock import WHOLE, Seconds
from multibox.benchmarking.machine import torch_ceiling
from multibox.benchmarking.subject import PARTS, Subject
from multibox.benchmarking.workload import Outputs, Pictures
from multibox.inference.detect import detect
from multibox.inference.detector import Detector
from multibox.models.measure import measure
from multibox.structures import Detections
from multibox.tensors import HeadOutputs

HOW = "parts: timestamps before and after the network, inside `predict`"


class _Watched(Detector):
    """A detector that notes when its network began and ended."""

    span = (0.0, 0.0)

    def answer(self, images: Tensor) -> HeadOutputs:
        started = time.perf_counter()
        outputs = super().answer(images)
        self.span = (started, time.perf_counter())
        return outputs


def eager_subject(detector: Detector, precision: str) -> Subject:
    """Return a detector on the CPU as a subject, as `multibox.load` opens it.

    Raises:
        ConfigError: an unknown precision.
    """
    watched = _Watched(detector.model, detector.config, detector.names, detector.device)
    watched.quicken(precision)
    config, threshold = detector.config, detector.config.post.score_threshold
    size = measure(config, len(detector.names))

    def predict(pictures: Pictures) -> list[Detections]:
        return watched.predict(list(pictures), threshold)

    def run(pictures: Pictures) -> Seconds:
        started = time.perf_counter()
        predict(pictures)
        ended = time.perf_counter()
        times = (started, *watched.span, ended)
        return dict(zip(PARTS, _gaps(times), strict=True)) | {WHOLE: ended - started}

    def post(outputs: Outputs, picture: tuple[int, int]) -> Callable[[], list[Detections]]:
        answer = HeadOutputs(torch.from_numpy(outputs.logits), torch.from_numpy(outputs.offsets), size.feature_shapes)
        sizes = [picture] * len(outputs.logits)
        return torch.inference_mode()(lambda: detect(answer, sizes, config, detector.names, threshold))

    return Subject(
        name=f"ours, PyTorch {precision}",
        predict=predict,
        run=run,
        post=post,
        flops=2 * size.multiply_adds,
        ceiling=lambda: torch_ceiling(precision),
        outputs=(size.anchors, len(detector.names) + (config.model.score == "softmax")),
        score=config.model.score,
        threshold=threshold,
        exact=precision == "float32",
        how=HOW,
    )


def _gaps(times: tuple[float, ...]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]
