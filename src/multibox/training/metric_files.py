"""A run's metrics as files: a row per epoch in metrics.csv; these rows and every few steps for TensorBoard."""

import csv
import importlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from multibox.errors import MissingExtraError
from multibox.files import write_text_whole

Row = dict[str, float | int | None]
CLOCK = "seconds"
"""What the clock says of an epoch; it stands in TensorBoard and metrics.jsonl."""
STEP_VALUES = ("loss", "class_loss", "box_loss", "lr", "images_per_second", "positives", "accuracy")
"""Fields of an event of kind `step` that are metrics."""


class Records:
    """A run's metrics: one row per epoch, in metrics.csv and TensorBoard; every few steps, in TensorBoard alone.

    Args:
        folder: The run folder.
        rows: Of the epochs so far.
        writes: Whether the files are written; of several processes that train together only one does.
    """

    def __init__(self, folder: Path, rows: list[Row], *, writes: bool = True) -> None:
        self.folder = folder
        self.rows = rows
        self.writer: Any = None
        if not writes:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise MissingExtraError("Writing TensorBoard events", "train") from None
        self.writer = SummaryWriter(str(folder))
        self.messages: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")

    def add(self, row: Row) -> None:
        """Append a row that has an `epoch` and a `step`; None leaves a cell empty."""
        self.rows.append(row)
        for name, value in row.items():
            if self.writer is not None and value is not None and name not in ("epoch", "step"):
                self.writer.add_scalar(name, value, row["step"])

    def take(self, event: dict[str, Any]) -> None:
        """Write the numbers of an event of kind `step`, below `steps/`, as one entry for TensorBoard."""
        if event["kind"] == "step":
            values = [{"tag": tag, "simple_value": value} for tag, value in step_values(event).items()]
            entry = self.messages.Event(summary={"value": values})
            self.writer.file_writer.add_event(entry, event["step"], event["time"])

    def rewind(self, step: int) -> None:
        """Let TensorBoard forget what an earlier process told after `step`, from which the run goes on."""
        entry = self.messages.Event(session_log={"status": self.messages.SessionLog.START})
        self.writer.file_writer.add_event(entry, step + 1)

    def save(self) -> None:
        """Write metrics.csv whole and flush TensorBoard.

        The table holds only what the run computed, so a resumed run has the same one, byte by byte.
        """
        if self.writer is None:
            return
        names = [name for name in dict.fromkeys(name for row in self.rows for name in row) if name != CLOCK]
        write_text_whole(self.folder / "metrics.csv", csv_text(names, self.rows), durable=True)
        self.writer.flush()

    def close(self) -> None:
        """End TensorBoard's writing thread."""
        if self.writer is not None:
            self.writer.close()


def step_values(event: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of an event of kind `step` by the names that TensorBoard and the loggers show."""
    return {f"steps/{name}": event[name] for name in STEP_VALUES if event.get(name) is not None}


def csv_text(names: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV, numbers to six digits; what a row does not have stays empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(names), extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({n: f"{v:.6g}" if isinstance(v, float) else v for n, v in row.items()} for row in rows)
    return text.getvalue()
