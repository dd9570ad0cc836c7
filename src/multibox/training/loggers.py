"""Metrics, drawn images and a report for the services of `train.loggers`, sent beside the training.

Every service has a thread of its own. What it cannot take is dropped, and the user is told once; training never waits
for it and never fails because of it. `metrics.jsonl` holds everything in any case.
"""

import contextlib
import io
import itertools
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multibox.errors import one_line
from multibox.files import write_text_whole
from multibox.settings import flatten
from multibox.training.logger_services import CLOSING, OPENING, SERVICES, End, Point, Service, Start
from multibox.training.metric_files import step_values

if TYPE_CHECKING:
    from multibox.training.journal import Event
    from multibox.training.trainer import Trainer

KNOWN = "loggers.json"
"""File in the run folder: the name under which each service knows the run."""
MOST_WAITING = 2000
"""Points and images that wait for a service; the next ones are dropped."""
PAUSE = 60.0
"""Seconds in which a service that failed is left alone."""
ENDED = "end"
"""Kind of the event that the journal gives its listeners when the run ends."""

Job = Callable[[Service], None]


def start_loggers(trainer: "Trainer") -> None:
    """Let the services of `train.loggers` hear what the run's journal tells, in the process that writes."""
    names = trainer.config.train.loggers
    if names and trainer.stepper.ranks.writes:
        loggers = Loggers(names, trainer.folder, trainer.reporter.note)
        loggers.begin(flatten(trainer.config.to_dict()), trainer.journal.removed, resumed=trainer.pace.step > 0)
        trainer.journal.listeners.append(loggers.take)


class Loggers:
    """The services of one run.

    Args:
        names: Of `SERVICES`.
        folder: The run folder.
        tell: Takes a sentence for the user.
    """

    def __init__(self, names: Sequence[str], folder: Path, tell: Callable[[str], None]) -> None:
        self.names, self.folder, self.tell = tuple(dict.fromkeys(names)), folder, tell
        self.senders: dict[str, Sender] = {}
        self.told: set[tuple[str, int]] = set()
        self.told_step = 0
        self.last: dict[str, Event] = {}
        """The last event of each kind."""
        self.notes: list[str] = []
        self.writing = threading.Lock()

    def begin(self, config: Mapping[str, Any], told: set[tuple[str, int]], *, resumed: bool) -> None:
        """Open the services, and wait for them up to `OPENING` seconds.

        Args:
            config: Every setting by its dotted key.
            told: Kind and step of the events that an earlier process told and that the run tells again.
            resumed: Whether the run goes on in the services too.
        """
        self.told = told
        self.told_step = max((step for kind, step in told if kind == "step"), default=0)
        known = _read_known(self.folder) if resumed else {}
        end = time.monotonic() + OPENING
        # trackio prints what it does
        with contextlib.redirect_stdout(io.StringIO()):
            for name in self.names:
                start = Start(self.folder, config, known.get(name))
                self.senders[name] = Sender(name, partial(SERVICES[name], start), self._remember)
            for sender in self.senders.values():
                sender.thread.start()
            for sender in self.senders.values():
                sender.opened.wait(max(0.0, end - time.monotonic()))
        self._tell_problems()

    def take(self, event: "Event") -> None:
        """Send what an event of the journal tells."""
        kind, step = event["kind"], event["step"]
        self.last[kind] = event
        if kind == "note":
            self.notes.append(event["text"])
        elif kind == ENDED:
            self._end(event)
        elif (kind, step) not in self.told and not (kind == "step" and step <= self.told_step):
            if values := event_values(event):
                self._send(Point(step, event["time"], values))
            if kind == "validation":
                self._send(partial(_log_image, self.folder / event["samples"], step))
        self._tell_problems()

    def _send(self, item: "Point | Job") -> None:
        for sender in self.senders.values():
            sender.send(item)

    def _end(self, event: "Event") -> None:
        summary = {name: event[name] for name in ("state", "step", "epoch", "seconds", "best", "last", "loss", "error")}
        files = [path for name in ("metrics.csv", "config.toml") if (path := self.folder / name).is_file()]
        report = describe_run(self.folder.name, event, self.last.get("validation"), self.notes)
        end = End(event["state"], event["step"], summary, report, files)
        deadline = time.monotonic() + CLOSING
        for sender in self.senders.values():
            sender.finish(partial(_log_end, end))
        with contextlib.redirect_stdout(io.StringIO()):
            for sender in self.senders.values():
                sender.wait(deadline)

    def _remember(self) -> None:
        """Keep the names under which the services know the run, so that it goes on there after a kill."""
        with self.writing:
            opened = {name: sender.service for name, sender in self.senders.items()}
            known = {name: service.known for name, service in opened.items() if service is not None}
            write_text_whole(self.folder / KNOWN, json.dumps({**_read_known(self.folder), **known}) + "\n")

    def _tell_problems(self) -> None:
        for sender in self.senders.values():
            while sender.problems:
                self.tell(sender.problems.pop(0))


class Sender:
    """The thread of one service.

    Args:
        name: Of the service.
        open_service: Opens it.
        remember: Is called when it is open.
    """

    def __init__(self, name: str, open_service: Callable[[], Service], remember: Callable[[], None]) -> None:
        self.name, self.open_service, self.remember = name, open_service, remember
        self.service: Service | None = None
        self.queue: queue.Queue[Point | Job | None] = queue.Queue(MOST_WAITING)
        self.opened = threading.Event()
        """Set when the service is open, or cannot be opened."""
        self.problems: list[str] = []
        """Sentences that the main thread has yet to tell."""
        self.complained = False
        self.quiet_until = 0.0
        self.thread = threading.Thread(target=self._work, name=f"multibox-{name}", daemon=True)

    def send(self, item: Point | Job) -> None:
        """Let the thread send a point or do a job; drop it if too much waits."""
        try:
            self.queue.put_nowait(item)
        except queue.Full:
            self._complain(f"{MOST_WAITING} entries wait for it")

    def finish(self, job: Job) -> None:
        """Let the thread do a last job, even if the service failed a moment ago."""
        self.quiet_until = 0.0
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(job)
            self.queue.put_nowait(None)

    def wait(self, deadline: float) -> None:
        """Wait until everything is sent, or `time.monotonic()` reaches the deadline."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self._complain(f"it has not taken everything within {CLOSING:.0f} s after the last step")

    def _work(self) -> None:
        try:
            self.service = self.open_service()
            self.remember()
        except Exception as error:
            self._complain(f"it cannot be opened ({_words(error)})")
            return
        finally:
            self.opened.set()
        while True:
            items = [self.queue.get()]
            while not self.queue.empty():
                items.append(self.queue.get())
            for are_points, group in itertools.groupby(items, lambda item: isinstance(item, Point)):
                if are_points:
                    self._try(partial(_log_points, [item for item in group if isinstance(item, Point)]))
                    continue
                for job in group:
                    if job is None:
                        return
                    assert not isinstance(job, Point)
                    self._try(job)

    def _try(self, job: Job) -> None:
        """Do a job unless the service failed a moment ago."""
        if self.service is None or time.monotonic() < self.quiet_until:
            return
        try:
            job(self.service)
        except Exception as error:
            self.quiet_until = time.monotonic() + PAUSE
            self._complain(f"it failed ({_words(error)}) and is tried again every {PAUSE:.0f} s")

    def _complain(self, what: str) -> None:
        """Say once what is wrong."""
        if not self.complained:
            self.complained = True
            self.problems.append(
                f"{self.name} does not get all metrics: {what}; training goes on, and metrics.jsonl holds them all"
            )


def event_values(event: "Event") -> dict[str, float]:
    """Return the metrics of an event, by the names that TensorBoard shows too; None and texts are left out."""
    if event["kind"] == "step":
        return step_values(event)
    if event["kind"] == "epoch":
        values = {name: value for name, value in event.items() if name not in ("kind", "time", "step", "epoch")}
    elif event["kind"] == "validation":
        # Loss and mAP are columns of the epoch
        values = {"best_map50": event["best"]}
        values |= {f"ap50/{_plain_name(name)}": value for name, value in event["per_class"].items()}
    else:
        return {}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def describe_run(name: str, end: "Event", validation: "Event | None", notes: Sequence[str]) -> str:
    """Return the report of a run as Markdown: how it ended, its metrics by class, and what the user was told."""
    lines = [
        f"# {name}", "", f"{end['state']} after step {end['step']} (epoch {end['epoch']}), {end['seconds']:.0f} s",
        "", f"best mAP@0.5: {_digits(end['best'])}, last: {_digits(end['last'])}, last loss: {_digits(end['loss'])}",
    ]  # fmt: skip
    if end["error"]:
        lines += ["", end["error"]]
    if validation is not None:
        lines += ["", "| class | AP at IoU 0.5 | threshold of best F1 |", "|---|---|---|"]
        for label, score in validation["per_class"].items():
            lines.append(f"| {label} | {_digits(score)} | {_digits(validation['thresholds'].get(label))} |")
    if notes:
        lines += ["", *(f"* {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _log_points(points: Sequence[Point], service: Service) -> None:
    service.points(points)


def _log_image(file: Path, step: int, service: Service) -> None:
    service.image(file, step)


def _log_end(end: End, service: Service) -> None:
    service.end(end)


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain_name(name: str) -> str:
    """Return a class's name with the letters that every service takes in the name of a metric."""
    return re.sub(r"[^\w\- ]", "_", name)


def _words(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")[:300]


def _read_known(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / KNOWN).read_bytes())
    except (OSError, ValueError):
        return {}
