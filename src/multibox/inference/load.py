"""Any model opened by one function, `load`; exported files as detectors, without PyTorch."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, overload

import numpy as np
from numpy.typing import NDArray

from multibox.builtin import EXPECTED, builtin_name, find_model, runnable
from multibox.data.pixels import WHITE, as_colour
from multibox.errors import ConfigError, MissingExtraError, WeightsError
from multibox.inference.engines import SUFFIXES, Engine, limits, open_engine
from multibox.inference.inputs import AnyImage, Images, is_one, pixels_of, several
from multibox.structures import Detections
from multibox.thresholds import drop_low_scores, just_below, lowest_scores

if TYPE_CHECKING:
    from multibox.inference.detector import Detector

Pixels = NDArray[np.uint8]


class ExportedDetector:
    """A file that `multibox export` wrote, in the fastest runtime installed; used like a `Detector`.

    Can be pickled, so it can be sent to a process pool: the file is opened again there, with the same options.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.about = engine.about
        self.names = tuple(engine.about["names"])
        self.thresholds = tuple(engine.about["post"]["thresholds"])
        self.background = as_colour(engine.about.get("background", WHITE))
        """Colour that shows through transparent pixels; white in files of older versions."""
        self.merge: tuple[str, ...] = tuple(engine.about.get("merge", ()))
        self.statistics: dict[str, Any] = engine.about.get("statistics", {})
        """Rules by which the run joined classes, such as `car=truck,bus`; `evaluate` applies them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_exported, self.engine.opened, {"background": self.background}

    @overload
    def predict(  # pyright: ignore[reportOverlappingOverload] - a file object is an iterator, too
        self, image: AnyImage, threshold: float | None = None
    ) -> Detections: ...
    @overload
    def predict(self, image: Iterator[AnyImage], threshold: float | None = None) -> Iterator[Detections]: ...
    @overload
    def predict(self, image: Iterable[AnyImage], threshold: float | None = None) -> list[Detections]: ...
    def predict(
        self, image: AnyImage | Images, threshold: float | None = None
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects in one image, or in several; arguments, result and errors are those of `Detector.predict`.

        On a CPU every image goes through the network by itself, so that its result does not depend on the others.
        """
        lowest = lowest_scores(threshold, self.thresholds, self.names)
        if is_one(image):
            return self.detect([self.prepare(image)], lowest)[0]
        return several(image, self.prepare, partial(self.detect, lowest=lowest))

    def prepare(self, image: Any) -> Pixels:
        """Open an image for `detect`."""
        return pixels_of(image, self.background)

    def detect(
        self,
        images: list[Pixels],
        lowest: NDArray[np.float32] | None = None,
        *,
        nms: float | None = None,
        most: int | None = None,
    ) -> list[Detections]:
        """Return the detections in prepared images [H, W, 3]; on a GPU, neighbours of one size share a batch.

        Args:
            images: from `prepare`, of any sizes.
            lowest: lowest score of each class to report [C]; None takes what scores above the config's threshold.
            nms: overlap above which the worse of two boxes of a class is suppressed; None takes the config's. At 1 all
                candidates stay, at most `post.pre_nms_topk` (or `post.max_per_class`) of each class.
            most: detections per image; None takes the config's `max_detections`.
        """
        post = self.about["post"]
        overlap = float(post["nms_threshold"] if nms is None else nms)
        count = int(post["max_detections"] if most is None else most)
        above = post["score_threshold"] if lowest is None else just_below(float(lowest.min()))
        found: list[Detections] = []
        for batch in self._batches(images):
            outputs = self.engine.run({"images": batch, **limits(above, overlap, count)})
            found += detections_of(outputs, self.names)
        return found if lowest is None else [drop_low_scores(each, lowest) for each in found]

    def _batches(self, images: list[Pixels]) -> Iterator[Pixels]:
        """Yield what goes through the network together [b, H, W, 3], in order."""
        if not self.engine.on_gpu:
            # A batch rounds otherwise: in bfloat16 another one of two boxes with equal scores was kept then
            yield from (image[None] for image in images)
            return
        for _, neighbours in groupby(images, key=np.shape):
            yield np.stack(list(neighbours))


def detections_of(outputs: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> list[Detections]:
    """Return the detections per image in the outputs of an exported file."""
    rows = zip(outputs["boxes"], outputs["scores"], outputs["labels"], outputs["counts"].tolist(), strict=True)
    return [
        Detections(boxes[:count], scores[:count], labels[:count].astype(np.int64), names)
        for boxes, scores, labels, count in rows
    ]


def open_exported(
    path: Path, threads: int | None = None, precision: str | None = None, device: str = "auto"
) -> ExportedDetector:
    """Open a .onnx or .xml file; arguments and errors are those of `open_engine`."""
    return ExportedDetector(open_engine(path, threads, precision, device))


def load(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    flip: bool = False,
) -> Union["Detector", "ExportedDetector"]:
    """Open a built-in model, a checkpoint, a run folder (its `best.safetensors`, else `last`) or an exported file.

    Args:
        path: the name of a built-in model (`multibox list models`), a `.safetensors` file, a run folder, or a `.onnx`
            or `.xml` file. A built-in name wins over a file of that name: `./coco` is the path. Built-in models and
            exported files run without PyTorch.
        device: "cpu", "cuda" or, for checkpoints, "mps"; "auto" takes CUDA if it is present, else the CPU. Exported
            files run on CUDA if onnxruntime-gpu is installed. A built-in model runs without PyTorch on "cpu" and
            "auto", and in PyTorch elsewhere.
        threads: CPU threads of its forward passes; None leaves it to the runtime. PyTorch's setting of this process
            stays as it is.
        precision: "float32" or "bfloat16". None takes what is fastest here for an exported file in OpenVINO, and
            float32 for a checkpoint, whose detections are then the same on every machine.
        flip: average over every image and its mirror image, at twice the time; not for exported files. A built-in
            model then runs in PyTorch.

    Raises:
        WeightsError: the file is missing, broken, foreign or of a newer version.
        MissingExtraError: what runs this kind of file is not installed.
        ConfigError: an unknown precision, threads below 1, a device that this machine or this kind of file does not
            have, or settings that the kind of file does not know.
    """
    file = find_model(path)
    if device in ("cpu", "auto") and not flip:
        file = runnable(file)
    if file.suffix in SUFFIXES:
        if flip:
            raise ConfigError(f"{file}: averaging over mirror images is for checkpoints; an exported file looks once")
        return open_exported(file, checked_threads(threads), precision, device)
    try:
        from multibox.inference.detector import open_checkpoint
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "jaxtyping"):
            raise
        if file.suffix != ".safetensors":
            raise WeightsError(f"{file} is no model; expected {EXPECTED}") from None
        what = f"{builtin_name(file)} on device {device}" if builtin_name(file) else f"Opening {file}"
        raise MissingExtraError(what, "train") from None
    return open_checkpoint(file, device=device, threads=threads, flip=flip).quicken(precision or "float32")


def choose_device(device: str = "auto") -> str:
    """Return where PyTorch computes: for "auto" `cuda` if there is one, else `cpu`; any other device as it is.

    Raises:
        ConfigError: this machine, or this PyTorch, has no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {device} cannot be used here ({reason}); give cpu, cuda or auto") from None
    return str(device)


def checked_threads(threads: Any) -> int | None:
    """Return the number of threads.

    Raises:
        ConfigError: it is no whole number of at least 1.
    """
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise ConfigError(f"threads={threads!r}: expected a whole number of at least 1, or None for the runtime's own")
    return threads
