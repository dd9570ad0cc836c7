"""Reasons for which images and boxes take no part or were changed: one table, with the words for one and for many.

`Dataset.left_out` counts what reading a split left out, by the keys of `REASONS`. What training ignores on top of that
is counted by `training_counts`, and what augmentation loses by `Batch.lost_boxes`, summed over an epoch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from multibox.structures import Dataset, Flags


class Reason(NamedTuple):
    """What happened, as it follows a count."""

    one: str
    many: str


BROKEN_FILE, MISSING_IMAGE, UNREADABLE_IMAGE = "broken_file", "missing_image", "unreadable_image"
LABELLED_TWICE, LISTED_TWICE = "labelled_twice", "listed_twice"
BROKEN_BOX, NO_AREA, OUTSIDE_IMAGE, CLIPPED, OVER_EDGE = (
    "broken_box",
    "no_area",
    "outside_image",
    "clipped",
    "over_edge",
)
OUTLINE, NOT_A_BOX, OTHER_CLASS = "outline", "not_a_box", "other_class"
CROWD, DIFFICULT, AUGMENTATION = "crowd", "difficult", "augmentation"

REASONS: dict[str, Reason] = {
    BROKEN_FILE: Reason("broken label file was skipped", "broken label files were skipped"),
    MISSING_IMAGE: Reason("image without a file was skipped", "images without a file were skipped"),
    UNREADABLE_IMAGE: Reason("unreadable image was skipped", "unreadable images were skipped"),
    LABELLED_TWICE: Reason("second labelling of an image was skipped", "second labellings of images were skipped"),
    LISTED_TWICE: Reason("image is listed twice and was taken once", "images are listed twice and were taken once"),
    BROKEN_BOX: Reason("broken box was skipped", "broken boxes were skipped"),
    NO_AREA: Reason("box without area was dropped", "boxes without area were dropped"),
    OUTSIDE_IMAGE: Reason("box outside its image was dropped", "boxes outside their images were dropped"),
    CLIPPED: Reason("box ran out of its image and was clipped", "boxes ran out of their images and were clipped"),
    OVER_EDGE: Reason(
        "box ran out of its image and was kept as written", "boxes ran out of their images and were kept as written"
    ),
    OUTLINE: Reason("outline was replaced by the box around it", "outlines were replaced by the boxes around them"),
    NOT_A_BOX: Reason("point, line or tag was passed over", "points, lines and tags were passed over"),
    OTHER_CLASS: Reason("object of another class was left out", "objects of other classes were left out"),
    CROWD: Reason("crowd region is not trained on", "crowd regions are not trained on"),
    DIFFICULT: Reason("difficult object is not trained on", "difficult objects are not trained on"),
    AUGMENTATION: Reason("box was lost to augmentation", "boxes were lost to augmentation"),
}
"""Every reason, in the order of the way from a label file to a batch."""


def training_counts(training: Dataset) -> dict[str, int]:
    """Return how much the data set leaves out of training, by reason: `left_out`, and its crowds."""
    return dict(Counter(training.left_out) + Counter({CROWD: int(training.crowd.sum())}))


def drop_boxes(dataset: Dataset, dropped: Flags, reason: str) -> Dataset:
    """Return the data set without the boxes that `dropped` [boxes] marks, counted under `reason`."""
    counts = Counter(dataset.left_out) + Counter({reason: int(dropped.sum())})
    return dataset.keep_boxes(~dropped, left_out=dict(counts))


def drop_difficult(training: Dataset) -> Dataset:
    """Take objects marked difficult out of training; where an image has no others, its first one stays (HiKapok)."""
    return drop_boxes(training, ~kept_difficult(training), DIFFICULT)


def kept_difficult(training: Dataset) -> Flags:
    """Return the boxes [boxes] that `drop_difficult` keeps."""
    owner = np.repeat(np.arange(len(training)), np.diff(training.starts))
    kept = ~training.difficult
    hopeless = np.bincount(owner, weights=kept, minlength=len(training)) == 0
    kept[training.starts[:-1][hopeless & (np.diff(training.starts) > 0)]] = True
    return kept


def sentences(counts: Mapping[str, int]) -> list[str]:
    """Return a sentence for each reason that occurred, in the table's order."""
    return [counted(counts[key], reason.one, reason.many) for key, reason in REASONS.items() if counts.get(key)]


def counted(count: int, one: str, many: str, files: Sequence[str] = (), others: int = 0) -> str:
    """Make "2 boxes were dropped: a.xml, b.xml and 7 more" of a count, a phrase for one and for many, and the files.

    `others` counts files that are not among `files`.
    """
    shown = list(dict.fromkeys(files))
    more = len(shown[3:]) + others
    tail = ", ".join(shown[:3]) + (f" and {more} more" if more else "")
    return f"{count} {one if count == 1 else many}" + (f": {tail}" if shown else "")
