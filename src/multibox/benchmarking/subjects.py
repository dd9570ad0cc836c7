"""What is measured, whatever runs it: the one face of eager PyTorch, exported files and peers. No torch here."""

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multibox.benchmarking.clock import WHOLE, Seconds, numpy_ceiling, timed
from multibox.benchmarking.parts import HEADS, Parts, onnx_parts, openvino_parts
from multibox.benchmarking.workload import Images, Outputs
from multibox.errors import MultiboxError
from multibox.inference.engines import LIMITS
from multibox.inference.load import ExportedDetector, open_exported
from multibox.structures import Detections, Size

PARTS = ("preprocess", "network", "post-process")


class DisagreementError(MultiboxError):
    """Two sides of a comparison found different objects; times mean nothing then."""


class Subject(NamedTuple):
    """A detector in an engine."""

    name: str
    """Of engine and precision."""
    predict: Callable[[Images], list[Detections]]
    """Decoded images to detections above the config's score threshold."""
    run: Callable[[Images], Seconds]
    """The same, with a stopwatch: the seconds of `PARTS` (where they can be told apart) and of the whole."""
    post: Callable[[Outputs, Size], Callable[[], list[Detections]]] | None
    """From a network's outputs and the images' size to post-processing alone, ready to run."""
    flops: int | None
    """Of the network for one image; a multiplication and an addition count as two."""
    ceiling: Callable[[], float]
    """Measures the FLOP/s of a large matrix product in the same engine and precision."""
    outputs: tuple[int, int] | None
    """Anchors and logits an anchor; None where they are not known."""
    score: Any
    """softmax or sigmoid."""
    threshold: float
    """Scores above it are candidates."""
    exact: bool
    """Computed in float32."""
    how: str
    """How the parts were told apart."""


HOW = "parts: the graph cut in three, each compiled alone; the whole is the file as it is"
UNCUT = "parts cannot be told apart in onnxruntime without the package onnx: pip install onnx"


def exported_subject(path: Path, threads: int | None = None, precision: str | None = None) -> Subject:
    """Return a .onnx or .xml file as a subject; arguments and errors are those of `engines.open_engine`."""
    detector = open_exported(path, threads, precision, "cpu")
    engine, about = detector.engine.name, detector.about
    parts = _cut(detector, path, threads, precision)
    threshold = about["post"]["score_threshold"]

    def predict(images: Images) -> list[Detections]:
        return detector.predict(list(images), threshold)

    def run(images: Images) -> Seconds:
        found = {WHOLE: timed(lambda: predict(images))}
        return found if parts is None else _part_seconds(parts, detector, images) | found

    used = parts.precision if parts else "float32"
    kind = ", INT8" if about["precision"] == "int8" else ""
    return Subject(
        name=f"ours, {engine} {version(engine.lower())} {used}{kind}",
        predict=predict,
        run=run,
        post=partial(post_of, parts, detector) if parts else None,
        flops=parts.flops if parts else None,
        ceiling=parts.ceiling if parts else numpy_ceiling,
        outputs=parts.outputs if parts else None,
        score=about["score"],
        threshold=threshold,
        exact=used == "float32" and not kind,
        how=HOW if parts else UNCUT,
    )


def post_of(parts: Parts, detector: ExportedDetector, outputs: Outputs, image: Size) -> Callable[[], list[Detections]]:
    """Return the file's post-processing alone, ready to run; what it takes and gives is said at `Subject.post`."""
    images = np.zeros((len(outputs.logits), *image, 3), np.uint8)
    feeds = {"images": images, **_limits(detector), **outputs._asdict()}

    def work() -> list[Detections]:
        # Copied, as the engine does
        boxes, scores, labels, counts = map(np.array, parts.post(feeds))
        columns = zip(boxes, scores, labels, counts.tolist(), strict=True)
        return [Detections(b[:n], s[:n], k[:n], detector.names) for b, s, k, n in columns]

    return work


def _cut(detector: ExportedDetector, path: Path, threads: int | None, precision: str | None) -> Parts | None:
    if detector.engine.name != "onnxruntime":
        return openvino_parts(path, Size(*detector.about["input_size"]), threads, precision)
    return onnx_parts(path, threads) if find_spec("onnx") else None


def _part_seconds(parts: Parts, detector: ExportedDetector, images: Images) -> Seconds:
    """Run the parts one behind the other."""
    times = [time.perf_counter()]
    pixels = np.stack(list(images))
    (resized,) = parts.resize({"images": pixels})
    times.append(time.perf_counter())
    answer = parts.network({"resized": resized})
    times.append(time.perf_counter())
    parts.post({"images": pixels, **_limits(detector), **dict(zip(HEADS, answer, strict=True))})
    times.append(time.perf_counter())
    return {name: after - before for name, before, after in zip(PARTS, times, times[1:], strict=False)}


def _limits(detector: ExportedDetector) -> dict[str, Any]:
    post = detector.about["post"]
    kinds = (np.float32, np.float32, np.int64)
    return {name: np.array(post[name], kind) for name, kind in zip(LIMITS, kinds, strict=True)}
