"""The training loop; everything it calls is a named helper beside it."""

import contextlib
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch

from multibox import __version__
from multibox.analysis.advice import nothing_matched, score_stays_low, what_would_help
from multibox.config import Config
from multibox.data.augmentation import find_augmentation
from multibox.data.loading import AugmentedImages, choose_workers, load_batches, use_processes
from multibox.data.sampling import EpochBatches, repeat_factors
from multibox.errors import ConfigError, MultiboxError
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.tensors import Batch, LossParts
from multibox.training.folder import Hold, load_state, save_state
from multibox.training.norms import train_mode
from multibox.training.optimizer import known_batch_size, known_rate, learning_rate, set_learning_rate
from multibox.training.pacing import Pace
from multibox.training.reporter import Means, Records, Reporter, Row
from multibox.training.step import Stepper, draw_size, resize_batch
from multibox.training.threads import ThreadPlan
from multibox.training.validation import Validation


class Interrupt:
    """While entered, the first SIGINT only sets `asked`; a second one raises KeyboardInterrupt at once.

    A step that is torn in two leaves weights and step count that do not belong together, and a resumed run would
    differ from one that never stopped.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        # Only the main thread may set handlers; elsewhere Ctrl-C is not ours to handle
        self.replaces = threading.current_thread() is threading.main_thread()
        if self.replaces:
            self.previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.replaces:
            signal.signal(signal.SIGINT, self.previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


SAVE_EVERY = 30.0
"""Seconds that a run may lose when the machine stops; Ctrl-C and the end lose none."""
ENDLESS = 1 << 60
"""Steps of a timed run, as far as the order of the images is concerned."""
CHECK_EVERY = 10
"""Steps between two looks at whether the loss is finite; each makes the host wait for the device."""


class Trainer:
    """One run: a network, its data, and a folder that always holds a state to resume from.

    Args:
        model: The network, with the weights to start from.
        config: Every setting of the run, `auto` already replaced.
        training: Images to learn from.
        validation: Images to validate on; None does without.
        folder: The run folder.
        device: Where to compute, such as "cpu" or "cuda".
        precision: Number format of the forward pass, "float32" or "bfloat16".
        source: One sentence about where the weights come from, for the checkpoints.
        known: True if the weights know every class before the first step; they are scored first then.
        reporter: Tells how it goes.
        started: `time.monotonic()` when the command began; a timed run counts from there.
        hold: Keeps other processes out of the folder; let go when training ends.
        findings: What is strange about the training boxes; the reason given if nothing is learned.
    """

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
        reporter: Reporter | None = None,
        started: float | None = None,
        hold: Hold | None = None,
        findings: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.source = source
        self.known = known
        self.reporter = reporter or Reporter()
        self.names = training.class_names
        self.stepper = Stepper(model, config, device=device, precision=precision)
        self.validation = Validation(validation, config, device) if validation is not None else None
        self.training = training
        self.batches = order_images(training, config)
        self.pace = make_pace(config, self.batches.steps_per_epoch, started)
        self.batches.steps = self.pace.fixed or ENDLESS
        self.pace.batches = 0.0 if validation is None else len(validation) / self.batches.batch_size
        self.findings = list(findings)
        self.positives = torch.zeros((), device=device)
        """Matched anchors of all steps of this process."""
        self.warned: set[str] = set()
        self.validated = -1
        self.due = 0.0
        """Position from which on the end of an epoch is validated."""
        self.best = -1.0
        self.seconds = 0.0
        self.saved = 0.0
        self.clock = time.monotonic()
        self.interrupted = False
        """True if Ctrl-C arrived during the last step, when only what follows was left to stop."""
        self.records = Records(folder, [])
        self.hold = hold

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or patience has run out."""
        return self.pace.finished or out_of_patience(self.records.rows, self.config.train.patience)

    def resume(self) -> None:
        """Go on from the folder's state, with the very images and learning rates that were left."""
        notes = load_state(self.folder, self.stepper)
        self.pace.restore(notes["pace"])
        self.due, self.best, self.seconds = notes["due"], notes["best"], notes["seconds"]
        self.records.rows = notes["rows"]
        if self.finished:
            raise ConfigError(
                f"{self.folder} is finished, nothing is left to train; give more --minutes or --epochs than its "
                f"{describe_length(self.config)}, or start another run from its weights: --weights {self.folder}"
            )

    def fit(self) -> None:
        """Train to the end, or until patience runs out.

        Ctrl-C (KeyboardInterrupt) saves the state after the current step and is raised again.
        """
        plan = ThreadPlan(self.config.train.threads) if self.device == "cpu" else contextlib.nullcontext()
        with Interrupt() as interrupt, contextlib.closing(self.records), self._released(), plan as threads:
            self._begin()
            for batch in self._load():
                parts = self._step(batch, threads)
                self.reporter.step(self, parts)
                if self.pace.step % self.batches.steps_per_epoch == 0 or self.pace.finished:
                    self._end_epoch(batch)
                    if threads:
                        threads.pause()
                if self.finished:
                    break
                if interrupt.asked:
                    self.save()
                    raise KeyboardInterrupt
            self.interrupted = interrupt.asked
            if not self.pace.finished:
                self.reporter.note(self._impatience())
            self._conclude()

    def _begin(self) -> None:
        self.batches.start_step = self.pace.step
        self._plan_mixing()
        train_mode(self.stepper.model)
        self.reporter.begin(self)
        self._lap()
        if self.known and not self.records.rows:
            self._score_start()
        elif not self.pace.step:
            # From here on the folder can be resumed, whatever happens before the first epoch ends
            self._save_state()

    def _load(self) -> Iterator[Batch]:
        return load_training(self.training, self.config, self.batches, self.device, self.reporter.note)

    def _step(self, batch: Batch, threads: ThreadPlan | None) -> LossParts:
        if self.pace.position >= self.config.train.freeze_until:
            self.stepper.thaw()
        step, steps = self.pace.schedule()
        set_learning_rate(self.stepper.optimizer, learning_rate(step, steps, self.config.train))
        size = draw_size(self.config, self.pace.step)
        if threads:
            threads.before_step()
        parts = self.stepper.step(resize_batch(batch.to(self.device), size))
        self.positives += parts.positives
        took = self._lap()
        if threads:
            threads.after_step(took, work=size[0] * size[1])
        self.seconds += took
        self.pace.advance(took)
        self._plan_mixing()
        if self.pace.step % CHECK_EVERY == 0:
            self._check_finite(parts.total.item(), batch)
            self._warn("positives", nothing_matched(self.pace.step, int(self.positives), self.findings))
        return parts

    def _warn(self, about: str, sentence: str | None) -> None:
        """Tell a warning once."""
        if sentence is not None and about not in self.warned:
            self.warned.add(about)
            self.reporter.note(sentence)

    def _plan_mixing(self) -> None:
        """Tell the loader from which step on images are no longer mixed, as far as the run is planned now."""
        if (total := self.pace.total) is not None:
            self.batches.mixed_steps = int(self.config.train.mix_until * total)

    def _lap(self) -> float:
        """Return the seconds since the last lap: of a step with the wait for its batch, of a validation, of a save."""
        now = time.monotonic()
        took, self.clock = now - self.clock, now
        return took

    def _check_finite(self, loss: float, batch: Batch) -> None:
        if not math.isfinite(loss):
            raise MultiboxError(
                f"the loss became {loss} at step {self.pace.step} (last images: {', '.join(batch.names[:4])}); "
                f"lower the learning rate, such as --set train.lr={known_rate(self.config.train) / 4:g}, "
                "and look at the labels with `multibox data show`"
            )

    def _score_start(self) -> None:
        """Score the weights that the run starts from and keep them as best, until training is better."""
        if self.validation is None:
            self._save_state()
            return
        row: Row = {"epoch": 0, "step": 0, **self._validate()}
        self.records.add(row)
        self.save()
        self.reporter.note(
            f"before the first step: mAP@0.5 {describe_score(row['val_map50'])}; best.safetensors are these weights "
            "until training is better"
        )

    def _validate(self) -> Row:
        assert self.validation is not None
        self.reporter.waiting("validating")
        self._lap()
        row = self.validation.score(self.stepper.weights())
        self.pace.validation = self._lap()
        self.validated = self.pace.step
        self.due = self.pace.position + self._interval()
        train_mode(self.stepper.model)
        return row

    def _interval(self) -> float:
        """Return the share of the run between validations."""
        every, epoch = self.config.train.validate_every, self.batches.steps_per_epoch
        if every == "auto":
            return 1 / self.pace.validations - 1e-9
        return every * epoch / max(1, self.pace.total or 1) - 1e-9

    def _end_epoch(self, batch: Batch) -> None:
        step, steps = self.pace.schedule()
        row: Row = {
            "epoch": -(-self.pace.step // self.batches.steps_per_epoch),
            "step": self.pace.step,
            "learning_rate": learning_rate(max(0, step - 1), steps, self.config.train),
            "l2_loss": self.stepper.penalty(),
            **self.stepper.means.row(),
        }
        self._check_finite(row["total_loss"] or 0.0, batch)
        row["seconds"] = self.seconds
        self.stepper.means, self.seconds = Means(), 0.0
        if self.validation is not None and (self.pace.finished or self._validation_due()):
            row |= self._validate()
        self.records.add(row)
        if "val_map50" in row or self.pace.finished or time.monotonic() - self.saved > SAVE_EVERY:
            self.save()
        self.reporter.row(self, row)
        self._warn("score", score_stays_low(self.records.rows, self.findings))

    def _validation_due(self) -> bool:
        if self.validated < 0 and not self.due:
            return self.pace.position >= self._interval()
        return self.pace.position >= self.due

    def _impatience(self) -> str:
        return (
            f"ended after step {self.pace.step} of {self.pace.total}: "
            f"{self.config.train.patience} validations in a row were no better than mAP@0.5 {self.best:.3f}, whose "
            "weights are best.safetensors (train.patience); the learning rate's schedule was not shortened"
        )

    def _conclude(self) -> None:
        """Say at the end what the run has come to, and in one sentence what would help most."""
        rows = self.records.rows
        if self._was_in_vain():
            return
        if self.warned:
            self.reporter.note(
                nothing_matched(self.pace.step, int(self.positives), self.findings)
                or score_stays_low(rows, self.findings)
                or "in the end the run found objects, in spite of the warning above"
            )
        elif self.validation is not None:
            more = shlex.join(["multibox", "train", "--resume", str(self.folder), *self._longer()])
            if advice := what_would_help(rows, self.training, self.validation.per_class, more):
                self.reporter.note(advice)

    def _longer(self) -> list[str]:
        """Return the options of a run twice as long."""
        train = self.config.train
        if train.minutes != "none":
            return ["--minutes", f"{2 * train.minutes:g}"]
        epochs = -(-2 * self.pace.step // self.batches.steps_per_epoch)
        return ["--epochs", str(epochs)]

    def _was_in_vain(self) -> bool:
        """Say so if no validation was better than the weights that the run started from."""
        scored = [row for row in self.records.rows if row.get("val_map50") is not None]
        if len(scored) < 2 or scored[0]["step"] != 0 or scored[0]["val_map50"] != self.best:
            return False
        advice = "; a lower rate may improve on them, such as --set train.lr=3e-5"
        self.reporter.note(
            f"no validation was better than the weights before the first step (mAP@0.5 {self.best:.3f}), so "
            f"best.safetensors are those{advice if known_rate(self.config.train) > 1e-4 else ''}"
        )
        return True

    def save(self) -> None:
        """Write last and best checkpoint, metrics and state."""
        self._lap()
        # A row of an earlier step says nothing of these weights
        rows = self.records.rows
        last = rows[-1] if rows and rows[-1]["step"] == self.pace.step else {}
        metrics = {name: value for name, value in last.items() if name.startswith("val_")}
        checkpoint = Checkpoint(
            self.stepper.weights().state_dict(),
            self._shipped(),
            self.names,
            {**metrics, "measured_by": f"multibox {__version__} train, step {self.pace.step}"} if metrics else {},
            self.source,
        )
        save_checkpoint(self.folder / "last.safetensors", checkpoint)
        score = last.get("val_map50")
        if score is not None and score > self.best:
            self.best = float(score)
            save_checkpoint(self.folder / "best.safetensors", checkpoint)
        self.records.save()
        self._save_state()
        self.pace.saving = self._lap()

    def _save_state(self) -> None:
        notes = {
            "pace": self.pace.state(),
            "due": self.due,
            "best": self.best,
            "seconds": self.seconds,
            "rows": self.records.rows,
        }
        save_state(self.folder, self.stepper, notes)
        self.saved = time.monotonic()

    def _shipped(self) -> Config:
        """Return the config with the thresholds of these very weights, where they were validated; without paths."""
        config = self.config.updated({"train.weights": Path(self.config.train.weights).name})
        if self.validation is None or self.validated != self.pace.step:
            return config
        return config.updated({"post.thresholds": self.validation.thresholds})

    @contextlib.contextmanager
    def _released(self) -> Iterator[None]:
        """Leave the folder to others afterwards, and cuDNN as it was."""
        before = torch.backends.cudnn.benchmark
        # Steps have one shape, or few (train.scales): let cuDNN try its kernels for each and keep the fastest
        torch.backends.cudnn.benchmark = before or self.device != "cpu"
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
            if self.hold is not None:
                self.hold.close()


def make_pace(config: Config, steps_per_epoch: int, started: float | None) -> Pace:
    """Return the pace of a run as long as `train.minutes`, `train.steps` or `train.epochs` says."""
    train = config.train
    if train.minutes != "none":
        return Pace(seconds=60 * train.minutes, started=started)
    steps = train.epochs * steps_per_epoch if train.epochs != "none" else train.steps
    assert steps != "none"  # the config holds one of the three
    return Pace(steps=steps, started=started)


def describe_length(config: Config) -> str:
    """Return a run's length in words, such as "10 minutes"."""
    for name in ("minutes", "epochs", "steps"):
        if (value := getattr(config.train, name)) != "none":
            return f"{value:g} {name}"
    return "none"


def describe_score(score: float | int | None) -> str:
    """Return a metric with three digits, or a dash where it does not exist."""
    return "-" if score is None else f"{score:.3f}"


def order_images(training: Dataset, config: Config) -> EpochBatches:
    """Return which images each step sees; how many steps there are, the caller says."""
    train = config.train
    repeats = repeat_factors(training) if train.sampling == "balanced" else None
    return EpochBatches(len(training), known_batch_size(train), seed=train.seed, repeats=repeats)


def load_training(
    training: Dataset,
    config: Config,
    batches: EpochBatches,
    device: str,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Batch]:
    """Yield `batches` of images, augmented and in memory from where `device` takes them."""
    train = config.train
    fill = tuple(round(v) for v in config.model.mean)
    images = AugmentedImages(
        training,
        config.model.input_size,
        find_augmentation(train.augmentation),
        seed=train.seed,
        fill=(fill[0], fill[1], fill[2]),
    )
    workers = choose_workers(train.workers, device)
    processes = use_processes(workers, device)
    return load_batches(images, batches, workers, pin=device != "cpu", processes=processes, tell=tell)


def out_of_patience(rows: Sequence[Row], patience: int | str) -> bool:
    """Return whether the last `patience` validations were no better than the best before them; "none" has no end."""
    if not isinstance(patience, int):
        return False
    scores = [score for row in rows if (score := row.get("val_map50")) is not None]
    return patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])
