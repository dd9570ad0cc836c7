"""The report as one HTML page: verdict, metrics, errors, images and label suspects, in a file that can be mailed."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multibox.files import write_text_whole
from multibox.pages.page import build_page
from multibox.pages.report_boxes import draw_boxes
from multibox.pages.report_images import CHUNK, MOST_SUSPECTS, Progress, choose_images, make_images
from multibox.pages.report_words import Report, answers, part, rows, verdict
from multibox.structures import Dataset, Detections

ASSETS = ("report.css", "report-parts.js", "report-numbers.js", "report-images.js", "report.js")
MORE_NAMES = 30
"""Images without a thumbnail that a cell of the confusion matrix names."""


def write_report_page(
    report: Report,
    dataset: Dataset,
    detections: Sequence[Detections],
    folder: str | Path,
    *,
    progress: Progress = lambda done, total: None,
    title: str | None = None,
    opening: str = "",
) -> Path:
    """Write a report as `index.html` and return its path.

    The file holds everything, thumbnails and crops too, and asks for nothing else. Parts that the report lacks leave a
    sentence; so does an image that cannot be read.

    Args:
        report: As `make_report` returns it.
        dataset: Its images, in the order of the report's "files".
        detections: One per image, with low scores: they explain why an object is missed.
        folder: Gets the file; an older one is replaced.
        progress: Called with the images read so far, and all that have to be read.
        title: Of the page; by default "Report" and the model's name.
        opening: HTML to stand before the report.

    Raises:
        OSError: the folder cannot be written to.
    """
    shown, cells = choose_images(report)
    drawn = draw_boxes(report, dataset, detections, shown)
    chunks = make_images(report, dataset, shown, drawn, progress)
    data = ", ".join(map(str, rows(report, "data")))
    about = f"{html.escape(str(report.get('model', '')))} on {html.escape(data)}"
    split = f", split {html.escape(str(report['split']))}" if report.get("split") else ""
    body = f'{opening}<p class="intro">{about}{split}</p>\n<noscript><p>This page needs JavaScript.</p></noscript>'
    name = Path(str(report.get("model", ""))).name
    text = build_page(
        title or f"Report: {name}", body=body, data=_page_data(report, shown, cells), scripts=ASSETS, attached=chunks
    )
    path = Path(folder) / "index.html"
    write_text_whole(path, text)
    return path


def _page_data(report: Report, shown: Sequence[int], cells: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """Return what the scripts show: the report without the images that the page does not have."""
    files = rows(report, "files")
    confusion = part(report, "confusion")
    if confusion:
        confusion = {
            **confusion,
            "cells": [
                _cell(cell, cells.get(place, ()), files)
                for place, cell in enumerate(rows(report, "confusion", "cells"))
            ],
        }
    made = part(report, "made")
    kept = {key: value for key, value in report.items() if key != "files"}
    return {
        "report": {**kept, "confusion": confusion, "data": [str(one) for one in rows(report, "data")]},
        "verdict": [line._asdict() for line in verdict(report)],
        "questions": answers(report),
        "files": {position: files[position] for position in shown},
        "own_counts": _own_counts(files),
        "shown": list(shown),
        "chunk": CHUNK,
        "suspects_shown": MOST_SUSPECTS,
        # Decisions on suspects belong to one model and one state of the data
        "key": f"{report.get('model')} {made.get('fingerprint')} {report.get('split')}",
    }


def _own_counts(files: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return right detections, detections and objects at the model's own thresholds."""
    found, missed, false = (sum(one[key] for one in files) for key in ("found", "missed", "false"))
    return {"right": found, "detections": found + false, "objects": found + missed}


def _cell(cell: Mapping[str, Any], images: Sequence[int], files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a cell of the confusion matrix with the images that the page has, and names of a few others."""
    shown = set(images)
    rest = [image for image in cell["images"] if image not in shown]
    return {
        "gt": cell["gt"],
        "predicted": cell["predicted"],
        "images": list(images),
        "total": len(cell["images"]),
        "more": [files[image]["file"] for image in rest[:MORE_NAMES]],
    }
