"""The training loop; everything it calls is a named helper beside it."""

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from multibox.config import Config
from multibox.data.augmentation import find_augmentation
from multibox.data.loading import AugmentedPictures, EpochBatches, choose_workers, load_batches
from multibox.errors import ConfigError, MultiboxError
from multibox.losses.penalty import l2_penalty
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.tensors import Batch, LossParts
from multibox.training.interrupt import Interrupt
from multibox.training.norms import train_mode
from multibox.training.optimizer import learning_rate, set_learning_rate
from multibox.training.records import Means, Records, Row
from multibox.training.state import load_state, save_state
from multibox.training.step import Stepper
from multibox.training.validation import Validation

SAVE_EVERY = 30.0
"""Seconds a run may lose when the machine stops; Ctrl-C and the end lose none."""


class Trainer:
    """One run: a network, its data, and a folder that always holds a resumable state."""

    def __init__(
        self,
        model: SSD,
        config: Config,
        training: Dataset,
        validation: Dataset | None,
        folder: Path,
        *,
        device: str,
        precision: str,
        source: str = "",
        watch: Callable[["Trainer", LossParts], None] = lambda trainer, parts: None,
        say: Callable[[Row], None] = lambda row: None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.source = source
        self.watch = watch
        self.say = say
        self.names = training.class_names
        self.stepper = Stepper(model, config, device=device, precision=precision)
        self.validation = Validation(validation, config, device, precision) if validation is not None else None
        self.training = training
        self.batches = EpochBatches(len(training), config.train.batch_size, epochs=1, seed=config.train.seed)
        self.batches.epochs = count_epochs(config, self.batches.steps_per_epoch)
        self.steps = self.batches.epochs * self.batches.steps_per_epoch
        self.step = 0
        self.best = -1.0
        self.seconds = 0.0
        self.saved = 0.0
        self.records = Records(folder, [])

    def resume(self) -> None:
        """Go on from the folder's state, with the very pictures and learning rates that were left."""
        notes = load_state(self.folder, self.stepper)
        if (notes["pictures"], notes["names"]) != (len(self.training), list(self.names)):
            raise ConfigError(
                f"{self.folder} was trained on {notes['pictures']} pictures of {', '.join(notes['names'])}, "
                f"the data now has {len(self.training)} of {', '.join(self.names)}; "
                "resume with the same data, or start anew with --weights"
            )
        self.step, self.best = notes["step"], notes["best"]
        self.seconds = notes["seconds"]
        self.records.rows = notes["rows"]

    def fit(self) -> None:
        """Train to the end. Ctrl-C (KeyboardInterrupt) saves the state after the current step and is raised again."""
        self.batches.start_step = self.step
        started = time.monotonic()
        train_mode(self.stepper.model)
        with Interrupt() as interrupt, contextlib.closing(self.records):
            for batch in self._loader():
                rate = learning_rate(self.step, self.steps, self.config.train)
                set_learning_rate(self.stepper.optimizer, rate)
                parts = self.stepper.step(batch.to(self.device))
                self.step += 1
                self.watch(self, parts)
                if self.step % self.batches.steps_per_epoch == 0:
                    now = time.monotonic()
                    self.seconds, started = self.seconds + now - started, now
                    self._end_epoch(rate, batch)
                if interrupt.asked and self.step < self.steps:
                    self.seconds += time.monotonic() - started
                    self.save()
                    raise KeyboardInterrupt

    def _loader(self) -> Iterable[Batch]:
        train = self.config.train
        fill = tuple(round(v) for v in self.config.model.mean)
        pictures = AugmentedPictures(
            self.training,
            self.config.model.input_size,
            find_augmentation(train.augmentation),
            seed=train.seed,
            fill=(fill[0], fill[1], fill[2]),
        )
        return load_batches(pictures, self.batches, choose_workers(train.workers), pin=self.device != "cpu")

    def _end_epoch(self, rate: float, batch: Batch) -> None:
        epoch = self.step // self.batches.steps_per_epoch
        # AdamW shrinks weights apart from the loss: nothing of it is a penalty
        config = self.config
        decay = config.loss.l2_penalty or (config.train.weight_decay if config.train.optimizer == "sgd" else 0.0)
        with torch.no_grad():
            penalty = l2_penalty(self.stepper.model.named_parameters(), decay).item()
        row: Row = {
            "epoch": epoch,
            "step": self.step,
            "learning_rate": rate,
            "l2_loss": penalty,
            **self.stepper.means.row(),
        }
        if not math.isfinite(row["total_loss"] or 0.0):
            raise MultiboxError(
                f"the loss became {row['total_loss']} in epoch {epoch} (last pictures: {', '.join(batch.names[:4])}); "
                f"lower the learning rate, such as --set train.lr={self.config.train.lr / 4:g}, "
                "and look at the labels with `multibox data show`"
            )
        row["seconds"] = self.seconds
        self.stepper.means, self.seconds = Means(), 0.0
        every = validation_interval(self.config, self.batches.epochs)
        if self.validation is not None and (epoch % every == 0 or epoch == self.batches.epochs):
            row |= self.validation.score(self.stepper.weights())
            train_mode(self.stepper.model)
        self.records.add(row)
        if "val_map50" in row or epoch == self.batches.epochs or time.monotonic() - self.saved > SAVE_EVERY:
            self.save()
        self.say(row)

    def save(self) -> None:
        """Write last and best checkpoint, metrics and state."""
        last = self.records.rows[-1] if self.records.rows else {}
        metrics = {name: value for name, value in last.items() if name.startswith("val_")}
        state = self.stepper.weights().state_dict()
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        checkpoint = Checkpoint(state, self.config, self.names, {**metrics, "command": command}, self.source)
        save_checkpoint(self.folder / "last.safetensors", checkpoint)
        score = last.get("val_map50")
        if score is not None and score > self.best:
            self.best = float(score)
            save_checkpoint(self.folder / "best.safetensors", checkpoint)
        self.records.save()
        notes = {
            "pictures": len(self.training),
            "names": list(self.names),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "rows": self.records.rows,
        }
        save_state(self.folder, self.stepper, notes)
        self.saved = time.monotonic()


def count_epochs(config: Config, steps_per_epoch: int) -> int:
    """Return the epochs of a run: as set, or as many as `train.steps` needs."""
    if config.train.epochs > 0:
        return config.train.epochs
    return max(1, -(-config.train.steps // steps_per_epoch))


def validation_interval(config: Config, epochs: int) -> int:
    """Return the epochs between validations: as set, or about twenty validations a run."""
    return config.train.validate_every or max(1, epochs // 20)
