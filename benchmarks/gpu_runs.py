"""Whole training runs, and matching with the loss, on a device; used by `gpu.py`.

A run is `multibox train` itself: decoded store, loader, augmentation, steps, metrics and ledger; no validation. Time is
taken from the end of the first steps to the end of the last, and the share of it in which the device computed comes
from a profile of a few steps in between.
"""

import time
from pathlib import Path
from typing import NamedTuple

import torch

from multibox.data.sprites import make_sprites
from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import HeadOutputs, LossParts
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare
from multibox.training.trainer import Trainer

WARM, MEASURED, PROFILED = 30, 100, 10
"""Steps before the time counts, steps that count, and of these the ones that are profiled."""
BATCHES = {"ssd300-vgg16": 64, "ssd300-resnet50": 128, "tinyssd": 512}
"""Images per step of each preset."""
SHAPES = tuple(Size(side, side) for side in (38, 19, 10, 5, 3, 1))
"""Feature maps of SSD300: 8,732 anchors."""


class Clock(Reporter):
    """Notes when the measured steps began and ended, and how long the device computed in the profiled ones."""

    def __init__(self, warm: int, steps: int, profiled: int, device: str) -> None:
        super().__init__(lambda line: None)
        self.warm, self.final, self.profiled, self.device = warm, warm + steps, profiled, device
        self.times: dict[int, float] = {}
        self.record: torch.profiler.profile | None = None
        self.busy = 0.0
        """Share of the profiled steps' time in which the device computed."""

    def step(self, trainer: Trainer, parts: LossParts) -> None:
        """Look at the clock after a step."""
        step = trainer.pace.step
        if step in (self.warm, self.final, self.warm + self.profiled):
            if self.device != "cpu":
                torch.cuda.synchronize()
            self.times[step] = time.perf_counter()
        if self.device == "cpu":
            return
        if step == self.warm:
            self.record = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.record.start()
        elif step == self.warm + self.profiled and self.record is not None:
            self.record.stop()
            computed = sum(event.self_device_time_total for event in self.record.key_averages()) / 1e6
            self.busy = computed / (self.times[step] - self.times[self.warm])


def training_run(folder: Path, preset: str, device: str, *, small: bool) -> list[str]:
    """Return a row of the table: images/s of a run with full augmentation, and the share of time the device idles."""
    images = 2 if small else BATCHES[preset]
    warm, steps, profiled = (1, 2, 1) if small else (WARM, MEASURED, PROFILED)
    data = folder / "sprites"
    if not data.exists():
        make_sprites(data, images=20 if small else 2000)
    clock = Clock(warm, steps, profiled, device)
    changes = {"train.batch_size": images, "train.augmentation": "caffe", "train.lr": 1e-4, "train.steps": warm + steps}
    options = RunOptions(
        preset=preset, out=folder / preset, weights="none", val_split="none", device=device, changes=changes
    )
    trainer = prepare(data, options, clock)
    trainer.fit()
    began, ended = clock.times[warm + profiled], clock.times[warm + steps]
    # A profile slows its own steps, so that only the others count
    speed = images * (steps - profiled) / (ended - began)
    idle = "-" if device == "cpu" else f"{100 * max(0.0, 1 - clock.busy):.1f}"
    return [preset, trainer.stepper.precision, str(images), f"{speed:,.1f}", idle]


class Timing(NamedTuple):
    """Milliseconds of matching and loss, and whether the device computes what the CPU does."""

    milliseconds: float
    equal: bool


def matching_and_loss(device: str, images: int, objects: int) -> Timing:
    """Time targets and loss of SSD300's anchors, forward; on the device every anchor has a row."""
    config = resolve("ssd300-vgg16", "default", {"anchors.fit": "none"})
    generator = torch.Generator().manual_seed(0)
    anchors = make_anchors(config.anchors, SHAPES, config.model.input_size)
    corner = torch.rand(images, objects, 2, generator=generator) * 0.8
    boxes = torch.cat([corner, corner + 0.02 + 0.18 * torch.rand(images, objects, 2, generator=generator)], 2)
    labels = torch.randint(0, 20, (images, objects), generator=generator)
    logits = torch.randn(images, len(anchors), 21, generator=generator)
    offsets = torch.randn(images, len(anchors), 4, generator=generator)

    def compute(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = HeadOutputs(given[device][0], given[device][1], SHAPES)
        targets = make_targets(
            given[device][2], given[device][3], given[device][4], config.matching, config.model, outputs,
            anchors_per_cell(config),
        )  # fmt: skip
        return targets.labels, multibox_loss(outputs, targets, config.loss, config.model).total

    tensors = logits, offsets, anchors, boxes, labels
    given = {place: tuple(tensor.to(place) for tensor in tensors) for place in {"cpu", device}}
    (here, loss), (there, other) = compute("cpu"), compute(device)
    equal = torch.equal(here, there.cpu()) and abs(float(other) / float(loss) - 1) < 1e-4
    repeats = 2 if device == "cpu" else 50
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        compute(device)
    if device != "cpu":
        torch.cuda.synchronize()
    return Timing((time.perf_counter() - began) / repeats * 1e3, equal)
