"""What each object and image cost, gathered during the steps of an epoch for the loss ledger."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multibox.analysis.ledger import append_epoch, cut_epochs, new_record, sync_epochs, write_objects
from multibox.losses.targets import BACKGROUND, Targets
from multibox.ops.boxes import at_least_float32, paired_iou
from multibox.structures import Dataset
from multibox.tensors import Batch, HeadOutputs, LossParts
from multibox.training.guard import start_copy
from multibox.training.ranks import ALONE, Ranks

SEND_EVERY = 5
"""Steps whose costs are copied from the device together."""

Rows = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Of a batch: those of its objects [b, g], those of its images [b]."""


class Tally:
    """Notes what each object and image cost the last time an epoch showed it, without making the host wait.

    Args:
        run: The run folder.
        dataset: The training split.
        score: "softmax" or "sigmoid", of the network's heads.
        ranks: The processes that train together, each of which notes its part of every batch.
    """

    def __init__(self, run: Path, dataset: Dataset, score: str, ranks: Ranks = ALONE) -> None:
        self.run = run
        self.ranks = ranks
        self.dataset = dataset
        self.score = score
        self.record = new_record(len(dataset.labels), len(dataset))
        self.epochs = 0
        """Records in the ledger that belong to this run so far."""
        self._new: list[tuple[Tensor, Rows]] = []
        self._sent: list[Rows] = []
        self._costs = torch.zeros(0)
        self._arrived: torch.Event | None = None

    def begin(self) -> None:
        """Make the files ready: none of a later epoch than the run has come to."""
        if not self.ranks.writes:
            return
        write_objects(self.run, self.dataset)
        self.epochs = cut_epochs(self.run, self.epochs, self.record.block.size)

    def add(self, outputs: HeadOutputs, targets: Targets, parts: LossParts, batch: Batch) -> None:
        """Note a step; a batch that does not say which objects it shows is left out."""
        if batch.gt_rows is None or batch.image_rows is None:
            return
        costs = self._measure(outputs, targets, parts, batch)
        self._new.append((costs, (batch.gt_rows.numpy(), batch.image_rows.numpy())))
        if len(self._new) == SEND_EVERY:
            self._receive()
            self._send()

    def gather(self) -> None:
        """Bring the record up to date, which makes the host wait for the device."""
        self._receive()
        self._send()
        self._receive()

    def end_epoch(self, epoch: int, step: int) -> None:
        """Write the epoch's record and begin the next one."""
        self.merge()
        if self.ranks.writes:
            append_epoch(self.run, epoch, step, self.record)
        self.epochs += 1
        self.record = new_record(len(self.dataset.labels), len(self.dataset))

    def merge(self) -> None:
        """Bring the record up to date with what all processes noted; of an object that several saw the most counts."""
        self.gather()
        if self.ranks.count == 1:
            return
        columns = self.record[1:]
        known = np.concatenate([np.nan_to_num(column.astype(np.float32), nan=-1) for column in columns])
        most = self.ranks.most(torch.as_tensor(known)).numpy()
        for column, values in zip(columns, np.split(most, np.cumsum([len(c) for c in columns])[:-1]), strict=True):
            column[...] = values if column.dtype == np.uint8 else np.where(values < 0, np.nan, values)

    def state(self) -> dict[str, Tensor]:
        """Return the record of the epoch at hand; the records before it are on the disk then."""
        self.gather()
        sync_epochs(self.run)
        return {"ledger": torch.as_tensor(self.record.block)}

    def restore(self, epochs: int, state: dict[str, Tensor]) -> None:
        """Go on from `state()` and the number of records that there were."""
        self.epochs = epochs
        if "ledger" in state and state["ledger"].numel() == self.record.block.size:
            self.record.block[:] = state["ledger"].numpy()

    @torch.no_grad()
    def _measure(self, outputs: HeadOutputs, targets: Targets, parts: LossParts, batch: Batch) -> Tensor:
        """Return the costs of a batch as one row of numbers, on the device: [5 b g] of objects, then [b] of images."""
        images, objects = batch.gt_labels.shape
        rows, valid = targets.rows, targets.valid
        slots = images * objects
        # Rows that are no positive add to places of their own, which are cut off
        place = torch.where(valid, targets.image * objects + targets.gt, slots + targets.anchor)
        logits = at_least_float32(rows.take(outputs.logits.detach()))
        column = rows.take(targets.labels)[:, None]
        if self.score == "softmax":
            score = logits.log_softmax(1).gather(1, column.clamp(min=0)).exp()
        else:
            score = logits.gather(1, (column - 1).clamp(min=0)).sigmoid()
        iou = paired_iou(targets.anchors_xyxy, batch.gt_xyxy[targets.image, targets.gt])
        class_losses = parts.class_losses
        sums = class_losses.new_zeros(3, slots + targets.labels.shape[1])
        costs = torch.stack([rows.take(class_losses), parts.box_losses, torch.ones_like(parts.box_losses)])
        sums.index_add_(1, place, costs.to(sums))
        best = torch.zeros_like(sums[:2])
        best.scatter_reduce_(1, place.expand(2, -1), torch.stack([iou, score[:, 0]]).to(best), "amax")
        sums, best = sums[:, :slots], best[:, :slots]
        learned = parts.selected & (targets.labels == BACKGROUND)
        background = torch.where(learned, class_losses, 0.0).sum(1)
        return torch.cat([sums.reshape(-1), best.reshape(-1), background])

    def _send(self) -> None:
        """Start the costs of the last steps on their way to the host."""
        if not self._new:
            return
        costs, self._sent = torch.cat([costs for costs, _ in self._new]), [rows for _, rows in self._new]
        self._new = []
        self._costs, self._arrived = start_copy(costs)

    def _receive(self) -> None:
        """Note the costs that were sent last."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values = self._costs.numpy()
        for gt_rows, image_rows in self._sent:
            rows = gt_rows.reshape(-1)
            objects, images, values = np.split(values, [5 * rows.size, 5 * rows.size + len(image_rows)])
            values_of = objects.reshape(5, -1)
            # A step that was taken back leaves no numbers
            shown = (rows >= 0) & np.isfinite(values_of).all(0)
            self.record.note_objects(rows[shown], values_of[:, shown])
            self.record.note_images(image_rows, images)
        self._sent, self._costs, self._arrived = [], torch.zeros(0), None
