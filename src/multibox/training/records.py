"""What a run writes down: running means, metrics.csv, TensorBoard scalars, lines on the console."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multibox.config import Config
from multibox.errors import MissingExtraError
from multibox.files import write_text_whole
from multibox.losses.targets import BACKGROUND, Targets
from multibox.ops.boxes import widest
from multibox.tensors import HeadOutputs, LossParts

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
