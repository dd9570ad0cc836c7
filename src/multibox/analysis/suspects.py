"""Labels that are probably wrong: missing, badly placed or of the wrong class, the most suspect first.

A label is suspect where the model disagrees with it and where this model seldom disagrees. Suspicion is the share of
comparable cases of this data set in which detection and label agree: a missing label at 0.95 says that 95 % of this
model's detections of that class with such a score have a label. So the three kinds can be ranked together, and a weak
model suspects little. The idea of scoring overlooked, badly placed and swapped boxes is that of Tkachenko, Thyagarajan
and Mueller, "ObjectLab", 2023 (https://arxiv.org/abs/2309.00832); the scores are ours.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from multibox.analysis.label_effort import Effort, label_effort
from multibox.analysis.label_pairs import (
    SAME_PLACE,
    Floats,
    Pairs,
    pair_up,
    share_by_class,
    within_images,
)
from multibox.analysis.ledger import Ledger
from multibox.evaluation.table import Columns, columns
from multibox.structures import Dataset, Detections, Flags, Labels, iou

LOWEST = 0.5
"""Suspicion from which a label is listed: below, the model agrees less often than not."""
MOST, LEAST = 0.25, 100
"""Suspects listed at most, as a share of the labels, and the number that is always allowed."""
COVERED = (0.3, 0.7)
"""IoU with a label from which a detection without one is less suspect, and from which it is not suspect at all."""
LOOSE = (0.8, 0.5)
"""IoU of a confirmed label from which it may be badly placed, and from which it surely may."""
RARE = 0.05
"""Share of a class's labels with the lowest IoU, or the lowest score, that may be suspect for it."""
UNSEEN = 0.8
"""Suspicion of a label where the model sees nothing at all, if it sees all others of its class."""
SEEN = 0.1
"""Score of a detection of its class from which a label is seen."""
UNSEEN_LISTED = 0.6
"""Suspicion from which such a label is listed: nothing says what should be there instead."""
TYPICAL_RANK, STRENGTH = 0.15, 5.0
"""Place among the labels, 0 the hardest, at which the ledger changes no suspicion; most that it changes the odds."""
UNLEARNED, LEDGER_ALONE = (0.6, 0.1), 0.9
"""Mean score in training, over its class's median, from which a label is suspect, and from which it is so fully; and
the suspicion without any sign in the predictions."""
TOLD = 0.3
"""Suspicion from which a label that was hard to learn is told by what the model sees there."""
LOOSE_LOSS = 1.3
"""Box loss, over the class's median, from which such a label is rather badly placed than of a wrong class."""
DOUBT = 0.5
"""What the suspicion of a label that was flagged as difficult is multiplied with."""

Kind = Literal["missing", "location", "class"]


class Suspect(TypedDict):
    """One label that is probably wrong, or one that is probably missing. Boxes are xyxy in pixels of the image."""

    file: str
    """The image's name in the data set."""
    position: int
    """Of the image in the data set."""
    kind: Kind
    rank: int
    """1 is the most suspect."""
    suspicion: float
    """0 to 1."""
    box: list[float] | None
    """The label's box; None for a missing label."""
    name: str | None
    """The label's class."""
    suggested_box: list[float] | None
    """Where the model sees the object; None where it sees nothing at a label."""
    suggested_name: str | None
    evidence: list[str]
    """"predictions", "ledger" or both."""
    why: str


class _Found(NamedTuple):
    """Suspects as columns [S]; rows of the table, -1 for none."""

    kind: Labels
    suspicion: Floats
    detection: Labels
    gt: Labels

    def where(self, keep: Flags) -> "_Found":
        """Return the suspects that `keep` [S] marks."""
        return _Found(self.kind[keep], self.suspicion[keep], self.detection[keep], self.gt[keep])


_KINDS: tuple[Kind, ...] = ("missing", "location", "class", "location", "class")
"""By the number in `_Found.kind`; the last two are known from the ledger alone."""


def find_suspects(
    detections: Sequence[Detections],
    dataset: Dataset,
    class_names: Sequence[str],
    *,
    ledger: Ledger | None = None,
    lowest: float = LOWEST,
) -> list[Suspect]:
    """Return the labels that are probably wrong, the most suspect first.

    Args:
        detections: One per image in the order of the data set, as `inference.detector.find_all` gives them: down to low
            scores, which tell what the model sees at a label besides.
        dataset: The labelled images, such as `api.open_for` gives them; its labels are positions in `class_names`.
        class_names: The data set's classes; a detector's other order is matched by name.
        ledger: What the labels cost in training (`analysis.ledger.read_ledger(RUN)`), for a data set that the model, or
            another, learned from. It is matched by image, box and class; labels that it does not know are judged by
            the predictions alone, so it may be given for every split.
        lowest: Suspicion from which a label is listed; of those at most a quarter of the number of labels.

    Raises:
        ValueError: There are not as many detections as images.
        DataError: Detector and data set share no class.
    """
    table = columns(detections, dataset, class_names)
    pairs, covered, in_crowd = pair_up(table)
    right = _share_right(table, pairs)
    found = _joined(
        [
            _disagreements(table, pairs),
            _loose(table, pairs, right),
            _missing(table, pairs, right, covered, in_crowd),
            _unseen(table, pairs),
        ]
    )
    effort = None if ledger is None else label_effort(ledger, dataset, tuple(class_names))
    if effort is not None:
        found = _with_ledger(table, found, effort)
    found = found.where((found.kind != 1) | (found.detection >= 0) | (found.suspicion >= UNSEEN_LISTED))
    doubtful = (found.gt >= 0) & np.append(table.gt_difficult, False)[found.gt]
    found = found._replace(suspicion=np.where(doubtful, DOUBT, 1.0) * found.suspicion)
    order = _most_suspect(found, lowest, max(LEAST, int(MOST * len(table.gt_labels))))
    files, rows = dataset.image_names, enumerate(order.tolist(), start=1)
    return [_told(table, found, row, rank, files, effort) for rank, row in rows]


def _most_suspect(found: _Found, lowest: float, most: int) -> Labels:
    """Return rows of the suspects to list, the most suspect first; of a label only what is most suspect about it."""
    order = np.argsort(-found.suspicion, kind="stable")
    order = order[found.suspicion[order] >= lowest]
    _, first = np.unique(np.where(found.gt[order] < 0, -1 - found.detection[order], found.gt[order]), return_index=True)
    return order[np.sort(first)][:most]


def _with_ledger(table: Columns, found: _Found, effort: Effort) -> _Found:
    """Return suspects with odds that rise for labels that were hard to learn, and labels that were never learned."""
    rank = np.append(effort.rank, np.nan)[found.gt]
    factor = np.clip((TYPICAL_RANK / (rank + 0.015)) ** 0.7, 1 / STRENGTH, STRENGTH)
    odds = found.suspicion * np.where((found.gt < 0) | np.isnan(rank), 1.0, factor)
    changed = odds / (odds + 1 - found.suspicion)
    unlearned = _never_learned(table, effort)
    alone = np.zeros(len(effort.score) + 1)
    alone[unlearned.gt] = unlearned.suspicion
    # What the model sees instead says more than that it sees little
    told = found.gt[(found.gt >= 0) & (changed >= TOLD)]
    changed = np.where(changed >= TOLD, np.maximum(changed, alone[found.gt]), changed)
    new = ~np.isin(unlearned.gt, told)
    return _joined([found._replace(suspicion=changed), unlearned.where(new)])


def _never_learned(table: Columns, effort: Effort) -> _Found:
    """Return labels whose class got a low score all through training, whatever the model says of them in the end."""
    rows = np.flatnonzero(effort.known & (effort.score < UNLEARNED[0]) & ~table.gt_crowd)
    low = np.clip((UNLEARNED[0] - effort.score[rows]) / (UNLEARNED[0] - UNLEARNED[1]), 0, 1)
    kind = np.where(effort.box_loss[rows] > LOOSE_LOSS, 3, 4)
    return _Found(kind, LEDGER_ALONE * low, np.full(len(rows), -1), rows)


def _share_right(table: Columns, pairs: Pairs) -> Floats:
    """Return the share of detections of each one's class and score that a label confirms, [N]."""
    confirmed = np.zeros(len(table.labels), np.bool_)
    confirmed[pairs.detection[pairs.agree]] = True
    return share_by_class(table.scores, confirmed, table.labels, len(table.class_names))


def _disagreements(table: Columns, pairs: Pairs) -> _Found:
    """Return pairs of other classes in one place, and of one class in other places.

    Suspicion is the share of pairs of such a score that agree, among those of the same place or the same class.
    """
    parts: list[_Found] = []
    for kind, comparable, agree in ((2, pairs.same_place, pairs.same_class), (1, pairs.same_class, pairs.same_place)):
        rows = np.flatnonzero(comparable)
        detection = pairs.detection[rows]
        share = share_by_class(table.scores[detection], agree[rows], table.labels[detection], len(table.class_names))
        odd = ~agree[rows]
        parts.append(_Found(np.full(odd.sum(), kind), share[odd], detection[odd], pairs.gt[rows][odd]))
    return _joined(parts)


def _loose(table: Columns, pairs: Pairs, right: Floats) -> _Found:
    """Return labels that are confirmed with an IoU that is low, and rare for their class."""
    agreed = pairs.take(pairs.agree)
    rare = _rareness(agreed.iou, table.gt_labels[agreed.gt], len(table.class_names))
    low = np.clip((LOOSE[0] - agreed.iou) / (LOOSE[0] - LOOSE[1]), 0, 1)
    suspicion = right[agreed.detection] * rare * low
    return _Found(np.full(len(suspicion), 1), suspicion, agreed.detection, agreed.gt)


def _unseen(table: Columns, pairs: Pairs) -> _Found:
    """Return labels at which the model sees nothing, or next to nothing, if that is rare for their class.

    It says little where the model overlooks many labels of the class, or where there are few.
    """
    score = np.zeros(len(table.gt_labels))
    agreed = pairs.take(pairs.agree)
    score[agreed.gt] = table.scores[agreed.detection]
    other = np.zeros(len(score), np.bool_)
    other[pairs.gt[~pairs.agree]] = True
    rows = np.flatnonzero(~other & ~table.gt_crowd)
    rare = _rareness(score[rows], table.gt_labels[rows], len(table.class_names))
    labels, classes = table.gt_labels[rows], len(table.class_names)
    seen = np.bincount(labels[score[rows] >= SEEN], minlength=classes) / (np.bincount(labels, minlength=classes) + 1)
    suspicion = UNSEEN * rare * (1 - score[rows]) * seen[labels]
    return _Found(np.full(len(rows), 1), suspicion, np.full(len(rows), -1), rows)


def _rareness(values: Floats, labels: Labels, classes: int) -> Floats:
    """Return how rare so low a value is in its class: near 1 for the lowest, 0 from the share `RARE` on, [N]."""
    rare = np.zeros(len(values))
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        # Equal values are all as frequent as the last of them; one alone is not frequent, but of few it says little
        rank = np.searchsorted(np.sort(values[rows]), values[rows], "right") - 1
        many = max(len(rows), 1)
        rare[rows] = np.clip(1 - rank / (RARE * many), 0, 1) * (1 - 1 / many)
    return rare


def _missing(table: Columns, pairs: Pairs, right: Floats, covered: Floats, in_crowd: Flags) -> _Found:
    """Return detections without a label; those that largely lie on a label, or on a better one, are left out."""
    free = np.ones(len(right), np.bool_)
    free[pairs.detection] = False
    suspicion = right * np.clip((COVERED[1] - covered) / (COVERED[1] - COVERED[0]), 0, 1)
    rows = np.flatnonzero(free & ~in_crowd & (suspicion > 0.05))
    better = np.zeros(len(rows), np.bool_)
    for one, other in within_images(table.image[rows], table.image[rows]):
        above = (suspicion[rows[other]] > suspicion[rows[one]]) | (
            (suspicion[rows[other]] == suspicion[rows[one]]) & (other < one)
        )
        one, other = one[above], other[above]
        near = iou(table.boxes_xyxy[rows[one]], table.boxes_xyxy[rows[other]]) >= SAME_PLACE
        better[one[near]] = True
    rows = rows[~better]
    return _Found(np.zeros(len(rows), np.int64), suspicion[rows], rows, np.full(len(rows), -1))


def _joined(parts: list[_Found]) -> _Found:
    return _Found(
        np.concatenate([part.kind for part in parts]),
        np.concatenate([part.suspicion for part in parts]),
        np.concatenate([part.detection for part in parts]),
        np.concatenate([part.gt for part in parts]),
    )


def _name(table: Columns, detection: int) -> str:
    return table.class_names[int(table.labels[detection])]


def _gt_name(table: Columns, gt: int) -> str:
    return table.class_names[int(table.gt_labels[gt])]


def _told(table: Columns, found: _Found, row: int, rank: int, files: Sequence[str], effort: Effort | None) -> Suspect:
    number, detection, gt = int(found.kind[row]), int(found.detection[row]), int(found.gt[row])
    position = int(table.image[detection] if gt < 0 else table.gt_image[gt])
    by_training = effort is not None and gt >= 0 and bool(effort.rank[gt] < TYPICAL_RANK)
    evidence = ["predictions"] * (number < 3) + ["ledger"] * (by_training or number >= 3)
    why = [_why(table, number, detection, gt)] if number < 3 else []
    if effort is not None and "ledger" in evidence:
        why.append(
            f"While it was learned, {_gt_name(table, gt)} scored {effort.score[gt]:.2f} times as high here as it "
            f"usually does, and the box cost {effort.box_loss[gt]:.1f} times as much."
        )
    return {
        "file": files[position],
        "position": position,
        "kind": _KINDS[number],
        "rank": rank,
        "suspicion": round(float(found.suspicion[row]), 4),
        "box": None if gt < 0 else table.gt_xyxy[gt].tolist(),
        "name": None if gt < 0 else _gt_name(table, gt),
        "suggested_box": None if detection < 0 else [round(edge, 2) for edge in table.boxes_xyxy[detection].tolist()],
        "suggested_name": None if detection < 0 else _name(table, detection),
        "evidence": evidence,
        "why": " ".join(why),
    }


def _why(table: Columns, number: int, detection: int, gt: int) -> str:
    """Return one sentence on what the predictions say."""
    if detection < 0:
        return (
            f"The model sees no {_gt_name(table, gt)} here, which is rare for the class: the label may be far from its "
            "object, or there may be none."
        )
    seen = f"The model sees {_name(table, detection)} with a score of {table.scores[detection]:.2f}"
    if gt < 0:
        return f"{seen} where no label is."
    if _KINDS[number] == "class":
        return f"{seen} where the label says {_gt_name(table, gt)}."
    overlap = float(iou(table.boxes_xyxy[detection], table.gt_xyxy[gt]))
    return f"{seen} beside this label: their overlap (IoU) is {overlap:.2f}."
