"""Pictures of an inspected image: how its objects were matched, and what prediction made of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multibox.data.images import load_image
from multibox.files import free_path, whole_file
from multibox.plots.detections import PALETTE, draw_detections
from multibox.plots.overlays import Outline, draw_outlines, fitted, with_legend, write_numbers
from multibox.structures import Detections, Sample

Row = Mapping[str, Any]

_GT = Outline("#ffffff", 3, halo="#000000")
_NEGATIVE = Outline("#909090", 1)
_IGNORED = Outline("#000000", 1, dashed=True)
_SUPPRESSED = Outline("#909090", 1, dashed=True)
_MISSED = Outline("#e00000", 3, dashed=True, halo="#ffffff")
_SHOWN_NEGATIVES = 30
_MISSES_TOLD = 8


def inspected_image(row: Row) -> Image.Image:
    """Return the image that a description, or a similar object in it, speaks of, as the network sees it.

    Raises:
        ImageError: It cannot be read.
    """
    none = np.zeros(0, np.bool_)
    place = {"offset": row["offset"], "length": row["length"]}
    sample = Sample(row["file"], Path(row["path"]), np.zeros((0, 4)), np.zeros(0, np.int64), none, none, **place)
    red, green, blue = row["background"]
    return load_image(sample, (red, green, blue))


def draw_matches(row: Row, image: Image.Image) -> Image.Image:
    """Return the image with ground truth, positive anchors coloured by level, the ignore zone and mined negatives."""
    drawn, scale = fitted(image)
    negatives = row["negatives"][:_SHOWN_NEGATIVES]
    draw_outlines(drawn, [one["box"] for one in negatives], scale, _NEGATIVE)
    draw_outlines(drawn, [one["box"] for one in row["ignored"]], scale, _IGNORED)
    draw_outlines(drawn, [one["box"] for one in row["gt"]], scale, _GT)
    rows: list[tuple[Outline | None, str]] = [(_GT, f"ground truth: {counted(row['gt'], 'name')}")]
    for level, about in enumerate(row["levels"]):
        colour = PALETTE[level % len(PALETTE)]
        here = [one for one in row["positives"] if one["level"] == level]
        for forced in (False, True):
            some = [one for one in here if (one["how"] == "forced") == forced]
            if some:
                outline = Outline(colour, 2, dashed=forced)
                draw_outlines(drawn, [one["box"] for one in some], scale, outline)
                lowest, highest = min(one["iou"] for one in some), max(one["iou"] for one in some)
                how = "forced, as no anchor reached the threshold" if forced else f"by {_HOW[some[0]['how']]}"
                where = f"level {level} ({about['rows']} x {about['columns']} cells)"
                many = _number(some, "positive anchor")
                rows.append((outline, f"{where}: {many} {how}, IoU {lowest:.2f} to {highest:.2f}"))
    if row["ignored"]:
        rows.append((_IGNORED, f"{row['ignored_total']} anchors in neither loss, {len(row['ignored'])} of them drawn"))
    if negatives:
        rows.append(
            (
                _NEGATIVE,
                f"background anchors that were learnt: the {len(negatives)} of highest loss of {row['negatives_total']}"
                f", {negatives[0]['loss']:.2g} to {negatives[-1]['loss']:.2g}",
            )
        )
    return with_legend(drawn, f"{row['file']}: matching by {row['matcher']}", rows)


_HOW = {"threshold": "the IoU threshold", "matcher": "the matcher"}


def draw_outcomes(row: Row, image: Image.Image) -> Image.Image:
    """Return the image with its detections, the boxes that were suppressed, and missed objects with the reason."""
    lowest = row["thresholds"]["score"]
    certain = [one for one in row["candidates"] if one["score"] >= lowest[one["name"]]]
    shown = [one for one in certain if one["kept"]]
    suppressed = [one for one in certain if one["suppressed_by"] is not None]
    missed = [one for one in row["gt"] if one["outcome"] != "found" and not one["crowd"]]
    drawn, scale = fitted(image)
    draw_outlines(drawn, [one["box"] for one in suppressed], scale, _SUPPRESSED)
    draw_outlines(drawn, [one["box"] for one in missed], scale, _MISSED)
    drawn = draw_detections(drawn, _detections(shown, scale))
    write_numbers(drawn, [one["box"] for one in missed[:_MISSES_TOLD]], scale, _MISSED.colour)
    found = sum(one["outcome"] == "found" for one in row["gt"])
    rows: list[tuple[Outline | None, str]] = [
        (None, f"{_number(shown, 'detection')}; {found} of {_number(row['gt'], 'object')} found")
    ]
    if suppressed:
        limit = f"(more than {row['thresholds']['nms']:g} IoU with a better one of the class)"
        rows.append((_SUPPRESSED, f"suppressed: {_number(suppressed, 'further box')} {limit}"))
    for number, one in enumerate(missed[:_MISSES_TOLD], 1):
        rows.append((_MISSED, f"{number} {one['name']} missed, {one['outcome']}: {one['why']}"))
    if len(missed) > _MISSES_TOLD:
        rows.append((_MISSED, f"and {len(missed) - _MISSES_TOLD} more objects missed"))
    return with_legend(drawn, f"{row['file']}: detections", rows)


def write_pictures(inspections: Sequence[Row], folder: Path, overwrite: bool = False) -> list[Path]:
    """Write two PNGs per image into a folder, `STEM-matches.png` and `STEM-detections.png`, and return their paths.

    Args:
        inspections: What `multibox.inspect_matches` returned.
        folder: An existing folder.
        overwrite: Replace pictures of these names; otherwise a free name is taken.

    Raises:
        ImageError: An image cannot be read any more.
    """
    written: list[Path] = []
    for row in inspections:
        image = inspected_image(row)
        for kind, draw in (("matches", draw_matches), ("detections", draw_outcomes)):
            path = folder / f"{Path(row['file']).stem}-{kind}.png"
            # Images of two folders may share a name
            path = path if overwrite and path not in written else free_path(path)
            with whole_file(path) as file:
                draw(row, image).save(file, "PNG")
            written.append(path)
    return written


def counted(rows: Sequence[Row], key: str) -> str:
    """Return how often each value occurs, such as "3 cat, 1 dog"."""
    values = [row[key] for row in rows]
    return ", ".join(f"{values.count(value)} {value}" for value in dict.fromkeys(values)) or "none"


def _number(rows: Sequence[Row], what: str) -> str:
    """Return how many there are, such as "2 boxes"."""
    return f"{len(rows)} {what}" + ("" if len(rows) == 1 else "es" if what.endswith("x") else "s")


def _detections(shown: Sequence[Row], scale: float) -> Detections:
    names = dict.fromkeys(one["name"] for one in shown)
    places = {name: place for place, name in enumerate(names)}
    return Detections(
        np.array([one["box"] for one in shown], np.float32).reshape(-1, 4) * np.float32(scale),
        np.array([one["score"] for one in shown], np.float32),
        np.array([places[one["name"]] for one in shown], np.int64),
        tuple(names),
    )
