"""Curves of one run: metrics.jsonl read on from where it was left, thinned so that any run fits a page."""

import csv
import io
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from multibox.pages.run_folders import EVENTS, SAMPLE, TABLE, number, text

CHUNK = 8 << 20
"""Bytes read at once; a longer file takes several calls."""
MOST_POINTS = 1400
"""Of a curve; then neighbours become one, so a long run has 700 to 1,400."""
MOST_CLASSES, MOST_AREAS = 200, 100_000
"""Classes shown, and classes times validations kept."""
MOST_NOTES, MOST_LINES, MOST_LETTERS = 500, 20, 1000
STEP = ("step", "seconds", "epoch", "loss", "class_loss", "box_loss", "lr", "images_per_second")
EPOCH = {
    "step": "step",
    "seconds": "seconds",
    "epoch": "epoch",
    "loss": "total_loss",
    "class_loss": "cross_entropy_loss",
    "box_loss": "location_loss",
    "lr": "learning_rate",
    "positive_class_error": "positive_class_error",
}
"""Columns of metrics.csv, by our names."""

Point = list[float | int | None]


class Curves:
    """Several curves over the same steps; the first column is the step.

    Args:
        columns: Their names.
    """

    def __init__(self, columns: Iterable[str]) -> None:
        self.columns = tuple(columns)
        self.rows: list[Point] = []
        self.width = 1
        """Rows that became one."""
        self.waiting: list[Point] = []
        self.last: Point = []

    def add(self, row: Point) -> bool:
        """Append a row; return whether earlier rows changed.

        A run that was killed goes on from an earlier step: what followed that step is dropped.
        """
        step, changed = row[0] or 0, False
        if self.last and step <= (self.last[0] or 0):
            kept = [each for each in self.rows if (each[0] or 0) < step]
            changed, self.rows, self.waiting = len(kept) < len(self.rows), kept, []
        self.last = row
        self.waiting.append(row)
        if len(self.waiting) < self.width:
            return changed
        self.rows.append(_mean(self.waiting))
        self.waiting = []
        if len(self.rows) >= MOST_POINTS:
            self.rows = [_mean(self.rows[place : place + 2]) for place in range(0, len(self.rows), 2)]
            self.width *= 2
            return True
        return changed

    def since(self, count: int) -> dict[str, list[float | int | None]]:
        """Return the rows from number `count` on, as columns."""
        rows = self.rows[count:]
        return {name: [row[place] for row in rows] for place, name in enumerate(self.columns)}


def _mean(rows: list[Point]) -> Point:
    """Return the means of several rows, of the values that exist; the step is the last one's."""
    if len(rows) == 1:
        return rows[0]
    means: Point = [rows[-1][0]]
    for values in list(zip(*rows, strict=True))[1:]:
        real = [value for value in values if value is not None]
        means.append(number(sum(real) / len(real)) if real else None)
    return means


class History:
    """What a run has written so far: curves of steps and epochs, validations, notes.

    Half a last line waits until it is whole; a line that is no JSON object and an unknown kind are skipped. A run of an
    older version has metrics.csv alone.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clear()

    def _clear(self) -> None:
        self.steps, self.epochs = Curves(STEP), Curves(EPOCH)
        self.validations: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.version = secrets.token_hex(4)
        """Another one where what was sent before is no longer the beginning."""
        self.offset = 0
        self.rest = b""
        self.identity: tuple[int, ...] = ()
        self.clock: tuple[float, float] | None = None
        """Time and seconds of the run at its last step."""

    def read(self) -> bool:
        """Take in what is new, at most `CHUNK` bytes; return whether there may be more."""
        try:
            with (self.folder / EVENTS).open("rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self.identity or status.st_size < self.offset:
                    self._clear()
                    self.identity = (status.st_dev, status.st_ino)
                file.seek(self.offset)
                data = file.read(CHUNK)
        except OSError:
            return self._read_table()
        self.offset += len(data)
        whole, newline, rest = (self.rest + data).rpartition(b"\n")
        # A line of millions of letters is none of ours
        self.rest = rest if len(rest) < CHUNK else b""
        for line in whole.split(b"\n") if newline else ():
            self._take_line(line)
        return len(data) == CHUNK

    def _take_line(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        event = cast(dict[str, Any], event)
        kind = event.get("kind")
        if kind == "step":
            self._take(self.steps, event, {name: name for name in STEP})
        elif kind == "epoch":
            self._take(self.epochs, event, EPOCH)
        elif kind == "validation":
            self._take_validation(event)
        elif kind == "note" and (lines := _lines(event.get("text"))):
            self._take_note({"time": number(event.get("time")), "step": number(event.get("step")), "lines": lines})

    def _take(self, curves: Curves, event: Mapping[str, Any], names: Mapping[str, str]) -> None:
        row = [number(event.get(names[name])) for name in curves.columns]
        if row[0] is None:
            return
        row[1] = self._seconds(event)
        if curves.add(row):
            self.version = secrets.token_hex(4)

    def _seconds(self, event: Mapping[str, Any]) -> float | int | None:
        """Return the seconds that the run took so far, pauses before a resume left out, as events of steps tell."""
        now = number(event.get("time"))
        if now is None:
            return None
        spent = number(event.get("seconds")) if event.get("kind") == "step" else None
        if spent is not None or self.clock is None:
            self.clock = (now, spent or 0.0)
        return round(self.clock[1] + max(0.0, now - self.clock[0]), 1)

    def _take_validation(self, event: Mapping[str, Any]) -> None:
        step = number(event.get("step"))
        if step is None:
            return
        per_class: object = event.get("per_class")
        named = cast(dict[str, Any], per_class) if isinstance(per_class, dict) else {}
        samples = event.get("samples")
        sample = samples.removeprefix("images/") if isinstance(samples, str) else ""
        one: dict[str, Any] = {
            "step": step,
            "seconds": self._seconds(event),
            **{name: number(event.get(name)) for name in ("epoch", "val_loss", "val_map50", "best")},
            "per_class": [[text(name), number(value)] for name, value in list(named.items())[:MOST_CLASSES]],
            "sample": sample if SAMPLE.fullmatch(sample) else None,
        }
        if self.validations and step <= self.validations[-1]["step"]:
            self.validations = [each for each in self.validations if each["step"] < step]
            self.version = secrets.token_hex(4)
        self.validations.append(one)
        if len(self.validations) >= max(50, min(1000, MOST_AREAS // (len(one["per_class"]) or 1))):
            self.validations = self.validations[1::2]
            self.version = secrets.token_hex(4)

    def _take_note(self, note: dict[str, Any]) -> None:
        self.notes.append(note)
        if len(self.notes) >= 2 * MOST_NOTES:
            del self.notes[:MOST_NOTES]
            self.version = secrets.token_hex(4)

    def _read_table(self) -> bool:
        """Read metrics.csv anew if it changed; it has a row per epoch and its seconds, not the time."""
        path = self.folder / TABLE
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if identity == self.identity or status.st_size > CHUNK:
                return False
            lines = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        self._clear()
        self.identity = identity
        spent = 0.0
        for row in csv.DictReader(io.StringIO(lines)):
            event = {name: _parsed(value) for name, value in row.items() if isinstance(value, str)}
            spent += event.get("seconds") or 0.0
            event["time"] = spent
            if event.get("total_loss") is not None:
                self._take(self.epochs, event, EPOCH)
            if event.get("val_map50") is not None or event.get("val_loss") is not None:
                self._take_validation(event)
        return False

    def summary(self) -> dict[str, Any]:
        """Return step, epoch, last and best mAP@0.5, for runs without status.json."""
        curves = self.steps.last or self.epochs.last
        scores = [one["val_map50"] for one in self.validations if one["val_map50"] is not None]
        return {
            "step": curves[0] if curves else None,
            "epoch": curves[2] if curves else None,
            "loss": curves[3] if curves else None,
            "seconds": curves[1] if curves else None,
            "last": scores[-1] if scores else None,
            "best": max(scores, default=None),
        }

    def news(self, cursor: str) -> tuple[dict[str, Any] | None, str]:
        """Return what was not sent before, None if nothing, and the cursor that stands for all sent until now.

        Args:
            cursor: The one returned before; anything else, such as "", stands for nothing sent.
        """
        sent = self._sent(cursor)
        counts = [len(self.steps.rows), len(self.epochs.rows), len(self.validations), len(self.notes)]
        following = ".".join([self.version, *map(str, counts)])
        if sent == counts:
            return None, following
        steps, epochs, validations, notes = sent or [0, 0, 0, 0]
        return {
            "anew": sent is None,
            "steps": self.steps.since(steps),
            "epochs": self.epochs.since(epochs),
            "validations": self.validations[validations:],
            "notes": self.notes[notes:],
        }, following

    def _sent(self, cursor: str) -> list[int] | None:
        version, *counts = cursor[:100].split(".")
        if version != self.version or len(counts) != 4 or not all(each.isdecimal() for each in counts):
            return None
        return [int(each) for each in counts]


def _lines(value: object) -> list[str]:
    """Return the lines of a note, each of bounded length."""
    lines = value.split("\n")[:MOST_LINES] if isinstance(value, str) else []
    return [line for each in lines if (line := text(each, MOST_LETTERS))]


def _parsed(value: str) -> float | int | None:
    try:
        return int(value) if value.isdecimal() else float(value)
    except ValueError:
        return None
