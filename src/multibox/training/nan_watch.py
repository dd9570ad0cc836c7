"""What a run does about steps that are not finite and losses that grow: stop, leave a batch out, or warn."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from multibox.config import Config
from multibox.errors import MultiboxError, WeightsError
from multibox.tensors import Batch
from multibox.training.folder import saved_weights
from multibox.training.guard import Step
from multibox.training.nan_causes import Cause, Evidence, class_cause, find_cause, lower_rate, odd_classes, try_earlier
from multibox.training.nan_measures import Measured, measure
from multibox.training.nan_report import FORMAT, Report, write_report
from multibox.training.optimizer import known_rate
from multibox.training.step import Stepper

DIVERGED, FOR_STEPS = 10.0, 100
"""A run diverges if its loss is above so many times its best mean for so many steps."""
DROPPED = 10
"""Steps in a row from which it is told that none changed anything."""
MEAN, FIRST = 20, 3
"""Losses per mean, and those looked at before there is one."""


class Divergence:
    """Notices once that the loss stays far above its best mean."""

    def __init__(self) -> None:
        self.recent: list[float] = []
        self.first: list[float] = []
        """A run that diverges before there is a mean is measured by the largest of these."""
        self.best = math.inf
        self.above = 0
        """Steps in a row whose loss was too high."""
        self.told = False

    def add(self, loss: float) -> bool:
        """Note a loss; return whether to warn now."""
        self.above = self.above + 1 if loss > DIVERGED * self.best else 0
        self.recent = [*self.recent, loss][-MEAN:]
        if len(self.first) < FIRST:
            self.first.append(loss)
            self.best = max(self.first) if len(self.first) == FIRST else math.inf
        if len(self.recent) == MEAN:
            self.best = min(self.best, sum(self.recent) / MEAN)
        if self.above < FOR_STEPS or self.told:
            return False
        self.told = True
        return True


class NanWatch:
    """Looks after the steps of a run.

    Args:
        folder: The run folder.
        stepper: Makes the steps.
        class_names: Of the run.
        tell: Takes a sentence for the user.
    """

    def __init__(self, folder: Path, stepper: Stepper, class_names: Sequence[str], tell: Callable[[str], None]) -> None:
        self.folder, self.stepper, self.class_names, self.tell = folder, stepper, tuple(class_names), tell
        self.config: Config = stepper.config
        self.skipped = 0
        """Batches left out so far."""
        self.divergence = Divergence()
        self.dropped = 0
        """Steps in a row that changed nothing, as their gradients overflowed."""

    def look_at_labels(self, batch: Batch) -> None:
        """Refuse a class index that the network does not have; on a GPU it would end the process.

        Args:
            batch: On the host.

        Raises:
            MultiboxError: There is one; names image and label.
        """
        labels = batch.gt_labels
        if not labels.numel() or (int(labels.max()) < len(self.class_names) and int(labels.min()) >= -1):
            return
        guard = self.stepper.guard
        step = Step(guard.number + 1, batch, [g["lr"] for g in self.stepper.optimizer.param_groups], {}, [], 0, None)
        cause = class_cause(odd_classes([batch], len(self.class_names)))
        raise MultiboxError(self._write(self._report(step, [batch], None, Evidence(), cause), [batch]))

    def check(self, *, wait: bool = False) -> None:
        """Look at the steps that can be judged; leave out a bad batch if the run may, else stop.

        Args:
            wait: Judge every step so far, for which the host waits for a GPU.

        Raises:
            MultiboxError: A loss or gradient was not finite; the network is that of before.
        """
        guard = self.stepper.guard
        before = guard.history[-1][0] if guard.history else 0
        while (found := self.stepper.look_back(wait=wait)) is not None:
            step, later = found
            self._handle(step)
            self.stepper.make_again(later)
        for number, loss, norm in guard.history if self.stepper.guard.late else list(guard.history)[-1:]:
            if number > before:
                self._look_at(number, loss, norm)

    def check_weights(self) -> None:
        """Refuse weights that are not finite, before they replace good ones on disk.

        Raises:
            MultiboxError: Names the first of them.
        """
        self.check(wait=True)
        stepper = self.stepper
        networks = [stepper.model] if stepper.average is None else [stepper.model, stepper.average.module]
        tensors = [(n, t) for one in networks for n, t in one.state_dict().items() if t.is_floating_point()]
        finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in tensors])
        if bool(finite.all()):
            return
        name = tensors[int(finite.int().argmin())][0]
        # The same in all processes
        stepper.ranks.end(
            MultiboxError(
                f"values of {name} are not finite after step {stepper.guard.number}, so nothing is saved over the last "
                "good state; lower the learning rate, such as --set "
                f"train.lr={lower_rate(known_rate(self.config.train)):g}"
            )
        )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to know."""
        return {"skipped": self.skipped, "divergence": vars(self.divergence)}

    def restore(self, step: int, state: dict[str, Any]) -> None:
        """Go on from `state()` after `step` steps."""
        self.stepper.guard.number = step
        self.skipped = state.get("skipped", 0)
        vars(self.divergence).update(state.get("divergence", {}))

    def _handle(self, step: Step) -> None:
        batches = self.stepper.ranks.gather(step.batch.to("cpu"))
        batches = [batch.to(self.stepper.device) for batch in batches]
        measured = measure(self.stepper, batches)
        evidence = msgspec.structs.replace(self._evidence(batches), history=tuple(self.stepper.guard.history))
        cause = find_cause(self.stepper, batches, measured, evidence)
        report = self._report(step, batches, measured, evidence, cause)
        if self.config.train.on_nan == "stop" or self.skipped >= self.config.train.nan_skips:
            if self.config.train.on_nan == "skip":
                self.tell(f"{self.skipped} batches were left out already, the most of train.nan_skips")
            self.stepper.ranks.end(MultiboxError(self._write(report, batches)))
        self.skipped += 1
        sentence, most = self._write(report, batches), self.config.train.nan_skips
        if self.skipped > 1:
            sentence = f"{report.trouble}, likely by the {cause.kind}; see {self.folder / f'nan-{step.number}'}"
        self.tell(f"{sentence}; its batch is left out ({self.skipped} of at most {most}, train.nan_skips)")

    def _evidence(self, batches: Sequence[Batch]) -> Evidence:
        try:
            step, weights = saved_weights(self.folder)
        except WeightsError:
            return Evidence()
        return try_earlier(self.stepper, batches, step, weights)

    def _report(
        self, step: Step, batches: Sequence[Batch], measured: Measured | None, evidence: Evidence, cause: Cause
    ) -> Report:
        return Report(
            FORMAT, step.number, str(step.loss), str(step.norm), self.config.train.seed, self.stepper.device,
            self.stepper.precision, torch.get_num_threads(), tuple(step.rates), self.class_names,
            tuple(tuple(batch.image_names) for batch in batches), measured, evidence, cause,
        )  # fmt: skip

    def _write(self, report: Report, batches: Sequence[Batch]) -> str:
        """Write the folder of the step; return what happened in one sentence."""
        sentence = f"{report.trouble}: {report.cause.sentence}; {report.cause.advice}"
        if not self.stepper.ranks.writes:
            return sentence
        try:
            on_host = [batch.to("cpu") for batch in batches]
            folder = write_report(self.folder, self.stepper, self.config, report, on_host)
        except OSError as error:
            return f"{sentence}; the step could not be written for a replay ({error.strerror or error})"
        return f"{sentence}; the batch is in {folder}, and multibox train --replay {folder} repeats the step"

    def _look_at(self, step: int, loss: float, norm: float) -> None:
        if self.divergence.add(loss):
            self._warn(step, loss)
        # Gradients that overflow float16 are no bad step, but nothing is learnt from them
        self.dropped = 0 if math.isfinite(norm) else self.dropped + 1
        if self.dropped == DROPPED:
            self.tell(
                f"the gradients of {DROPPED} steps in a row overflowed {self.stepper.precision}, so none changed the "
                f"weights (step {step}); --set train.precision=float32 in another run, or bfloat16 where the "
                "machine has it"
            )

    def _warn(self, step: int, loss: float) -> None:
        rate = known_rate(self.config.train)
        self.tell(
            f"the loss has been above {DIVERGED:g} times its best mean ({self.divergence.best:.3g}) for {FOR_STEPS} "
            f"steps (step {step}: {loss:.3g}): the run diverges; stop it and start anew with a lower learning rate, "
            f"such as --set train.lr={lower_rate(rate):g}"
        )
