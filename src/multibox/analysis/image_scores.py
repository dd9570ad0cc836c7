"""What each image's detections are worth, the images with the most mistakes, and the most certain mistakes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.error_kinds import KINDS, MISSED, WRONG, Errors, Matches
from multibox.evaluation.table import Columns
from multibox.structures import Dataset, Flags, Labels, Size

WORST = 50
"""Images named as the worst, at most."""
MISTAKES = 200
"""Mistakes shown, at most."""


class Tally(NamedTuple):
    """Objects and reported detections of each image."""

    gt: Labels
    """[I], objects that count."""
    found: Labels
    """[I], those that a reported detection matches."""
    false: Labels
    """[I], reported detections that count and match none."""

    @property
    def missed(self) -> Labels:
        """[I]; objects that count and that no reported detection matches."""
        return self.gt - self.found

    @property
    def f1(self) -> list[float | None]:
        """Twice the found over objects and reported detections; None for an image with neither."""
        total = 2 * self.found + self.missed + self.false
        pairs = zip(self.found.tolist(), total.tolist(), strict=True)
        return [2 * hit / every if every else None for hit, every in pairs]


def found_objects(table: Columns, matches: Matches, lowest: NDArray[np.float64]) -> Flags:
    """Return which objects [M] a reported detection matches; `lowest` [C] is the lowest score of each class."""
    rows = matches.right & (table.scores >= lowest[table.labels])
    found = np.zeros(len(table.gt_labels), np.bool_)
    found[matches.gt[rows]] = True
    return found


def tally_images(table: Columns, matches: Matches, lowest: NDArray[np.float64]) -> Tally:
    """Count per image; matching is at IoU .5 under COCO's rules, `lowest` [C] the lowest score of each class."""
    wrong = matches.wrong & (table.scores >= lowest[table.labels])
    objects = [table.gt_scored, found_objects(table, matches, lowest)]
    gt, found = (np.bincount(table.gt_image[rows], minlength=table.images) for rows in objects)
    return Tally(gt, found, np.bincount(table.image[wrong], minlength=table.images))


def describe_files(dataset: Dataset, sizes: Sequence[Size], tally: Tally) -> list[dict[str, Any]]:
    """Return a row per image, in the data's order."""
    columns = (tally.gt.tolist(), tally.found.tolist(), tally.missed.tolist(), tally.false.tolist(), tally.f1)
    return [
        {
            "file": name,
            "path": str(path),
            "width": size.width,
            "height": size.height,
            "gt": gt,
            "found": found,
            "missed": missed,
            "false": false,
            "f1": f1,
        }
        for name, path, size, gt, found, missed, false, f1 in zip(
            dataset.image_names, dataset.paths, sizes, *columns, strict=True
        )
    ]


def worst_images(tally: Tally) -> list[int]:
    """Return the images with the most missed objects and false detections, the worst first."""
    mistakes = tally.missed + tally.false
    order = np.argsort(-mistakes, kind="stable")[:WORST]
    return order[mistakes[order] > 0].tolist()


def certain_mistakes(table: Columns, errors: Errors) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """Return the most certain mistakes as the report holds them, the highest scores first, then missed objects.

    Every kind gets an equal share of the places, as far as it has mistakes; what is left goes to the highest scores.
    Missed objects have no score: the largest count as the most certain.

    Returns:
        The mistakes, and for each of the eight kinds the places of its mistakes among them.
    """
    rows = np.flatnonzero(errors.kind >= 0)
    rows = rows[np.argsort(-table.scores[rows], kind="stable")]
    lost = np.flatnonzero(errors.missed)
    lost = lost[np.argsort(-_areas(table.gt_xyxy[lost]), kind="stable")]
    share = MISTAKES // (len(WRONG) + 1)
    first = np.concatenate([rows[errors.kind[rows] == kind][:share] for kind in range(len(WRONG))])
    room = MISTAKES - len(first) - min(share, len(lost))
    chosen = np.isin(rows, first)
    chosen[np.flatnonzero(~chosen)[:room]] = True
    rows = rows[chosen]
    lost = lost[: MISTAKES - len(rows)]
    kinds = np.append(errors.kind[rows], np.full(len(lost), len(WRONG)))
    # The object of a badly placed box is not matched either, if no other box matches it
    meant = errors.gt[rows]
    unmatched = np.append(np.append(errors.unmatched, False)[meant], np.full(len(lost), True))
    masks = [*(kinds == place for place in range(len(WRONG) + 1)), kinds < len(WRONG), unmatched]
    places = {kind: np.flatnonzero(mask).tolist() for kind, mask in zip(KINDS, masks, strict=True)}
    mistakes = [_wrong(table, errors, row) for row in rows.tolist()]
    return mistakes + [_missed(table, row) for row in lost.tolist()], places


def _wrong(table: Columns, errors: Errors, row: int) -> dict[str, Any]:
    gt = int(errors.gt[row])
    return {
        "file": int(table.image[row]),
        "kind": WRONG[int(errors.kind[row])],
        "box": table.boxes_xyxy[row].tolist(),
        "name": table.class_names[int(table.labels[row])],
        "score": float(table.scores[row]),
        "gt_box": table.gt_xyxy[gt].tolist() if gt >= 0 else None,
        "gt_name": table.class_names[int(table.gt_labels[gt])] if gt >= 0 else None,
        "iou": float(errors.iou[row]),
    }


def _missed(table: Columns, row: int) -> dict[str, Any]:
    name, box = table.class_names[int(table.gt_labels[row])], table.gt_xyxy[row].tolist()
    return {
        "file": int(table.gt_image[row]),
        "kind": MISSED,
        "box": None,
        "name": None,
        "score": None,
        "gt_box": box,
        "gt_name": name,
        "iou": 0.0,
    }


def _areas(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
