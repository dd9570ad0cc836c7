"""A trained detector: load it, show it pictures, get `Detections`."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multibox.builtin import find_model
from multibox.config import Config
from multibox.data.pictures import resize_picture
from multibox.inference.detect import detect
from multibox.inference.inputs import BATCH, Picture, open_picture
from multibox.inference.quick import computing_in, gains, quick_copy
from multibox.inference.thresholds import class_thresholds
from multibox.models.build import build_model
from multibox.models.checkpoint import load_checkpoint
from multibox.models.flip import answer_both_ways
from multibox.models.ssd import SSD
from multibox.structures import Detections
from multibox.tensors import HeadOutputs


class Detector:
    """A network with its config and class names."""

    def __init__(self, model: SSD, config: Config, names: tuple[str, ...], device: str = "cpu") -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        self.config = config
        self.names = names
        self.device = device
        self.precision = "float32"
        self._quick: SSD | None = None
        self._copied: tuple[int, ...] = ()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The model's own lowest scores to report, one a class; empty where it has none."""
        return self.config.post.thresholds

    @overload
    def predict(self, picture: Picture, threshold: float | None = None) -> Detections: ...
    @overload
    def predict(self, picture: Sequence[Picture], threshold: float | None = None) -> list[Detections]: ...
    def predict(
        self, picture: Picture | Sequence[Picture], threshold: float | None = None
    ) -> Detections | list[Detections]:
        """Find objects in one picture or in a list of them.

        Args:
            picture: a path, a PIL picture or a uint8 RGB array [H, W, 3]; a list gives a list.
            threshold: detections with lower scores are left out; None takes the model's threshold of each class, which
                training with validation found, and 0.3 where there are none.

        Raises:
            PictureError: a file that is missing, truncated or no picture, or an array of another shape or type.
        """
        if isinstance(picture, str | Path | Image.Image | np.ndarray):
            return self._predict([picture], threshold)[0]
        found: list[Detections] = []
        for start in range(0, len(picture), BATCH):
            found += self._predict(picture[start : start + BATCH], threshold)
        return found

    def answer(self, images: Tensor) -> HeadOutputs:
        """Return the network's answer for pictures of its input size, on its device; both ways with `post.flip`."""
        with computing_in(self.precision, self.device):
            network = self._network()
            return answer_both_ways(network, images, self.config) if self.config.post.flip else network(images)

    def quicken(self, precision: str = "float32") -> "Detector":
        """Answer from a faster copy of the network from now on, and return itself; `model` stays as it is.

        Args:
            precision: "float32", or "bfloat16", which is several times as fast where the hardware multiplies it.

        Raises:
            ConfigError: an unknown precision.
        """
        self._quick = quick_copy(self.model, precision) if gains(self.model, precision) else None
        self._copied = _versions(self.model)
        self.precision = precision
        return self

    def _network(self) -> SSD:
        """Return the network that answers; a copy is made anew if the weights changed since, as by training."""
        if self._quick is None:
            return self.model
        if self._copied != _versions(self.model):
            self.quicken(self.precision)
        return self._quick or self.model

    @torch.inference_mode()
    def _predict(self, pictures: Sequence[Picture], threshold: float | None) -> list[Detections]:
        lowest = class_thresholds(self.thresholds, self.names) if threshold is None else threshold
        opened = [open_picture(picture) for picture in pictures]
        pixels = np.stack([np.asarray(resize_picture(p, self.config.model.input_size)) for p in opened])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
        return detect(self.answer(images), [p.size for p in opened], self.config, self.names, lowest)


def _versions(model: SSD) -> tuple[int, ...]:
    """Return how often each tensor of the network was written to."""
    return tuple(tensor._version for tensor in (*model.parameters(), *model.buffers()))


def load(path: str | Path, *, device: str = "cpu", threads: int | None = None, flip: bool = False) -> Detector:
    """Open a checkpoint or a run folder (its `best.safetensors`, or `last` where there is no best) in PyTorch.

    Args:
        path: a `.safetensors` file, a run folder, or the name of a built-in model.
        device: where to run, such as "cpu" or "cuda".
        threads: CPU threads to use; None leaves PyTorch's setting.
        flip: average over every picture and its mirror image, at twice the time.

    Raises:
        WeightsError: the file is missing, broken, foreign or of a newer version.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(find_model(path))
    model = build_model(checkpoint.config, len(checkpoint.names))
    model.load_state_dict(dict(checkpoint.state))
    config = checkpoint.config.updated({"post.flip": True}) if flip else checkpoint.config
    return Detector(model, config, checkpoint.names, device)
