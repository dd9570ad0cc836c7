"""The report as one HTML page."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multibox.files import write_text_whole
from multibox.pages.page import build_page
from multibox.structures import Dataset, Detections


def write_report_page(
    report: Mapping[str, Any], dataset: Dataset, detections: Sequence[Detections], folder: Path
) -> None:
    """Write `index.html` into a folder.

    Args:
        report: From `make_report_data`.
        dataset: Its images, in the order of `report["files"]`.
        detections: One per image.
        folder: Where to write.
    """
    coco = report["metrics"]["coco"]
    metrics = _table("Metrics", {name: value for name, value in coco.items() if name != "per_class"})
    costs = {one["kind"]: one["ap_cost"] for one in report["errors"]["kinds"]}
    errors = _table("What each kind of error costs in AP50", costs)
    about = f"<p>{html.escape(report['model'])}, {len(dataset)} images, {sum(map(len, detections))} detections</p>"
    made = f"<pre>{html.escape(json.dumps(report['made'], indent=1))}</pre>"
    page = build_page(f"Report: {report['model']}", body="\n".join((about, metrics, errors, made)), data=report)
    write_text_whole(folder / "index.html", page)


def _table(title: str, rows: Mapping[str, float | None]) -> str:
    """Return a table of names and numbers."""
    lines = [f"<h2>{html.escape(title)}</h2>", "<table>"]
    for name, value in rows.items():
        text = "-" if value is None else f"{value:.3f}"
        lines.append(f"<tr><td>{html.escape(name)}</td><td>{text}</td></tr>")
    lines.append("</table>")

    return "\n".join(lines)


def describe(report: Mapping[str, Any]) -> str:
    """Return what the report is about in a line."""
    data = ", ".join(report["data"])
    split, images = report["split"], report["images"]
    return f"{report['model']} on {data} ({split}), {images} images"
