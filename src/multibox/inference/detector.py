"""Detectors in PyTorch: images in, `Detections` out."""
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from multibox.builtin import find_model
from multibox.config import Config
from multibox.data.images import load_image, resize_image, size_of
from multibox.data.pixels import as_colour
from multibox.inference.inputs import AnyImage, Images, in_batches, is_one, open_image, several
from multibox.inference.load import ExportedDetector, checked_threads, choose_device
from multibox.models.anchor_layout import anchors_for
from multibox.models.build import build_model
from multibox.models.checkpoint import load_checkpoint
from multibox.models.prediction import computing_in, gains, mean_with_mirrored, quick_copy, single_threaded_forks
from multibox.models.ssd import SSD
from multibox.postprocess import detect
from multibox.structures import Dataset, Detections, Size
from multibox.tensors import HeadOutputs
from multibox.thresholds import lowest_scores

Resized = tuple[NDArray[np.uint8], Size]
"""Pixels at the network's size, and the size of the original image."""


class Detector:
    """A network with its config and class names.

    Can be pickled, so it can be sent to a process pool. A process forked after the first `predict` computes with one
    CPU thread; start processes by `spawn` or `forkserver` to use more.
    """

    # A detector made within `torch.inference_mode` may be trained later, and inference tensors do not count versions
    @torch.inference_mode(False)
    def __init__(
        self, model: SSD, config: Config, names: tuple[str, ...], device: str = "cpu", threads: int | None = None
    ) -> None:
        """Put `model` on `device` ("cpu", "cuda", "mps" or "auto"), and let forward passes use `threads` CPU threads.

        Raises:
            ConfigError: this machine has no such device, or threads is not at least 1.
        """
        self.device = choose_device(device)
        self.threads = checked_threads(threads)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        self.config = config
        self.names = names
        self.background = as_colour(config.model.background)
        """Colour that shows through transparent pixels."""
        self.merge: tuple[str, ...] = ()
        """Rules by which the run joined classes, such as `car=truck,bus`; `evaluate` applies them."""
        self.statistics: dict[str, Any] = {}
        """Of the images that the run learned from (`analysis.drift`); empty if the file says nothing of them."""
        self.precision = "float32"
        self._quick: SSD | None = None
        self._copied: tuple[int, ...] = ()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The model's own lowest scores to report, one per class; empty where it has none."""
        return self.config.post.thresholds

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
        """Detect objects in one image, or in several.

        Args:
            image: one image: a path, a PIL image of any mode, a uint8 RGB array [H, W, 3], a uint8 RGB tensor
                [3, H, W] or [H, W, 3], or an encoded file as bytes or as a binary file object. OpenCV's arrays are BGR:
                give `image[..., ::-1]`. A list or tuple gives a list of `Detections`; a generator or another iterator
                gives a generator, which takes images as it is read, so memory does not grow.
            threshold: lowest score to report, 0 to 1; a score equal to it is reported, a score of 0 never. None takes
                the model's threshold of each class, which training with validation found, and 0.3 where it has none.

        Returns:
            Boxes as xyxy in pixels of the original image (turned as its EXIF orientation says), best first.

        Raises:
            ImageError: a file that is missing, truncated or no image, or an array or tensor of another shape or type.
            ConfigError: `threshold` is no number from 0 to 1.
        """
        lowest = lowest_scores(threshold, self.thresholds, self.names)
        if is_one(image):
            return self.detect([self.prepare(image)], lowest)[0]
        return several(image, self.prepare, partial(self.detect, lowest=lowest))

    def prepare(self, image: Any) -> Resized:
        """Open an image for `detect`."""
        opened = open_image(image, self.background)
        return np.asarray(resize_image(opened, self.config.model.input_size)), size_of(opened)

    @torch.inference_mode()
    def detect(
        self,
        images: list[Resized],
        lowest: NDArray[np.float32] | None = None,
        *,
        nms: float | None = None,
        most: int | None = None,
    ) -> list[Detections]:
        """Return the detections in a batch of prepared images.

        Args:
            images: from `prepare`.
            lowest: lowest score of each class to report [C]; None takes what scores above the config's threshold.
            nms: overlap above which the worse of two boxes of a class is suppressed; None takes the config's. At 1 all
                candidates stay, at most `post.pre_nms_topk` (or `post.max_per_class`) of each class.
            most: detections per image; None takes the config's `max_detections`.
        """
        config = _with_limits(self.config, nms, most)
        pixels, sizes = zip(*images, strict=True)
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(self.device)
        outputs = self.outputs(batch)
        return detect(outputs, anchors_for(outputs, self.config), sizes, config, self.names, lowest)

    def outputs(self, images: Tensor) -> HeadOutputs:
        """Return the network's outputs for images of its input size, on its device; with `post.flip` the mean of both.

        Both are those of the images and of their mirror images.
        """
        single_threaded_forks()
        with computing_in(self.precision, self.device, self.threads):
            network = self._network()
            return mean_with_mirrored(network, images, self.config) if self.config.post.flip else network(images)

    @torch.inference_mode(False)
    def quicken(self, precision: str = "float32") -> "Detector":
        """Compute with a faster copy of the network from now on, and return itself; `model` stays as it is.

        Args:
            precision: "float32", or "bfloat16", which is several times as fast where the hardware multiplies it.

        Raises:
            ConfigError: an unknown precision, or bfloat16 on MPS.
        """
        self._quick = quick_copy(self.model, precision, self.device) if gains(self.model, precision) else None
        self._copied = _versions(self.model)
        self.precision = precision
        return self

    def _network(self) -> SSD:
        """Return the network that computes; a copy is made anew if the weights changed since, as by training."""
        if self._quick is None:
            return self.model
        if self._copied != _versions(self.model):
            self.quicken(self.precision)
        return self._quick or self.model


def _with_limits(config: Config, nms: float | None, most: int | None) -> Config:
    if nms is None and most is None:
        return config
    post = config.post
    overlap = post.nms_threshold if nms is None else nms
    return replace(config, post=replace(post, nms_threshold=overlap, max_detections=most or post.max_detections))


def _versions(model: SSD) -> tuple[int, ...]:
    """Return how often each tensor of the network was written to."""
    return tuple(tensor._version for tensor in (*model.parameters(), *model.buffers()))


@torch.inference_mode(False)
def open_checkpoint(
    path: str | Path, *, device: str = "auto", threads: int | None = None, flip: bool = False
) -> Detector:
    """Open a checkpoint, a run folder or a built-in model in PyTorch; arguments and errors are those of `load`."""
    device, threads = choose_device(device), checked_threads(threads)
    checkpoint = load_checkpoint(find_model(path))
    model = build_model(checkpoint.config, len(checkpoint.class_names))
    model.load_state_dict(dict(checkpoint.state))
    config = checkpoint.config.updated({"post.flip": True}) if flip else checkpoint.config
    detector = Detector(model, config, checkpoint.class_names, device, threads)
    detector.merge, detector.statistics = checkpoint.merge, checkpoint.statistics
    return detector


def find_all(
    detector: Detector | ExportedDetector,
    dataset: Dataset,
    max_detections: int = 100,
    progress: Callable[[int], object] | None = None,
) -> list[Detections]:
    """Return the detections in every image of `dataset`, in order, down to the config's lowest score.

    Images are decoded ahead in threads, not in processes: a script that calls this needs no `__main__` guard.
    `progress` takes the number of images done so far.
    """
    detections: list[Detections] = []
    for batch in in_batches(dataset, lambda one: cast("Any", detector.prepare(load_image(one, detector.background)))):
        detections += [found[:max_detections] for found in detector.detect(batch)]
        if progress is not None:
            progress(len(detections))
    return detections
