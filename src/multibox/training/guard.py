"""Keeps a step whose loss or gradient is not finite from changing anything, without making the host wait for a GPU.

On a CPU each step is judged before its update. On a GPU the host reads the outcome 5 to 10 steps later. Until then the
device itself holds back the update of that step and of all steps after it, so that the weights are those of before.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multibox.config import TrainConfig
from multibox.tensors import Batch
from multibox.training.optimizer import Average
from multibox.training.precision import make_scaler
from multibox.training.ranks import ALONE, Ranks

CHECK_EVERY = 5
"""Steps on a GPU whose outcomes are read together."""
REMEMBERED = 128
"""Steps whose loss and gradient norm are kept, to see how they grew."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of batch norms: what a forward pass changes."""


@dataclass(eq=False)
class Step:
    """One step, with all that it takes to make it again."""

    number: int
    """Counted from 1."""
    batch: Batch
    """As the network saw it, on the device."""
    rates: list[float]
    """Learning rate of each parameter group."""
    sums: dict[str, Tensor]
    """Running means of before."""
    statistics: list[Tensor]
    """Of the batch norms, before."""
    averaged: int
    scale: Tensor | None
    """What float16 multiplied the loss by."""
    outcome: Tensor | None = None
    """[3] on the device: 1 if the step must not count, loss, gradient norm."""
    bad: bool = False
    loss: float = 0.0
    norm: float = 0.0
    """Length of the whole gradient before it was clipped."""

    def take(self, outcome: Tensor) -> None:
        """Read the outcome, on the host."""
        self.bad, self.loss, self.norm = bool(outcome[0]), float(outcome[1]), float(outcome[2])


class Guard:
    """Judges the steps of one network.

    Args:
        model: The network.
        average: Of its weights, if there is one.
        optimizer: A fused one, which can be told on the device to change nothing.
        config: Settings of the training.
        device: Where to compute.
        precision: Number format of the forward pass.
        ranks: The processes that train together; they judge alike.
        late: Whether outcomes are read some steps later; by default on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        average: Average | None,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        *,
        device: str,
        precision: str,
        ranks: Ranks = ALONE,
        late: bool | None = None,
    ) -> None:
        self.average, self.optimizer, self.ranks = average, optimizer, ranks
        self.clip = None if config.clip_norm == "none" else config.clip_norm
        self.late = device.startswith("cuda") if late is None else late
        self.scaler = make_scaler(precision, device)
        self.number = 0
        """Of the step at hand, counted from 1."""
        self.history: deque[tuple[int, float, float]] = deque(maxlen=REMEMBERED)
        """Number, loss and gradient norm of the steps judged last."""
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._statistics = statistics_of(model)
        if self.late and average is not None:
            self._statistics += statistics_of(average.module)
        self._ring = [[tensor.clone() for tensor in self._statistics] for _ in range(1 + 2 * CHECK_EVERY * self.late)]
        self._one = torch.ones((), device=device)
        self._held = torch.zeros((), device=device)
        """1 from the first bad step on."""
        self._steps: deque[Step] = deque(maxlen=len(self._ring))
        """Not yet read, oldest first."""
        self._copy: tuple[int, Tensor, torch.Event | None] | None = None
        """Outcomes on their way to the host: of how many steps."""
        if self.late:
            self._begin_momentum()

    @torch.no_grad()
    def begin(self, batch: Batch, sums: dict[str, Tensor]) -> None:
        """Keep what the next step changes, and its batch by reference."""
        self.number += 1
        kept = self._ring[self.number % len(self._ring)]
        copy_all(kept, self._statistics)
        self._steps.append(
            Step(
                self.number,
                batch,
                [group["lr"] for group in self.optimizer.param_groups],
                sums,
                kept,
                0 if self.average is None else self.average.count,
                self.scaler.scale(self._one) if self.scaler.is_enabled() else None,
            )
        )

    @torch.no_grad()
    def allows(self, loss: Tensor) -> bool:
        """Judge the step by its loss and gradients, and clip these; return whether to make the update.

        On a GPU the update is always made; the device holds it back where it must not count.
        """
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        step = self._steps[-1]
        damaged = ~torch.isfinite(loss)
        overflown = ~torch.isfinite(norm)
        if step.scale is None:
            damaged |= overflown
        else:
            # Too large gradients are the scaler's business, until it has nothing left to divide by
            damaged |= step.scale < 1
        # The loss of the whole batch is the mean of those of the processes
        trouble, loss = self.ranks.mean(torch.stack([damaged.float(), loss.detach().float()])).unbind()
        bad = (trouble > 0).float()
        step.outcome = torch.stack([bad, loss, norm.float()])
        return self._holds_back(bad, overflown) if self.late else self._judge_now(step)

    @property
    def bad(self) -> bool:
        """Whether the host knows that the last step must not count."""
        return bool(self._steps) and self._steps[-1].bad

    def _holds_back(self, bad: Tensor, overflown: Tensor) -> bool:
        self._held = torch.maximum(self._held, bad)
        # The fused optimisers read it on the device, as they do for torch's scaler
        vars(self.optimizer)["found_inf"] = (
            torch.maximum(self._held, overflown.float()) if self.scaler.is_enabled() else self._held
        )
        self.scaler.update()
        return True

    @property
    def held(self) -> Tensor | None:
        """1 on the device where the update must not count; None where the host knows it."""
        return vars(self.optimizer)["found_inf"] if self.late else None

    def _judge_now(self, step: Step) -> bool:
        assert step.outcome is not None
        step.take(step.outcome.cpu())
        self.scaler.update(step.scale if step.bad else None)
        return not step.bad and math.isfinite(step.norm)

    def read(self, *, wait: bool = False) -> tuple[Step, list[Step]] | None:
        """Return the first bad step and those after it, taken back, if there is one among the steps that can be read.

        Args:
            wait: Read every step so far, for which the host waits for the device.
        """
        if not self.late:
            return self._look(len(self._steps))
        found = self._receive() if self._copy is not None and (wait or self._unsent() >= CHECK_EVERY) else None
        if found is None and self._unsent() >= (1 if wait else CHECK_EVERY):
            self._send()
            found = self._receive() if wait else None
        return found

    def _unsent(self) -> int:
        return len(self._steps) - (self._copy[0] if self._copy else 0)

    def _send(self) -> None:
        outcomes = [step.outcome for step in self._steps if step.outcome is not None]
        copy, arrived = start_copy(torch.stack(outcomes))
        self._copy = len(outcomes), copy, arrived

    def _receive(self) -> tuple[Step, list[Step]] | None:
        assert self._copy is not None
        count, copy, arrived = self._copy
        self._copy = None
        if arrived is not None:
            arrived.synchronize()
        for step, outcome in zip(self._steps, copy, strict=False):
            step.take(outcome)
        return self._look(count)

    def _look(self, count: int) -> tuple[Step, list[Step]] | None:
        for _ in range(count):
            step = self._steps.popleft()
            if step.bad:
                later = list(self._steps)
                self._take_back(step)
                return step, later
            self.history.append((step.number, step.loss, step.norm))
        return None

    @torch.no_grad()
    def _take_back(self, step: Step) -> None:
        """Return to before the step; weights and moments have not moved since."""
        copy_all(self._statistics, step.statistics)
        if self.average is not None:
            self.average.count = step.averaged
        if self.late and step.scale is not None:
            self.scaler.update(step.scale)
        self._held = torch.zeros_like(self._held)
        vars(self.optimizer).pop("found_inf", None)
        self._steps.clear()
        self._copy = None
        self.number = step.number

    def _begin_momentum(self) -> None:
        # torch's SGD makes the buffers in its first step and leaves them as they come where that is held back
        for group in self.optimizer.param_groups:
            if group.get("momentum"):
                for parameter in group["params"]:
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def statistics_of(model: nn.Module) -> list[Tensor]:
    """Return the statistics of a network's batch norms, not copied."""
    return [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in STATISTICS]


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors of any kinds by few kernels."""
    for floating in (True, False):
        chosen = [(t, s) for t, s in zip(targets, sources, strict=True) if t.is_floating_point() == floating]
        if chosen:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
                [t for t, _ in chosen], [s for _, s in chosen]
            )


def start_copy(tensor: Tensor) -> tuple[Tensor, torch.Event | None]:
    """Return a copy on the host; if it is still on its way from a GPU, with the event to wait for before it is read."""
    copy = tensor.to("cpu", non_blocking=tensor.is_cuda)
    return copy, torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None
