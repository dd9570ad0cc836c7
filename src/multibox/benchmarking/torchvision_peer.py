"""torchvision's two SSDs with a detector's own weights and settings, as what can be measured beside it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList

from multibox.benchmarking.clock import WHOLE, Seconds
from multibox.benchmarking.machine import torch_ceiling
from multibox.benchmarking.subject import PARTS, Subject
from multibox.benchmarking.workload import Outputs, Pictures
from multibox.config import Config
from multibox.errors import ConfigError
from multibox.importers.common import Rules, rename
from multibox.importers.torchvision import SSDLITE_RULES, VGG_RULES
from multibox.inference.detector import Detector
from multibox.models.anchors import make_anchors
from multibox.models.measure import measure
from multibox.structures import Detections
from multibox.training.precision import autocast

MAKERS: dict[str, tuple[Callable[..., nn.Module], Rules]] = {
    "ssd300-vgg16": (ssd300_vgg16, VGG_RULES),
    "ssdlite320-mobilenetv3": (ssdlite320_mobilenet_v3_large, SSDLITE_RULES),
}
LIKE_THEIRS = {
    "post.clip": "before_nms",
    "post.flip": False,
    "post.max_per_class": "none",
    "post.min_size": 0.0,
    "post.multi_label": True,
    "post.nms_inclusive": False,
}
"""What torchvision does and has no setting for."""
ANCHORS = 1e-3
"""Pixels by which anchors may differ and still be the same."""
HOW = "parts: timestamps behind the transform and before `postprocess_detections`"


class _GivenAnchors(nn.Module):
    """Hands over anchors [a, 4] in pixels of the network's input, in place of torchvision's own."""

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, images: Any, features: list[Tensor]) -> list[Tensor]:
        return [self.anchors] * len(images.image_sizes)


def comparable(detector: Detector) -> Detector:
    """Return the detector with the post-processing that torchvision's SSD has.

    Raises:
        ConfigError: torchvision has no such network.
    """
    config = detector.config
    if config.preset not in MAKERS:
        raise ConfigError(
            f"torchvision has no {config.preset or 'network like this one'}; {' and '.join(MAKERS)} can be compared"
        )
    model = config.model
    if model.score != "softmax" or model.coder != "center_size" or model.variances != (0.1, 0.1, 0.2, 0.2):
        raise ConfigError(
            "torchvision's SSD needs a softmax and the box code center_size with variances 0.1, 0.1, 0.2, 0.2; this "
            f"detector has {model.score}, {model.coder} and {', '.join(map(str, model.variances))}"
        )
    return Detector(detector.model, config.updated(LIKE_THEIRS), detector.names)


def torchvision_twin(detector: Detector) -> nn.Module:
    """Return torchvision's network with the weights, normalisation, limits and anchors of a `comparable` detector.

    Raises:
        ConfigError: the weights are those of another variant.
    """
    config = detector.config
    make, rules = MAKERS[config.preset]
    twin: Any = make(weights=None, weights_backbone=None, num_classes=len(detector.names) + 1)
    ours = detector.model.state_dict()
    names = rename({name: name for name in twin.state_dict()}, rules)
    wrong = names.keys() ^ ours.keys()
    if wrong:
        raise ConfigError(
            f"torchvision's network has other layers than this {config.preset} ({config.model.backbone}): "
            f"{', '.join(sorted(wrong)[:3])}; it can be compared in the preset's own variant"
        )
    twin.load_state_dict({theirs: ours[mine].contiguous() for mine, theirs in names.items()})
    height, width = config.model.input_size
    twin.transform.fixed_size = (width, height)
    twin.transform.image_mean = [value / 255 for value in config.model.mean]
    twin.transform.image_std = [value / 255 for value in config.model.std]
    post = config.post
    twin.score_thresh, twin.nms_thresh = post.score_threshold, post.nms_threshold
    twin.topk_candidates, twin.detections_per_img = post.pre_nms_topk, post.max_detections
    _give_anchors(twin, config, len(detector.names))
    return twin.eval()


def _give_anchors(twin: Any, config: Config, classes: int) -> None:
    """Put the detector's anchors in place of torchvision's where those are others."""
    height, width = config.model.input_size
    shapes = measure(config, classes).feature_shapes
    own = make_anchors(config.anchors, shapes, (height, width)) * torch.tensor([width, height, width, height])
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (theirs,) = twin.anchor_generator(images, [torch.zeros(1, 1, *shape) for shape in shapes])
    if theirs.shape != own.shape or (theirs - own).abs().max() > ANCHORS:
        twin.anchor_generator = _GivenAnchors(own)


def twin_subject(twin: Any, detector: Detector, precision: str) -> Subject:
    """Return torchvision's network as a subject; in "bfloat16" under autocast."""
    config = detector.config
    size = measure(config, len(detector.names))
    stamps: list[float] = []
    height, width = config.model.input_size

    def predict(pictures: Pictures) -> list[Detections]:
        # What its users write: pictures as floats from 0 to 1, channels first
        images = [torch.tensor(each).permute(2, 0, 1).float() / 255 for each in pictures]
        with autocast(precision, "cpu"), torch.inference_mode():
            return [_detections(each, detector.names) for each in twin(images)]

    def run(pictures: Pictures) -> Seconds:
        stamps[:] = [time.perf_counter()]
        with _stamped(twin, stamps):
            predict(pictures)
        stamps.append(time.perf_counter())
        parts = zip(PARTS, stamps, stamps[1:], strict=False)
        return {name: after - before for name, before, after in parts} | {WHOLE: stamps[-1] - stamps[0]}

    def post(outputs: Outputs, picture: tuple[int, int]) -> Callable[[], list[Detections]]:
        answer = dict(zip(("cls_logits", "bbox_regression"), map(torch.from_numpy, outputs), strict=True))
        batch = len(outputs.logits)
        images = ImageList(torch.zeros(batch, 3, height, width), [(height, width)] * batch)
        anchors = twin.anchor_generator(images, [torch.zeros(1, 1, *shape) for shape in size.feature_shapes])

        def work() -> list[Detections]:
            found = twin.postprocess_detections(answer, anchors, images.image_sizes)
            found = twin.transform.postprocess(found, images.image_sizes, [picture[::-1]] * batch)
            return [_detections(each, detector.names) for each in found]

        return torch.inference_mode()(work)

    return Subject(
        name=f"torchvision {version('torchvision')} {precision}",
        predict=predict,
        run=run,
        post=post,
        flops=2 * size.multiply_adds,
        ceiling=lambda: torch_ceiling(precision),
        outputs=(size.anchors, len(detector.names) + 1),
        score="softmax",
        threshold=config.post.score_threshold,
        exact=precision == "float32",
        how=HOW,
    )


def _detections(found: dict[str, Tensor], names: tuple[str, ...]) -> Detections:
    """Return what a user of torchvision reads; their labels count the background."""
    boxes, scores, labels = (found[name].float().numpy() for name in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels.astype(np.int64) - 1, names)


@contextlib.contextmanager
def _stamped(twin: Any, stamps: list[float]) -> Iterator[None]:
    """Note the time behind the transform and before post-processing."""
    hook = twin.transform.register_forward_hook(lambda *_: stamps.append(time.perf_counter()))
    original = twin.postprocess_detections

    def stamped(*arguments: Any) -> Any:
        stamps.append(time.perf_counter())
        return original(*arguments)

    twin.postprocess_detections = stamped
    try:
        yield
    finally:
        hook.remove()
        twin.postprocess_detections = original
