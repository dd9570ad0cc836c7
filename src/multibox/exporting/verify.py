"""Proof that an exported file is the same detector: its stages against eager, one by one, in the file's own runtime.

The resize is compared with Pillow's, the network with eager on the graph's own resized images, decoding and
suppression with eager on the graph's own logits. So a difference is named where it arises.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from multibox.config import Config
from multibox.data.images import resize_image
from multibox.data.sprites import render
from multibox.errors import MultiboxError
from multibox.exporting.graph import ULTRALYTICS_ROWS, Dialect
from multibox.exporting.runtimes import Arrays, Run
from multibox.inference.detector import Detector
from multibox.models.anchor_layout import anchors_for
from multibox.ops.coding import decode
from multibox.postprocess import detect
from multibox.structures import Detections, Size
from multibox.tensors import HeadOutputs

SCORE = 1e-4
"""Scores of a pair differ by no more."""
BOX = 1e-3
"""Corners of a pair differ by no more, as a share of the image's longer side."""


class VerificationError(MultiboxError):
    """The exported file does not compute what the detector computes."""


class Pairs(NamedTuple):
    """How the detections of two lists pair up."""

    matched: int
    swapped: int
    """Detections of the second list that the first replaces by others of equal rank: near-equal scores changed places,
    and the box that came first suppressed its neighbour or took the last place."""
    unexplained: int
    """Detections that are neither, in the list that has more of them."""
    score: float
    """Largest difference of a pair's scores."""
    box: float
    """Largest difference of a pair's corners, as a share of the image's longer side."""


class Cuts(NamedTuple):
    """Where post-processing stops counting; among scores that tie there, any choice is right."""

    candidates: NDArray[np.floating]
    """[classes]; the lowest score that enters suppression, minus infinity where all do."""
    per_class: int
    """Most detections per class; 0 for no limit."""
    total: int
    """Most detections."""


def largest_difference(stage: str, got: NDArray[np.floating], want: NDArray[np.floating], limit: float,
                       relative: bool = True) -> float:  # fmt: skip
    """Return the largest difference, as a share of max(1, |want|) if `relative`.

    Raises:
        VerificationError: it is above `limit`, not a number, or the shapes differ; the sentence names `stage`.
    """
    if got.shape != want.shape:
        raise VerificationError(f"{stage} differs: shape {list(got.shape)}, expected {list(want.shape)}")
    difference = np.abs(got.astype(np.float64) - want) / (np.maximum(1, np.abs(want)) if relative else 1)
    largest = float(difference.max(initial=0))
    if not largest <= limit:
        raise VerificationError(f"{stage} differs by up to {largest:.3g}, expected at most {limit:g}")
    return largest


def match(found: Detections, wanted: Detections, side: float, cuts: Cuts | None = None) -> Pairs:
    """Pair detections of one label whose scores and boxes agree; order does not matter, each takes part once.

    Args:
        found: of the file, for one image.
        wanted: of eager.
        side: the image's longer side in pixels.
        cuts: where both stop counting; None where nothing is cut.
    """
    cuts = cuts or Cuts(np.full(len(wanted.names), -np.inf), 0, 0)
    first, second, score, box = _pairs(found, wanted, side)
    lost, extra = wanted[_others(wanted, first)], found[_others(found, second)]
    swapped = _explained(lost, extra, _floor(found, cuts))
    added = _explained(extra, lost, _floor(wanted, cuts))
    unexplained = max(len(lost) - swapped, len(extra) - added)
    return Pairs(len(first), swapped, unexplained, score, box)


def _pairs(
    found: Detections, wanted: Detections, side: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], float, float]:
    """Return the rows of `wanted` and `found` that pair up, and the largest differences of scores and boxes."""
    if not len(found) or not len(wanted):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0, 0.0
    score = np.abs(wanted.scores[:, None] - found.scores)
    box = np.abs(wanted.boxes[:, None] - found.boxes).max(2) / side
    distance = score / SCORE + box / BOX
    apart = (wanted.labels[:, None] != found.labels) | (score > SCORE) | (box > BOX)
    distance[apart] = np.inf
    first, second = np.arange(len(wanted)), distance.argmin(1)
    # Mutual choice; equal boxes with equal scores are told apart by their order
    both = np.isfinite(distance[first, second]) & (distance.argmin(0)[second] == first)
    first, second = first[both], second[both]
    return first, second, float(score[first, second].max(initial=0)), float(box[first, second].max(initial=0))


def _others(detections: Detections, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    rest = np.ones(len(detections), np.bool_)
    rest[rows] = False
    return rest


def _floor(kept: Detections, cuts: Cuts) -> NDArray[np.float64]:
    """Return for each class the score at which `kept` may have been cut, [classes]; minus infinity where it was not."""
    floor = cuts.candidates.astype(np.float64)
    if cuts.per_class:
        lowest = np.full(len(floor), np.inf)
        np.minimum.at(lowest, kept.labels, kept.scores)
        full = np.bincount(kept.labels, minlength=len(floor)) >= cuts.per_class
        floor = np.maximum(floor, np.where(full, lowest, -np.inf))
    return np.maximum(floor, kept.scores.min()) if 0 < cuts.total <= len(kept) else floor


def _explained(missing: Detections, instead: Detections, floor: NDArray[np.float64]) -> int:
    """Count the missing detections that are cut at `floor`, or suppressed by one that only the other list has."""
    if not len(missing):
        return 0
    cut = missing.scores <= floor[missing.labels] + SCORE
    low = np.maximum(missing.boxes[:, None, :2], instead.boxes[None, :, :2])
    high = np.minimum(missing.boxes[:, None, 2:], instead.boxes[None, :, 2:])
    meet = (missing.labels[:, None] == instead.labels) & (high > low).all(2)
    suppressed = (meet & (instead.scores >= missing.scores[:, None] - SCORE)).any(1)
    return int((cut | suppressed).sum())


Pixels = NDArray[np.uint8]

GREY_LEVELS = 1.001
RAW, RAW_HALF = 1e-3, 5e-2
"""Largest difference of logits and offsets (as a share of those above 1); with weights in float16."""
UNMATCHED = 0.01
"""Share of detections that may differ: overlaps or scores that lie on a threshold to the last bit."""
AT_ONCE = 256
"""Detections compared with every anchor at once."""
WANTED = 50
"""Detections an image to compare; the score threshold is lowered until there are about so many."""


class Report(NamedTuple):
    """Largest differences over all images; those of stages that a dialect does not have are 0."""

    images: int = 0
    resize: float = 0.0
    """Grey levels."""
    logits: float = 0.0
    """Share of max(1, value); so are the offsets."""
    offsets: float = 0.0
    detections: int = 0
    """Of eager."""
    matched: int = 0
    swapped: int = 0
    """Of eager; the file has others of equal rank instead, as scores that differ by less than 1e-4 changed places."""
    score: float = 0.0
    """Of matched pairs, as is the box."""
    box: float = 0.0
    """Share of the image's longer side."""


def sample_images() -> list[Pixels]:
    """Return images to try where none are given: sprites, and noise of odd sizes.

    None is one pixel high or wide: such an image gives whole rows of equal scores, whose order means nothing.
    """
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((9, 37), (61, 12), (233, 317))]
    return [render(index, seed=5, classes=3, objects=(2, 4), size=192)[0] for index in range(2)] + noise


@torch.inference_mode()
def verify(run: Run, detector: Detector, dialect: Dialect, images: Sequence[Pixels], half: bool = False) -> Report:
    """Compare a file with eager; each image also stands in one batch with itself turned round.

    Args:
        run: the file, with `STAGES` among its outputs but for the dialect jetson.
        detector: what was exported.
        dialect: which outputs the file has.
        images: uint8 RGB [h, w, 3], of any sizes.
        half: the file's weights are float16.

    Raises:
        VerificationError: they differ; the sentence names the stage.
    """
    check = _check_jetson if dialect == "jetson" else _check
    raw = RAW_HALF if half else RAW
    # A copy, for `Detector` moves the network
    eager = Detector(copy.deepcopy(detector.model), detector.config, detector.names, "cpu")
    return _worst(check(run, eager, dialect, np.stack([each, each[::-1, ::-1]]), raw) for each in images)


def _check(run: Run, detector: Detector, dialect: Dialect, batch: Pixels, raw: float) -> Report:
    config, size = _config(detector, dialect), Size(*batch.shape[1:3])
    resized = _resized(batch, detector)
    if dialect == "plain":
        config = _lowered(detector.model(torch.from_numpy(resized)), config)
    answer = run({"images": batch, **_limits(config)} if dialect == "plain" else {"images": batch})
    levels = largest_difference("resize", answer["resized"], resized, GREY_LEVELS, relative=False)
    outputs = detector.model(torch.from_numpy(answer["resized"]))
    logits = largest_difference("network (logits)", answer["logits"], outputs.logits.numpy(), raw)
    offsets = largest_difference("network (offsets)", answer["offsets"], outputs.offsets.numpy(), raw)
    report = Report(len(batch), levels, logits, offsets)
    if dialect == "raw":
        return report
    shown = HeadOutputs(torch.from_numpy(answer["logits"]), torch.from_numpy(answer["offsets"]), outputs.feature_shapes)
    return compare_detections(_detections(answer, detector.names), shown, config, size, report)


def compare_detections(
    found: list[Detections], outputs: HeadOutputs, config: Config, size: Size, report: Report
) -> Report:
    """Compare a file's detections with eager's from the same outputs, and return the report with what was counted.

    Scores may tie where post-processing stops counting, as in a network whose scores are all 1. Then any choice among
    the tied is right.

    Args:
        found: per image, all of one size.
        outputs: logits and offsets as the file computed them.
        config: of the detector, with the limits that the file was given.
        size: of the images.
        report: what the stages before gave.

    Raises:
        VerificationError: boxes that are none of eager's, or other boxes kept than suppression keeps.
    """
    wanted = detect(outputs, anchors_for(outputs, config), [size] * len(found), config, found[0].names)
    scores, boxes = _candidates(outputs, config, size)
    cuts = [_cuts(each, config) for each in scores]
    pairs = [match(a, b, max(size), cut) for a, b, cut in zip(found, wanted, cuts, strict=True)]
    report = report._replace(
        detections=sum(map(len, wanted)),
        matched=sum(pair.matched for pair in pairs),
        swapped=sum(pair.swapped for pair in pairs),
        score=max(pair.score for pair in pairs),
        box=max(pair.box for pair in pairs),
    )
    total = sum(map(len, found))
    known = sum(_known(*each, max(size)) for each in zip(found, scores, boxes, strict=True))
    if known < total * (1 - UNMATCHED) - 1:
        raise VerificationError(f"decode differs: {total - known} of {total} detections are none of eager's boxes")
    if sum(pair.unexplained for pair in pairs) > UNMATCHED * report.detections + 1:
        raise VerificationError(
            f"NMS differs: {report.matched + report.swapped} of eager's {report.detections} detections are among the "
            f"file's {total}, or give way to others of equal score"
        )
    return report


def _check_jetson(run: Run, detector: Detector, dialect: Dialect, batch: Pixels, raw: float) -> Report:
    resized, model = _resized(batch, detector), detector.config.model
    answer = run({"input_0": resized / np.float32(127.5) - np.float32(1)})
    outputs = detector.model(torch.from_numpy(resized))
    scores = outputs.logits.softmax(2)[..., 1:] if model.score == "softmax" else outputs.logits.sigmoid()
    anchors = anchors_for(outputs, detector.config)
    boxes = decode(outputs.offsets, anchors, model.variances, model.coder).clamp(0, 1)
    score = largest_difference("network (scores)", answer["scores"][..., 1:], scores.numpy(), raw)
    box = largest_difference("network or decode (boxes)", answer["boxes"], boxes.numpy(), raw)
    return Report(len(batch), score=score, box=box)


def _config(detector: Detector, dialect: Dialect) -> Config:
    most = {"post.max_detections": ULTRALYTICS_ROWS} if dialect == "ultralytics" else {}
    return detector.config.updated(most)


def _lowered(outputs: HeadOutputs, config: Config) -> Config:
    """Return the config with a score threshold that leaves something to compare."""
    scores = outputs.logits.softmax(2)[..., 1:] if config.model.score == "softmax" else outputs.logits.sigmoid()
    best = scores.flatten(1)
    low = float(best.topk(min(WANTED, best.shape[1])).values[:, -1].min())
    return config.updated({"post.score_threshold": float(np.float32(min(config.post.score_threshold, low)))})


def _limits(config: Config) -> Arrays:
    return {
        "score_threshold": np.array(config.post.score_threshold, np.float32),
        "nms_threshold": np.array(config.post.nms_threshold, np.float32),
        "max_detections": np.array(config.post.max_detections, np.int64),
    }


def _resized(batch: Pixels, detector: Detector) -> NDArray[np.float32]:
    size = detector.config.model.input_size
    pixels = np.stack([np.asarray(resize_image(Image.fromarray(each), size)) for each in batch])
    return pixels.transpose(0, 3, 1, 2).astype(np.float32)


def _detections(answer: Arrays, names: tuple[str, ...]) -> list[Detections]:
    """Return what a file of dialect plain or ultralytics found."""
    if "output0" in answer:
        rows = answer["output0"]
        answer = {"boxes": rows[..., :4], "scores": rows[..., 4], "labels": rows[..., 5].astype(np.int64)}
        answer["counts"] = (rows[..., 2] > rows[..., 0]).sum(1)
    columns = (answer[name] for name in ("boxes", "scores", "labels", "counts"))
    return [Detections(b[:n], s[:n], k[:n], names) for b, s, k, n in zip(*columns, strict=True)]


def _candidates(outputs: HeadOutputs, config: Config, size: Size) -> tuple[Tensor, Tensor]:
    """Return eager's scores [b, a, c] and boxes [b, a, 4] in pixels before anything is left out by rank."""
    model, post = config.model, config.post
    scores = outputs.logits.softmax(2)[..., 1:] if model.score == "softmax" else outputs.logits.sigmoid()
    if not post.multi_label:
        scores = scores.where(scores >= scores.amax(2, keepdim=True), 0.0)
    anchors = anchors_for(outputs, config)
    boxes = decode(outputs.offsets, anchors, model.variances, model.coder).clamp(0, 1)
    if post.min_size:
        small = (boxes[..., 2:] - boxes[..., :2]).amin(2, keepdim=True) <= post.min_size
        scores = scores.where(~small, 0.0)
    return scores, boxes * torch.tensor([size.width, size.height] * 2)


def _cuts(scores: Tensor, config: Config) -> Cuts:
    """Return where post-processing stops counting, for the scores [a, c] of one image."""
    post, (anchors, classes) = config.post, scores.shape
    lowest = np.full(classes, -np.inf)
    if anchors > post.pre_nms_topk:
        lowest = scores.topk(post.pre_nms_topk, dim=0).values[-1].numpy()
    per_class = 0 if post.max_per_class == "none" else post.max_per_class
    return Cuts(lowest, per_class, post.max_detections)


def _known(found: Detections, scores: Tensor, boxes: Tensor, side: float) -> int:
    """Count the detections with the score [a, c] and the box [a, 4] of one of eager's anchors."""
    known = 0
    for start in range(0, len(found), AT_ONCE):
        some = found[slice(start, start + AT_ONCE)]
        alike = (scores[:, some.labels].T - torch.from_numpy(some.scores)[:, None]).abs() <= SCORE
        row, anchor = alike.nonzero(as_tuple=True)
        near = (boxes[anchor] - torch.from_numpy(some.boxes)[row]).abs().amax(1) <= BOX * side
        known += len(row[near].unique())
    return known


def _worst(reports: Iterable[Report]) -> Report:
    """Add up what is counted and take the worst of what is measured."""
    counted = {"images", "detections", "matched", "swapped"}
    columns = zip(*reports, strict=True)
    return Report(*(sum(c) if f in counted else max(c) for f, c in zip(Report._fields, columns, strict=True)))
