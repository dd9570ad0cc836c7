"""The length of a run: a fixed number of steps, or as many as fit into a number of minutes."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

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
"""Steps that a timed run is taken to have until some are measured; its learning rate warms up by them."""
LAST_STEPS = 2
"""Steps that are no longer counted by the clock, so that the learning rate reaches the schedule's end."""
LAST_WORDS = 2.0
"""Seconds kept for what follows the last save: curves and the summary."""


class Pace:
    """Where on its schedule a run stands, and how many steps are left.

    A run of fixed length stands at `step / steps`. A timed run is planned anew after every step from the durations
    measured last: each step moves it by its share of what is left, so that the schedule ends with the time, whatever
    else the machine does meanwhile.

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
        """Seconds of earlier processes of the same run."""
        self.last: int | None = None
        """Step at which a timed run ends, once it is near."""
        self.durations: deque[float] = deque(maxlen=MEASURED)
        self.unmeasured = UNMEASURED
        self.validation = 0.0
        """Seconds per validation; 0 before the first one."""
        self.batches = 0.0
        """Batches that a validation looks at, to predict the first one."""
        self.saving = 0.0
        """Seconds per save."""

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, earlier processes included."""
        return self.spent + self.clock() - self.started

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds of the last steps; None before any was measured."""
        return sum(self.durations) / len(self.durations) if self.durations else None

    @property
    def remaining(self) -> int | None:
        """Steps left; None in a timed run whose steps are not measured yet."""
        if self.fixed is not None:
            return max(0, self.fixed - self.step)
        if self.last is not None:
            return max(0, self.last - self.step)
        if (each := self.step_seconds) is None:
            # Someone may give no time at all: one step is taken, so that there is something to save
            return 0 if self.step and self._left() <= 0 else None
        # Validations still to come are part of every step's price
        left, due = self._left(), self.validations * (1 - self.position)
        return max(0, int((left - self._validation() * due) / each))

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
        """Return step and steps for the learning rate: a timed run's are its position and its plan."""
        if self.fixed is not None:
            return self.step, self.fixed
        total = max(1, UNPLANNED if self.total is None else self.total)
        return self.position * total, total

    def advance(self, seconds: float) -> None:
        """Count a step that took `seconds`."""
        remaining = self.remaining
        self.step += 1
        if self.unmeasured:
            self.unmeasured -= 1
            # Steps of a minute are measured from the first one on
            if self.seconds is not None and seconds > 0.02 * self.seconds:
                self.durations.append(seconds)
        else:
            self.durations.append(seconds)
        if self.fixed is not None:
            self.position = self.step / self.fixed
        elif remaining is not None:
            self.position += (1 - self.position) / max(1, remaining)
            if self.last is None and self.remaining is not None and self.remaining <= LAST_STEPS:
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
        else:
            assert self.seconds is not None
            # Of a finished run, the share of the time; of an interrupted one that is where it stood
            done = values["position"]
            self.position = done if done < 1 else min(done, self.spent / self.seconds)

    def _validation(self) -> float:
        """Return the seconds of a validation, before the first one by what a step takes."""
        return self.validation or FORWARD_SHARE * self.batches * (self.step_seconds or 0.0)

    def _left(self) -> float:
        assert self.seconds is not None
        ending = self._validation() + self.saving + min(LAST_WORDS, 0.05 * self.seconds)
        return self.seconds - self.elapsed - ending
