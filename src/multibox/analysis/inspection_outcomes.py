"""What became of each object of an image: found, or the reason why it was missed, in one sentence with numbers.

Detections and objects are compared as `multibox eval` compares them at IoU 0.5: a detection counts for the object of
its class that it overlaps most, and the best detection of an object finds it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.config import Config
from multibox.evaluation.table import columns
from multibox.evaluation.voc_metrics import overlaps, voc_outcomes
from multibox.ops.boxes import pairwise_iou
from multibox.structures import Dataset, Detections, Flags, Labels, Sample, iou

RIGHT, NEAR = 0.5, 0.1
"""Overlap (IoU) above which a detection is right, and above which a wrong one of the class counts as badly placed."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Row = dict[str, Any]


class Found(NamedTuple):
    """Every candidate of an image, best first."""

    anchors: Labels
    labels: Labels
    scores: Floats
    boxes: Floats
    """[n, 4]; in pixels of the original, cut at its border, as they are reported."""
    unclipped: Floats
    """[n, 4]; the same before they were cut."""
    fractions: Floats
    """[n, 4]; 0 to 1 of the input, as suppression compares them."""
    passed: Flags
    """Not suppressed."""
    kept: Flags
    """Detections, whatever their score."""
    reported: Flags
    """Detections whose score reaches their class's threshold."""

    def on(self, box_xyxy: Doubles, label: int, extra: float) -> Labels:
        """Return the candidates of a class that are right on a box, best first."""
        right = iou(self.boxes.astype(np.float64), box_xyxy, extra) > RIGHT
        return np.flatnonzero(right & (self.labels == label))

    def as_detections(self, names: tuple[str, ...], wanted: Flags | slice) -> Detections:
        """Return the wanted candidates as detections."""
        return Detections(self.boxes[wanted], self.scores[wanted], self.labels[wanted], names)


class Matched(NamedTuple):
    """How candidates and objects belong together."""

    gt: Labels
    """[n]; the object of its class that each candidate overlaps most, -1 where the image has none of that class."""
    iou: Doubles
    """[n]; with that object."""
    finder: Labels
    """[g]; the candidate that finds each object, or the best of those on a difficult object or crowd; else -1."""


def match_detections(found: Found, sample: Sample, names: tuple[str, ...], extra: float) -> Matched:
    """Compare an image's candidates, and those that are reported, with its objects.

    Args:
        found: The candidates.
        sample: The image; its labels are positions in `names`.
        names: The detector's classes.
        extra: Added to widths and heights, 1 for VOC's labels.
    """
    everything = columns([found.as_detections(names, slice(None))], [sample], names)
    pairs = overlaps(everything, plus_one=extra > 0)
    shown = np.flatnonzero(found.reported)
    table = columns([found.as_detections(names, found.reported)], [sample], names)
    outcome = voc_outcomes(table, overlaps(table, plus_one=extra > 0))
    matched, ignored = outcome.matched[:, 0], outcome.ignored[:, 0]
    finder = np.full(len(sample.labels), -1)
    right = shown[matched | ignored]
    # Backwards, so that the best of several on one object stays
    finder[pairs.gt[right[::-1]]] = right[::-1]
    return Matched(pairs.gt, pairs.iou, finder)


def count_mistakes(
    detections: Sequence[Detections], samples: Sequence[Sample] | Dataset, names: tuple[str, ...], extra: float
) -> Labels:
    """Return how many objects were missed in each image, plus how many detections are false; both as `Matched` says.

    Args:
        detections: Those reported in each image.
        samples: The images.
        names: As for `match_detections`, as is the next.
        extra: Added to widths and heights.
    """
    table = columns(detections, samples, names)
    matched, ignored = (each[:, 0] for each in voc_outcomes(table, overlaps(table, plus_one=extra > 0)))
    objects, found, false = (
        np.bincount(rows, minlength=table.images)
        for rows in (table.gt_image[table.gt_scored], table.image[matched], table.image[~matched & ~ignored])
    )
    return objects - found + false


def suppressors(found: Found, listed: Labels, threshold: float, inclusive: bool) -> tuple[Labels, Floats]:
    """Return for each listed candidate the position in the list of what suppressed it, -1 for none, and their IoU.

    That is the best box of its class that is not suppressed itself and overlaps it too much.
    """
    boxes = torch.as_tensor(found.fractions[listed])
    table = pairwise_iou(boxes, boxes).numpy()
    over = table >= threshold if inclusive else table > threshold
    labels, place = found.labels[listed], np.arange(len(listed))
    suppresses = over & (labels[:, None] == labels) & (place[:, None] < place) & found.passed[listed][:, None]
    by = np.where(~found.passed[listed] & suppresses.any(axis=0), suppresses.argmax(axis=0) if len(listed) else 0, -1)
    return by, table[by, place]


class Judge:
    """Says what became of the objects of one image.

    Args:
        config: Of the network.
        names: Its classes.
        lowest: [classes]; lowest score reported.
        extra: As for `match_detections`.
    """

    def __init__(self, config: Config, names: tuple[str, ...], lowest: Floats, extra: float) -> None:
        self.config, self.names, self.lowest, self.extra = config, names, lowest, extra

    def judge(
        self,
        found: Found,
        sample: Sample,
        matched: Matched,
        overlap: Floats,
        positives: Sequence[Row],
        trained: Labels,
        anchors: Floats,
    ) -> list[Row]:
        """Return a row per object; `detection` is a candidate's number, not yet its position in the list.

        Args:
            found: The candidates.
            sample: The image.
            matched: From `match_detections`.
            overlap: [g, a]; IoU of objects and anchors.
            positives: Rows of the positive anchors, with `gt` and `score`.
            trained: Objects that train.
            anchors: [a, 4]; in pixels of the original.
        """
        rows: list[Row] = []
        for i, (box, label) in enumerate(zip(sample.boxes_xyxy, sample.labels.tolist(), strict=True)):
            own = [place for place, positive in enumerate(positives) if positive["gt"] == i]
            best_iou = float(overlap[i].max(initial=0))
            scores = [positives[place]["score"] for place in own]
            reason = self._not_trained(sample, i, i in trained) or self._unreached(box, anchors, best_iou, scores)
            outcome = self._found(found, matched, i) or self._seen_wrongly(found, matched, i, box, label)
            outcome = outcome or self._low(found, box, label, scores, reason)
            name, detection, why = outcome
            rows.append(
                {
                    "index": i,
                    "label": label,
                    "name": self.names[label],
                    "box": box.tolist(),
                    "difficult": bool(sample.difficult[i]),
                    "crowd": bool(sample.crowd[i]),
                    "trained": i in trained,
                    "best_iou": best_iou,
                    "anchors": own,
                    "outcome": name,
                    "detection": detection,
                    "why": why,
                    "if_unseen": reason[0] if reason else "low-score",
                }
            )
        return rows

    def _found(self, found: Found, matched: Matched, i: int) -> tuple[str, int, str] | None:
        finder = int(matched.finder[i])
        if finder < 0:
            return None
        return (
            "found",
            finder,
            f"found by a detection with score {digits(found.scores[finder])}, whose box overlaps it by "
            f"{matched.iou[finder]:.2f}",
        )

    def _seen_wrongly(
        self, found: Found, matched: Matched, i: int, box: Doubles, label: int
    ) -> tuple[str, int, str] | None:
        """Return the outcome if detections on or near the object explain why it was missed."""
        boxes = found.boxes.astype(np.float64)
        ious = iou(boxes, box, self.extra)
        used = np.zeros(len(ious), np.bool_)
        used[matched.finder[matched.finder >= 0]] = True
        same, right, enough = found.labels == label, ious > RIGHT, found.scores >= self.lowest[found.labels]
        post = self.config.post
        lost = np.flatnonzero(same & right & enough & ~found.kept)
        if len(lost):
            first = int(lost[0])
            start = f"its best box (score {digits(found.scores[first])}, overlap {ious[first]:.2f}) was "
            if found.passed[first]:
                return "suppressed", first, f"{start}left out: at most {self._limit()} are kept"
            by, shared = suppressor(found, first, post.nms_threshold, post.nms_inclusive)
            other = f" on {self.names[label]} {matched.gt[by]}" if used[by] else ""
            return (
                "suppressed",
                first,
                f"{start}suppressed by the detection{other} with score {digits(found.scores[by])}: they overlap by "
                f"{shared:.2f}, and at most {post.nms_threshold:g} is allowed (post.nms_threshold)",
            )
        wrong = np.flatnonzero(found.reported & ~same & right & ~used)
        if len(wrong):
            first = int(wrong[0])
            own = found.scores[same & right]
            more = f", {self.names[label]} only with {digits(own[0])}" if len(own) else ""
            return (
                "wrong-class",
                first,
                f"detected as {self.names[found.labels[first]]} with score {digits(found.scores[first])} (overlap "
                f"{ious[first]:.2f}){more}",
            )
        near = np.flatnonzero(found.reported & same & (ious > NEAR) & (~used | right))
        if not len(near):
            return None
        first = int(near[ious[near].argmax()])
        score = f"the detection nearest to it (score {digits(found.scores[first])})"
        if used[first] or right[first]:
            place = (
                f"overlaps it by {ious[first]:.2f} but counts for object {matched.gt[first]}, which it overlaps more"
            )
        else:
            place = f"overlaps it by only {ious[first]:.2f}; above {RIGHT:g} it would be right"
        return "badly-placed", first, f"{score} {place}"

    def _limit(self) -> str:
        post = self.config.post
        per_class = "" if post.max_per_class == "none" else f"{post.max_per_class} of a class and "
        return f"{per_class}{post.max_detections} in an image (post.max_detections)"

    def _not_trained(self, sample: Sample, i: int, trained: bool) -> tuple[str, str] | None:
        if sample.crowd[i]:
            return (
                "not-matched",
                "it is a crowd, a region of many objects, which is neither learnt nor counted as missed",
            )
        if trained:
            return None
        if sample.difficult[i]:
            return "not-matched", "it is marked difficult, and train.difficult=drop leaves it out of training"
        return "not-matched", "too little of it lies inside the image to train on it"

    def _unreached(
        self, box: Doubles, anchors: Floats, best_iou: float, scores: Sequence[float]
    ) -> tuple[str, str] | None:
        """Return the outcome if matching gave the object too little to learn from."""
        matching = self.config.matching
        if matching.matcher not in ("bipartite", "dual_max"):
            if scores:
                return None
            return "not-matched", f"{matching.matcher} gave it no anchor (the best overlaps it by {best_iou:.2f})"
        limit = matching.threshold
        if best_iou > limit or (matching.inclusive and best_iou >= np.float32(limit)):
            return None if scores else ("not-matched", "every anchor that overlaps it enough took another object")
        forced = "one forced anchor learns it" if scores else "no anchor learns it"
        reason = why_unreached(box, anchors, limit)
        return (
            "unreached",
            f"no anchor overlaps it by {limit:g} (matching.threshold), the best by {best_iou:.2f}: {reason}; {forced}",
        )

    def _low(
        self, found: Found, box: Doubles, label: int, scores: Sequence[float], reason: tuple[str, str] | None
    ) -> tuple[str, int | None, str]:
        """Return the outcome with the score that the object got, such as it is."""
        lowest = float(self.lowest[label])
        on = found.on(box, label, self.extra)
        detection: int | None = int(on[0]) if len(on) else None
        if detection is not None:
            said = f"its best box scores {below(found.scores[detection], lowest)}"
        elif scores:
            which = f"the best of its {len(scores)} matched anchors" if len(scores) > 1 else "its only matched anchor"
            said = f"{which} scores {below(max(scores), lowest)}"
        else:
            said = f"no box of its class on it scores above {self.config.post.score_threshold:g} (post.score_threshold)"
        if reason is None:
            return "low-score", detection, said
        return reason[0], detection, f"{reason[1]}; {said}"


def below(score: float, threshold: float) -> str:
    """Return a score and the threshold that it misses; as many digits as tell them apart."""
    if score >= threshold:
        return f"{digits(score)} and lies elsewhere"
    places = 2
    while places < 8 and (f"{score:.{places}f}" == f"{threshold:.{places}f}" or float(f"{score:.{places}f}") == 0):
        places += 1
    return f"{score:.{places}f}, below the threshold of {threshold:.{places}f}"


def digits(score: float) -> str:
    """Return a score with two decimals, or with as many as show two digits."""
    return f"{score:.2f}" if score >= 0.095 else f"{score:.2g}"


def suppressor(found: Found, number: int, threshold: float, inclusive: bool) -> tuple[int, float]:
    """Return what suppressed a candidate, and their IoU."""
    better = np.flatnonzero((found.labels == found.labels[number]) & found.passed)
    listed = np.append(better[better < number], number)
    by, ious = suppressors(found, listed, threshold, inclusive)
    return int(listed[by[-1]]), float(ious[-1])


def why_unreached(box_xyxy: Doubles, anchors_xyxy: Floats, threshold: float) -> str:
    """Return why no anchor overlaps a box by `threshold`: its size, its shape, or where the cells are.

    Anchors are first laid upon the box's centre. If one then overlaps enough, cells are too far apart. Otherwise, if
    none of the anchors that are as large as the box comes near, its size is the reason, else its shape.
    """
    width, height = (box_xyxy[2:] - box_xyxy[:2]).tolist()
    sides = np.unique(np.round(anchors_xyxy[:, 2:] - anchors_xyxy[:, :2], 2), axis=0).astype(np.float64)
    sides = sides[(sides > 0).all(axis=1)]
    shared = np.minimum(sides[:, 0], width) * np.minimum(sides[:, 1], height)
    areas = sides.prod(axis=1)
    centred = shared / (areas + width * height - shared)
    best = int(centred.argmax())
    own, nearest = f"{width:.0f} x {height:.0f} pixels", f"{sides[best, 0]:.0f} x {sides[best, 1]:.0f}"
    if centred[best] >= threshold:
        return f"an anchor of {nearest} fits its {own}, but none stands near enough, as cells are too far apart"
    if np.minimum(areas / (width * height), width * height / areas).max() < threshold:
        size = "small" if width * height < areas.min() else "large"
        return f"its {own} are too {size} for every anchor (the nearest has {nearest})"
    aspect = sides[:, 0] / sides[:, 1]
    shape = "wide" if width / height > aspect[best] else "tall"
    return f"its {own} are too {shape} for the anchors of its size (the nearest has {nearest})"
