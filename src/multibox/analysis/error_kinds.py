"""Why detections are wrong and objects are missed, and the AP50 that each kind of error costs.

The kinds are those of TIDE (D. Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV
2020, arXiv:2008.08115), with its thresholds: IoU .5 to be right, .1 to be no mere background. What a kind costs is the
AP50 once it alone is mended, minus the AP50 itself. Counts equal those of hotcoco's `tide_errors`, costs do not:
docs/report.md says how they differ from the paper there.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.pairing import Best, best_partner, overlapping
from multibox.evaluation.bootstrap import coco_precisions
from multibox.evaluation.coco_metrics import coco_pairs
from multibox.evaluation.table import Columns, Outcomes
from multibox.structures import Flags, Labels

RIGHT, BACKGROUND = 0.5, 0.1
"""IoU from which a detection is right, and up to which it shows background."""

MEANINGS: Mapping[str, str] = {
    "classification": "The box fits an object, but the class is another one.",
    "localization": "The class is right, but the box overlaps its object too little (IoU 0.1 to 0.5).",
    "both": "The class is another one, and the box overlaps the object too little.",
    "duplicate": "A second box on an object that a better scored one has found.",
    "background": "A box where no object is labelled (IoU up to 0.1).",
    "missed": "An object that no box comes near, whatever the class.",
    "false-positives": "All detections that match no object, of any kind.",
    "false-negatives": "All objects that no detection matches.",
}
"""The eight kinds in order; the last two count what the first six divide."""
KINDS = tuple(MEANINGS)
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND_KIND = range(5)
WRONG, MISSED = KINDS[:5], KINDS[5]


class Matches(NamedTuple):
    """What became of each detection at IoU .5, under COCO's rules."""

    outcomes: Outcomes
    """[N, 1]"""
    gt: Labels
    """[N], row of the object that a detection matches, -1 for none."""

    @property
    def right(self) -> Flags:
        """[N]; the detection matches an object that counts."""
        return self.outcomes.matched[:, 0]

    @property
    def wrong(self) -> Flags:
        """[N]; the detection counts and matches nothing."""
        return ~(self.outcomes.matched | self.outcomes.ignored)[:, 0]


class Errors(NamedTuple):
    """The kind of each error."""

    kind: NDArray[np.int8]
    """[N], a place in `WRONG` of each detection; -1 for those that are right or do not count."""
    gt: Labels
    """[N], the object that each wrong detection may have meant: the one of its kind's definition; -1 for none."""
    iou: NDArray[np.float64]
    """[N], IoU with that object; 0 for none."""
    unmatched: Flags
    """[M]; objects that count and that no detection matches."""
    missed: Flags
    """[M]; those of them that no classification or localization error would find once it is mended."""


def match(table: Columns, max_detections: int = 100) -> Matches:
    """Match detections with objects as the metrics do.

    Raises:
        MissingExtraError: hotcoco is not installed.
    """
    return Matches(*coco_pairs(table, max_detections=max_detections))


def find_errors(table: Columns, matches: Matches) -> Errors:
    """Return the kind of every error. Crowds and difficult objects take no part.

    Where definitions overlap, the order is that of the authors' program: localization, classification, duplicate,
    background, both.
    """
    count = len(table.labels)
    pairs = overlapping(table.boxes_xyxy, table.image, table.gt_xyxy, table.gt_image)
    pairs = pairs.keep(table.gt_scored[pairs.b] & matches.wrong[pairs.a])
    alike = table.labels[pairs.a] == table.gt_labels[pairs.b]
    same, other = best_partner(pairs.keep(alike), count), best_partner(pairs.keep(~alike), count)
    found = np.zeros(len(table.gt_labels), np.bool_)
    found[matches.gt[matches.right]] = True
    conditions = [
        (same.iou >= BACKGROUND) & (same.iou <= RIGHT),
        other.iou >= RIGHT,
        same.iou > RIGHT,
        other.iou <= BACKGROUND,
    ]
    order = [LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND_KIND]
    kind = np.where(matches.wrong, np.select(conditions, order, BOTH), -1).astype(np.int8)
    meant = _meant(kind, same, other)
    mendable = np.isin(kind, (CLASSIFICATION, LOCALIZATION))
    covered = np.zeros(len(found), np.bool_)
    covered[meant.row[mendable]] = True
    unmatched = table.gt_scored & ~found
    return Errors(kind, meant.row, meant.iou, unmatched, unmatched & ~covered)


def _meant(kind: NDArray[np.int8], same: Best, other: Best) -> Best:
    """Return the object that each wrong detection may have meant."""
    own, foreign = np.isin(kind, (LOCALIZATION, DUPLICATE)), np.isin(kind, (CLASSIFICATION, BOTH))
    return Best(np.select([own, foreign], [same.row, other.row], -1), np.select([own, foreign], [same.iou, other.iou]))


def count_errors(errors: Errors) -> dict[str, int]:
    """Return how many errors of each kind there are."""
    wrong = np.bincount(errors.kind[errors.kind >= 0], minlength=len(WRONG)).tolist()
    counts = dict(zip(WRONG, wrong, strict=True))
    return counts | {
        MISSED: int(errors.missed.sum()),
        "false-positives": sum(wrong),
        "false-negatives": int(errors.unmatched.sum()),
    }


def ap50(table: Columns, outcomes: Outcomes) -> float | None:
    """Return COCO's AP50 as these outcomes give it; None without objects."""
    return _mean(coco_precisions(table, outcomes)[:, 0])


def error_costs(table: Columns, matches: Matches, errors: Errors) -> dict[str, float]:
    """Return by how much AP50 rises if every error of a kind, and nothing else, is mended.

    A class's box on an object of another class moves to that class, a badly placed box to its object; of several
    detections that then match one object the best scored counts and the others go. Boxes of the kinds both, duplicate
    and background go. Missed objects are taken from the number of objects. A rise below 0, which the 101 recalls of
    the average may give, is 0.
    """
    before = coco_precisions(table, matches.outcomes)[:, 0]
    base = _mean(before) or 0.0
    after: dict[str, float | None] = {}
    for place, name in enumerate(WRONG):
        rows = errors.kind == place
        mended = place in (CLASSIFICATION, LOCALIZATION)
        after[name] = ap50(*(_corrected(table, matches, errors, rows) if mended else _removed(table, matches, rows)))
    after["false-positives"] = ap50(*_removed(table, matches, errors.kind >= 0))
    for name, gone in ((MISSED, errors.missed), ("false-negatives", errors.unmatched)):
        after[name] = _without_objects(table, matches, gone, before)
    return {name: max(0.0, (after[name] or 0.0) - base) for name in KINDS}


def _removed(table: Columns, matches: Matches, rows: Flags) -> tuple[Columns, Outcomes]:
    """Return the table without the detections `rows`."""
    return table, Outcomes(matches.outcomes.matched, matches.outcomes.ignored | rows[:, None])


def _corrected(table: Columns, matches: Matches, errors: Errors, rows: Flags) -> tuple[Columns, Outcomes]:
    """Return the table with the detections `rows` on the objects that they mean, one detection for each."""
    gt = np.where(rows, errors.gt, np.where(matches.right, matches.gt, -1))
    claims = np.flatnonzero(gt >= 0)
    # Of equal scores the one that matches already
    claims = claims[np.lexsort((rows[claims], -table.scores[claims], gt[claims]))]
    _, first = np.unique(gt[claims], return_index=True)
    matched = np.zeros((len(gt), 1), np.bool_)
    matched[claims[first]] = True
    labels = table.labels.copy()
    labels[rows] = table.gt_labels[errors.gt[rows]]
    return replace(table, labels=labels), Outcomes(matched, matches.outcomes.ignored | ((gt >= 0)[:, None] & ~matched))


def _without_objects(table: Columns, matches: Matches, gone: Flags, before: NDArray[np.float64]) -> float | None:
    """Return AP50 after some objects are taken away.

    A class of which none is left keeps its place in the mean: 1 if nothing is detected of it either, else 0, since the
    paper takes the detector to be as precise on the missing objects.
    """
    kept = ~gone
    fewer = replace(
        table,
        gt_xyxy=table.gt_xyxy[kept],
        gt_labels=table.gt_labels[kept],
        gt_image=table.gt_image[kept],
        gt_difficult=table.gt_difficult[kept],
        gt_crowd=table.gt_crowd[kept],
    )
    precisions = coco_precisions(fewer, matches.outcomes)[:, 0]
    claimed = np.bincount(table.labels[matches.wrong], minlength=len(precisions)) > 0
    emptied = np.isnan(precisions) & ~np.isnan(before)
    return _mean(np.where(emptied, ~claimed, precisions))


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the values that exist."""
    real = values[~np.isnan(values)]
    return float(real.mean()) if len(real) else None
