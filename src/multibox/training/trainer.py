"""The training loop; everything it calls is a named helper beside it."""

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from multibox.config import Config
from multibox.data.augmentation import find_augmentation
from multibox.data.loading import AugmentedPictures, choose_workers, load_batches
from multibox.data.sampling import EpochBatches, repeat_factors
from multibox.errors import ConfigError, MultiboxError
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.tensors import Batch, LossParts
from multibox.training.interrupt import Interrupt
from multibox.training.norms import train_mode
from multibox.training.optimizer import check_schedule, learning_rate, set_learning_rate
from multibox.training.records import Means, Records, Row
from multibox.training.scales import check_scales, draw_size, resize_batch
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
        known: bool = False,
        watch: Callable[["Trainer", LossParts], None] = lambda trainer, parts: None,
        say: Callable[[Row], None] = lambda row: None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        check_scales(config)
        check_schedule(config.train)
        self.config = config
        self.folder = folder
        self.device = device
        self.source = source
        self.known = known
        """Whether the weights know every class before the first step; then they are scored first."""
        self.watch = watch
        self.say = say
        self.tell = tell
        self.names = training.class_names
        self.stepper = Stepper(model, config, device=device, precision=precision)
        self.validation = Validation(validation, config, device) if validation is not None else None
        self.training = training
        self.batches = order_pictures(training, config)
        self.steps = self.batches.epochs * self.batches.steps_per_epoch
        self.step = 0
        self.validated = -1
        self.best = -1.0
        self.seconds = 0.0
        self.saved = 0.0
        self.interrupted = False
        """Whether Ctrl-C came in the last step, when nothing was left to stop but what would follow."""
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
        if self.finished:
            self.tell(f"{self.folder} is finished, nothing is left to train; --weights starts another run from it")

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or patience has run out."""
        return self.step >= self.steps or out_of_patience(self.records.rows, self.config.train.patience)

    def fit(self) -> None:
        """Train to the end, or until patience runs out.

        Ctrl-C (KeyboardInterrupt) saves the state after the current step and is raised again.
        """
        self.batches.start_step = self.step
        started = time.monotonic()
        train_mode(self.stepper.model)
        with Interrupt() as interrupt, contextlib.closing(self.records):
            if self.finished:
                return
            if self.known and not self.records.rows:
                self._score_start()
            for batch in load_training(self.training, self.config, self.batches, self.device):
                if self.step >= round(self.config.train.freeze_until * self.steps):
                    self.stepper.thaw()
                rate = learning_rate(self.step, self.steps, self.config.train)
                set_learning_rate(self.stepper.optimizer, rate)
                parts = self.stepper.step(resize_batch(batch.to(self.device), draw_size(self.config, self.step)))
                self.step += 1
                self.watch(self, parts)
                if self.step % self.batches.steps_per_epoch == 0:
                    now = time.monotonic()
                    self.seconds, started = self.seconds + now - started, now
                    self._end_epoch(rate, batch)
                    if self.finished and self.step < self.steps:
                        self.tell(self._impatience())
                        break
                if interrupt.asked and self.step < self.steps:
                    self.seconds += time.monotonic() - started
                    self.save()
                    raise KeyboardInterrupt
            self.interrupted = interrupt.asked
            self._tell_if_in_vain()

    def _score_start(self) -> None:
        """Score the weights that the run starts from and keep them as best, until training is better."""
        if self.validation is None:
            return
        row: Row = {"epoch": 0, "step": 0, **self.validation.score(self.stepper.weights())}
        self.validated = 0
        train_mode(self.stepper.model)
        self.records.add(row)
        self.save()
        self.tell(
            f"before the first step: mAP@0.5 {row['val_map50']:.3f}; best.safetensors are these weights until training "
            "is better"
        )

    def _tell_if_in_vain(self) -> None:
        scored = [row for row in self.records.rows if row.get("val_map50") is not None]
        if len(scored) > 1 and scored[0]["step"] == 0 and scored[0]["val_map50"] == self.best:
            advice = "; a lower rate may improve on them, such as --set train.lr=3e-5"
            self.tell(
                f"no validation was better than the weights before the first step (mAP@0.5 {self.best:.3f}), so "
                f"best.safetensors are those{advice if self.config.train.lr > 1e-4 else ''}"
            )

    def _end_epoch(self, rate: float, batch: Batch) -> None:
        epoch = self.step // self.batches.steps_per_epoch
        row: Row = {
            "epoch": epoch,
            "step": self.step,
            "learning_rate": rate,
            "l2_loss": self.stepper.penalty(),
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
            self.validated = self.step
            train_mode(self.stepper.model)
        self.records.add(row)
        if "val_map50" in row or epoch == self.batches.epochs or time.monotonic() - self.saved > SAVE_EVERY:
            self.save()
        self.say(row)

    def _impatience(self) -> str:
        return (
            f"ended after epoch {self.step // self.batches.steps_per_epoch} of {self.batches.epochs}: "
            f"{self.config.train.patience} validations in a row were no better than mAP@0.5 {self.best:.3f}, whose "
            "weights are best.safetensors (train.patience); the learning rate's schedule was not shortened"
        )

    def _shipped(self) -> Config:
        """Return the config with the thresholds of these very weights, where they were validated."""
        if self.validation is None or self.validated != self.step:
            return self.config
        return self.config.updated({"post.thresholds": self.validation.thresholds})

    def save(self) -> None:
        """Write last and best checkpoint, metrics and state."""
        # A row of an earlier step says nothing of these weights
        last = self.records.rows[-1] if self.records.rows and self.records.rows[-1]["step"] == self.step else {}
        metrics = {name: value for name, value in last.items() if name.startswith("val_")}
        state = self.stepper.weights().state_dict()
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        checkpoint = Checkpoint(state, self._shipped(), self.names, {**metrics, "command": command}, self.source)
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


def order_pictures(training: Dataset, config: Config) -> EpochBatches:
    """Return which pictures each step of the run sees."""
    train = config.train
    repeats = repeat_factors(training) if train.sampling == "balanced" else None
    batches = EpochBatches(len(training), train.batch_size, epochs=1, seed=train.seed, repeats=repeats)
    batches.epochs = count_epochs(config, batches.steps_per_epoch)
    return batches


def load_training(training: Dataset, config: Config, batches: EpochBatches, device: str) -> Iterator[Batch]:
    """Yield `batches` of pictures, augmented and in memory from where `device` takes them."""
    train = config.train
    fill = tuple(round(v) for v in config.model.mean)
    pictures = AugmentedPictures(
        training,
        config.model.input_size,
        find_augmentation(train.augmentation),
        seed=train.seed,
        fill=(fill[0], fill[1], fill[2]),
        # Rounded down: a run of one epoch ends unmixed as well
        mixing_epochs=int(train.mix_until * batches.epochs),
    )
    return load_batches(pictures, batches, choose_workers(train.workers), pin=device != "cpu")


def count_epochs(config: Config, steps_per_epoch: int) -> int:
    """Return the epochs of a run: as set, or as many as `train.steps` needs."""
    if config.train.epochs > 0:
        return config.train.epochs
    return max(1, -(-config.train.steps // steps_per_epoch))


def out_of_patience(rows: Sequence[Row], patience: int) -> bool:
    """Return whether the last `patience` validations were no better than the best before them; 0 has no end."""
    scores = [score for row in rows if (score := row.get("val_map50")) is not None]
    return 0 < patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])


def validation_interval(config: Config, epochs: int) -> int:
    """Return the epochs between validations: as set, or about twenty validations a run."""
    return config.train.validate_every or max(1, epochs // 20)
