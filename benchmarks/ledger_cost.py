"""What the loss ledger costs: training steps with and without it in turn, from the same weights, on one batch.

Both sides must compute the same losses, step by step, before a time is printed. Beside the ratio of the steps stands
the time in the ledger's own calls as a share of the step, which noise of the machine does not hide.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ours import make_batch
from peers import machine, print_table

from multibox.limits import keep_freed_memory
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.structures import Dataset, Sample, pack
from multibox.tensors import Batch, HeadOutputs, LossParts
from multibox.training.precision import choose_precision
from multibox.training.step import Stepper
from multibox.training.tally import Tally


class Timed:
    """A ledger that notes how long its calls take."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.seconds: list[float] = []

    def add(self, outputs: HeadOutputs, targets: object, parts: LossParts, batch: Batch) -> None:
        """Note a step."""
        started = time.perf_counter()
        self.tally.add(outputs, targets, parts, batch)
        self.seconds.append(time.perf_counter() - started)


def data_of(batch: Batch) -> Dataset:
    """Return a data set of the batch's objects."""
    none = np.zeros(batch.gt_labels.shape[1], np.bool_)
    samples = [
        Sample(str(i), Path(), boxes.double().numpy(), labels.numpy(), none, none)
        for i, (boxes, labels) in enumerate(zip(batch.gt_xyxy, batch.gt_labels, strict=True))
    ]
    return pack(samples, root=Path(), format="voc", split="train", class_names=["cloud"])


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="multibox-fine")
    parser.add_argument("--size", type=int, default=320, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--objects", type=int, default=12, help="in every image")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    keep_freed_memory(always=True)
    config = resolve(options.preset, "default", {"model.input_size": (options.size,) * 2, "anchors.fit": "none"})
    config = config.updated({"train.lr": 1e-6, "train.batch_size": options.batch})
    precision = choose_precision(config.train, options.device)
    batch = make_batch(options.batch, options.size, options.objects)
    rows = torch.arange(options.batch * options.objects).reshape(options.batch, -1)
    batch = dataclasses.replace(batch, gt_rows=rows, image_rows=torch.arange(options.batch)).to(options.device)
    steppers = [
        Stepper(build_model(config, 1, 0), config, device=options.device, precision=precision) for _ in range(2)
    ]
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(Tally(Path(folder), data_of(batch.to("cpu")), config.model.score))
        steppers[1].watch = timed.add
        times: list[list[float]] = [[], []]
        for number in range(options.rounds + 2):
            losses: list[float] = []
            # Which side goes first changes, as the second finds a warm processor
            for side in (0, 1) if number % 2 else (1, 0):
                synchronize(options.device)
                started = time.perf_counter()
                parts = steppers[side].step(batch)
                synchronize(options.device)
                if number >= 2:
                    times[side].append(time.perf_counter() - started)
                losses.append(parts.total.item())
            if losses[0] != losses[1] and (options.device == "cpu" or abs(losses[0] / losses[1] - 1) > 1e-3):
                print(f"step {number}: losses {losses} differ, so no time is printed")
                return 1
        timed.tally.gather()
        assert not np.isnan(timed.tally.record.class_loss).any()
    print(f"{options.preset}, {options.batch} images of {options.size}, {options.objects} objects each, {precision}")
    print(machine())
    medians = [statistics.median(each) for each in times]
    table = zip(("without", "with"), times, medians, strict=True)
    print_table(
        ["ledger", "ms per step", "range", "ratio"],
        [
            [name, f"{1e3 * m:.1f}", f"{1e3 * min(each):.1f} .. {1e3 * max(each):.1f}", f"{m / medians[0]:.4f}"]
            for name, each, m in table
        ],
    )
    own = statistics.median(timed.seconds[2:])
    print(f"the ledger's own calls: {1e3 * own:.2f} ms per step, {100 * own / medians[0]:.2f} % of a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
