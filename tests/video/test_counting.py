"""The example that counts: squares whose crossings are known."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from multibox.video.addresses import as_file
from multibox.video.pipeline import Plan, Progress, predict_video
from multibox.video.tables import open_tables

from .clips import BLUE, Square, SquareFinder, write_clip

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "count_line.py"


def squares(k):
    """Return two squares: red goes down, blue goes up; both cross the middle of the frame."""
    return [Square(20, 2 + 2 * k), Square(110, 92 - 2 * k, colour=BLUE)]


@pytest.fixture
def rows(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 45, squares)
    with open_tables(tmp_path / "rows.jsonl") as add:
        stream = predict_video(as_file(path), Plan([SquareFinder()], track=True), None, Progress(), add=add)
        assert len(list(stream)) == 45
    return tmp_path / "rows.jsonl"


def load_example():
    spec = importlib.util.spec_from_file_location("count_line", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_each_square_crosses_once(rows):
    example = load_example()
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    # Whoever walks along the line from left to right has what goes down on the right hand
    assert example.count(found, [0, 60, 160, 60], []) == {"left": {"blue": 1}, "right": {"red": 1}, "zone": {}}
    assert example.count(found, [160, 60, 0, 60], [])["left"] == {"red": 1}
    assert example.count(found, [0, 115, 160, 115], [])["right"] == {}
    assert example.count(found, [0, 60, 160, 60], [0, 0, 60, 0, 60, 120, 0, 120])["zone"] == {"red": 1}


def test_a_list_is_read_as_well(rows):
    example = load_example()
    as_list = rows.with_suffix(".json")
    as_list.write_text("[\n" + ",\n".join(rows.read_text().splitlines()) + "\n]\n")
    assert example.read_rows(as_list) == example.read_rows(rows) and len(example.read_rows(rows)) == 45


@pytest.mark.slow
def test_the_example_runs_as_documented(rows):
    command = [sys.executable, str(EXAMPLE), str(rows), "--line", "0,60,160,60", "--zone", "0,0,160,0,160,120,0,120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "crossed to the left of the line: {'blue': 1}, to its right: {'red': 1}",
        "were in the zone: {'red': 1, 'blue': 1}",
    ]
