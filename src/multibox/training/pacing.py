"""When a run ends: after a number of steps, with its minutes, or out of patience."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from multibox.config import Config
from multibox.training.metric_files import Row

MEASURED = 16
"""Steps whose mean duration predicts the next ones."""
UNMEASURED = 3
"""First steps of a process, which are slow (memory, kernels) and say nothing of the others."""
VALIDATION_SHARE = 0.15
"""Largest share of a timed run that validations may take."""
VALIDATIONS = 20
"""Validations per run where `train.validate_every` is auto."""
FORWARD_SHARE = 0.7
"""Seconds that a validation takes per batch, as a share of a training step."""
UNPLANNED = 1000
"""Length assumed for a timed run until steps are measured. Its first learning rates follow from it."""
LAST_STEPS = 2
"""Steps that are no longer counted by the clock, so that the learning rate reaches the schedule's end."""
LAST_WORDS = 2.0
"""Seconds kept for what follows the last save: curves and the summary."""


class Pace:
    """Where on its schedule a run stands, and how many steps are left.

    A run of fixed length stands at `step / steps`. A timed run is planned anew after every step from the durations
    measured last. Each step moves it by its share of what is left, so the schedule ends with the time.

    Args:
        steps: Length of the run; None for a timed run.
        seconds: Duration of a timed run, start-up, validations and saving included.
        started: `clock()` when the command began; None is now.
        clock: Gives seconds; tests replace it.
    """

    def __init__(
        self,
        steps: int | None = None,
        seconds: float | None = None,
        *,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if (steps is None) == (seconds is None):
            raise ValueError("a run has either a number of steps or a number of seconds")
        self.fixed = steps
        self.seconds = seconds
        self.clock = clock
        self.started = clock() if started is None else started
        self.step = 0
        """Steps done."""
        self.position = 0.0
        """Share of the schedule done, 0 to 1."""
        self.spent = 0.0
        """Seconds of earlier processes of the same run; `state()` adds those of this one."""
        self.last: int | None = None
        """Step at which a timed run ends, once it is near."""
        self.durations: deque[float] = deque(maxlen=MEASURED)
        self.first: list[float] = []
        """Seconds of the first steps of this process where they take long; they plan a run until others do."""
        self.unmeasured = UNMEASURED
        self.validation = 0.0
        """Seconds per validation; 0 before the first one."""
        self.batches = 0.0
        """Batches per validation, to predict the first one."""
        self.saving = 0.0
        """Seconds per save."""

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, earlier processes included."""
        return self.spent + self.clock() - self.started

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds of the last steps, before any was measured the quickest of the first; None before both."""
        if self.durations:
            return sum(self.durations) / len(self.durations)
        return min(self.first) if self.first else None

    @property
    def remaining(self) -> int | None:
        """Steps left; None in a timed run whose steps are not measured yet."""
        end = self.last if self.fixed is None else self.fixed
        if end is not None:
            return max(0, end - self.step)
        if (each := self.step_seconds) is None:
            # Without any time one step is taken, so that there is something to save
            return 0 if self.step and self._left() <= 0 else None
        if not self.durations:
            # What a validation takes is not known either: foretold from the first steps it might fill the run
            return max(0, int(((self.seconds or 0.0) - self.elapsed - self._last_words) / each))
        # Validations still to come are part of every step's price
        to_come = self._validation() * self.validations * (1 - self.position)
        return max(0, int((self._left() - to_come) / each))

    @property
    def total(self) -> int | None:
        """Steps of the whole run as planned now."""
        return None if self.remaining is None else self.step + self.remaining

    @property
    def finished(self) -> bool:
        """True if no step is left."""
        return self.remaining == 0 and self.step > 0

    @property
    def time_left(self) -> float | None:
        """Seconds until the end; None while nothing is measured."""
        if self.seconds is not None:
            return max(0.0, self.seconds - self.elapsed)
        each = self.step_seconds
        return None if each is None else each * (self.remaining or 0)

    @property
    def validations(self) -> int:
        """Validations that the whole run affords: 20, or fewer where they would take too much of a timed run."""
        each = self._validation()
        if self.seconds is None or not each:
            return VALIDATIONS
        return max(1, min(VALIDATIONS, int(VALIDATION_SHARE * self.seconds / each)))

    def schedule(self) -> tuple[float, float]:
        """Return (step, steps) for the learning rate. For a timed run, step is the position times the planned steps."""
        if self.fixed is not None:
            return self.step, self.fixed
        total = max(1, UNPLANNED if self.total is None else self.total)
        return self.position * total, total

    def advance(self, seconds: float) -> None:
        """Count a step that took `seconds`."""
        planned = self.remaining is not None
        self.step += 1
        if not self.unmeasured:
            self.durations.append(seconds)
        elif self.seconds is not None and seconds > 0.02 * self.seconds:
            self.first.append(seconds)
        self.unmeasured = max(0, self.unmeasured - 1)
        if self.fixed is not None:
            self.position = self.step / self.fixed
        elif planned and self.remaining is not None:
            # By what is left now, not by what was foretold: a slow start must not use up the schedule
            self.position += (1 - self.position) / (1 + self.remaining)
            if self.last is None and self.durations and self.remaining <= LAST_STEPS:
                self.last = self.step + LAST_STEPS

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {
            "step": self.step,
            "position": self.position,
            "spent": self.elapsed,
            "durations": list(self.durations),
            "validation": self.validation,
            "saving": self.saving,
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Go on from `state()`; a run that was made longer stands at the share of its new length."""
        self.step, self.spent = values["step"], values["spent"]
        self.durations.extend(values["durations"])
        self.validation, self.saving = values["validation"], values["saving"]
        if self.fixed is not None:
            self.position = min(1.0, self.step / self.fixed)
            return
        assert self.seconds is not None
        # A finished run stands at its share of the new time, an interrupted one where it stood
        done = values["position"]
        self.position = done if done < 1 else min(done, self.spent / self.seconds)

    def _validation(self) -> float:
        """Return the seconds per validation, before the first one by what a step takes."""
        return self.validation or FORWARD_SHARE * self.batches * (self.step_seconds or 0.0)

    def _left(self) -> float:
        assert self.seconds is not None
        return self.seconds - self.elapsed - self._validation() - self.saving - self._last_words

    @property
    def _last_words(self) -> float:
        return min(LAST_WORDS, 0.05 * (self.seconds or 0.0))


def make_pace(
    config: Config, steps_per_epoch: int, started: float | None, clock: Callable[[], float] = time.monotonic
) -> Pace:
    """Return the pace of a run as long as `train.minutes`, `train.epochs` or `train.steps` says."""
    train = config.train
    if train.minutes != "none":
        return Pace(seconds=60 * train.minutes, started=started, clock=clock)
    steps = train.epochs * steps_per_epoch if train.epochs != "none" else train.steps
    assert steps != "none"  # the config holds one of the three
    return Pace(steps=steps, started=started, clock=clock)


def describe_length(config: Config) -> str:
    """Return a run's length in words, such as "10 minutes"."""
    lengths = {name: getattr(config.train, name) for name in ("minutes", "epochs", "steps")}
    return next(f"{value:g} {name}" for name, value in lengths.items() if value != "none")


def going_on(
    pace: Pace, config: Config, device: str, torch_before: str, processes: int = 1, processes_before: int = 1
) -> str:
    """Return where a resumed run goes on, and whether it will equal one that never stopped."""
    train = config.train
    reasons = {
        "a run by minutes follows the clock": pace.seconds is not None,
        f"{device} sums in no fixed order": device != "cpu",
        "train.threads=auto follows the load of the machine": device == "cpu" and train.threads == "auto",
        f"train.compile={train.compile} may compile the network in another way": train.compile != "off",
        f"PyTorch was {torch_before} before": torch_before != torch.__version__,
        f"it trained in {processes_before} processes before, now in {processes}": processes != processes_before,
    }
    given = [reason for reason, holds in reasons.items() if holds]
    whole = "" if pace.total is None else f" of {pace.total}"
    where = f"goes on after step {pace.step}{whole}"
    if not given:
        return f"{where} as if it had never stopped, bit for bit"
    how = "may differ in the last digits" if processes == processes_before else "will differ"
    return f"{where}; the result {how} from that of a run that never stopped: {', '.join(given)}"


def out_of_patience(rows: Sequence[Row], patience: int | str) -> bool:
    """Return whether the last `patience` validations were no better than the best before them; "none" has no end."""
    if not isinstance(patience, int):
        return False
    scores = [score for row in rows if (score := row.get("val_map50")) is not None]
    return patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])
