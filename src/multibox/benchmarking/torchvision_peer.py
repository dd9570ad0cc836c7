"""torchvision's two SSDs with a detector's own weights and settings, timed beside it, and how well they agree."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList

from multibox.benchmarking.clock import WHOLE, Seconds, seconds_of, torch_ceiling
from multibox.benchmarking.subjects import PARTS, DisagreementError, Subject, exported_subject
from multibox.benchmarking.workload import Images, Outputs, synthetic_images
from multibox.config import Config
from multibox.errors import ConfigError
from multibox.importers.common import Rules, rename
from multibox.importers.pytorch_ssds import TORCHVISION_SSD300, TORCHVISION_SSDLITE
from multibox.inference.detector import Detector
from multibox.models.anchor_layout import anchors_for, make_anchors
from multibox.models.build import measure
from multibox.ops.boxes import pairwise_iou
from multibox.postprocess import detect
from multibox.structures import Detections, Size
from multibox.tensors import HeadOutputs
from multibox.training.precision import autocast

Floats = NDArray[np.floating]

MAKERS: dict[str, tuple[Callable[..., nn.Module], Rules]] = {
    "ssd300-vgg16": (ssd300_vgg16, TORCHVISION_SSD300),
    "ssdlite320-mobilenetv3": (ssdlite320_mobilenet_v3_large, TORCHVISION_SSDLITE),
}
LIKE_THEIRS = {
    "post.clip": "before_nms",
    "post.flip": False,
    "post.max_per_class": "none",
    "post.min_size": 0.0,
    "post.multi_label": True,
    "post.nms_inclusive": False,
}
"""Settings that torchvision lacks, at its behaviour."""
ANCHORS = 1e-3
"""Largest difference in pixels of anchors that count as the same."""
HOW = "parts: timestamps behind the transform and before `postprocess_detections`"
HOW_EAGER = "parts: timestamps before and after the network, inside `predict`"
IMAGES = 4
BEST = 20
"""Detections per image in bfloat16 that need a partner in float32: the best ones."""


def torchvision_sides(detector: Detector, out: Path, threads: int | None, precision: str | None) -> list[Subject]:
    """Return torchvision's network, ours, and ours exported to `out` if export is installed; float32 comes first.

    Raises:
        ConfigError: torchvision has no such network.
    """
    detector = comparable(detector)
    twin = torchvision_twin(detector)
    precisions = dict.fromkeys(("float32", precision or "bfloat16"))
    found = [twin_subject(twin, detector, each) for each in precisions]
    found += [eager_subject(detector, each) for each in precisions]
    if find_spec("onnxscript"):
        from multibox.exporting import export

        export(detector, out)
        found.append(exported_subject(out, threads, precision))
    return found


def compare(subjects: Sequence[Subject], size: Size) -> list[str]:
    """Check that all subjects give the first one's detections on images of the network's size; return notes.

    At other sizes torchvision's resize, which does not antialias, gives the network another image.

    Args:
        subjects: the first one computes in float32.
        size: of the network's input.

    Raises:
        DisagreementError: some detections differ.
    """
    images = synthetic_images(IMAGES, size)
    first, *others = subjects
    wanted = first.predict(images)
    notes = []
    for other in others:
        tolerance, best = (EXACT, None) if other.exact else (ROUNDED, BEST)
        alike = agree(f"{first.name} and {other.name}", wanted, other.predict(images), tolerance, best)
        among = f"of the best {best}" if best else f"of {alike.detections}"
        notes.append(
            f"{other.name} finds what {first.name} finds: {alike.share:.1%} {among} matched (scores within "
            f"{alike.score:.1g}, IoU from {alike.overlap:.3f}; expected at least {tolerance.share:.0%}, within a share "
            f"of {tolerance.score:g} of the score and an IoU of {tolerance.overlap:g})"
        )
    return notes


class _GivenAnchors(nn.Module):
    """Anchors [a, 4] in pixels of the network's input, in place of torchvision's generator."""

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
    """Replace torchvision's anchors by the detector's if they differ."""
    height, width = config.model.input_size
    shapes = measure(config, classes).feature_shapes
    own = make_anchors(config.anchors, shapes, config.model.input_size) * torch.tensor([width, height, width, height])
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (theirs,) = twin.anchor_generator(images, [torch.zeros(1, 1, *shape) for shape in shapes])
    if theirs.shape != own.shape or (theirs - own).abs().max() > ANCHORS:
        twin.anchor_generator = _GivenAnchors(own)


def twin_subject(twin: Any, detector: Detector, precision: str) -> Subject:
    """Return torchvision's network as a subject; in "bfloat16" under autocast."""
    config, size = detector.config, measure(detector.config, len(detector.names))
    stamps: list[float] = []

    def stamp(*_: Any) -> None:
        stamps.append(time.perf_counter())

    height, width = config.model.input_size

    def predict(images: Images) -> list[Detections]:
        # As its users write: images as floats from 0 to 1, channels first
        tensors = [torch.tensor(each).permute(2, 0, 1).float() / 255 for each in images]
        with autocast(precision, "cpu"), torch.inference_mode():
            return [_detections(each, detector.names) for each in twin(tensors)]

    def run(images: Images) -> Seconds:
        # torchvision makes the anchors right before `postprocess_detections`
        hooks = [part.register_forward_hook(stamp) for part in (twin.transform, twin.anchor_generator)]
        stamps[:] = [time.perf_counter()]
        predict(images)
        stamps.append(time.perf_counter())
        for hook in hooks:
            hook.remove()
        return seconds_of(PARTS, stamps) | {WHOLE: stamps[-1] - stamps[0]}

    def post(outputs: Outputs, image: Size) -> Callable[[], list[Detections]]:
        heads = dict(zip(("cls_logits", "bbox_regression"), map(torch.from_numpy, outputs), strict=True))
        batch = len(outputs.logits)
        tensors = ImageList(torch.zeros(batch, 3, height, width), [(height, width)] * batch)
        anchors = twin.anchor_generator(tensors, [torch.zeros(1, 1, *shape) for shape in size.feature_shapes])

        def work() -> list[Detections]:
            found = twin.postprocess_detections(heads, anchors, tensors.image_sizes)
            found = twin.transform.postprocess(found, tensors.image_sizes, [image] * batch)
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
    """Return torchvision's detections in numpy; its labels count the background."""
    boxes, scores, labels = (found[name].float().numpy() for name in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels.astype(np.int64) - 1, names)


class _Watched(Detector):
    """A detector that records when its network began and ended."""

    span = (0.0, 0.0)

    def outputs(self, images: Tensor) -> HeadOutputs:
        started = time.perf_counter()
        outputs = super().outputs(images)
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

    def predict(images: Images) -> list[Detections]:
        return watched.predict(list(images), threshold)

    def run(images: Images) -> Seconds:
        started = time.perf_counter()
        predict(images)
        ended = time.perf_counter()
        return seconds_of(PARTS, (started, *watched.span, ended)) | {WHOLE: ended - started}

    def post(outputs: Outputs, image: Size) -> Callable[[], list[Detections]]:
        heads = HeadOutputs(torch.from_numpy(outputs.logits), torch.from_numpy(outputs.offsets), size.feature_shapes)
        sizes, anchors = [image] * len(outputs.logits), anchors_for(heads, config)
        return torch.inference_mode()(lambda: detect(heads, anchors, sizes, config, detector.names))

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
        how=HOW_EAGER,
    )


class Tolerance(NamedTuple):
    """Differences up to which two detections count as the same."""

    score: float
    """Largest difference of scores, as a share of the larger one."""
    overlap: float
    """Smallest IoU of the boxes."""
    share: float
    """Smallest share of both sides' detections with a partner on the other side."""


EXACT = Tolerance(score=1e-3, overlap=0.999, share=0.99)
"""The same arithmetic in another order; an overlap or a score on a threshold may fall to the other side."""
ROUNDED = Tolerance(score=0.5, overlap=0.7, share=0.8)
"""A network in bfloat16, which has 8 bits of precision: logits of 8 are off by 0.03 after each of its layers."""


class Agreement(NamedTuple):
    """Agreement of two sides."""

    detections: int
    """Detections of the first side."""
    share: float
    """Share of both sides' detections that have a partner."""
    score: float
    """Largest difference of partners, as a share."""
    overlap: float
    """Smallest IoU of partners."""


def agree(
    what: str, first: Sequence[Detections], second: Sequence[Detections], tolerance: Tolerance, best: int | None = None
) -> Agreement:
    """Pair the detections of two sides and return their agreement.

    Args:
        what: the sides, for the error.
        first: detections per image.
        second: those of the other side in the same images.
        tolerance: differences that are allowed.
        best: detections per image and side that need a partner, best first; None for all.

    Raises:
        DisagreementError: too few have a partner, or there is nothing to compare.
    """
    pairs = [_partners(*sides, tolerance, best) for sides in zip(first, second, strict=True)]
    compared = sum(len(pair) for pair in pairs)
    found = np.concatenate([*pairs, np.zeros((0, 2))])
    partners = found[~np.isnan(found[:, 0])]
    share = len(partners) / compared if compared else 0.0
    if share < tolerance.share:
        raise DisagreementError(
            f"{what} differ: {len(partners)} of {compared} detections have a partner of their class with a score "
            f"within a share of {tolerance.score:g} and an IoU of {tolerance.overlap:g}, expected "
            f"{tolerance.share:.0%}; no time is printed for sides that differ"
        )
    total = sum(map(len, first))
    return Agreement(total, share, float(partners[:, 0].max()), float(partners[:, 1].min()))


def _partners(first: Detections, second: Detections, tolerance: Tolerance, best: int | None) -> Floats:
    """Return, for each detection of either side, score difference and IoU of its partner; NaN where it has none."""
    difference = np.abs(first.scores[:, None] - second.scores) / np.maximum(first.scores[:, None], second.scores)
    overlap = pairwise_iou(torch.from_numpy(first.boxes), torch.from_numpy(second.boxes)).numpy()
    alike = (first.labels[:, None] == second.labels) & (difference <= tolerance.score) & (overlap >= tolerance.overlap)
    here, there = _closest(alike, difference, overlap), _closest(alike.T, difference.T, overlap.T)
    return np.concatenate([here[:best], there[:best]])


def _closest(alike: NDArray[np.bool_], difference: Floats, overlap: Floats) -> Floats:
    """Return score difference and IoU of each row's partner: the one that is alike with the nearest score."""
    if not alike.size:
        return np.full((len(alike), 2), np.nan)
    column = np.where(alike, difference, np.inf).argmin(1)
    row = np.arange(len(alike))
    values = np.stack([difference[row, column], overlap[row, column]], axis=1)
    values[~alike[row, column]] = np.nan
    return values
