"""What a run tells while it trains: notes, a line now and then, a line per validation."""

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multibox.config import Config
from multibox.errors import MissingExtraError
from multibox.files import write_text_whole
from multibox.losses.targets import BACKGROUND, Targets
from multibox.ops.boxes import widest
from multibox.tensors import HeadOutputs, LossParts

if TYPE_CHECKING:
    from multibox.training.trainer import Trainer


Row = dict[str, float | int | None]


class Means:
    """Sums over the steps of an epoch, kept on the device so that no step waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, outputs: HeadOutputs, targets: Targets, parts: LossParts, config: Config) -> None:
        """Count one step: losses, and right answers over all, over selected and over positive anchors."""
        labels = targets.labels
        answer = outputs.logits.argmax(-1)
        if config.model.score == "sigmoid":
            answer = torch.where(outputs.logits.amax(-1) > 0, answer + 1, BACKGROUND)
        right = answer == labels
        selected = parts.selected
        error = (outputs.offsets[targets.image, targets.anchor].float() - targets.offsets).abs()
        counts = {
            "steps": torch.ones_like(parts.total),
            "total": parts.total,
            "classification": parts.classification,
            "localization": parts.localization,
            "anchors": torch.full_like(parts.total, labels.numel()),
            "right": right.sum(),
            "selected": selected.sum(),
            "selected_right": (right & selected).sum(),
            "positives": parts.positives,
            "positives_right": right[targets.image, targets.anchor].sum(),
            "box_error": error.sum(),
        }
        wide = widest(parts.total.device)
        values = dict(zip(counts, torch.stack([value.to(wide) for value in counts.values()]).unbind(), strict=True))
        self.sums = {name: self.sums[name] + value for name, value in values.items()} if self.sums else values

    def row(self) -> Row:
        """Return the epoch's figures as numbers; this is where the host waits for the device."""
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


class Records:
    """A run's metrics: one row an epoch, in metrics.csv and TensorBoard."""

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        self.folder = folder
        self.rows = rows
        self.writer = _writer(folder)

    def add(self, row: Row) -> None:
        """Append a row that has an `epoch` and a `step`; None leaves a cell empty."""
        self.rows.append(row)
        for name, value in row.items():
            if value is not None and name not in ("epoch", "step"):
                self.writer.add_scalar(name, value, row["step"])

    def save(self) -> None:
        """Write metrics.csv whole and flush TensorBoard."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in row.items()} for row in self.rows)
        write_text_whole(self.folder / "metrics.csv", text.getvalue())
        self.writer.flush()

    def close(self) -> None:
        """End TensorBoard's writing thread."""
        self.writer.close()


def d2l_line(rows: list[Row], every: int = 5) -> str:
    """Return post B's line for the last epoch: class error, box MAE over all anchors, seconds of the last epochs."""
    last = rows[-1]
    seconds = sum(float(row.get("seconds") or 0) for row in rows[-every:])
    return (
        f"epoch {last['epoch']}, class err {last['class_error']:.2e}, "
        f"bbox mae {last['box_mae']:.2e}, time {seconds:.1f} sec"
    )


def _cell(value: float | int | None) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise MissingExtraError("Writing TensorBoard events", "train") from None
    return SummaryWriter(str(folder))


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
