"""Where labels go on an image: beside their boxes, over no other label and over as little of the objects as can be."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rectangles = NDArray[np.float32]
"""[N, 4]; x1, y1, x2, y2 in pixels, the last two exclusive."""

_ACROSS, _DOWN = np.array(
    # Share of the free width, and of the height: 0 left or top, 1 right or bottom, in units of the box
    [(0, -1), (1, -1), (0.5, -1), (0, 2), (1, 2), (0.5, 2), (0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0), (0.5, 1),
     (2, 0), (-1, 0), (2, 1), (-1, 1)],
    np.float32,
).T  # fmt: skip
"""Places of a label: -1 lies before the box, 2 behind it, 0 to 1 within."""
_PREFERENCE = np.arange(len(_ACROSS), dtype=np.float32) * 0.004
"""Cost of each place by itself: above the box at its left is where a reader looks first."""
_MOST = 250
"""Labels of an image; of more, those that come first."""


class Placed(NamedTuple):
    """Where labels are."""

    corners: NDArray[np.int64]
    """[N, 2]; left and top, -1 where there is no place."""
    missing: float
    """Share of the labels without a place."""
    hidden: float
    """How much of an object a label covers on average; above 1 where it covers several."""


def place_labels(
    boxes: Rectangles, sizes: NDArray[np.float32], image: tuple[int, int], taken: Sequence[Sequence[float]] = ()
) -> Placed:
    """Choose a place for each label; those that come first choose first.

    Args:
        boxes: [N, 4] inside the image.
        sizes: [N, 2]; width and height of the labels in pixels.
        image: width and height.
        taken: rectangles where no label may be.
    """
    count = len(boxes)
    corners = np.full((count, 2), -1, np.int64)
    if not count:
        return Placed(corners, 0.0, 0.0)
    wanted = min(count, _MOST)
    places = _candidates(boxes[:wanted], sizes[:wanted], image)
    cost = _covered(places.reshape(4, -1).T, boxes).reshape(wanted, -1) + _PREFERENCE
    # No label where it does not fit into the image at all
    cost[(sizes[:wanted] > np.array(image)).any(axis=1)] = np.inf
    for rectangle in taken:
        cost[_meets(places, np.array(rectangle, np.float32))] = np.inf
    hidden = 0.0
    # Label by label, since each choice takes room from the ones that follow
    for row in range(wanted):
        column = int(cost[row].argmin())
        price = float(cost[row, column])
        if price < np.inf:
            chosen = places[:, row, column]
            hidden += price
            corners[row] = chosen[:2]
            cost[row + 1 :][_meets(places[:, row + 1 :], chosen)] = np.inf
    placed = int((corners[:, 0] >= 0).sum())
    return Placed(corners, 1 - placed / count, hidden / max(placed, 1))


def free_corner(boxes: Rectangles, size: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
    """Return left and top of a rectangle of `size` in that corner of the image where it covers least of the boxes."""
    right, bottom = image[0] - size[0], image[1] - size[1]
    lefts, tops = np.array([(0, bottom), (right, bottom), (right, 0), (0, 0)], np.float32).T
    corners = np.stack([lefts, tops, lefts + size[0], tops + size[1]], axis=1)
    best = int(_covered(corners, boxes).argmin())
    return int(lefts[best]), int(tops[best])


def _candidates(boxes: Rectangles, sizes: NDArray[np.float32], image: tuple[int, int]) -> NDArray[np.float32]:
    """Return the places of each label [4, N, C], pushed into the image."""
    x1, y1, x2, y2 = boxes.T[..., None]
    width, height = sizes.T[..., None]
    left = _along(x1, x2, width, _ACROSS)
    top = _along(y1, y2, height, _DOWN)
    left = np.clip(np.rint(left), 0, np.maximum(image[0] - width, 0))
    top = np.clip(np.rint(top), 0, np.maximum(image[1] - height, 0))
    return np.stack([left, top, left + width, top + height])


def _along(
    low: NDArray[np.float32], high: NDArray[np.float32], size: NDArray[np.float32], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    within = low + (high - low - size) * share
    return np.where(share < 0, low - size, np.where(share > 1, high, within))


def _covered(places: Rectangles, boxes: Rectangles) -> NDArray[np.float32]:
    """Return what each rectangle covers of all boxes together [N], in boxes: 1 is a whole one."""
    x1, y1, x2, y2 = (places[:, i, None] for i in range(4))
    width = np.minimum(x2, boxes[:, 2]) - np.maximum(x1, boxes[:, 0])
    height = np.minimum(y2, boxes[:, 3]) - np.maximum(y1, boxes[:, 1])
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    width *= height
    return width @ (1 / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def _meets(places: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rectangles [4, ...] share a pixel with `one` [4]."""
    x1, y1, x2, y2 = places
    return (x1 < one[2]) & (one[0] < x2) & (y1 < one[3]) & (one[1] < y2)
