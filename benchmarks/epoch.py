"""Whole epochs of `multibox train`, validation included, beside the bare training step (and the bare forward pass).

    python benchmarks/epoch.py [--only sprites bccd photographs] [--epochs 6] [--gb 4]

The runs are the product's own, with a validation after every epoch. Between two epochs bare steps are timed: the same
step on one batch that is ready, with as many threads. Before any time is printed it is checked that batches and
validation scores are the same with and without the store, and that a bare step loses what the run's first step lost.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import machine, print_table
from PIL import Image

from multibox.data.augmentation import find_augmentation
from multibox.data.augmented import AugmentedImages
from multibox.data.loading import in_order, load_batches
from multibox.data.sprites import make_sprites
from multibox.limits import keep_freed_memory
from multibox.models.prediction import quick_copy
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training.norms import train_mode
from multibox.training.optimizer import set_learning_rate
from multibox.training.reporter import Reporter, Row
from multibox.training.run import RunOptions, prepare
from multibox.training.step import Stepper
from multibox.training.trainer import Trainer
from multibox.training.validation import Validation

BCCD = Path(__file__).resolve().parents[2] / "shared" / "data" / "bccd" / "BCCD"
PHOTOGRAPHS, WIDTHS = 72, (640, 4000)
"""How many photographs, and the widths compared; the second is 12 megapixels."""
QUIET_RATE = 1e-6
"""Learning rate of bare steps, so that they stay finite however often they see their batch."""


class Epoch(NamedTuple):
    """Seconds of one epoch of the run and of what was timed after it."""

    whole: float
    validation: float
    step: float
    forward: float


class Watch(Reporter):
    """Times each epoch, and after it bare steps and bare forward passes."""

    def __init__(self, bare_steps: int) -> None:
        super().__init__(lambda line: None)
        self.bare_steps = bare_steps
        self.epochs: list[Epoch] = []
        self.started = 0.0

    def begin(self, trainer: Trainer) -> None:
        """Prepare what is timed later."""
        super().begin(trainer)
        self.batch = next(iter(_batches(trainer, trainer.batches.batch(0))))
        self.validation = _validation_batches(trainer)
        self.stepper = _stepper(trainer)
        self.started = time.perf_counter()

    def row(self, trainer: Trainer, row: Row) -> None:
        """Note the epoch's time, and time bare steps and passes."""
        whole = time.perf_counter() - self.started
        time.sleep(0.3)  # threads spin for a while before they sleep
        steps = [_timed(lambda: self.stepper.step(self.batch)) for _ in range(self.bare_steps + 1)][1:]
        network = quick_copy(trainer.stepper.weights().eval(), "float32")
        with torch.inference_mode():
            forward = min(_timed(lambda: [network(batch.images) for batch in self.validation]) for _ in range(2))
        train_mode(trainer.stepper.model)
        self.epochs.append(Epoch(whole, trainer.pace.validation, median(steps), forward))
        time.sleep(0.3)
        trainer._lap()  # what was timed here is no part of the run's next step
        self.started = time.perf_counter()


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _batches(trainer: Trainer, keys: Any) -> list[Batch]:
    config = trainer.config
    red, green, blue = (round(value) for value in config.model.mean)
    images = AugmentedImages(
        trainer.training,
        Size(*config.model.input_size),
        find_augmentation(config.train.augmentation),
        seed=config.train.seed,
        fill=(red, green, blue),
    )
    return list(load_batches(images, [keys], 0, pin=False))


def _validation_batches(trainer: Trainer) -> list[Batch]:
    assert trainer.validation is not None
    batches = in_order(len(trainer.validation.dataset), trainer.batches.batch_size)
    return list(load_batches(trainer.validation.images, batches, 0, pin=False))


def _stepper(trainer: Trainer) -> Stepper:
    stepper = Stepper(
        copy.deepcopy(trainer.stepper.model), trainer.config, device=trainer.device, precision=trainer.stepper.precision
    )
    train_mode(stepper.model)
    set_learning_rate(stepper.optimizer, QUIET_RATE)
    return stepper


def start(data: Path, preset: str, epochs: int, gb: float, reporter: Reporter) -> Trainer:
    options = RunOptions(
        preset=preset,
        epochs=epochs,
        out=Path(tempfile.mkdtemp(prefix="multibox-epoch-")) / "run",
        weights="none",
        train_split="train",
        cache_gb=gb,
        changes={"train.validate_every": 1, "train.lr": 1e-4},
    )
    return prepare(data, options, reporter)


def check(trainer: Trainer) -> None:
    """Stop unless batches, scores and a step are the same with and without store and loader."""
    assert trainer.decoded is not None and trainer.validation is not None
    keys = [trainer.batches.batch(step) for step in range(2)]
    config = trainer.config
    images = AugmentedImages(
        trainer.training,
        Size(*config.model.input_size),
        find_augmentation(config.train.augmentation),
        seed=config.train.seed,
        fill=tuple(round(value) for value in config.model.mean),  # type: ignore[arg-type]
        decoded=trainer.decoded.training,
    )
    for batch, batch_keys in zip(load_batches(images, keys, 2, pin=False, between=True), keys, strict=True):
        (anew,) = _batches(trainer, batch_keys)
        assert torch.equal(batch.images, anew.images) and torch.equal(batch.gt_xyxy, anew.gt_xyxy), "batches differ"
        losses = [_stepper(trainer).step(one).total.item() for one in (batch, anew)]
        assert losses[0] == losses[1], f"steps differ: {losses}"
    weights = copy.deepcopy(trainer.stepper.weights())
    scores = [trainer.validation.score(weights)]
    scores.append(Validation(trainer.validation.dataset, config, trainer.device).score(weights))
    assert scores[0] == scores[1], f"validations differ: {scores}"
    train_mode(trainer.stepper.model)


def measure(name: str, data: Path, preset: str, options: argparse.Namespace) -> list[list[str]]:
    """Return rows of the first epoch, which decodes, and of the median of the others."""
    check(start(data, preset, 1, options.gb, Reporter(lambda line: None)))
    watch = Watch(options.steps)
    trainer = start(data, preset, options.epochs + 1, options.gb, watch)
    trainer.fit()
    steps, images = trainer.steps_per_epoch, trainer.steps_per_epoch * trainer.batches.batch_size
    step = median(epoch.step for epoch in watch.epochs)
    rows: list[list[str]] = []
    for label, epochs in (("first epoch", watch.epochs[:1]), (f"{options.epochs} later", watch.epochs[1:])):
        whole = median(epoch.whole for epoch in epochs)
        # Each epoch is compared with what was timed right after it
        training = median(steps * e.step / (e.whole - e.validation) for e in epochs)
        passes = median((steps * e.step + e.forward) / e.whole for e in epochs)
        strict = median(steps * e.step / e.whole for e in epochs)
        spread = f"{min(e.whole for e in epochs):.2f} .. {max(e.whole for e in epochs):.2f}"
        shares = [f"{100 * share:.1f}" for share in (training, passes, strict)]
        rows.append(
            [f"{name}, {label}", f"{images / whole:.1f}", f"{whole:.2f}", spread, f"{steps * step:.2f}", *shares]
        )
    return rows


def make_photographs(folder: Path, width: int) -> Path:
    """Write the same sprites as JPEG photographs of `width` pixels and three quarters of that in height."""
    make_sprites(folder, images=PHOTOGRAPHS, format="yolo", seed=1)
    grain = np.random.default_rng(0).normal(0, 4, (width * 3 // 4, width, 1)).astype(np.float32)
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            photograph = image.convert("RGB").resize((width, width * 3 // 4), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(photograph) + grain, 0, 255).astype(np.uint8)
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".jpg"), quality=90)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=("sprites", "bccd", "photographs"))
    parser.add_argument("--epochs", type=int, default=6, help="measured after the first")
    parser.add_argument("--steps", type=int, default=10, help="bare steps after each epoch")
    parser.add_argument("--gb", type=float, default=4.0, help="most GB of decoded images")
    options = parser.parse_args()
    keep_freed_memory(always=True)
    print(machine())
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="multibox-epoch-") as temporary:
        folder = Path(temporary)
        wanted = options.only or ["sprites", "bccd", "photographs"]
        if "sprites" in wanted:
            make_sprites(folder / "sprites", images=1000)
            rows += measure("tinyssd, 900 sprites", folder / "sprites", "tinyssd", options)
        if "bccd" in wanted and not BCCD.exists():
            print(f"BCCD is left out: {BCCD} does not exist")
        elif "bccd" in wanted:
            rows += measure("multibox-coco, BCCD", BCCD, "multibox-coco", options)
        if "photographs" in wanted:
            for width in WIDTHS:
                data = make_photographs(folder / str(width), width)
                rows += measure(f"multibox-coco, {width} x {width * 3 // 4}", data, "multibox-coco", options)
    print("Equal with and without the store: batches, losses and validation scores. Percent of the bare step's speed:")
    print_table(
        ["run", "images/s", "s/epoch", "range", "bare steps", "training %", "steps + forward %", "whole epoch %"], rows
    )
    print(
        "training: bare steps over the epoch without its validation. steps + forward: bare steps and the validation's "
        "bare forward passes over the whole epoch. whole epoch: bare steps over the whole epoch, validation included."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
