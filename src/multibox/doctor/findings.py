"""What the doctor can find: one table of kinds, with what each means, how to mend it, and what `--fix` does."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from multibox.data.formats.text import ADVICE, SKIP
from multibox.errors import one_line

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first. Error: training breaks or learns wrong things. Warning: likely a mistake. Note: worth knowing."""

Fix = Literal["repairs", "leaves out", "in part", "left to you"]
"""What `--fix` does. "leaves out" drops the box, image or label file that is meant; "in part" mends what is certain."""


class Kind(NamedTuple):
    """One kind of finding."""

    severity: Severity
    """The usual one; a check may give another where it knows more."""
    why: str
    """Why it matters."""
    mend: str
    """How a person mends it."""
    fix: Fix


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor found."""

    severity: Severity
    kind: str
    """A key of `KINDS`."""
    file: str
    """The label file, image or folder."""
    where: str
    """The image, line, object or class in it; may be empty."""
    what: str
    why: str
    fix: str
    """How to mend it."""

    def to_dict(self) -> dict[str, str]:
        """Return the finding as `doctor --json` writes it."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "file": self.file,
            "where": self.where,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
        }


def finding(
    kind: str,
    file: str | Path,
    what: str,
    where: str = "",
    *,
    severity: Severity | None = None,
    why: str = "",
    fix: str = "",
) -> Finding:
    """Return a finding of a kind, with the table's severity, reason and advice where none is given."""
    about = KINDS[kind]
    return Finding(severity or about.severity, kind, str(file), where, what, why or about.why, fix or about.mend)


def without_path(message: str, file: str | Path) -> str:
    """Return a reader's message without the file that it begins with, and without the advice that a kind gives anyway.

    A message of nothing but a verb and its object is about "it".
    """
    path = one_line(str(file))
    rest = message.removeprefix(path)
    if rest != message and rest.startswith((": ", ", ")):
        message = rest[2:]
    elif rest != message and rest.startswith(" "):
        message = f"it{rest}"
    message = message.removesuffix(f"; {ADVICE}")
    before, _, last = message.removesuffix(f", or {SKIP}").rpartition("; ")
    return message if ", " in last else "; ".join(filter(None, (before, last)))  # "do this, that, or leave it out"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings grouped by kind: the worst severity first, then the kinds as in the table."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    found = list(findings)
    worst = {kind: min(SEVERITIES.index(one.severity) for one in found if one.kind == kind) for kind in order
             if any(one.kind == kind for one in found)}  # fmt: skip
    return sorted(found, key=lambda one: (worst[one.kind], order[one.kind], SEVERITIES.index(one.severity)))


_TRAIN = "Training stops there, or leaves it out with --on-bad skip."
_NOT_LEARNT = "Nothing is learned from it."
_WRONG_PLACE = "The boxes lie in the wrong place, so training learns the wrong thing."
_MEASURED = "Metrics look better than the detector is."
_SAVE_AGAIN = "Copy it from its source again, or remove the image and its labels."

KINDS: dict[str, Kind] = {
    # Image files
    "unreadable-image": Kind("error", _TRAIN, _SAVE_AGAIN, "leaves out"),
    "truncated-image": Kind(
        "error", "Part of the image is missing, and so may be its objects.", _SAVE_AGAIN, "leaves out"
    ),
    "empty-file": Kind("error", _TRAIN, _SAVE_AGAIN, "leaves out"),
    "wrong-extension": Kind(
        "warning", "Other programs refuse it or read it wrongly.", "Rename it to the ending of its format.", "repairs"
    ),
    "animated-image": Kind(
        "warning", "Only its first frame is used.", "Save the frame that was labelled as an image.", "left to you"
    ),
    "huge-image": Kind(
        "warning",
        "It takes much time and memory to decode, or is refused.",
        "Reduce it or cut it into tiles, with its boxes.",
        "in part",
    ),
    "tiny-image": Kind(
        "warning", "Hardly anything can be seen in it.", "Remove it if it is no photograph.", "left to you"
    ),
    "deep-image": Kind(
        "note",
        "Its grey values are scaled to 8 bits.",
        "Nothing to do if the scaling suits; else save 8 bits.",
        "left to you",
    ),
    "cmyk-image": Kind(
        "note", "Its colours are converted without a profile.", "Save it as RGB if its colours matter.", "left to you"
    ),
    "exif-mismatch": Kind(
        "error", _WRONG_PLACE, "Turn the boxes, or save the images upright, without EXIF orientation.", "repairs"
    ),
    "size-mismatch": Kind(
        "warning",
        "Boxes drawn at another size do not fit the image.",
        "Label the image as it is, or scale its boxes.",
        "repairs",
    ),
    # The same image twice
    "leaked-image": Kind("error", _MEASURED, "Remove it from one of the splits.", "in part"),
    "split-overlap": Kind("error", _MEASURED, "List each image in one split only.", "in part"),
    "duplicate-image": Kind("warning", "It counts twice.", "Keep one of them, with the better labels.", "leaves out"),
    "near-duplicate-image": Kind(
        "note",
        "Images that are nearly the same teach little, and belong in one split.",
        "Keep one, or keep them in one split: `multibox data split` does.",
        "left to you",
    ),
    # Which labels belong to which image
    "label-without-image": Kind("error", _TRAIN, "Add the image, or remove its labels.", "leaves out"),
    "list-names-missing-file": Kind("error", _TRAIN, "Add the file, or take its name off the list.", "leaves out"),
    "image-without-label": Kind(
        "note", "It takes no part, or counts as background.", "Label it, or leave it as background.", "left to you"
    ),
    "name-collision": Kind(
        "warning",
        "Two images share one label file or one name in another format.",
        "Give each its own name.",
        "repairs",
    ),
    # Label files
    "unreadable-label": Kind("error", _TRAIN, "Correct it, or export it again.", "leaves out"),
    "unknown-encoding": Kind(
        "error", "Names of classes and images may be read wrongly.", "Save it as UTF-8.", "repairs"
    ),
    # Boxes of the whole set
    "wrong-box-format": Kind("error", _WRONG_PLACE, "Convert the boxes to what the format expects.", "repairs"),
    "swapped-axes": Kind("error", _WRONG_PLACE, "Exchange x and y in the label files.", "repairs"),
    "normalised-boxes": Kind("error", _WRONG_PLACE, "Multiply the coordinates by the size of the image.", "repairs"),
    "pixel-boxes": Kind("error", _WRONG_PLACE, "Divide the coordinates by the size of the image.", "repairs"),
    "scale-mismatch": Kind(
        "error", _WRONG_PLACE, "Scale the boxes to the size that the images have now.", "left to you"
    ),
    "one-based-boxes": Kind(
        "warning",
        "Corners that count from 1 shift each box by up to one pixel.",
        "Nothing for VOC; else subtract 1 from the upper left corner.",
        "left to you",
    ),
    # Single boxes
    "not-a-number": Kind(
        "error", "One such box makes the loss NaN, so it is dropped.", "Correct or remove it.", "leaves out"
    ),
    "reversed-box": Kind(
        "error", "Its right or lower edge comes first; it is dropped.", "Exchange the corners.", "repairs"
    ),
    "outside-box": Kind("error", "It lies outside its image.", "Draw it again, or remove it.", "leaves out"),
    "empty-box": Kind("warning", "It has no area and is dropped.", "Draw it again, or remove it.", "leaves out"),
    "tiny-box": Kind(
        "warning",
        "An object under one pixel cannot be learned.",
        "Remove it if it is a slip of the mouse.",
        "leaves out",
    ),
    "clipped-box": Kind("note", "It runs out of its image.", "Cut it at the edge.", "repairs"),
    "whole-image-box": Kind(
        "note",
        "It covers the whole image: an object, or a label of the image.",
        "Look at it; remove it if it is no object.",
        "left to you",
    ),
    "duplicate-box": Kind("warning", "The object counts twice.", "Remove one of them.", "leaves out"),
    "same-place-two-classes": Kind(
        "warning", "The same place has two classes, so neither is learned well.", "Keep the right class.", "left to you"
    ),
    "nested-duplicate": Kind(
        "warning", "A second label of one object counts as another object.", "Keep the better one.", "left to you"
    ),
    "outline-as-box": Kind("note", "The box around each outline is used.", "Nothing to do.", "left to you"),
    "keypoints-as-outline": Kind(
        "warning",
        "Key points were read as an outline, so boxes are wrong.",
        "Say kpt_shape in data.yaml.",
        "left to you",
    ),
    # Classes
    "class-out-of-range": Kind("error", _TRAIN, "Correct the class, or add its name.", "leaves out"),
    "background-class": Kind(
        "warning",
        "The detector has a background of its own; this one teaches it nothing.",
        "Remove the class, or rename it if it is an object.",
        "left to you",
    ),
    "misspelt-class": Kind(
        "warning", "One class counts as two.", "Give it one spelling, or join both with `--merge NEW=OLD`.", "in part"
    ),
    "no-objects": Kind(
        "error", "There is nothing to learn.", "Check that the label files lie where they belong.", "left to you"
    ),
    "difficult-everything": Kind(
        "warning",
        "Difficult objects are not scored, nor trained on if train.difficult is drop.",
        "Clear the flag of ordinary objects.",
        "left to you",
    ),
    "class-in-one-split": Kind(
        "note",
        "It is not trained or not measured.",
        "Share its images among the splits: `multibox data split --stratify`.",
        "left to you",
    ),
    "unused-class": Kind(
        "note", "It has no object, so it is not learned.", "Add images of it, or remove it.", "left to you"
    ),
    "rare-class": Kind("note", "Expect little of a class with few objects.", "Add images of it.", "left to you"),
    "class-imbalance": Kind(
        "note", "The rarest class is learned last.", "Add images of the rarest class.", "left to you"
    ),
    # COCO
    "duplicate-id": Kind("error", "Two entries share one id.", "Give each its own id.", "in part"),
    "dangling-id": Kind(
        "error", "It refers to an image or category that is not there.", "Correct the id.", "leaves out"
    ),
    "missing-category": Kind("error", "Categories without id or name have no class.", "Add id and name.", "leaves out"),
    "text-id": Kind("warning", "Many tools expect numbers.", "Write ids as numbers.", "repairs"),
    "category-zero": Kind(
        "note", "Tools that keep 0 for the background lose this class.", "Count categories from 1.", "repairs"
    ),
    "crowd-without-rle": Kind(
        "note", "COCO's tools expect run lengths of a crowd.", "Nothing to do here.", "left to you"
    ),
    "missing-area": Kind("note", "COCO's tools need it for metrics by size.", "Add the area.", "repairs"),
    # Splits
    "empty-split": Kind("error", "There is nothing to train or to measure on.", "Fill it, or remove it.", "leaves out"),
    "tiny-split": Kind("note", "Metrics of few images vary by chance.", "Give it more images.", "left to you"),
    # What the chosen preset can see
    "below-feature-cell": Kind(
        "warning",
        "Such objects vanish between the cells of the finest feature map.",
        "A larger model.input_size, or tiles.",
        "left to you",
    ),
    "too-elongated": Kind("warning", "No anchor has their shape.", "--set anchors.fit=4", "left to you"),
    "too-many-objects": Kind(
        "warning", "Detections beyond the limit are dropped.", "A larger post.max_detections.", "left to you"
    ),
    "unreachable-by-anchors": Kind("warning", "Few anchors reach them.", "--set anchors.fit=4", "left to you"),
}
"""Every kind by its id, in the order in which findings of one severity are shown."""


def kinds_markdown() -> str:
    """Return docs/doctor-kinds.md: every kind by severity, with what `--fix` does."""
    lines = [
        "# What can multibox doctor find?",
        "",
        "Written by `multibox list findings --markdown`. The severity is the usual one; if the doctor knows more, it",
        "gives another. [What the doctor does](doctor.md) says how to use it, and what the last column means.",
    ]
    for severity in SEVERITIES:
        lines += ["", f"## {severity.capitalize()}s", "", "| kind | why it matters | `--fix` |", "|---|---|---|"]
        lines += [
            f"| `{kind}` | {about.why} | {about.fix} |" for kind, about in KINDS.items() if about.severity == severity
        ]
    return "\n".join(lines) + "\n"
