"""What matching, mining, losses and suppression made of single images, as plain data.

Nothing is computed anew: the losses, targets and mined negatives are those of the training step, in evaluation mode and
without augmentation, and the candidates those that prediction weighs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multibox.analysis.inspection_outcomes import (
    Found,
    Judge,
    Matched,
    count_mistakes,
    match_detections,
    suppressor,
    suppressors,
)
from multibox.analysis.receptive_field import receptive_fields
from multibox.config import Config
from multibox.data.augmentation_ops import View
from multibox.data.checking import Counting, silence
from multibox.data.decoded import DecodedImages
from multibox.data.loading import AugmentedImages, choose_workers, in_order, load_batches, prepares_between
from multibox.data.pixels import Colour
from multibox.data.rendering import project
from multibox.errors import DataError, did_you_mean
from multibox.evaluation.voc_metrics import counts_pixels
from multibox.inference.detector import Detector
from multibox.inference.inputs import BATCH
from multibox.losses.targets import BACKGROUND, IGNORE, Targets
from multibox.models.anchor_layout import anchors_for, anchors_per_cell
from multibox.ops.boxes import pairwise_iou
from multibox.ops.coding import decode
from multibox.postprocess import class_scores, detect, examine_candidates
from multibox.structures import Dataset, Detections, Flags, Labels, Sample, Size
from multibox.tensors import Batch, HeadOutputs, LossParts
from multibox.thresholds import class_thresholds, drop_low_scores, lowest_scores

MOST_IGNORED, MOST_NEGATIVES, MOST_CANDIDATES = 300, 100, 300
"""Listed per image."""
MOST_CERTAIN = 2000
"""Candidates listed per image if so many reach their class's threshold. Beyond that, as beyond the best
`MOST_CANDIDATES`, only those that are kept, the best one on an object, and what suppressed it."""
THRESHOLD_MATCHERS = ("bipartite", "dual_max")

Network = Callable[[Tensor], HeadOutputs]
Compute = Callable[[Network, Batch], tuple[HeadOutputs, Targets, LossParts]]
Floats = NDArray[np.float32]


class Seen(NamedTuple):
    """One image with all that training and prediction compute of it, on the host."""

    sample: Sample
    size: Size
    """Of the original image."""
    image: Tensor
    """[1, 3, h, w], as the network sees it, on its device."""
    targets: Targets
    parts: LossParts
    outputs: HeadOutputs
    """Of prediction: by the quick copy of the network, or averaged over the mirror image, if prediction does so."""
    anchors: Tensor
    """[a, 4]; 0 to 1 of the input."""
    gt: Tensor
    """[g, 4]; every object, 0 to 1 of the input; also those that do not train."""
    trained: Labels
    """Rows of the objects that train, in the order in which matching saw them."""
    found: Found


class Inspector:
    """Shows single images of a data set to a network and says what became of every object, anchor and box.

    Args:
        detector: The network.
        dataset: The images; its classes are the detector's.
        learnt: [boxes]; the objects that training would learn from. Crowds never are.
        compute: `compute_loss` of the detector's config.
        threshold: Lowest score reported; None takes the model's of each class.
    """

    def __init__(
        self, detector: Detector, dataset: Dataset, learnt: Flags, compute: Compute, threshold: float | None
    ) -> None:
        self.detector, self.dataset, self.compute = detector, dataset, compute
        self.config: Config = detector.config
        self.learnt = learnt & ~dataset.crowd
        size = Size(*self.config.model.input_size)
        decoded = DecodedImages(dataset, size, exact=True, background=detector.background)
        self.images = AugmentedImages(dataset.keep_boxes(self.learnt), size, (), decoded=decoded)
        self.lowest = lowest_scores(threshold, detector.thresholds, detector.names)
        own = class_thresholds(detector.thresholds, detector.names)
        self.thresholds = dict(zip(detector.names, own if threshold is None else [threshold] * len(own), strict=True))
        self.extra = 1.0 if counts_pixels(dataset) else 0.0
        """Added to widths and heights where corners are indices of pixels, as evaluation does."""

    def describe(self, indices: Sequence[int], counting: Counting = silence) -> Iterator[tuple[Seen, dict[str, Any]]]:
        """Yield each chosen image and its description, the dict that `multibox.inspect_matches` returns."""
        with counting("looking at images", len(indices)) as tell:
            for seen in self.see(indices):
                yield seen, self._describe(seen)
                tell(1)

    def worst(self, count: int, counting: Counting = silence) -> list[int]:
        """Return the images with the largest total of missed objects, false detections and loss, worst first."""
        losses: list[float] = []
        found: list[Detections] = []
        with counting("looking for the worst images", len(self.dataset)) as tell:
            for batch_losses, detections in self.look():
                losses += batch_losses
                found += [drop_low_scores(one, self.lowest) for one in detections]
                tell(len(detections))
        totals = count_mistakes(found, self.dataset, self.detector.names, self.extra) + np.array(losses)
        return np.argsort(-totals, kind="stable")[:count].tolist()

    @torch.inference_mode()
    def look(self) -> Iterator[tuple[list[float], list[Detections]]]:
        """Yield the loss of each image, and what is detected in it, batch by batch."""
        detector, device = self.detector, self.detector.device
        keys = in_order(len(self.dataset), BATCH)
        workers, between = choose_workers("auto", device), prepares_between("auto", device)
        for batch in load_batches(self.images, keys, workers, pin=False, between=between):
            batch = batch.to(device)
            outputs, network = self._forward(batch.images)
            anchors = anchors_for(outputs, self.config)
            losses = self._losses(network(batch.images), batch)
            yield losses, detect(outputs, anchors, batch.sizes, self.config, detector.names)

    def _losses(self, outputs: HeadOutputs, batch: Batch) -> list[float]:
        """Return the loss of each image alone; that of a batch shares its divisor, and at times its mining."""
        places = range(len(batch.sizes))
        parts = [self.compute(lambda _, i=i: _part_of(outputs, i), _image_of(batch, i))[2] for i in places]
        return host(torch.stack([each.total for each in parts])).tolist()

    def _forward(self, images: Tensor) -> tuple[HeadOutputs, Network]:
        """Return what prediction computes of images, and a function that returns what training does.

        They are the same but for mirror images and for half precision, so one forward pass is enough.
        """
        detector = self.detector
        outputs = detector.outputs(images)
        if self.config.post.flip or detector.precision != "float32":
            return outputs, detector.model
        return outputs, lambda _: outputs

    @torch.inference_mode()
    def see(self, indices: Iterable[int]) -> Iterator[Seen]:
        """Yield images, one after the other, with what training and prediction compute of them."""
        keys = [in_order(len(self.dataset), 1)[index] for index in indices]
        for ((_, index),), batch in zip(keys, load_batches(self.images, keys, 0, pin=False), strict=True):
            batch = batch.to(self.detector.device)
            outputs, network = self._forward(batch.images)
            _, targets, parts = self.compute(network, batch)
            anchors = anchors_for(outputs, self.config)
            sample, size = self.dataset[index], batch.sizes[0]
            view = View(size.width, size.height, sample.boxes_xyxy)
            rows = slice(int(self.dataset.starts[index]), int(self.dataset.starts[index + 1]))
            trained = np.flatnonzero(self.learnt[rows] & view.kept())
            gt = torch.as_tensor(project(view, sample.boxes_xyxy).astype(np.float32), device=anchors.device)
            found = self._find(outputs, anchors, size)
            yield Seen(sample, size, batch.images, targets, parts, outputs, anchors, gt, trained, found)

    def _find(self, outputs: HeadOutputs, anchors: Tensor, size: Size) -> Found:
        examined = examine_candidates(outputs, anchors, self.config.post, self.config.model)
        scale = torch.tensor((size.width, size.height) * 2, dtype=torch.float32, device=anchors.device)
        numbers = (examined.anchors, examined.labels, examined.scores, examined.passed, examined.kept)
        anchor, labels, scores, passed, kept = (host(each) for each in numbers)
        return Found(
            anchor,
            labels,
            scores,
            host(examined.clipped_xyxy * scale),
            host(examined.boxes_xyxy * scale),
            host(examined.boxes_xyxy),
            passed,
            kept,
            kept & (scores >= self.lowest[labels]),
        )

    def _describe(self, seen: Seen) -> dict[str, Any]:
        config, height, width = self.config, seen.size.height, seen.size.width
        layout = Layout(config, seen.outputs, seen.anchors, seen.size)
        overlaps = host(pairwise_iou(seen.gt, seen.anchors))
        positives = _positives(seen, layout, overlaps, config, self.detector)
        wanted = self._listed(seen)
        listed = np.flatnonzero(wanted)
        outcome = match_detections(seen.found, seen.sample, self.detector.names, self.extra)
        judge = Judge(config, self.detector.names, self.lowest, self.extra)
        objects = judge.judge(seen.found, seen.sample, outcome, overlaps, positives, seen.trained, layout.boxes)
        places = {number: place for place, number in enumerate(listed.tolist())}
        for one in objects:
            one["detection"] = places.get(one["detection"])
        losses = {name: float(getattr(seen.parts, name)) for name in ("total", "classification", "localization")}
        post = config.post
        return {
            "file": seen.sample.name,
            **where(seen.sample, self.detector.background),
            "width": width,
            "height": height,
            "input": list(config.model.input_size),
            "preset": config.preset,
            "matcher": config.matching.matcher,
            "thresholds": {
                "match": config.matching.threshold,
                "ignore": config.matching.low if config.matching.matcher == "dual_max" else None,
                "score": self.thresholds,
                "nms": post.nms_threshold,
                "nms_inclusive": post.nms_inclusive,
                "score_threshold": post.score_threshold,
                "max_detections": post.max_detections,
                "max_per_class": None if post.max_per_class == "none" else post.max_per_class,
                "extra": self.extra,
            },
            "levels": layout.levels(seen),
            "gt": objects,
            "positives": positives,
            **_ignored(seen, layout, config),
            **_negatives(seen, layout, self.detector),
            "candidates": _candidates(seen, listed, layout, outcome, self.detector),
            "candidates_total": len(wanted),
            "candidates_above": None if wanted.all() else float(seen.found.scores[wanted.argmin()]),
            "losses": losses,
        }

    def _listed(self, seen: Seen) -> Flags:
        """Return which candidates to list; all above some score, so that suppression can be done again with them."""
        found, post = seen.found, self.config.post
        certain = np.flatnonzero(found.scores[:MOST_CERTAIN] >= self.lowest[found.labels[:MOST_CERTAIN]])
        wanted = found.kept.copy()
        wanted[: max(MOST_CANDIDATES, 1 + int(certain.max(initial=-1)))] = True
        for box, label in zip(seen.sample.boxes_xyxy, seen.sample.labels.tolist(), strict=True):
            on = found.on(box, label, self.extra)[:2]
            lost = on[~found.passed[on]].tolist()
            wanted[on] = True
            wanted[[suppressor(found, number, post.nms_threshold, post.nms_inclusive)[0] for number in lost]] = True
        return wanted


class Layout:
    """Where each anchor stands: its level, row, column and shape, and its box in pixels of the original."""

    def __init__(self, config: Config, outputs: HeadOutputs, anchors: Tensor, size: Size) -> None:
        self.config, self.size, self.shapes = config, size, outputs.feature_shapes
        self.per_cell = anchors_per_cell(config)
        counts = [rows * columns * per for (rows, columns), per in zip(self.shapes, self.per_cell, strict=True)]
        self.ends = np.cumsum(counts)
        self.starts = self.ends - counts
        self.boxes = (anchors.cpu() * torch.tensor((size.width, size.height) * 2)).numpy()

    def at(self, anchor: int) -> dict[str, Any]:
        """Return an anchor's number, level, row, column, shape and box."""
        level = self.level_of(anchor)
        cell, shape = divmod(anchor - int(self.starts[level]), self.per_cell[level])
        row, column = divmod(cell, self.shapes[level].width)
        place = {"anchor": anchor, "level": level, "row": row, "column": column, "shape": shape}
        return {**place, "box": self.boxes[anchor].tolist()}

    def level_of(self, anchor: int) -> int:
        """Return the level of an anchor."""
        return int(np.searchsorted(self.ends, anchor, side="right"))

    def levels(self, seen: Seen) -> list[dict[str, Any]]:
        """Return what every feature map is, and how its anchors were used in this image."""
        labels, selected = host(seen.targets.labels[0]), host(seen.parts.selected[0])
        positive, ignored = labels > BACKGROUND, _is_ignored(seen, self.config)
        uses = {"positives": positive, "ignored": ignored, "negatives": selected & (labels == BACKGROUND)}
        limit = Size(*self.config.model.input_size)
        across, down = self.size.width / limit.width, self.size.height / limit.height
        levels: list[dict[str, Any]] = []
        for level, (shape, per_cell) in enumerate(zip(self.shapes, self.per_cell, strict=True)):
            part = slice(int(self.starts[level]), int(self.ends[level]))
            width, height = receptive_fields(self.config)[level].size(limit)
            levels.append(
                {
                    "rows": shape.height,
                    "columns": shape.width,
                    "anchors_per_cell": per_cell,
                    "stride": self._stride(level),
                    "receptive_field": [width * across, height * down],
                    "anchors": part.stop - part.start,
                    **{name: int(flags[part].sum()) for name, flags in uses.items()},
                }
            )
        return levels

    def _stride(self, level: int) -> list[float]:
        """Return the pixels of the original between the centres of neighbouring cells, in x and y."""
        (rows, columns), first = self.shapes[level], int(self.starts[level])
        right, below = first + self.per_cell[level], first + self.per_cell[level] * columns
        centres = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        x = float(centres[right, 0] - centres[first, 0]) if columns > 1 else float(self.size.width)
        y = float(centres[below, 1] - centres[first, 1]) if rows > 1 else float(self.size.height)
        return [x, y]


def _positives(
    seen: Seen, layout: Layout, overlaps: Floats, config: Config, detector: Detector
) -> list[dict[str, Any]]:
    """Return the anchors that learn an object, object after object."""
    targets = seen.targets.positives()
    anchors = targets.anchor
    gt = seen.trained[host(targets.gt)]
    model = config.model
    boxes = decode(seen.outputs.offsets[0, anchors], targets.anchors_xyxy, model.variances, model.coder)
    predicted = (boxes.cpu() * torch.tensor((seen.size.width, seen.size.height) * 2)).numpy()
    labels = targets.labels[0, anchors] - 1
    scores = class_scores(seen.outputs.logits[0, anchors].float(), model.score, True).gather(1, labels[:, None])
    how = _how(overlaps[seen.trained], targets, config)
    class_losses, box_losses = (
        host(part) for part in (seen.parts.class_losses[0, anchors], seen.parts.box_losses[seen.targets.valid])
    )
    weights = host(targets.weight)
    rows = [
        {
            **layout.at(anchor),
            "gt": int(gt[i]),
            "iou": float(overlaps[gt[i], anchor]),
            "how": how[i],
            "weight": float(weights[i]),
            "class_loss": float(class_losses[i]),
            "box_loss": float(box_losses[i]),
            "score": float(scores[i, 0]),
            "predicted": predicted[i].tolist(),
        }
        for i, anchor in enumerate(host(anchors).tolist())
    ]
    return sorted(rows, key=lambda row: (row["gt"], row["anchor"]))


def where(sample: Sample, background: Colour) -> dict[str, Any]:
    """Return where the pixels of an image are, as `inspected_image` reads them, and what its transparent ones show."""
    place = {"path": str(sample.path), "offset": sample.offset, "length": sample.length}
    return place | {"background": list(background)}


def _part_of(outputs: HeadOutputs, place: int) -> HeadOutputs:
    """Return the outputs of one image of a batch."""
    part = slice(place, place + 1)
    return HeadOutputs(outputs.logits[part], outputs.offsets[part], outputs.feature_shapes)


def _image_of(batch: Batch, place: int) -> Batch:
    """Return one image of a batch as a batch of its own."""
    part = slice(place, place + 1)
    return Batch(
        batch.images[part],
        batch.gt_xyxy[part],
        batch.gt_labels[part],
        batch.image_names[part],
        batch.sizes[part],
    )


def host(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as an array."""
    return tensor.cpu().numpy()


def _how(overlaps: Floats, targets: Targets, config: Config) -> list[str]:
    """Return how each positive came about: "matcher", "threshold", or "forced" where the threshold gives no such pair.

    Args:
        overlaps: [g, a]; of the objects that train.
        targets: Of the image.
        config: Of the network.
    """
    if config.matching.matcher not in THRESHOLD_MATCHERS:
        return ["matcher"] * len(targets.anchor)
    anchors, gt = host(targets.anchor), host(targets.gt)
    limit, largest = np.float32(config.matching.threshold), overlaps[:, anchors].max(axis=0, initial=0)
    enough = largest >= limit if config.matching.inclusive else largest > limit
    by_threshold = enough & (overlaps[:, anchors].argmax(axis=0) == gt) if len(gt) else enough
    return ["threshold" if plain else "forced" for plain in by_threshold.tolist()]


def _is_ignored(seen: Seen, config: Config) -> Flags:
    """Return the anchors that may take part in no classification loss, whatever the network says of them."""
    labels = seen.targets.labels[0]
    ignored = labels == IGNORE
    loss = config.loss
    if loss.negative_ratio != "all" and loss.negative_overlap != "any" and loss.hard_examples == "none":
        # Too close to an object to be mined as background
        ignored |= (labels == BACKGROUND) & (seen.targets.overlap[0] >= loss.negative_overlap)
    return host(ignored)


def _ignored(seen: Seen, layout: Layout, config: Config) -> dict[str, Any]:
    ignored, overlap = np.flatnonzero(_is_ignored(seen, config)), host(seen.targets.overlap[0])
    order = ignored[np.argsort(-overlap[ignored], kind="stable")][:MOST_IGNORED].tolist()
    rows = [_brief(layout, anchor) | {"iou": float(overlap[anchor])} for anchor in order]
    return {"ignored": rows, "ignored_total": len(ignored)}


def _negatives(seen: Seen, layout: Layout, detector: Detector) -> dict[str, Any]:
    """Return the background anchors whose class loss counted, the largest loss first."""
    chosen = (seen.parts.selected[0] & (seen.targets.labels[0] == BACKGROUND)).nonzero().squeeze(1)
    losses = seen.parts.class_losses[0, chosen]
    order = losses.argsort(descending=True, stable=True)[:MOST_NEGATIVES]
    listed = chosen[order]
    logits = seen.outputs.logits[0, listed].float()
    best, label = class_scores(logits, detector.config.model.score, True).max(dim=1)
    columns = (listed, losses[order], best, label, seen.targets.overlap[0, listed])
    rows: list[dict[str, Any]] = [
        _brief(layout, anchor) | {"loss": loss, "score": score, "name": detector.names[name], "iou": iou}
        for anchor, loss, score, name, iou in zip(
            *[cast("list[Any]", host(each).tolist()) for each in columns], strict=True
        )
    ]
    return {"negatives": rows, "negatives_total": len(chosen)}


def _brief(layout: Layout, anchor: int) -> dict[str, Any]:
    return {"anchor": anchor, "level": layout.level_of(anchor), "box": layout.boxes[anchor].tolist()}


def _candidates(
    seen: Seen, listed: Labels, layout: Layout, outcome: Matched, detector: Detector
) -> list[dict[str, Any]]:
    found, post = seen.found, detector.config.post
    by, ious = suppressors(found, listed, post.nms_threshold, post.nms_inclusive)
    rows: list[dict[str, Any]] = []
    for place, number in enumerate(listed.tolist()):
        gt = int(outcome.gt[number]) if outcome.iou[number] > 0 else -1
        anchor = layout.at(int(found.anchors[number]))
        rows.append(
            {
                **anchor,
                "anchor_box": anchor["box"],
                "box": found.boxes[number].tolist(),
                "unclipped": found.unclipped[number].tolist(),
                "score": float(found.scores[number]),
                "label": int(found.labels[number]),
                "name": detector.names[found.labels[number]],
                "kept": bool(found.kept[number]),
                "suppressed_by": int(by[place]) if by[place] >= 0 else None,
                "iou": float(ious[place]) if by[place] >= 0 else None,
                "gt": gt if gt >= 0 else None,
                "gt_iou": float(outcome.iou[number]) if gt >= 0 else None,
            }
        )
    return rows


def find_images(dataset: Dataset, names: Iterable[str]) -> list[int]:
    """Return the images of these names: whole, or the end of a path that only one image has, with or without suffix.

    Raises:
        DataError: No image, or more than one, has such a name.
    """
    wanted = list(names)
    known = list(dataset.image_names) if wanted else []
    places = {name: index for index, name in enumerate(known)}
    chosen = [places[name] if name in places else _find_image(dataset, known, name) for name in wanted]
    return list(dict.fromkeys(chosen))


def _find_image(dataset: Dataset, known: Sequence[str], wanted: str) -> int:
    end = "/" + wanted.replace("\\", "/").removeprefix("./").lstrip("/")

    def ends_so(text: str) -> bool:
        whole = "/" + text.replace("\\", "/")
        return whole.endswith(end) or str(PurePosixPath(whole).with_suffix("")).endswith(end)

    ends = [i for i, name in enumerate(known) if ends_so(name) or ends_so(str(dataset.paths[i]))]
    if len(ends) == 1:
        return ends[0]
    where = f"{dataset.root} ({dataset.split}): image {wanted!r}"
    if ends:
        raise DataError(f"{where}: {len(ends)} images end so, such as {known[ends[0]]} and {known[ends[1]]}; give more")
    near = did_you_mean(wanted, known) or did_you_mean(Path(wanted).name, [Path(name).name for name in known])
    raise DataError(f"{where}: there is no such image{near or f'; the first one is called {known[0]!r}'}")
