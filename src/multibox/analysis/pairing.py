"""Which boxes of one image overlap, and greedy matching of such pairs; whole data sets at once, in numpy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.label_pairs import within_images
from multibox.structures import Boxes, Flags, Labels, iou

Floats = NDArray[np.float64]


class Pairs(NamedTuple):
    """Boxes `a` and `b` of one image that overlap, in the order of `a` and then of `b`."""

    a: Labels
    """[P], rows of the first boxes."""
    b: Labels
    """[P], rows of the others."""
    iou: Floats
    """[P]"""

    def keep(self, mask: Flags) -> "Pairs":
        """Return the pairs that a mask [P] marks."""
        return Pairs(self.a[mask], self.b[mask], self.iou[mask])


class Best(NamedTuple):
    """For each of N boxes the one that it overlaps most."""

    row: Labels
    """[N]; the first of equals, -1 where it overlaps none."""
    iou: Floats
    """[N]; 0 where it overlaps none."""


def overlapping(a_xyxy: Boxes, a_image: Labels, b_xyxy: Boxes, b_image: Labels, least: float = 0.0) -> Pairs:
    """Return the pairs of one image whose IoU is above 0 and at least `least`.

    Args:
        a_xyxy: [N, 4]
        a_image: [N], the image of each box.
        b_xyxy: [M, 4]
        b_image: [M], rising.
        least: Lowest IoU.
    """
    parts = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for a, b in within_images(a_image, b_image):
        # Most boxes of an image lie apart, which takes fewer operations to see than their IoU is 0
        near = (a_xyxy[a, :2] < b_xyxy[b, 2:]).all(1) & (b_xyxy[b, :2] < a_xyxy[a, 2:]).all(1)
        pairs = Pairs(a[near], b[near], iou(a_xyxy[a[near]], b_xyxy[b[near]]))
        parts.append(pairs.keep((pairs.iou > 0) & (pairs.iou >= least)))
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def best_partner(pairs: Pairs, count: int) -> Best:
    """Return for each of `count` boxes `a` the box `b` that it overlaps most."""
    best = Best(np.full(count, -1), np.zeros(count))
    order = np.lexsort((-pairs.iou, pairs.a))
    rows, place = np.unique(pairs.a[order], return_index=True)
    best.row[rows], best.iou[rows] = pairs.b[order[place]], pairs.iou[order[place]]
    return best


def match_greedily(pairs: Pairs, scores: Floats, count: int) -> Labels:
    """Return the box `b` [N] that each box `a` takes, -1 for none: the best score first, each the most overlapping.

    In rounds: every box asks for the partner that it overlaps most of those that have not refused it, and a partner
    keeps the best score that asks. This ends at what one box after the other gives, in few rounds.

    Args:
        pairs: Those that may match.
        scores: [N], of the boxes `a`; the earlier of equals goes first.
        count: M, of the boxes `b`.
    """
    order = np.lexsort((-pairs.iou, pairs.a))
    wanted = pairs.b[order]
    place = np.searchsorted(pairs.a[order], np.arange(len(scores)))
    end = np.append(place[1:], len(wanted))
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    while True:
        asking = np.flatnonzero(place < end)
        partner = wanted[place[asking]]
        best = np.full(count, len(scores))
        np.minimum.at(best, partner, rank[asking])
        refused = asking[best[partner] != rank[asking]]
        if not len(refused):
            break
        place[refused] += 1
    taken = np.full(len(scores), -1)
    taken[asking] = partner
    return taken
