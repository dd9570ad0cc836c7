"""Why a detection is there: the anchor that answered, what it could see, what it looked at, what it learnt from.

Occlusion covers a part of the image and sees how far the score falls (Zeiler and Fergus 2014, arXiv:1311.2901); large
networks, for which that takes too long, are asked by the gradient instead (Simonyan et al. 2014, arXiv:1312.6034). The
effective receptive field is the part of the image where the gradient is (Luo et al. 2016, arXiv:1701.04128).
"""

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align  # pyright: ignore

from multibox.analysis.inspection import Layout, Seen, host, where
from multibox.analysis.receptive_field import receptive_fields
from multibox.data.checking import Counting, silence
from multibox.data.decoded import DecodedImages
from multibox.data.loading import AugmentedImages, load_batches
from multibox.inference.detector import Detector
from multibox.models.anchor_layout import anchors_for
from multibox.models.build import measure
from multibox.ops.boxes import pairwise_iou
from multibox.postprocess import class_scores
from multibox.structures import Dataset, Size
from multibox.tensors import HeadOutputs

EXPLAINED = 6
"""Candidates explained per image: wrong detections first, then those on missed objects, then right detections."""
MOST_IMAGES, MOST_OBJECTS, TOGETHER = 200, 2000, 8
"""Training images and objects among which similar ones are looked for; images that go through the network at once."""
SIMILAR = 5
FINEST, COARSEST = 24, 6
"""Cells of a saliency map along the longer side of the image; fewer where a large field or network takes more work."""
MOST_WORK = 42e9
"""Multiply-adds that the occlusions of one detection may take: about a second on 2 cores."""
GRADIENT_GRID = 16
WITHIN = 0.9
"""Share of the gradient's energy inside the effective receptive field, along each axis."""

Floats = NDArray[np.float32]


class Similar(NamedTuple):
    """Objects that the network learnt from, as it sees them."""

    level: NDArray[np.int64]
    """[n]; of the anchor that overlaps each object most."""
    features: list[list[Tensor]]
    """Of each level n vectors of length 1: what its map holds where each object is."""
    rows: list[dict[str, Any]]
    """File, path, box and name of each."""
    places: list[tuple[str, int | None]]
    """`identity` of each one's image."""
    images: int
    """Images that were looked at."""
    of: int
    """Images that there are."""


class Patches(NamedTuple):
    """Parts of the input that are covered, one after the other."""

    grid: Size
    slices: dict[tuple[int, int], tuple[slice, slice]]
    """Rows and columns of pixels, by cell of the grid."""


class Explainer:
    """Explains single detections of images that an `Inspector` looked at.

    Args:
        detector: The network.
        training: What it learnt from, for similar objects; None leaves them out.
        counting: Tells how far it is.
    """

    def __init__(self, detector: Detector, training: Dataset | None, counting: Counting = silence) -> None:
        self.detector, self.config = detector, detector.config
        self.input = Size(*self.config.model.input_size)
        self.most_patches = MOST_WORK / measure(self.config, len(detector.names)).multiply_adds
        self.similar = None if training is None else self._look_at(training, counting)

    def explain(self, seen: Seen, described: dict[str, Any]) -> list[dict[str, Any]]:
        """Return explanations of up to 6 candidates: false detections, those on missed objects, right detections."""
        lowest, candidates = described["thresholds"]["score"], described["candidates"]
        outcomes = {one["detection"]: one["outcome"] for one in described["gt"] if one["detection"] is not None}
        shown = [i for i, c in enumerate(candidates) if c["kept"] and c["score"] >= lowest[c["name"]]]
        false = [i for i in shown if outcomes.get(i) != "found"]
        missed = [i for i, outcome in outcomes.items() if outcome != "found"]
        # Without any of them, the best candidate shows where the network looked
        chosen = list(dict.fromkeys([*false, *missed, *shown]))[:EXPLAINED] or list(range(len(candidates)))[:1]
        return [self._explain(seen, candidates[i], i) for i in sorted(chosen)]

    @torch.inference_mode(False)
    def _explain(self, seen: Seen, candidate: dict[str, Any], position: int) -> dict[str, Any]:
        layout = Layout(self.config, seen.outputs, seen.anchors, seen.size)
        place = layout.at(candidate["anchor"])
        level, anchor, label = int(place["level"]), candidate["anchor"], candidate["label"]
        scale = np.array((seen.size.width / self.input.width, seen.size.height / self.input.height) * 2)
        field = receptive_fields(self.config)[level].box(place["row"], place["column"], self.input)
        # A tensor made in inference mode has no gradient; a copy made outside has
        image = seen.image.clone()
        gradient = self._gradient(image, anchor, label)
        patches = self._patches(field)
        saliency = self._salient(image, gradient) if patches is None else self._occlude(image, anchor, label, patches)
        return {
            "candidate": position,
            **{name: value for name, value in place.items() if name != "box"},
            "anchor_box": place["box"],
            "receptive_field": (np.array(field) * scale).tolist(),
            "effective": (_middle(gradient.square().sum(0)) * scale).tolist(),
            "method": "gradient" if patches is None else "occlusion",
            "saliency": np.round(saliency, 3).tolist(),
            **self._nearest(seen, candidate, level),
        }

    def _gradient(self, image: Tensor, anchor: int, label: int) -> Tensor:
        """Return the gradient [3, h, w] of the log-odds of a class at an anchor."""
        with torch.enable_grad():
            pixels = image.float().requires_grad_()
            outputs: HeadOutputs = self.detector.model(pixels)
            logits = outputs.logits[0, anchor].float()
            answer = logits[label]
            if self.config.model.score == "softmax":
                column = label + 1
                answer = logits[column] - torch.cat([logits[:column], logits[column + 1 :]]).logsumexp(0)
            return torch.autograd.grad(answer, pixels)[0][0]

    def _salient(self, image: Tensor, gradient: Tensor) -> Floats:
        """Return how much the pixels of each grid cell, as they differ from the mean colour, move the score, 0 to 1."""
        rows, columns = _grid(self.input, GRADIENT_GRID)
        moves = (gradient * (image[0].float() - self.detector.model.mean[0])).sum(0).abs()
        return _relative(host(functional.adaptive_avg_pool2d(moves[None, None], (rows, columns))[0, 0]))

    def _patches(self, field: tuple[float, float, float, float]) -> Patches | None:
        """Return the finest patches that cover a receptive field within the time; None if even the coarsest do not.

        A patch is twice as large as its cell, so that it hides what several cells share.
        """
        x1, y1, x2, y2 = field
        for cells in range(FINEST, COARSEST - 1, -1):
            grid = _grid(self.input, cells)
            down, across = self.input.height / grid.height, self.input.width / grid.width
            patches = {
                (row, column): (
                    slice(max(0, round((row - 0.5) * down)), round((row + 1.5) * down)),
                    slice(max(0, round((column - 0.5) * across)), round((column + 1.5) * across)),
                )
                for row in range(grid.height)
                for column in range(grid.width)
                if y1 < (row + 1) * down and row * down < y2 and x1 < (column + 1) * across and column * across < x2
            }
            if len(patches) <= self.most_patches:
                return Patches(grid, patches)
        return None

    @torch.no_grad()
    def _occlude(self, image: Tensor, anchor: int, label: int, patches: Patches) -> Floats:
        """Return how far the score falls where a patch of mean colour covers each grid cell, 0 to 1.

        Cells outside the receptive field stay 0: what lies there cannot change the score.
        """
        colour = self.detector.model.mean[0].round().to(image.dtype)
        falls = np.zeros(patches.grid, np.float32)
        (before,) = self._score(image, anchor, label)
        places = list(patches.slices.items())
        for start in range(0, len(places), TOGETHER):
            part = places[start : start + TOGETHER]
            covered = image.repeat(len(part), 1, 1, 1).contiguous(memory_format=torch.channels_last)
            for number, (_, (rows, columns)) in enumerate(part):
                covered[number, :, rows, columns] = colour
            for (cell, _), score in zip(part, self._score(covered, anchor, label), strict=True):
                falls[cell] = max(0.0, before - score)
        return _relative(falls)

    def _score(self, images: Tensor, anchor: int, label: int) -> list[float]:
        logits = self.detector.outputs(images).logits[:, anchor].float()
        return host(class_scores(logits, self.config.model.score, True)[:, label]).tolist()

    def _nearest(self, seen: Seen, candidate: dict[str, Any], level: int) -> dict[str, Any]:
        """Return the training objects whose features at a level are nearest, and among how many.

        Objects of the same level are preferred; where there are too few, all are compared.
        """
        if self.similar is None:
            return {"similar": [], "similar_of": None}
        known = self.similar
        # A file may hold many images
        own_place = identity(str(seen.sample.path), seen.sample.offset)
        others = np.array([place != own_place for place in known.places], np.bool_)
        same = np.flatnonzero(others & (known.level == level))
        among = same if len(same) >= SIMILAR else np.flatnonzero(others)
        about = {"images": known.images, "of": known.of, "objects": len(among)}
        if not len(among):
            return {"similar": [], "similar_of": about}
        scale = torch.tensor((seen.size.width, seen.size.height) * 2, dtype=torch.float32)
        box = torch.tensor(candidate["box"], dtype=torch.float32) / scale
        with torch.inference_mode():
            (own,) = _pooled(self._maps(seen.image)[1][level], box[None].to(seen.image.device))
            distances = host(1 - torch.stack([known.features[level][i] for i in among]) @ own)
        order = np.argsort(distances, kind="stable")[:SIMILAR].tolist()
        rows = [known.rows[among[i]] | {"distance": max(0.0, float(distances[i]))} for i in order]
        return {"similar": rows, "similar_of": about}

    @torch.inference_mode()
    def _look_at(self, training: Dataset, counting: Counting) -> Similar:
        """Look at the objects of training images, evenly chosen."""
        plain = training.keep_boxes(~training.crowd)
        count = len(plain)
        chosen = list(range(0, count, max(1, -(-count // MOST_IMAGES))))
        objects = np.diff(plain.starts)[chosen].sum()
        # In crowded images fewer are enough
        chosen = chosen[:: max(1, -(-int(objects) // MOST_OBJECTS))]
        decoded = DecodedImages(plain, self.input, exact=True, background=self.detector.background)
        images = AugmentedImages(plain, self.input, (), decoded=decoded)
        keys = [[(0, i) for i in chosen[start : start + TOGETHER]] for start in range(0, len(chosen), TOGETHER)]
        found = Similar(np.zeros(0, np.int64), [[] for _ in receptive_fields(self.config)], [], [], len(chosen), count)
        levels: list[int] = []
        with counting("looking at training images", len(chosen)) as tell:
            for batch, indices in zip(load_batches(images, keys, 0, pin=False), keys, strict=True):
                batch = batch.to(self.detector.device)
                outputs, maps = self._maps(batch.images)
                for place, (_, index) in enumerate(indices):
                    boxes, sample = batch.gt_xyxy[place][batch.gt_labels[place] >= 0], plain[index]
                    # Fewer if one lies outside its image
                    if not len(boxes) or len(boxes) != len(sample.labels):
                        continue
                    levels += self._levels(outputs, boxes, batch.sizes[place])
                    for kept, features in zip(found.features, maps, strict=True):
                        kept.extend(_pooled(features[place : place + 1], boxes))
                    about = {"file": sample.name, **where(sample, self.detector.background)}
                    found.places.extend([identity(str(sample.path), sample.offset)] * len(boxes))
                    for box, label in zip(sample.boxes_xyxy, sample.labels, strict=True):
                        found.rows.append({**about, "box": box.tolist(), "name": plain.class_names[int(label)]})
                tell(len(indices))
        return found._replace(level=np.array(levels, np.int64))

    def _levels(self, outputs: HeadOutputs, boxes: Tensor, size: Size) -> list[int]:
        """Return for each object the level of the anchor that overlaps it most."""
        anchors = anchors_for(outputs, self.config)
        layout = Layout(self.config, outputs, anchors, size)
        return [layout.level_of(anchor) for anchor in host(pairwise_iou(boxes, anchors).argmax(dim=1)).tolist()]

    def _maps(self, images: Tensor) -> tuple[HeadOutputs, list[Tensor]]:
        """Return the network's outputs and its feature maps."""
        kept: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: list[Tensor]) -> None:
            kept.extend(output)

        hook = self.detector.model.backbone.register_forward_hook(keep)
        try:
            return self.detector.model(images), kept
        finally:
            hook.remove()


def identity(path: str, offset: int | None) -> tuple[str, int | None]:
    """Return what tells an image from every other, by whatever path its file was reached."""
    return os.path.realpath(path), offset


def _grid(size: Size, cells: int) -> Size:
    """Return a grid of about square cells, so many along the longer side."""
    return Size(*(max(1, round(cells * side / max(size))) for side in size))


def _pooled(features: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return the mean features of a map [1, c, h, w] over boxes [n, 4] (0 to 1), as vectors [n, c] of length 1."""
    scale = features.new_tensor((features.shape[3], features.shape[2]) * 2)
    pooled: Tensor = roi_align(features.float(), [boxes_xyxy * scale], 1, aligned=True)  # pyright: ignore
    return functional.normalize(pooled.flatten(1), dim=1)


def _relative(values: Floats) -> Floats:
    return values / max(float(values.max(initial=0)), 1e-12)


def _middle(strength: Tensor) -> NDArray[np.float64]:
    """Return the box [4], xyxy in pixels, that holds most of a map [h, w] along each axis."""
    ends: list[tuple[int, int]] = []
    for axis in (0, 1):
        along = host(strength.double().sum(axis))
        share = np.cumsum(along) / max(float(along.sum()), 1e-300)
        outside = (1 - WITHIN) / 2
        ends.append((int(np.searchsorted(share, outside)), int(np.searchsorted(share, 1 - outside)) + 1))
    (left, right), (top, bottom) = ends
    return np.array((left, top, right, bottom), np.float64)
