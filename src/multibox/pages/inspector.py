"""The page of `multibox inspect`: what matching, losses and suppression made of images, to look at and to move."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from multibox.analysis.inspection_plots import inspected_image
from multibox.errors import MultiboxError
from multibox.pages.page import build_page, embedded
from multibox.pages.page_images import crop_around, data_uri, heat_uri

SIDE, THUMB, CROP = 900, 160, 140
"""Longest sides of the images, thumbnails and crops in the page, in pixels."""
RIGHT = 0.5
"""Overlap (IoU) above which a detection is right."""
SHORT = "found", "low-score", "suppressed", "wrong-class", "badly-placed", "unreached", "not-matched"
"""Outcomes of an object, in the order of tables."""

_UNSEEN = "explanations", "path", "offset", "length", "background"
"""Parts of an entry that the page does not take over as they are."""

Row = Mapping[str, Any]


class Summary(NamedTuple):
    """Counts of one image at the model's thresholds."""

    objects: int
    """Neither difficult nor crowds."""
    missed: dict[str, int]
    """By outcome, in the order of `SHORT`."""
    false: int
    """Reported detections that are not right."""

    @property
    def found(self) -> int:
        """Objects that a detection finds."""
        return self.objects - sum(self.missed.values())


def summarise(row: Row) -> Summary:
    """Return the counts of one entry of `multibox.inspect_matches`."""
    counting = [one for one in row["gt"] if not one["difficult"] and not one["crowd"]]
    outcomes = Counter(one["outcome"] for one in counting)
    finders = {one["detection"] for one in row["gt"] if one["outcome"] == "found"}
    left_out = {one["index"] for one in row["gt"] if one["difficult"] or one["crowd"]}
    lowest = {name: np.float32(value) for name, value in row["thresholds"]["score"].items()}
    false = 0
    for place, one in enumerate(row["candidates"]):
        if one["kept"] and np.float32(one["score"]) >= lowest[one["name"]] and place not in finders:
            false += not (one["gt"] in left_out and one["gt_iou"] > RIGHT)
    missed = {name: outcomes[name] for name in SHORT if name != "found" and outcomes[name]}
    return Summary(len(counting), missed, false)


def inspector_page(
    rows: Sequence[Row],
    *,
    model: str,
    data: str,
    command: str = "",
) -> str:
    """Return the page as HTML, images inside.

    Args:
        rows: From `multibox.inspect_matches`.
        model: What was inspected, for the heading.
        data: The images, for the heading.
        command: That made the page, for its last line.
    """
    parts: list[str] = []
    images: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        image = inspected_image(row)
        summary = summarise(row)
        thumb = data_uri(image, THUMB, 70)
        images.append(
            {"file": row["file"], "thumb": thumb, "objects": summary.objects, "missed": summary.missed}
            | {"false": summary.false}
        )
        # Each image is an element of its own, which the browser reads only when someone looks at it
        parts.append(embedded(f"image-{place}", _for_page(row, image)))
    explained = any("explanations" in row for row in rows)
    title = f"Inspection of {model} on {data}"
    scripts = ["inspector.css", "judging.js", "inspector.js"]
    page_data = {"images": images, "explained": explained, "command": command}
    return build_page(title, body="\n".join(parts), data=page_data, scripts=scripts)


def _for_page(row: Row, image: Image.Image) -> dict[str, Any]:
    """Return an entry with its image, and its explanations with pictures instead of numbers."""
    shown = _rounded({name: value for name, value in row.items() if name not in _UNSEEN})
    shown["src"] = data_uri(image, SIDE)
    if "explanations" in row:
        shown["explanations"] = [_explanation(one) for one in row["explanations"]]
    return shown


def _explanation(one: Row) -> dict[str, Any]:
    shown = _rounded(
        {name: one[name] for name in ("candidate", "method", "receptive_field", "effective", "similar_of")}
    )
    shown["heat"] = heat_uri(np.asarray(one["saliency"], np.float32))
    shown["similar"] = [
        {"file": each["file"], "name": each["name"], "distance": each["distance"], "crop": _crop(each)}
        for each in one["similar"]
    ]
    return shown


def _crop(entry: Row) -> dict[str, Any] | None:
    """Return the object of an entry with its surroundings, or None if its image cannot be read any more."""
    try:
        part, box = crop_around(inspected_image(entry), entry["box"])
    except MultiboxError:
        return None
    scale = min(1.0, CROP / max(part.size))
    size = {"width": part.width * scale, "height": part.height * scale}
    return {"src": data_uri(part, CROP), "box": [value * scale for value in box], **size}


def _rounded(value: Any) -> Any:
    """Return boxes with three decimals and other numbers with nine digits, which keep a float32 exactly."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        listed: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        if all(isinstance(each, float) for each in listed):
            return [round(each, 3) for each in listed]
        return [_rounded(each) for each in listed]
    return value
