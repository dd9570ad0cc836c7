"""The training loop. Everything it calls is a named helper beside it."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multibox import __version__
from multibox.analysis.advice import nothing_matched, score_stays_low
from multibox.config import Config
from multibox.data.decoded import DecodedSplits
from multibox.errors import ConfigError, in_words
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.tensors import Batch
from multibox.training.compiling import Compiling
from multibox.training.folder import Hold, Packed, load_state, pack_state, save_state, unpack_state
from multibox.training.journal import Journal
from multibox.training.loggers import start_loggers
from multibox.training.metric_files import Records, Row
from multibox.training.nan_watch import NanWatch
from multibox.training.norms import train_mode
from multibox.training.optimizer import learning_rate, set_learning_rate
from multibox.training.pacing import going_on, make_pace, out_of_patience
from multibox.training.ranks import ALONE, CommonClock, Ranks, own_slice
from multibox.training.reporter import Means, Reporter, describe_score
from multibox.training.samples import remove_later_samples, write_samples
from multibox.training.splits import decoded_for, load_training, order_images
from multibox.training.statistics import Summaries, image_statistics
from multibox.training.step import Stepper, draw_size, resize_batch
from multibox.training.stopping import EndNow, Interrupt
from multibox.training.summary import conclude
from multibox.training.tally import Tally
from multibox.training.threads import ThreadPlan
from multibox.training.validation import Validation

SAVING_SHARE = 0.05
"""Largest share of the time that saving by the clock may take."""
ENDLESS = 1 << 60
"""Steps of a timed run, as far as the order of the images is concerned."""
LOOK_EVERY = 10
"""Steps between two looks at whether any anchor was matched, until one was."""


class Trainer:
    """One run: a network, its data, and a folder that always holds a state to resume from.

    Nothing in a run draws from a global random state, so a resumed run equals one that never stopped. Every draw is a
    function of `train.seed` and its place: the fresh weights of the seed alone, the order of the images of (seed,
    epoch), an image's augmentation of (seed, epoch, index, copy), the input size of (seed, step). Fitted anchors use
    seed 0. What follows the clock or the machine is not reproducible: timed runs, `auto` threads and batch sizes.

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
        decoded: The images of both splits, through a store that is closed when training ends; None decodes each time.
        journal: Tells other programs how it goes; None makes one.
        ranks: The processes that train together; all call `fit`, and rank 0 writes the folder.
    """

    matched = False
    """Whether any anchor was matched in this process, as far as known."""
    validated = -1
    """Step of the last validation of this process."""
    due = 0.0
    """Share of the schedule after which the next validation is due, at the end of an epoch."""
    best = -1.0
    """Best mAP@0.5 of a validation."""
    rate = 0.0
    """Learning rate of the last step."""
    lost_boxes = 0
    """Objects that augmentation cut away, in all steps."""
    seconds = 0.0
    """Of the epoch at hand, loading included."""
    saved = 0.0
    """When the state was saved last, in seconds of `time.monotonic()`."""
    saved_at = (-1, -1)
    """Step and number of rows of the state in the folder."""
    interrupted = False
    """True if Ctrl-C or SIGTERM arrived when nothing was left to stop but what follows the run."""

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
        decoded: DecodedSplits | None = None,
        journal: Journal | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.ranks, self.clock = ranks, CommonClock(ranks)
        self.source, self.known, self.training = source, known, training
        self.reporter = reporter or Reporter()
        self.stepper = Stepper(model, config, device=device, precision=precision, ranks=ranks)
        self.decoded = decoded
        images = decoded and decoded.validation
        self.validation = None if validation is None else Validation(validation, config, device, images, ranks)
        self.batches = order_images(training, config)
        self.batches.own = own_slice(ranks, self.batches.batch_size)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.pace = make_pace(config, self.steps_per_epoch, started, self.clock)
        self.batches.steps = self.pace.fixed or ENDLESS
        self.pace.batches = 0.0 if validation is None else len(validation) / self.batches.batch_size
        self.nans = NanWatch(folder, self.stepper, training.class_names, lambda text: self.reporter.note(text))
        self.findings = list(findings)
        self.positives = torch.zeros((), device=device)
        """Matched anchors of all steps of this process."""
        self.warned: set[str] = set()
        self.lapped = self.clock()
        self.interrupt = Interrupt(folder, alone=ranks.count == 1)
        self.compiling = Compiling(config, self.reporter.note, self.interrupt.heard_at_once)
        self.records = Records(folder, [], writes=ranks.writes)
        self.journal = journal or Journal(folder, config.preset, device, started, writes=ranks.writes)
        self.hold = hold
        self.tally = Tally(folder, training, config.model.score, ranks)
        self.stepper.watch = self.tally.add
        self.statistics: Summaries = {}
        """Of the training images."""

    @property
    def finished(self) -> bool:
        """Whether the last step is done and recorded, or patience has run out."""
        done = self.pace.finished and not self.owes_row
        return done or out_of_patience(self.records.rows, self.config.train.patience)

    @property
    def owes_row(self) -> bool:
        """Whether the last step ended an epoch that is not recorded: the run was asked to end in its validation."""
        rows, step = self.records.rows, self.pace.step
        ended = self.pace.finished or (step > 0 and step % self.steps_per_epoch == 0)
        return ended and (not rows or int(rows[-1]["step"] or 0) < step)

    def resume(self) -> None:
        """Go on from the folder's state, with the very images and learning rates that were left."""
        notes, more = load_state(self.folder, self.stepper)
        self._restore(notes, more)
        self.saved, self.saved_at = self.clock(), (self.pace.step, len(self.records.rows))
        if self.finished:
            # A timed run may have taken longer than its minutes, and the minutes may be new
            done = f"{self.pace.spent / 60:.1f} minutes" if self.pace.seconds else f"{self.pace.step} steps"
            raise ConfigError(
                f"{self.folder} is finished, nothing is left to train; give more --minutes or --epochs than its "
                f"{done}, or start another run from its weights: --weights {self.folder}"
            )
        self.journal.cut(self.pace.step, ended=not self.owes_row)
        self.records.rewind(self.pace.step)
        before = notes.get("torch", torch.__version__), self.ranks.count, notes.get("processes", self.ranks.count)
        self.reporter.note(going_on(self.pace, self.config, self.device, *before))
        remove_later_samples(self.folder, self.pace.step)

    def _restore(self, notes: dict[str, Any], more: dict[str, Tensor]) -> None:
        self.pace.restore(notes["pace"])
        self.due, self.best, self.seconds = notes["due"], notes["best"], notes["seconds"]
        self.records.rows, self.lost_boxes = notes["rows"], notes.get("lost_boxes", 0)
        self.tally.restore(notes.get("ledger_epochs", 0), more)
        self.known = notes.get("known", False)
        self.nans.restore(self.pace.step, notes.get("nans", {}))

    def packed(self) -> Packed:
        """Return the state for the processes that train with this one."""
        notes: dict[str, Any] = {**self._notes(), "saved_at": self.saved_at}
        notes["pace"]["spent"] = self.pace.spent  # They began when this process did
        return pack_state(self.stepper, notes, self.tally.state())

    def follow(self, packed: Packed) -> None:
        """Begin with the state of rank 0."""
        notes, more = unpack_state(self.stepper, packed)
        self._restore(notes, more)
        self.saved_at = notes["saved_at"]
        self.lost_boxes = 0  # Counted there already

    def fit(self) -> None:
        """Train to the end, or until patience runs out.

        Ctrl-C (KeyboardInterrupt), SIGTERM and SIGHUP (Terminated) save the state after the current step, or at once
        while the run starts, waits for images or validates, and are raised again. So does the file `stop` (as Ctrl-C).
        """
        asked = self.config.train.threads
        plan = ThreadPlan(asked, fixed=asked != "auto") if self.device == "cpu" else contextlib.nullcontext()
        # One loader for all epochs: it prepares images of the next one while this one is validated
        decoded = self.decoded and self.decoded.training
        images = contextlib.closing(
            load_training(self.training, self.config, self.batches, self.device, self.reporter, decoded)
        )
        with self.interrupt, contextlib.closing(self.records), self._released(), plan as threads, images as batches:
            try:
                self._begin()
                self._train(batches, threads)
            except EndNow:
                self._save_at_stop()
                raise self.interrupt.reason() from None
            self.interrupted = self.interrupt.asked
            self._gather_lost()
            conclude(self)

    def _begin(self) -> None:
        self.saved = self.clock.look()
        self.batches.start_step = self.pace.step
        self._plan_mixing()
        train_mode(self.stepper.model)
        self.stepper.join()
        self.tally.begin()
        self.reporter.begin(self)
        self.journal.listeners.append(self.records.take)
        with self.interrupt.heard_at_once():
            start_loggers(self)
        self.journal.begin(self)
        if self.saved_at[0] < 0:
            # From here on the folder can be resumed, whatever happens before the first epoch ends
            self._save_state()
        # Before the first step, as a timed run must know what is left
        if self.ranks.writes:
            images = self.decoded.training if self.decoded else decoded_for(self.training, self.config)
            with self.interrupt.heard_at_once():
                self.statistics = image_statistics(self.training, images)
        self._lap()
        if self.known and self.validation is not None and not self.records.rows:
            self._score_start(self.validation)

    def _train(self, batches: Iterator[Batch], threads: ThreadPlan | None) -> None:
        """Take one step after the other, and end the epochs, until the run is finished."""
        if self.owes_row:
            self._end_epoch(threads)
        while not self.finished:
            with self.interrupt.heard_at_once():
                batch = next(batches)
            self._step(batch, threads)
            if self.clock.asked and self.ranks.count > 1:
                raise EndNow
            if self.owes_row:
                self._end_epoch(threads)
            elif self.state_due():
                self.nans.check(wait=True)
                self.save()
                if threads:
                    threads.pause()

    def state_due(self) -> bool:
        """Return whether the clock says that the state should be saved, where no validation and no end saves it."""
        wait = max(60 * self.config.train.save_minutes, self.pace.saving / SAVING_SHARE)
        return self.clock() - self.saved >= wait

    def _save_at_stop(self) -> None:
        """Save the state of the last step, unless it is the one in the folder."""
        self.nans.check(wait=True)
        if self.saved_at != (self.pace.step, len(self.records.rows)):
            self.save()
        if self.interrupt.found:
            self.reporter.note(f"the file {self.interrupt.file} asked the run to end")

    def _step(self, batch: Batch, threads: ThreadPlan | None) -> None:
        if self.pace.position >= self.config.train.freeze_until:
            self.stepper.thaw()
        self.rate = learning_rate(*self.pace.schedule(), self.config.train)
        set_learning_rate(self.stepper.optimizer, self.rate)
        size = draw_size(self.config, self.pace.step)
        if threads:
            threads.before_step()
        self.nans.look_at_labels(batch)
        on_device = resize_batch(batch.to(self.device), size)
        if self.compiling.choose(self.stepper, on_device, self.pace):
            self.seconds += self._lap()
        parts = self.stepper.step(on_device)
        self.nans.check()
        self.positives += parts.positives
        self.lost_boxes += batch.lost_boxes
        took = self._lap(self.interrupt.asked)
        if threads:
            threads.after_step(took, work=size.height * size.width)
        self.seconds += took
        self.pace.advance(took)
        self._plan_mixing()
        if not self.matched and self.pace.step % LOOK_EVERY == 0:
            self.matched = bool(self.positives)
            self._warn("positives", nothing_matched(self.pace.step, int(self.matched), self.findings))
        self.reporter.step(self, parts)
        self.journal.step(self, took)

    def _end_epoch(self, threads: ThreadPlan | None) -> None:
        """Record the epoch's metrics; validate and save where it is time to.

        Nothing of the run changes before the validation is over: if it is ended there, a resumed run begins it anew.
        """
        self.nans.check(wait=True)
        epoch = -(-self.pace.step // self.steps_per_epoch)
        step, steps = self.pace.schedule()
        row: Row = {
            "epoch": epoch,
            "step": self.pace.step,
            "learning_rate": learning_rate(max(0, step - 1), steps, self.config.train),
            "l2_loss": self.stepper.penalty(),
            **self.stepper.means.row(),
            "seconds": self.seconds,
        }
        if self.validation is not None and (self.pace.finished or self._validation_due()):
            row |= self._validate(self.validation)
        self.stepper.means, self.seconds = Means(), 0.0
        self.records.add(row)
        self.journal.epoch(self, row)
        self.tally.end_epoch(epoch, self.pace.step)
        if "val_map50" in row or self.pace.finished or self.state_due():
            self.save()
        self.reporter.row(self, row)
        self._warn("score", score_stays_low(self.records.rows, self.findings))
        if threads:
            threads.pause()

    def _warn(self, about: str, sentence: str | None) -> None:
        """Tell a warning once."""
        if sentence is not None and about not in self.warned:
            self.warned.add(about)
            self.reporter.note(sentence)

    def _plan_mixing(self) -> None:
        """Tell the loader from which step on images are no longer mixed, as far as the run is planned now."""
        if (total := self.pace.total) is not None:
            self.batches.mixed_steps = int(self.config.train.mix_until * total)

    def _lap(self, asked: bool = False) -> float:
        """Return the seconds since the last lap: of a step with the wait for its batch, of a validation, of a save.

        All processes measure the same, and hear whether any was asked to end.
        """
        now = self.clock.look(asked)
        took, self.lapped = now - self.lapped, now
        return took

    def _score_start(self, validation: Validation) -> None:
        """Score the weights that the run starts from and keep them as best, until training is better."""
        row: Row = {"epoch": 0, "step": 0, **self._validate(validation)}
        self.records.add(row)
        self.journal.epoch(self, row)
        self.save()
        self.reporter.note(
            f"before the first step: mAP@0.5 {describe_score(row['val_map50'])}; best.safetensors are these weights "
            "until training is better"
        )

    def _validate(self, validation: Validation) -> Row:
        self.reporter.waiting("validating")
        self.journal.update("validating", self)
        self._lap()
        with self.interrupt.heard_at_once():
            row = validation.score(self.stepper.weights(), self._look_up)
        if self.ranks.writes:
            drawn = write_samples(self.folder, self.pace.step, validation.sample_sheet())
            self.journal.validation(self, row, drawn)
        self.pace.validation = self._lap()
        self.validated = self.pace.step
        self.due = self.pace.position + self._interval()
        train_mode(self.stepper.model)
        return row

    def _look_up(self) -> None:
        """Look between two batches of a validation whether the run should end; say that it goes on."""
        self.interrupt.check()
        self.journal.update("validating", self)

    def _interval(self) -> float:
        """Return the share of the run between validations."""
        every = self.config.train.validate_every
        if every == "auto":
            return 1 / self.pace.validations - 1e-9
        return every * self.steps_per_epoch / max(1, self.pace.total or 1) - 1e-9

    def _validation_due(self) -> bool:
        first = self.validated < 0 and not self.due
        return self.pace.position >= (self._interval() if first else self.due)

    def save(self) -> None:
        """Write last and best checkpoint, metrics and state, by rank 0; all processes call it.

        Raises:
            MultiboxError: The weights are not finite; nothing is written.
        """
        self.nans.check_weights()
        self._lap()
        # A row of an earlier step says nothing of these weights
        rows = self.records.rows
        last = rows[-1] if rows and rows[-1]["step"] == self.pace.step else {}
        metrics = {name: value for name, value in last.items() if name.startswith("val_")}
        checkpoint = Checkpoint(
            self.stepper.weights().state_dict(),
            self._checkpoint_config(),
            self.training.class_names,
            {**metrics, "measured_by": f"multibox {__version__} train, step {self.pace.step}"} if metrics else {},
            self.source,
            merge=self.config.data.merge,
            statistics=self._all_statistics(),
        )
        if self.ranks.writes:
            save_checkpoint(self.folder / "last.safetensors", checkpoint)
        score = last.get("val_map50")
        if score is not None and score > self.best:
            self.best = float(score)
            if self.ranks.writes:
                save_checkpoint(self.folder / "best.safetensors", checkpoint)
        self.records.save()
        self._save_state()
        self.pace.saving = self._lap()

    def _all_statistics(self) -> Summaries:
        """Return the statistics for a checkpoint: those of detections only if these very weights were validated."""
        if self.validation is None or self.validated != self.pace.step:
            return self.statistics
        return {**self.statistics, **self.validation.statistics()}

    def _save_state(self) -> None:
        self.nans.check_weights()
        self._gather_lost()
        self.tally.merge()
        if self.ranks.writes:
            save_state(self.folder, self.stepper, self._notes(), self.tally.state())
        self.saved, self.saved_at = self.clock(), (self.pace.step, len(self.records.rows))

    def _gather_lost(self) -> None:
        """Let rank 0 have the count of all processes."""
        self.lost_boxes = sum(self.ranks.gather(self.lost_boxes)) * self.ranks.writes

    def _notes(self) -> dict[str, Any]:
        return {
            "nans": self.nans.state(),
            "pace": self.pace.state(),
            "due": self.due,
            "best": self.best,
            "seconds": self.seconds,
            "rows": self.records.rows,
            "lost_boxes": self.lost_boxes,
            "ledger_epochs": self.tally.epochs,
            "known": self.known,
            "torch": torch.__version__,
            "processes": self.ranks.count,
        }

    def _checkpoint_config(self) -> Config:
        """Return the config for a checkpoint: no paths, and thresholds only if these very weights were validated."""
        config = self.config.updated({"train.weights": Path(self.config.train.weights).name})
        if self.validation is None or self.validated != self.pace.step:
            return config
        return config.updated({"post.thresholds": self.validation.thresholds})

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        """Tell at the end, however it comes, how the run ended."""
        try:
            yield
        except KeyboardInterrupt:
            self.journal.update("stopped", self)
            raise
        except BaseException as error:
            # A full disk is no reason to hide what went wrong first
            with contextlib.suppress(OSError):
                self.journal.update("failed", self, in_words(error))
            raise
        self.journal.update("finished", self)

    @contextlib.contextmanager
    def _released(self) -> Generator[None]:
        """Leave the folder to others afterwards, and cuDNN as it was."""
        before = torch.backends.cudnn.benchmark
        # Steps have one shape, or few (train.scales): let cuDNN try its kernels for each and keep the fastest
        torch.backends.cudnn.benchmark = before or self.device != "cpu"
        try:
            with self._told():
                yield
        finally:
            torch.backends.cudnn.benchmark = before
            if self.decoded is not None:
                self.decoded.close()
            if self.hold is not None:
                self.hold.close()
