"""How far images are from those that a model was trained on: statistics of both, and what their difference may mean.

A checkpoint and every exported file carry the statistics of training. `Seen` gathers those of other images in constant
memory, so a server can use it for ever. No torch here. How the limits were chosen: docs/decisions.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.structures import Detections

LEAST_IMAGES = 20
"""Images, or detections, of which the mean tells something; of fewer nothing is said."""
FAR = 1.5
"""Distance of the means, in standard deviations of training, from which images are far; held-out ones reach 1.2."""
SHIFTED = 0.8
"""Share of images moved across a decile of training from which they are far, where outliers widen the deviation."""
POINTS = 11
"""Quantiles stored: the smallest value, nine deciles, the largest."""
GRID, BLOCK = 16, 4
"""Pixels that are looked at: 16 x 16 blocks of 4 x 4, spread over the image, whatever its size."""

Statistics = Mapping[str, Mapping[str, Any]]
"""By name: `count`, `mean`, `sd` and `quantiles` [11]."""
Floats = NDArray[np.float64]


class _Kind(NamedTuple):
    """How a statistic is told, and the least difference of means that matters."""

    title: str
    meaning: str
    least: float
    share: float = 0.0
    """Of the mean of training, where that is more than `least`."""


KINDS = {
    "width": _Kind("image width in pixels", "another camera or scaling, so objects may be of another size", 0, 0.25),
    "height": _Kind("image height in pixels", "another camera or scaling, so objects may be of another size", 0, 0.25),
    "aspect": _Kind("width over height", "the network's input squeezes objects in another way", 0, 0.25),
    "brightness": _Kind("brightness, 0 to 255", "the light, the exposure or the kind of image is another", 24),
    "contrast": _Kind("contrast, 0 to 128", "there may be fog, glare, or another kind of scene", 12),
    "saturation": _Kind("saturation, 0 to 255", "colours are paler or stronger, or images are grey", 20),
    "warmth": _Kind("red minus blue", "the light, or the camera's white balance, is another", 20),
    "detections": _Kind("detections per image", "there are fewer or more objects, or the model misses them", 1.5, 0.5),
    "score": _Kind("score of detections", "the model is less or more certain than on images like those learned", 0.15),
    "box_size": _Kind("size of detections as a share of the image's", "objects are nearer or farther", 0.05, 0.4),
}
"""Statistics that are compared, and what it may mean when one moves."""


class Drift(NamedTuple):
    """A statistic whose mean is far from that of training."""

    name: str
    seen: float
    trained: float
    distance: float
    """Of the means, in standard deviations of training or, if that is more, in least differences that matter."""

    def __str__(self) -> str:
        kind = KINDS[self.name]
        return f"{kind.title}: {_short(self.seen)} here, {_short(self.trained)} in training; {kind.meaning}"


def measure_image(image: Image.Image, size: tuple[int, int] | None = None) -> dict[str, float]:
    """Return the statistics of one RGB image.

    Args:
        image: At any scale; looked at in a grid of places, so that its scale hardly matters.
        size: Height and width of the original; None takes those of `image`.
    """
    height, width = size or (image.height, image.width)
    side = GRID * BLOCK
    pixels = np.asarray(image.resize((side, side), Image.Resampling.NEAREST), np.float32)
    # Means of blocks, so that noise and sharpness are no contrast
    blocks = pixels.reshape(GRID, BLOCK, GRID, BLOCK, 3).mean((1, 3))
    luma = blocks @ np.array([0.299, 0.587, 0.114], np.float32)
    return {
        "width": float(width),
        "height": float(height),
        "aspect": width / height,
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float((blocks.max(-1) - blocks.min(-1)).mean()),
        "warmth": float((blocks[..., 0] - blocks[..., 2]).mean()),
    }


def box_sizes(found: Detections, size: tuple[int, int]) -> Floats:
    """Return the size of each box [N], the root of its area, as a share of that of an image of height and width."""
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).astype(np.float64).clip(min=0)
    return np.sqrt(sides.prod(1) / max(1, size[0] * size[1]))


def summarize(values: Sequence[float] | Floats) -> dict[str, Any]:
    """Return count, mean, standard deviation and quantiles of at least one value, for a file."""
    array = np.asarray(values, np.float64)
    return {
        "count": len(array),
        "mean": _rounded(float(array.mean())),
        "sd": _rounded(float(array.std())),
        "quantiles": [_rounded(value) for value in np.quantile(array, np.linspace(0, 1, POINTS)).tolist()],
    }


class Seen:
    """Sums over the images that a model sees, in constant memory.

    Args:
        statistics: Of the model's training; those that are missing there are not gathered.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = {name: statistics[name] for name in KINDS if name in statistics}
        self.deciles = {name: np.array(one["quantiles"][1:-1], np.float64) for name, one in self.statistics.items()}
        self.counts = dict.fromkeys(self.statistics, 0)
        self.sums = dict.fromkeys(self.statistics, 0.0)
        self.below = {name: np.zeros(POINTS - 2) for name in self.statistics}
        """Values up to each decile of training, those equal to it counted half."""

    def add(self, image: Image.Image, found: Detections | None = None, size: tuple[int, int] | None = None) -> None:
        """Count an RGB image, and what was found in it at the model's own thresholds.

        Args:
            image: At any scale.
            found: Boxes in pixels of the original; None where they were found at other thresholds.
            size: Height and width of the original; None takes those of `image`.
        """
        if not self.statistics:
            return
        size = size or (image.height, image.width)
        for name, value in measure_image(image, size).items():
            self._count(name, np.array([value]))
        if found is not None:
            self._count("detections", np.array([float(len(found))]))
            self._count("score", found.scores.astype(np.float64))
            self._count("box_size", box_sizes(found, size))

    def _count(self, name: str, values: Floats) -> None:
        if name in self.statistics and len(values):
            deciles = self.deciles[name]
            self.counts[name] += len(values)
            self.sums[name] += float(values.sum())
            self.below[name] += _up_to(values, deciles)


def drifts(statistics: Statistics, seen: Seen) -> list[Drift]:
    """Return the statistics that are far from those of training, the farthest first; none of fewer than 20 images."""
    found: list[Drift] = []
    for name, count in seen.counts.items():
        trained, kind = statistics[name], KINDS[name]
        if count < LEAST_IMAGES or trained["count"] < LEAST_IMAGES:
            continue
        mean = seen.sums[name] / count
        difference = abs(mean - trained["mean"])
        least = max(kind.least, kind.share * abs(trained["mean"]))
        if difference < least:
            continue
        # Of the stored quantiles, training's own shares up to each decile: not 0.1, 0.2 ... where many values are equal
        shares = _up_to(np.array(trained["quantiles"], np.float64), seen.deciles[name]) / POINTS
        shift = float(np.abs(seen.below[name] / count - shares).max())
        if difference >= FAR * trained["sd"] or shift >= SHIFTED:
            found.append(Drift(name, mean, trained["mean"], difference / max(trained["sd"], least)))
    return sorted(found, key=lambda drift: -drift.distance)


def drift_warnings(statistics: Statistics, seen: Seen) -> list[str]:
    """Return one sentence for each statistic that is far from training: which, both means, what it may mean."""
    return [str(drift) for drift in drifts(statistics, seen)]


def _up_to(values: Floats, deciles: Floats) -> Floats:
    """Return how many values lie below each decile; equal ones count half."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, deciles, "left") + np.searchsorted(ordered, deciles, "right")) / 2


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _short(value: float) -> str:
    """Return a number with two or three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{max(0, 1 - math.floor(math.log10(abs(value) or 1)))}f}"
