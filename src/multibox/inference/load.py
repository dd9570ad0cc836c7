"""An exported detector: images in, `Detections` out, without PyTorch."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, overload

import numpy as np
from numpy.typing import NDArray

from multibox.builtin import builtin_name, find_model, runnable
from multibox.errors import ConfigError, MissingExtraError
from multibox.inference.engines import SUFFIXES, Engine, open_engine
from multibox.inference.inputs import AnyImage, Images, is_one, pixels_of, several
from multibox.structures import Detections
from multibox.thresholds import drop_low_scores, just_below, lowest_scores

if TYPE_CHECKING:
    from multibox.inference.detector import Detector


Pixels = NDArray[np.uint8]


class ExportedDetector:
    """A file that `multibox export` wrote, in the fastest runtime at hand; used like a `Detector`.

    Can be pickled, and so sent to a process pool: the file is opened again there, with the same options.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.about = engine.about
        self.names = tuple(engine.about["names"])
        self.thresholds = tuple(engine.about["post"]["thresholds"])

    def __reduce__(self) -> tuple[Any, ...]:
        return open_exported, self.engine.opened

    @overload
    def predict(self, image: AnyImage, threshold: float | None = None) -> Detections: ...
    @overload
    def predict(self, image: Iterator[AnyImage], threshold: float | None = None) -> Iterator[Detections]: ...
    @overload
    def predict(self, image: Iterable[AnyImage], threshold: float | None = None) -> list[Detections]: ...
    def predict(
        self, image: AnyImage | Images, threshold: float | None = None
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects in one image, or in several.

        Args:
            image: one image: a path, a PIL image of any mode, a uint8 RGB array [H, W, 3], a uint8 RGB tensor
                [3, H, W] or [H, W, 3], or an encoded file as bytes or as a binary file object. OpenCV's arrays are BGR:
                give `image[..., ::-1]`. A list or tuple gives a list of `Detections`; a generator or another iterator
                gives a generator, which takes images as it is read, so memory does not grow. Neighbours of one size go
                through the network together, and files are decoded while it works.
            threshold: lowest score to report, 0 to 1; a score equal to it is reported, a score of 0 never. None takes
                the model's threshold of each class, and 0.3 where it has none.

        Returns:
            Boxes as xyxy in pixels of the original image (turned as its EXIF orientation says), best first.

        Raises:
            ImageError: a file that is missing, truncated or no image, or an array or tensor of another shape or type.
            ConfigError: `threshold` is no number from 0 to 1.
        """
        lowest = lowest_scores(threshold, self.thresholds, self.names)
        if is_one(image):
            return self._predict([pixels_of(image)], lowest)[0]
        return several(image, pixels_of, partial(self._predict, lowest=lowest))

    def detect(self, images: list[Pixels], above: float) -> list[Detections]:
        """Return what scores above `above` in each of some images [H, W, 3]; neighbours of one size share a batch."""
        found: list[Detections] = []
        for _, neighbours in groupby(images, key=np.shape):
            alike = list(neighbours)
            found += self._run(np.stack(alike) if len(alike) > 1 else alike[0][None], above)
        return found

    def _predict(self, images: list[Pixels], lowest: NDArray[np.float32]) -> list[Detections]:
        return [drop_low_scores(found, lowest) for found in self.detect(images, just_below(float(lowest.min())))]

    def _run(self, images: Pixels, above: float) -> list[Detections]:
        post = self.about["post"]
        answer = self.engine.run(
            {
                "images": images,
                "score_threshold": np.array(above, np.float32),
                "nms_threshold": np.array(post["nms_threshold"], np.float32),
                "max_detections": np.array(post["max_detections"], np.int64),
            }
        )
        rows = zip(answer["boxes"], answer["scores"], answer["labels"], answer["counts"].tolist(), strict=True)
        return [
            Detections(boxes[:count], scores[:count], labels[:count].astype(np.int64), self.names)
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
        device: "cpu", "cuda" or, for checkpoints, "mps"; "auto" takes CUDA where it is present, else the CPU. Exported
            files run on CUDA where onnxruntime-gpu is installed. A built-in model runs without PyTorch on "cpu" and
            "auto", and in PyTorch elsewhere.
        threads: CPU threads of its forward passes; None leaves it to the runtime. PyTorch's setting of this process
            stays as it is.
        precision: "float32" or "bfloat16"; None takes what is fastest here for an exported file in OpenVINO, and for a
            checkpoint float32, so that it answers the same on every machine.
        flip: average over every image and its mirror image, at twice the time; not for exported files. A built-in
            model then runs in PyTorch.

    Raises:
        WeightsError: the file is missing, broken, foreign or of a newer version.
        MissingExtraError: what runs this kind of file is not installed.
        ConfigError: an unknown precision, a device that this machine or this kind of file does not have, or settings
            that the kind of file does not know.
    """
    file = find_model(path)
    if device in ("cpu", "auto") and not flip:
        file = runnable(file)
    if file.suffix in SUFFIXES:
        if flip:
            raise ConfigError(f"{file}: averaging over mirror images is for checkpoints; an exported file looks once")
        return open_exported(file, checked_threads(threads), precision, device)
    try:
        from multibox.inference import detector
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "jaxtyping"):
            raise
        what = f"{builtin_name(file)} on device {device}" if builtin_name(file) else f"Opening {file}"
        raise MissingExtraError(what, "train") from None
    return detector.load(file, device=device, threads=threads, flip=flip).quicken(precision or "float32")


def choose_device(asked: str = "auto") -> str:
    """Return where PyTorch computes: for "auto" `cuda` where there is one, else `cpu`; or what was asked for.

    Raises:
        ConfigError: this machine, or this PyTorch, has no such device.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {asked} cannot be used here ({reason}); give cpu, cuda or auto") from None
    return str(asked)


def checked_threads(threads: int | None) -> int | None:
    """Return the number of threads.

    Raises:
        ConfigError: it is no whole number of at least 1.
    """
    # A caller may give anything, whatever the annotation says
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise ConfigError(f"threads={threads!r}: expected a whole number of at least 1, or None for the runtime's own")
    return threads
