"""What a run tells while it trains: notes, a line now and then, a line per validation."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from multibox.tensors import LossParts
from multibox.training.records import Row, d2l_line

if TYPE_CHECKING:
    from multibox.training.trainer import Trainer

LINE_EVERY = 20.0
"""Seconds between two lines of a log; a reader should never wait half a minute."""


class Reporter:
    """Writes plain lines, as a log wants them.

    Args:
        write: Takes a line; `print` by default.
    """

    def __init__(self, write: Callable[[str], None] = print) -> None:
        self.write = write
        self.last = time.monotonic()
        self.last_step = 0

    def note(self, text: str) -> None:
        """Tell a sentence that a user should read."""
        self.write(text)

    def begin(self, trainer: "Trainer") -> None:
        """Start to count from the trainer's step."""
        self.last, self.last_step = time.monotonic(), trainer.pace.step

    def step(self, trainer: "Trainer", parts: LossParts) -> None:
        """Look at the run after a step; the loss is read from the device only when a line is due."""
        now = time.monotonic()
        if now - self.last >= LINE_EVERY:
            self.write(f"step {trainer.pace.step} of {_planned(trainer)}  {self._progress(trainer, parts, now)}")

    def row(self, trainer: "Trainer", row: Row) -> None:
        """Tell what an epoch brought, where it was validated or is the last one."""
        if trainer.config.train.report == "d2l" and int(row["epoch"] or 0) % 5 == 0:
            self.write(d2l_line(trainer.records.rows))
        if "val_map50" in row or trainer.finished:
            self.write(epoch_line(row))
            self.last = time.monotonic()

    def waiting(self, what: str) -> None:
        """Say what takes a while, such as a validation."""

    def _progress(self, trainer: "Trainer", parts: LossParts, now: float) -> str:
        """Return losses, speed and the time left, and count from here."""
        rate = (trainer.pace.step - self.last_step) * trainer.batches.batch_size / max(now - self.last, 1e-9)
        self.last, self.last_step = now, trainer.pace.step
        left = trainer.pace.time_left
        return (
            f"loss {parts.total:.3f} = class {parts.classification:.3f} + box {parts.localization:.3f}  "
            f"{rate:.0f} images/s" + ("" if left is None else f"  {describe_seconds(left)} left")
        )


def epoch_line(row: Row) -> str:
    """Return one epoch's metrics as a line."""
    line = (
        f"epoch {row['epoch']:>4}  loss {row['total_loss']:.3f} (class {row['cross_entropy_loss']:.3f}, "
        f"box {row['location_loss']:.3f})  objects classified wrong {100 * (row['positive_class_error'] or 0):.0f} %"
    )
    if row.get("val_loss") is not None:
        score = row["val_map50"]
        line += f"  validation loss {row['val_loss']:.3f}  mAP@0.5 " + ("-" if score is None else f"{score:.3f}")
    return line


def describe_seconds(seconds: float) -> str:
    """Return a duration as 45 s, 12 min 5 s or 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _planned(trainer: "Trainer") -> str:
    total = trainer.pace.total
    if total is None:
        return "?"
    return f"{total}" if trainer.pace.seconds is None else f"about {total}"
