"""Count objects that cross a line or stand in a zone, from the rows of a tracked video. Needs: pip install supervision.

multibox predict coco street.mp4 --track --json street.jsonl
python count_line.py street.jsonl --line 0,240,640,240 --zone 100,100,300,100,300,300,100,300

A line is x1,y1,x2,y2, a zone three corners or more, in pixels of the video. Each track counts once per crossing.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import supervision as sv


def as_detections(row: dict) -> sv.Detections:
    """Return the detections of one frame; -1 stands for objects without a track."""
    found = row["detections"]
    return sv.Detections(
        xyxy=np.array([each["box"] for each in found], np.float32).reshape(-1, 4),
        confidence=np.array([each["score"] for each in found], np.float32),
        class_id=np.array([each["label"] for each in found], int),
        tracker_id=np.array([-1 if each["track"] is None else each["track"] for each in found], int),
    )


def count(rows: list[dict], line: list[int], zone: list[int]) -> dict[str, dict[str, int]]:
    """Return, by class, how many tracks crossed the line each way, and how many were in the zone at some time."""
    names = {each["label"]: each["name"] for row in rows for each in row["detections"]}
    crossing = sv.LineZone(sv.Point(*line[:2]), sv.Point(*line[2:]), triggering_anchors=[sv.Position.CENTER])
    area = sv.PolygonZone(np.array(zone).reshape(-1, 2), triggering_anchors=[sv.Position.CENTER]) if zone else None
    right, left, inside = Counter(), Counter(), {}
    for row in rows:
        found = as_detections(row)
        # Seen from the line's first point, "in" is to its left as a person stands on the image
        ins, outs = crossing.trigger(found)
        left.update(names[label] for label in found.class_id[ins].tolist())
        right.update(names[label] for label in found.class_id[outs].tolist())
        if area is not None and len(found):
            chosen = found[area.trigger(found) & (found.tracker_id >= 0)]
            inside.update(zip(chosen.tracker_id.tolist(), chosen.class_id.tolist(), strict=True))
    return {"left": dict(left), "right": dict(right), "zone": dict(Counter(names[each] for each in inside.values()))}


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a file of JSON lines, or of a JSON list."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def main() -> None:
    """Read the rows and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="the .jsonl or .json that multibox predict --track --json wrote")
    parser.add_argument("--line", required=True, help="x1,y1,x2,y2")
    parser.add_argument("--zone", default="", help="x,y of each corner")
    asked = parser.parse_args()
    rows = read_rows(asked.rows)
    line, zone = ([int(part) for part in text.split(",") if part] for text in (asked.line, asked.zone))
    counts = count(rows, line, zone)
    print(f"crossed to the left of the line: {counts['left']}, to its right: {counts['right']}")
    if zone:
        print(f"were in the zone: {counts['zone']}")


if __name__ == "__main__":
    main()
