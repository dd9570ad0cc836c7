"""Synthetic pictures of little creatures: the stand-in for post B's Pikachu set, labelled to the pixel."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.formats.writing import check_destination, write_dataset
from multibox.data.sprites_figures import class_name, figure
from multibox.data.sprites_render import Floats, cast, turn
from multibox.data.sprites_scene import background, clutter, develop, lamp, paste, shadow
from multibox.errors import ConfigError
from multibox.structures import Boxes, Labels, Sample, pack

TRAINING_SHARE = 0.9
_TRIES = 40
_LARGEST_SHARED = 0.2
"""Of two figures, the part of the smaller one's box that the other's may cover."""


def render(
    index: int, *, seed: int = 0, classes: int = 1, objects: tuple[int, int] = (1, 1), size: int = 256
) -> tuple[NDArray[np.uint8], Boxes, Labels]:
    """Draw picture `index`: pixels [size, size, 3], boxes [N, 4] around what is visible, labels [N].

    It depends on its arguments alone, so pictures can be drawn in any order. Fewer figures than drawn for may fit.
    """
    rng = np.random.default_rng((seed, index))
    light = lamp(rng)
    canvas = background(rng, size)
    clutter(rng, canvas, classes, light)
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    largest = 0.6 if wanted <= 1 else max(0.2, 0.6 / wanted**0.4)
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for _ in range(wanted):
        label = int(rng.integers(classes))
        longest = size * np.exp(rng.uniform(np.log(0.15), np.log(largest)))
        rotation = turn(rng.uniform(-0.9, 0.9), rng.uniform(-0.5, 0.5), rng.uniform(-np.pi, np.pi))
        colour, cover = cast(figure(label), rotation, float(longest), light)
        place = _place(rng, cover, boxes, size)
        if place is None:
            continue
        x, y, box = place
        shadow(canvas, cover, x, y, light)
        paste(canvas, colour, cover, x, y)
        boxes.append(box)
        labels.append(label)
    return develop(rng, canvas), np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def make_sprites(
    destination: str | Path,
    *,
    images: int = 1000,
    classes: int = 1,
    objects: tuple[int, int] = (1, 1),
    size: int = 256,
    seed: int = 0,
    format: str = "voc",
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write a data set of sprites, nine tenths for training and one for validation; the same bytes every time.

    Args:
        destination: a folder that is not there yet, or is empty.
        images: pictures in all, at least 2.
        classes: kinds of creature; every number makes different ones.
        objects: fewest and most creatures in a picture.
        size: width and height in pixels.
        seed: another seed, other pictures.
        format: voc, coco, yolo, csv or recordio.
        progress: told the number of pictures drawn so far.

    Raises:
        ConfigError: a number out of its range or an unknown format.
        DataError: the destination holds something.
    """
    if images < 2 or classes < 1 or size < 32 or not 0 <= objects[0] <= objects[1]:
        raise ConfigError(
            f"sprites need images >= 2, classes >= 1, size >= 32 and objects A-B with A <= B, "
            f"got {images}, {classes}, {size} and {objects[0]}-{objects[1]}"
        )
    destination = Path(destination)
    check_destination(destination)
    destination.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.absolute().parent, prefix=".sprites-") as scratch:
        draw = partial(_draw, Path(scratch), seed=seed, classes=classes, objects=objects, size=size)
        samples: list[Sample] = []
        with ThreadPoolExecutor() as pool:
            for sample in pool.map(draw, range(images)):
                samples.append(sample)
                progress(len(samples))
        cut = min(images - 1, max(1, round(images * TRAINING_SHARE)))
        names = [class_name(label) for label in range(classes)]
        parts: dict[str, Sequence[Sample]] = {"train": samples[:cut], "val": samples[cut:]}
        splits = {
            split: pack(some, root=Path(scratch), format=format, split=split, class_names=names)
            for split, some in parts.items()
        }
        write_dataset(splits, destination, format, link=True)


def _draw(folder: Path, index: int, *, seed: int, classes: int, objects: tuple[int, int], size: int) -> Sample:
    pixels, boxes, labels = render(index, seed=seed, classes=classes, objects=objects, size=size)
    path = folder / f"{index:05}.png"
    # Fast and lossless: noise hardly packs, and JPEG's bytes depend on the library that wrote them
    Image.fromarray(pixels).save(path, compress_level=1)
    none = np.zeros(len(labels), np.bool_)
    return Sample(path.name, path, boxes, labels, none, none, (size, size))


def _place(
    rng: np.random.Generator, cover: Floats, boxes: Sequence[tuple[float, float, float, float]], size: int
) -> tuple[int, int, tuple[float, float, float, float]] | None:
    """Find a place inside the picture that hides no other figure: left, top and the box of what is visible."""
    rows, columns = np.nonzero((cover > 0.5).any(axis=1))[0], np.nonzero((cover > 0.5).any(axis=0))[0]
    height, width = cover.shape
    if not len(rows) or width > size or height > size:
        return None
    for _ in range(_TRIES):
        x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        box = (float(x + columns[0]), float(y + rows[0]), float(x + columns[-1] + 1), float(y + rows[-1] + 1))
        if all(_shared(box, other) <= _LARGEST_SHARED for other in boxes):
            return x, y, box
    return None


def _shared(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller
