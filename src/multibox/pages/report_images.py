"""Images of the report page: which ones it shows, their thumbnails and crops, and what became of each box on them.

A page of 5,000 images holds the thumbnails of some hundred. An image is decoded once, a JPEG at the smallest scale that
its thumbnail and crops need.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.images import load_small, shown_size
from multibox.errors import MultiboxError
from multibox.pages.page_images import crop_around, data_uri
from multibox.pages.report_words import Report, rows
from multibox.structures import Dataset, Size

MOST_IMAGES = 1000
"""Thumbnails on the page; 320 pixels take about 15 kB each."""
PER_CELL = 12
"""Images of one cell of the confusion matrix."""
MOST_SUSPECTS = 300
"""Label suspects shown; all stand in the relabel list."""
LARGE, SMALL, CROP = 640, 320, 200
"""Longest sides of the worst images, of other images and of crops, in pixels."""
QUALITY = 70
"""Of JPEG."""
CHUNK = 24
"""Images or crops that the browser parses together."""

Drawn = list[Any]
Progress = Callable[[int, int], None]


class Crop(NamedTuple):
    """A part of an image to show: around one or two boxes."""

    group: str
    """"mistakes" or "suspects"."""
    position: int
    """In that list of the report."""
    boxes_xyxy: tuple[Sequence[float], ...]
    """All lie in the part."""


def choose_images(report: Report, most: int = MOST_IMAGES) -> tuple[list[int], dict[int, list[int]]]:
    """Return the images to show, and for each cell of the confusion matrix those that it shows.

    First come the worst images, then those of mistakes and suspects, then cells: wrong before right ones, one image of
    each cell before a second of any. An image that is shown anyway counts for nothing.

    Returns:
        Positions in the report's "files", the worst first; and positions in `confusion["cells"]` with up to `PER_CELL`
        images.
    """
    shown = dict.fromkeys(rows(report, "worst"))
    for one in rows(report, "mistakes"):
        shown.setdefault(one["file"])
    for one in rows(report, "suspects")[:MOST_SUSPECTS]:
        if one.get("position") is not None:
            shown.setdefault(one["position"])
    cells = rows(report, "confusion", "cells")
    order = sorted(range(len(cells)), key=lambda place: cells[place]["gt"] == cells[place]["predicted"])
    chosen: dict[int, list[int]] = {
        place: [one for one in cells[place]["images"] if one in shown][:PER_CELL] for place in order
    }
    more = {place: iter([one for one in cells[place]["images"] if one not in shown]) for place in order}
    while more and len(shown) < most:
        for place in list(more):
            image = next(more[place], None)
            if image is None or len(chosen[place]) >= PER_CELL:
                del more[place]
            elif image in shown or len(shown) < most:
                shown.setdefault(image)
                chosen[place].append(image)
    return list(shown), chosen


def wanted_crops(report: Report) -> dict[int, list[Crop]]:
    """Return the crops to make, by image."""
    crops: dict[int, list[Crop]] = defaultdict(list)
    for position, one in enumerate(rows(report, "mistakes")):
        crops[one["file"]].append(Crop("mistakes", position, _present(one.get("box"), one.get("gt_box"))))
    for position, one in enumerate(rows(report, "suspects")[:MOST_SUSPECTS]):
        if one.get("position") is not None:
            crops[one["position"]].append(
                Crop("suspects", position, _present(one.get("box"), one.get("suggested_box")))
            )
    return crops


def _present(*boxes: Sequence[float] | None) -> tuple[Sequence[float], ...]:
    return tuple(box for box in boxes if box is not None)


def make_images(
    report: Report,
    dataset: Dataset,
    shown: Sequence[int],
    drawn: Mapping[int, Drawn],
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Return thumbnails and crops in chunks by the id of their element: "images-0", "mistakes-0", "suspects-0" ...

    A thumbnail is {"src", "boxes"} by the position of its image, a crop {"src", "width", "height", "boxes"} by its
    position in its list. An image that cannot be read has an "error" instead of "src".

    Args:
        report: As `make_report` returns it.
        dataset: Its images, in the order of the report's "files".
        shown: Positions of images that get a thumbnail, in the order in which they share chunks.
        drawn: Boxes of each.
        progress: Called with the images read so far, and all of them.
    """
    worst, crops = set(rows(report, "worst")), wanted_crops(report)
    todo = list(dict.fromkeys([*shown, *crops]))
    places = {image: place for place, image in enumerate(shown)}
    chunks: dict[str, dict[str, Any]] = {}

    def one_image(image: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        side = (LARGE if image in worst else SMALL) if image in places else 0
        return _thumbnail_and_crops(dataset, image, side, crops.get(image, []))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (image, (thumbnail, parts)) in enumerate(zip(todo, pool.map(one_image, todo), strict=True), start=1):
            if thumbnail is not None:
                chunk = chunks.setdefault(f"images-{places[image] // CHUNK}", {})
                chunk[str(image)] = {**thumbnail, "boxes": drawn.get(image, [])}
            for crop, part in zip(crops.get(image, []), parts, strict=True):
                chunks.setdefault(f"{crop.group}-{crop.position // CHUNK}", {})[str(crop.position)] = part
            progress(done, len(todo))
    return chunks


def _thumbnail_and_crops(
    dataset: Dataset, image: int, side: int, crops: list[Crop]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the thumbnail of an image, None for a side of 0, and its crops."""
    sample = dataset[image]
    try:
        size = shown_size(sample)
        scale = max([side / max(size), *(CROP / _side(crop) for crop in crops)])
        least = max(1, math.ceil(min(1.0, scale) * min(size)))
        # A square, since the file may lie on its side
        pixels = load_small(sample, Size(least, least))
    except MultiboxError as error:
        broken = {"error": str(error)}
        return (dict(broken) if side else None), [dict(broken) for _ in crops]
    # Boxes of the thumbnail are in pixels of the original, whatever the label file says of its size
    original = {"width": size.width, "height": size.height}
    thumbnail = {"src": data_uri(pixels, side, QUALITY), **original} if side else None
    return thumbnail, [_cut(pixels, crop, pixels.width / size.width) for crop in crops]


def _around(crop: Crop) -> NDArray[np.float64]:
    """Return the smallest box [4] around the boxes of a crop."""
    boxes = np.nan_to_num(np.array(crop.boxes_xyxy or ((0, 0, 1, 1),), np.float64))
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _side(crop: Crop) -> float:
    """Return about how many pixels of the original a crop shows on its longer side."""
    x1, y1, x2, y2 = _around(crop).tolist()
    return max(1.0, 2 * max(x2 - x1, y2 - y1))


def _cut(image: Image.Image, crop: Crop, ratio: float) -> dict[str, Any]:
    """Return a crop, with its boxes in its own pixels; `ratio` is the image's width over that of the original."""
    around = _around(crop) * ratio
    part, moved = crop_around(image, around.tolist())
    shift = np.tile(np.array(moved[:2]) - around[:2], 2)
    boxes = [(np.nan_to_num(np.array(box, np.float64)) * ratio + shift).round(1).tolist() for box in crop.boxes_xyxy]
    return {"src": data_uri(part, CROP, QUALITY), "width": part.width, "height": part.height, "boxes": boxes}
