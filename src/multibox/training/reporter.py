"""What a run tells while it trains: notes, a line now and then, a line per validation; and the means of its steps."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multibox.config import Config
from multibox.losses.targets import BACKGROUND, Targets
from multibox.ops.boxes import widest
from multibox.tensors import HeadOutputs, LossParts
from multibox.training.metric_files import Row
from multibox.training.ranks import ALONE

if TYPE_CHECKING:
    from multibox.training.trainer import Trainer

LINE_EVERY = 20.0
"""Seconds between two lines of a log; a reader should never wait half a minute."""


class Reporter:
    """Writes plain lines, as a log wants them. The command line's bar is another one.

    Args:
        write: Takes a line; `print` by default.
    """

    def __init__(self, write: Callable[[str], None] = print) -> None:
        self.write = write
        self.heard: list[str] = []
        """Notes that the run's journal has yet to take."""
        self.last = time.monotonic()
        self.last_step = 0

    def note(self, text: str) -> None:
        """Tell a sentence that a user should read."""
        self.heard.append(text)
        self.write(text)

    def begin(self, trainer: "Trainer") -> None:
        """Start to count from the trainer's step."""
        self.last, self.last_step = time.monotonic(), trainer.pace.step

    def step(self, trainer: "Trainer", parts: LossParts) -> None:
        """Look at the run after a step; the loss is read from the device only when a line is due."""
        if time.monotonic() - self.last < LINE_EVERY:
            return
        total, timed = trainer.pace.total, trainer.pace.seconds is not None
        planned = "?" if total is None else f"about {total}" if timed else total
        self.write(f"step {trainer.pace.step} of {planned}  {self.progress(trainer, parts)}")

    def row(self, trainer: "Trainer", row: Row) -> None:
        """Tell what an epoch brought, where it was validated or is the last one."""
        if trainer.config.train.report == "d2l" and int(row["epoch"] or 0) % 5 == 0 and "class_error" in row:
            self.write(d2l_line(trainer.records.rows))
        if "val_map50" in row or trainer.finished:
            self.write(epoch_line(row))
            self.last = time.monotonic()

    def waiting(self, what: str) -> None:
        """Say what takes a while, such as a validation."""

    @contextmanager
    def counting(self, what: str, total: int) -> Generator[Callable[[int], None], None, None]:
        """Tell how far something is before the training; yield a function that takes how many more are done."""
        began = told = time.monotonic()
        done = 0

        def advance(more: int) -> None:
            nonlocal done, told
            done += more
            now = time.monotonic()
            if now - told >= LINE_EVERY:
                told = now
                left = (now - began) / done * (total - done)
                self.write(f"{done:,} of {total:,} {what}, {describe_seconds(left)} left")

        yield advance

    def progress(self, trainer: "Trainer", parts: LossParts) -> str:
        """Return losses, speed since the last call and the time left."""
        now, step = time.monotonic(), trainer.pace.step
        speed = (step - self.last_step) * trainer.batches.batch_size / max(now - self.last, 1e-9)
        self.last, self.last_step = now, step
        left = trainer.pace.time_left
        return (
            f"loss {parts.total:.3f} = class {parts.classification:.3f} + box {parts.localization:.3f}  "
            f"{speed:.0f} images/s" + ("" if left is None else f"  {describe_seconds(left)} left")
        )


def epoch_line(row: Row) -> str:
    """Return one epoch's metrics as a line."""
    if "total_loss" not in row:
        return f"epoch {row['epoch']:>4}  no step of it counted (train.on_nan)"
    line = (
        f"epoch {row['epoch']:>4}  loss {row['total_loss']:.3f} (class {row['cross_entropy_loss']:.3f}, "
        f"box {row['location_loss']:.3f})  objects classified wrong {100 * (row['positive_class_error'] or 0):.0f} %"
    )
    if row.get("val_loss") is not None:
        line += f"  validation loss {row['val_loss']:.3f}  mAP@0.5 {describe_score(row['val_map50'])}"
    return line


def d2l_line(rows: list[Row], every: int = 5) -> str:
    """Return the line of Dive into Deep Learning: class error, box MAE over all anchors, seconds of the last epochs."""
    last = rows[-1]
    seconds = sum(float(row.get("seconds") or 0) for row in rows[-every:])
    return (
        f"epoch {last['epoch']}, class err {last['class_error']:.2e}, "
        f"bbox mae {last['box_mae']:.2e}, time {seconds:.1f} sec"
    )


def describe_score(score: float | int | None) -> str:
    """Return a metric with three digits, or a dash where it does not exist."""
    return "-" if score is None else f"{score:.3f}"


def describe_seconds(seconds: float) -> str:
    """Return a duration as 45 s, 12 min 5 s or 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Means:
    """Sums over the steps of an epoch, kept on the device so that the host does not wait at every step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(
        self,
        outputs: HeadOutputs,
        targets: Targets,
        parts: LossParts,
        config: Config,
        across: Callable[[Tensor], Tensor] = ALONE.sum,
    ) -> dict[str, Tensor]:
        """Count one step: losses, and correct classes over all, over selected and over positive anchors.

        `across` takes the sum over the processes that share a batch. Returns what was counted, of the whole batch.
        """
        labels = targets.labels
        predicted = outputs.logits.argmax(-1)
        if config.model.score == "sigmoid":
            predicted = torch.where(outputs.logits.amax(-1) > 0, predicted + 1, BACKGROUND)
        right = predicted == labels
        rows = targets.rows
        error = (rows.take(outputs.offsets).float() - targets.offsets).abs()
        counts = {
            "steps": torch.ones_like(parts.total),
            "total": parts.total,
            "classification": parts.classification,
            "localization": parts.localization,
            "anchors": torch.full_like(parts.total, labels.numel()),
            "right": right.sum(),
            "selected": parts.selected.sum(),
            "selected_right": (right & parts.selected).sum(),
            "positives": parts.positives,
            "positives_right": (rows.take(right) & targets.valid).sum(),
            "box_error": torch.where(targets.valid[:, None], error, 0).sum(),
        }
        wide = widest(parts.total.device)
        stacked = across(torch.stack([value.to(wide) for value in counts.values()]))
        values = dict(zip(counts, stacked.unbind(), strict=True))
        self.sums = {name: self.sums[name] + value for name, value in values.items()} if self.sums else values
        return values

    def row(self) -> Row:
        """Return the epoch's metrics as numbers; this is where the host waits for the device."""
        if not self.sums:
            return {}
        s = {name: value.item() for name, value in self.sums.items()}
        positives = max(s["positives"], 1)
        return {
            "total_loss": s["total"] / s["steps"],
            "cross_entropy_loss": s["classification"] / s["steps"],
            "location_loss": s["localization"] / s["steps"],
            "cls_accuracy": s["selected_right"] / max(s["selected"], 1),
            "class_error": 1 - s["right"] / s["anchors"],
            "box_mae": s["box_error"] / (4 * s["anchors"]),
            "positive_class_error": 1 - s["positives_right"] / positives,
            "positive_box_mae": s["box_error"] / (4 * positives),
        }
