"""Boxes on the images of a report: right, false, found or missed, and why.

What became of a box follows COCO's matching, as the report's numbers of each image do, so both always agree. Each box
also knows the cell of the confusion matrix that counts it: that pairs boxes whatever their classes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.confusion import find_confusions
from multibox.analysis.error_kinds import match
from multibox.analysis.image_scores import found_objects
from multibox.evaluation.table import Columns, columns
from multibox.pages.report_words import Report, part
from multibox.structures import Boxes, Dataset, Detections, Labels, iou

RIGHT, NEAR = 0.5, 0.1
"""IoU from which a box may be right, and from which it counts as near; those of the error kinds."""
MOST_BOXES = 300
"""Boxes drawn on one image at most: mistakes first, then ground truth, then the best detections."""

Drawn = list[Any]
"""One box: [x1, y1, x2, y2, side, gt, predicted, score, why, outcome]. Side 0 is ground truth, 1 a detection. The
classes are those of the cell that counts the box, -1 for one that the matrix leaves out. Score and why may be None.
Outcome is 1 for found and right, 0 for missed and false, -1 for what does not count (difficult, crowds)."""
RIGHT_BOX, MISTAKE, NO_COUNT = 1, 0, -1


def draw_boxes(
    report: Report, dataset: Dataset, detections: Sequence[Detections], shown: Iterable[int]
) -> dict[int, list[Drawn]]:
    """Return the boxes to draw on some images.

    Args:
        report: As `make_report` returns it.
        dataset: All its images.
        detections: One per image, with low scores; those below the report's thresholds only explain what is missed.
        shown: Positions of images.
    """
    images = list(shown)
    if not images:
        return {}
    names: tuple[str, ...] = tuple(report["classes"])
    thresholds = part(report, "confusion", "threshold")
    lowest = np.array([float(thresholds.get(name, 0.0)) for name in names])
    table = columns([detections[image] for image in images], dataset.subset(images), names)
    background = len(names)
    found = find_confusions(table, lowest)
    gt_predicted, predicted_gt = np.full(len(table.gt_labels), -1), np.full(len(table.labels), -1)
    of_object, of_detection = found.object >= 0, found.detection >= 0
    gt_predicted[found.object[of_object]] = found.predicted[of_object]
    predicted_gt[found.detection[of_detection]] = found.gt[of_detection]
    # `find_all` kept no more detections than the report counts
    matches = match(table, max([1, *(len(detections[image]) for image in images)]))
    reported = table.scores >= lowest[table.labels]
    of_gt = np.where(table.gt_scored, found_objects(table, matches, lowest), NO_COUNT)
    outcome = np.where(matches.right, RIGHT_BOX, np.where(matches.wrong, MISTAKE, NO_COUNT))
    gt_ends: list[int] = np.searchsorted(table.gt_image, np.arange(len(images) + 1)).tolist()
    ends: list[int] = np.searchsorted(table.image, np.arange(len(images) + 1)).tolist()
    drawn: dict[int, list[Drawn]] = {}
    for place, image in enumerate(images):
        gt: Labels = np.arange(gt_ends[place], gt_ends[place + 1])
        rows: Labels = np.arange(ends[place], ends[place + 1])
        overlaps = iou(table.boxes_xyxy[rows, None], table.gt_xyxy[None, gt])
        one = _Image(table, names, lowest, rows, gt, overlaps, reported[rows])
        boxes = [
            one.ground_truth(place, int(gt_predicted[row]), background, int(of_gt[row]))
            for place, row in enumerate(gt.tolist())
        ]
        order = sorted(np.flatnonzero(reported[rows]).tolist(), key=lambda at: -float(table.scores[rows[at]]))
        boxes += [one.detection(at, int(predicted_gt[rows[at]]), int(outcome[rows[at]])) for at in order]
        if len(boxes) > MOST_BOXES:
            boxes.sort(key=lambda box: box[-1] != MISTAKE)
        drawn[image] = boxes[:MOST_BOXES]
    return drawn


class _Image:
    """One image: its detections `rows` and objects `gt` of the table, and their overlaps [rows, gt]."""

    def __init__(
        self,
        table: Columns,
        names: tuple[str, ...],
        lowest: NDArray[np.float64],
        rows: Labels,
        gt: Labels,
        overlaps: Boxes,
        reported: NDArray[np.bool_],
    ) -> None:
        self.table, self.names, self.lowest = table, names, lowest
        self.rows, self.gt, self.overlaps, self.reported = rows, gt, overlaps, reported

    def ground_truth(self, place: int, predicted: int, background: int, outcome: int) -> Drawn:
        """Return the object at `place` of this image; `predicted` is the class that the matrix pairs it with."""
        row = self.gt[place]
        label = int(self.table.gt_labels[row])
        why = None
        if outcome == MISTAKE and predicted not in (label, background, -1):
            why = f"it was taken for {self.names[predicted]}"
        elif outcome == MISTAKE:
            why = self._why_missed(place, label)
        box = self.table.gt_xyxy[row].round(1).tolist()
        return [*box, 0, label if predicted >= 0 else -1, predicted if predicted >= 0 else label, None, why, outcome]

    def detection(self, at: int, gt: int, outcome: int) -> Drawn:
        """Return a reported detection; `gt` is the class of the object that the matrix pairs it with."""
        row = self.rows[at]
        label = int(self.table.labels[row])
        why = self._why_false(at, label) if outcome == MISTAKE else None
        box = self.table.boxes_xyxy[row].round(1).tolist()
        return [*box, 1, gt, label, round(float(self.table.scores[row]), 3), why, outcome]

    def _why_missed(self, place: int, label: int) -> str:
        """Return why no detection matches an object."""
        overlap = self.overlaps[:, place]
        labels, scores = self.table.labels[self.rows], self.table.scores[self.rows]
        lowest = self.lowest[labels]

        def best(chosen: NDArray[np.bool_]) -> int | None:
            return int(np.where(chosen, scores, -1).argmax()) if chosen.any() else None

        if (at := best((overlap >= RIGHT) & (labels == label) & ~self.reported)) is not None:
            return f"it is seen with a score of {scores[at]:.2f}, below the threshold of {lowest[at]:.2f}"
        if best((overlap >= RIGHT) & (labels == label)) is not None:
            return "the detection on it counts for another object, which it overlaps as well"
        if (at := best((overlap >= RIGHT) & self.reported)) is not None:
            return f"the detection on it, {self.names[labels[at]]} {scores[at]:.2f}, has another class"
        if (at := best(overlap >= RIGHT)) is not None:
            return f"it is seen as {self.names[labels[at]]} with a score of {scores[at]:.2f}, below the threshold"
        if (overlap >= NEAR).any():
            at = int(overlap.argmax())
            return (
                f"the nearest box ({self.names[labels[at]]}, score {scores[at]:.2f}) overlaps it by {overlap[at]:.2f}, "
                f"less than {RIGHT:g}"
            )
        return "no box of any score comes near it; multibox inspect shows whether an anchor reaches it"

    def _why_false(self, at: int, label: int) -> str:
        """Return why a detection matches no object."""
        overlap = self.overlaps[at]
        labels = self.table.gt_labels[self.gt]
        if ((overlap >= RIGHT) & (labels == label)).any():
            return "a second box on an object that is found already"
        if (overlap >= RIGHT).any():
            return f"the object here is {self.names[labels[int(overlap.argmax())]]}"
        if (overlap >= NEAR).any():
            near = int(overlap.argmax())
            return f"it overlaps the nearest object, {self.names[labels[near]]}, by {overlap[near]:.2f} only"
        return "no object is labelled here"
