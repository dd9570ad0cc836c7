"""What a run tells other programs: `metrics.jsonl`, one event per line, and `status.json`, how it stands now.

Both are described in docs/run-folder.md, for programs of others as well. An event is appended by one write, so a
process that is killed leaves at most half a line at the end, which readers skip.
"""

import json
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from multibox.files import write_text_whole
from multibox.training.guard import start_copy
from multibox.training.hardware import Hardware

if TYPE_CHECKING:
    from multibox.training.metric_files import Row
    from multibox.training.reporter import Means
    from multibox.training.trainer import Trainer

EVENTS, STATUS = "metrics.jsonl", "status.json"
FORMAT = 1
"""Version of status.json; a reader refuses a newer one."""
EVERY = 1.0
"""Least seconds between two versions of status.json while a state lasts."""
LONGEST = 5.0
"""Seconds after which an event of kind `step` comes before `train.log_every` steps are done, where steps are slow."""
SUMS = ("total", "classification", "localization", "steps", "positives", "selected", "selected_right")
"""Running sums of `Means` that an event of kind `step` needs."""

LEAVING = ("finished", "stopped", "failed")
"""States in which a process leaves its run; the listeners get the status as an event of kind `end`."""
Event = dict[str, Any]
"""One line of metrics.jsonl: `kind`, `time`, `step`, `epoch`, and what the kind adds; plain values."""
ENDS = ("epoch", "validation")
"""Kinds of events that the end of an epoch tells."""

State = Literal["starting", "training", "validating", "finished", "stopped", "failed"]


class Journal:
    """Writes the events and the status of one run, in this process.

    Args:
        folder: The run folder.
        preset: Of the run.
        device: Where it computes.
        started: `time.monotonic()` when the command began; None is now.
        writes: Whether anything is written; of several processes that train together only one does.
    """

    def __init__(
        self, folder: Path, preset: str, device: str, started: float | None = None, *, writes: bool = True
    ) -> None:
        self.folder = folder
        self.writes = writes
        self.listeners: list[Callable[[Event], None]] = []
        """Are given every event as well."""
        self.removed: set[tuple[str, int]] = set()
        """Kind and step of the events that `cut` removed: those that follow tell the same again."""
        self.hardware = Hardware(device)
        now = time.monotonic()
        self.state: State = "starting"
        self.status: dict[str, Any] = {
            "format": FORMAT, "state": self.state, "step": 0, "steps": None, "epoch": 0, "seconds": 0.0,
            "seconds_left": None, "updated": 0.0, "started": round(time.time() - now + (started or now), 3),
            "pid": os.getpid(), "host": socket.gethostname(), "device": device, "preset": preset, "best": None,
            "last": None, "loss": None, "images_per_second": None, "error": None, "command": _command(),
            "hardware": None,
        }  # fmt: skip
        self.steps, self.took = 0, 0.0
        """Steps since the last event, and their seconds."""
        self.told = -math.inf
        """Seconds of the run at which the last event of kind `step` was due."""
        self.written = -math.inf
        """When status.json was written."""
        self.counted: tuple[Means | None, list[float]] = (None, [0.0] * len(SUMS))
        """The epoch's sums that earlier events tell of."""
        self.waiting: tuple[dict[str, Any], Means, Tensor, torch.Event | None] | None = None
        """An event whose sums are on their way from the device."""

    def begin(self, trainer: "Trainer") -> None:
        """Tell that the run starts or goes on."""
        means = trainer.stepper.means
        if means.sums:
            self.counted = (means, [float(value) for value in _stacked(means).cpu()])
        self.update("starting", trainer)

    def step(self, trainer: "Trainer", took: float) -> None:
        """Look at the run after a step that took `took` seconds; tell every `train.log_every` steps how it goes.

        The means of the losses are copied from the device without waiting; a GPU's are told a step or more later.
        """
        self.steps, self.took = self.steps + 1, self.took + took
        if self.waiting is not None:
            self._receive(trainer)
        elapsed = trainer.pace.elapsed
        if trainer.pace.step % trainer.config.train.log_every == 0 or elapsed - self.told >= LONGEST:
            self.told = elapsed
            # Without sums every step of the epoch so far was left out (train.on_nan)
            if self.waiting is None and trainer.stepper.means.sums:
                self._send(trainer)
        self.update("training", trainer)

    def epoch(self, trainer: "Trainer", row: "Row") -> None:
        """Tell the metrics of an epoch, the columns of metrics.csv."""
        self._receive_late(trainer)
        self._event("epoch", trainer, **row)

    def validation(self, trainer: "Trainer", row: "Row", samples: str) -> None:
        """Tell what a validation found; `samples` is the file of drawn detections, below the run folder."""
        assert trainer.validation is not None
        self._receive_late(trainer)
        names, score = trainer.training.class_names, row["val_map50"]
        best = max(trainer.best, -1.0 if score is None else score)
        self._event(
            "validation",
            trainer,
            val_loss=row["val_loss"],
            val_map50=score,
            best=None if best < 0 else best,
            per_class=trainer.validation.per_class,
            thresholds=dict(zip(names, trainer.validation.thresholds, strict=True)),
            samples=samples,
        )

    def update(self, state: State, trainer: "Trainer | None" = None, error: str | None = None) -> None:
        """Write status.json: at once if the state is new, else if a second has passed."""
        now = time.monotonic()
        if not self.writes or (state == self.state and now - self.written < EVERY):
            return
        self.written, self.state = now, state
        if trainer is not None:
            self._tell_notes(trainer)
            pace, best = trainer.pace, trainer.best
            self.status |= {
                "step": pace.step,
                "steps": pace.total,
                "epoch": _epoch(trainer),
                "seconds": pace.elapsed,
                "seconds_left": 0.0 if state == "finished" else pace.time_left,
                "best": best if best >= 0 else None,
                "last": _last_score(trainer.records.rows),
            }
        self.status |= {"state": state, "error": error, "updated": time.time(), "hardware": self.hardware.use()}
        write_text_whole(self.folder / STATUS, json.dumps(_plain(self.status), ensure_ascii=False, indent=1) + "\n")
        if state in LEAVING:
            for listener in self.listeners:
                listener({**_plain(self.status), "kind": "end"})

    def cut(self, step: int, *, ended: bool = True) -> None:
        """Remove the events after `step`, from which the run goes on, and what is no event.

        Args:
            step: Steps done in the state from which the run goes on.
            ended: Whether the epoch that ends with this step, if one does, is recorded there; otherwise its events go.
        """
        path = self.folder / EVENTS
        if self.writes and path.exists():
            lines = path.read_bytes().splitlines()
            kept = [line for line in lines if _belongs(_place(line), step, ended)]
            places = {place for line in lines if (place := _place(line)) is not None}
            self.removed = {place for place in places if not _belongs(place, step, ended)}
            write_text_whole(path, "".join(f"{line.decode()}\n" for line in kept), durable=True)

    def _send(self, trainer: "Trainer") -> None:
        """Start the means of an event on their way to the host."""
        means, speed = trainer.stepper.means, self.steps * trainer.batches.batch_size / max(self.took, 1e-9)
        event = {
            "lr": trainer.rate,
            "images_per_second": speed,
            "seconds": trainer.pace.elapsed,
            "step": trainer.pace.step,
            "epoch": _epoch(trainer),
        }
        self.steps, self.took = 0, 0.0
        self.waiting = (event, means, *start_copy(_stacked(means)))
        self._receive(trainer)

    def _receive(self, trainer: "Trainer") -> None:
        """Write the event on its way, if it is there."""
        assert self.waiting is not None
        event, means, copy, arrived = self.waiting
        if arrived is not None and not arrived.query():
            return
        self.waiting = None
        sums = [float(value) for value in copy]
        known, before = self.counted
        new = [value - old for value, old in zip(sums, before, strict=True)] if known is means else sums
        self.counted = (means, sums)
        of = dict(zip(SUMS, new, strict=True))
        steps = max(of["steps"], 1.0)
        event |= {
            "loss": of["total"] / steps,
            "class_loss": of["classification"] / steps,
            "box_loss": of["localization"] / steps,
            # Each process counts its steps, and the positives of its share of a batch
            "positives": of["positives"] / steps * trainer.ranks.count,
            "accuracy": of["selected_right"] / max(of["selected"], 1.0),
        }
        self.status |= {name: event[name] for name in ("loss", "images_per_second")}
        self._event("step", trainer, **event)

    def _receive_late(self, trainer: "Trainer") -> None:
        """Write the event on its way before one of a later step; whoever calls has waited for the device."""
        if self.waiting is not None:
            self._receive(trainer)

    def _tell_notes(self, trainer: "Trainer") -> None:
        """Write the sentences that the user was told since the last time."""
        heard = trainer.reporter.heard
        while heard:
            self._append("note", trainer, text=heard.pop(0))

    def _event(self, kind: str, trainer: "Trainer", **values: Any) -> None:
        self._tell_notes(trainer)
        self._append(kind, trainer, **values)

    def _append(self, kind: str, trainer: "Trainer", **values: Any) -> None:
        if not self.writes:
            return
        head = {"kind": kind, "time": time.time(), "step": trainer.pace.step, "epoch": _epoch(trainer)}
        event = _plain({**head, **values})
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        # One write per line: whatever happens, a line is there or the end of the file is half of one
        with (self.folder / EVENTS).open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())
        for listener in self.listeners:
            listener(event)


def _epoch(trainer: "Trainer") -> int:
    """Return the epoch of the last step, counted from 1; 0 before the first step."""
    return -(-trainer.pace.step // trainer.steps_per_epoch)


def _stacked(means: "Means") -> Tensor:
    return torch.stack([means.sums[name] for name in SUMS])


def _last_score(rows: "list[Row]") -> float | None:
    return next((row["val_map50"] for row in reversed(rows) if row.get("val_map50") is not None), None)


def _place(line: bytes) -> tuple[str, int] | None:
    """Return kind and step of an event; None for what is none, such as the rest of an event half written."""
    try:
        event = json.loads(line)
        return str(event["kind"]), int(event["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _belongs(place: tuple[str, int] | None, step: int, ended: bool) -> bool:
    """Return whether an event belongs to the run up to `step`, and to its epoch's end if that is recorded."""
    return place is not None and (place[1] < step or (place[1] == step and (ended or place[0] not in ENDS)))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON knows them: numbers to six digits, times to a millisecond, None for what is no number."""
    return {name: _number(name, value) for name, value in values.items()}


def _number(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _plain(cast("Mapping[str, Any]", value))
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return round(value, 3) if name in ("time", "updated", "started") else float(f"{value:.6g}")


def _command() -> str:
    """Return the command line of this process, without the folder of the program."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    return shlex.join(["multibox" if name == "__main__.py" else name, *arguments])
