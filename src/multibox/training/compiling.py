"""Whether a run's steps are compiled by torch.compile: measured once at the start of a long run, and told."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from multibox.config import Config
from multibox.errors import one_line
from multibox.models.anchor_layout import FeatureShapes
from multibox.structures import Size
from multibox.tensors import Batch, HeadOutputs
from multibox.training.accumulating import Computed, split_batch
from multibox.training.pacing import MEASURED, Pace
from multibox.training.precision import same_random_state
from multibox.training.reporter import describe_seconds
from multibox.training.spans import Spans, no_spans
from multibox.training.step import Network, Stepper, anchors_at, compute_loss

LONG = {"gpu": 30 * 60.0, "cpu": 3 * 3600.0}
"""Seconds that must be left of a run before `auto` tries. Compiling takes minutes, and on a CPU it seldom pays."""
ROUNDS = 5
"""Steps of each kind that are compared, in turn."""
GAIN = 1.03
"""How many times as fast a compiled step must be to be used; less is lost in the noise."""
FEW_OBJECTS = 32
"""Most objects per image, padding included, with which `auto` tries to compile matching as well."""
THREADS_MAY_CHANGE = {"cpp.dynamic_threads": True}
"""Option of the compiler: its loops take as many threads as PyTorch has when they run, see `ThreadPlan`."""


class CompiledNetwork:
    """The loss of a batch by a compiled network; targets and loss are computed as they are."""

    name = "the network"

    def __init__(self) -> None:
        self.known: tuple[Network, Network] | None = None
        """The network and what it was compiled to."""

    def __call__(
        self,
        network: Network,
        batch: Batch,
        config: Config,
        precision: str,
        spans: Spans = no_spans,
        *across: Any,
    ) -> Computed:
        """Compute as `compute_loss` does; another network is compiled anew."""
        if self.known is None or self.known[0] is not network:
            self.known = network, compiled(network)
        return compute_loss(self.known[1], batch, config, precision, spans, *across)


class CompiledWhole:
    """The loss of a batch by one compiled function of network, targets and loss; the span `forward` holds all three.

    Every anchor has a row in the targets, so that no shape depends on the labels.
    """

    name = "network, targets and loss"

    def __init__(self) -> None:
        self.run: Any = compiled(_compute_all)
        self.shapes: dict[Size, FeatureShapes] = {}
        """Of the feature maps, by input size."""

    def __call__(
        self,
        network: Network,
        batch: Batch,
        config: Config,
        precision: str,
        spans: Spans = no_spans,
        *across: Any,
    ) -> Computed:
        """Compute as `compute_loss` does; the first batch of a size is not compiled, it tells the maps' shapes."""
        size, device = Size(*batch.images.shape[2:]), str(batch.images.device)
        if size not in self.shapes:
            computed = compute_loss(network, batch, config, precision, spans, *across)
            self.shapes[size] = computed[0].feature_shapes
            return computed
        anchors = anchors_at(config, self.shapes[size], size, device)
        with spans("forward"):
            logits, offsets, targets, parts = self.run(
                network, batch.images, batch.gt_xyxy, batch.gt_labels, anchors, config, precision, *across
            )
        return HeadOutputs(logits, offsets, self.shapes[size]), targets, parts


def _compute_all(
    network: Network,
    images: Tensor,
    gt_xyxy: Tensor,
    gt_labels: Tensor,
    anchors: Tensor,
    config: Config,
    precision: str,
    *across: Any,
) -> tuple[Any, ...]:
    """Compute the loss from tensors alone: names of images would be compiled anew for each batch."""
    batch = Batch(images, gt_xyxy, gt_labels, [], [])
    outputs, targets, parts = compute_loss(network, batch, config, precision, no_spans, *across, anchors=anchors)
    return outputs.logits, outputs.offsets, targets, parts


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function as torch.compile makes it; it is compiled when it is called."""
    options: dict[str, Any] = {**THREADS_MAY_CHANGE, "guard_filter_fn": _all_but_threads}
    return torch.compile(function, options=options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _all_but_threads(guards: list[Any]) -> list[bool]:
    """Tell which of the checks before each call stay: all but that of PyTorch's global state.

    Another number of threads is no reason to compile anew, and the rest of that state is the same in every step.
    """
    return [guard.guard_type != "GLOBAL_STATE" for guard in guards]


class Compiling:
    """The choice of a run: compiled steps or plain ones.

    Args:
        config: Its `train.compile` says what is asked for.
        tell: Gets the sentence about it.
        endable: Gives the context in which the run may be ended at once: compiling takes minutes.
    """

    def __init__(
        self,
        config: Config,
        tell: Callable[[str], None],
        endable: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.asked = config.train.compile
        self.several_sizes = config.train.scales[0] != config.train.scales[1]
        self.tell = tell
        self.endable = endable
        self.done = self.asked == "off"

    def choose(self, stepper: Stepper, batch: Batch, pace: Pace) -> bool:
        """Give the stepper compiled steps, once, if they were asked for or pay; return whether anything was measured.

        `auto` waits until steps are measured, so that short runs lose no time. Weights, gradients, statistics of batch
        norms and the global random state are as before afterwards.
        """
        if self.done or (self.asked == "auto" and len(pace.durations) < MEASURED):
            return False
        self.done = True
        left = stepper.ranks.agree([math.inf if pace.time_left is None else pace.time_left])[0]
        if self.asked == "auto" and (self.several_sizes or left < LONG["cpu" if stepper.device == "cpu" else "gpu"]):
            return False
        part = split_batch(batch, stepper.config.train.accumulate)[0]
        for make in self._candidates(stepper, batch.gt_labels.shape[1]):
            compute = make()
            try:
                with self.endable():
                    cost, plain, fast = measure(stepper, part, compute)
            except Exception as error:
                # Whatever a compiler raises, the run goes on without it
                said = one_line(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")[:200]
                self.tell(
                    f"torch.compile of {make.name} failed ({said}), so steps are not compiled; "
                    "--set train.compile=off leaves the attempt out"
                )
                continue
            cost, plain, fast = stepper.ranks.agree([cost, plain, fast])
            took = f"torch.compile of {make.name} took {describe_seconds(cost)}; a step takes"
            times = f"{1000 * fast:.3g} instead of {1000 * plain:.3g} ms"
            if plain >= GAIN * fast or self.asked != "auto":
                stepper.loss_of = compute
                saved = left * (1 - fast / plain)
                self.tell(
                    f"{took} {times} from now on"
                    + (f", which saves about {describe_seconds(saved)} of the run" if 0 < saved < math.inf else "")
                )
                break
            self.tell(f"{took} {times}, so steps are not compiled; --set train.compile=off leaves the attempt out")
        release_compiler()
        return True

    def _candidates(self, stepper: Stepper, objects: int) -> list[type[CompiledNetwork] | type[CompiledWhole]]:
        """Return what to try, the best guess first."""
        if self.asked == "network" or stepper.ranks.count > 1:
            # Processes tell each other counts inside the loss, which is not compiled
            return [CompiledNetwork]
        if self.asked == "whole":
            return [CompiledWhole]
        # On a CPU a row per anchor costs more than compiling brings, and each object is a round of matching to compile
        few = stepper.device != "cpu" and objects <= FEW_OBJECTS
        return [CompiledWhole, CompiledNetwork] if few else [CompiledNetwork]


def measure(stepper: Stepper, batch: Batch, compute: Callable[..., Computed]) -> tuple[float, float, float]:
    """Return the seconds that compiling takes, and those of a plain and of a compiled forward and backward pass.

    The plain network is measured beside the compiled one, in turn, and the medians are compared. Nothing is learnt:
    gradients go nowhere and the statistics of batch norms are put back.
    """
    learning = [p for p in stepper.model.parameters() if p.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in stepper.model.buffers()]

    def seconds(compute: Callable[..., Computed]) -> float:
        _wait(stepper.device)
        began = time.perf_counter()
        _, _, parts = compute(stepper.model, batch, stepper.config, stepper.precision)
        torch.autograd.grad(parts.total, learning, allow_unused=True)
        _wait(stepper.device)
        return time.perf_counter() - began

    try:
        with same_random_state(stepper.device), warnings.catch_warnings():
            # What a compiler warns of is no business of who trains
            warnings.simplefilter("ignore")
            cost = seconds(compute) + seconds(compute) + seconds(compute)
            seconds(compute_loss)
            pairs = [(seconds(compute_loss), seconds(compute)) for _ in range(ROUNDS)]
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    plain, fast = (sorted(times)[ROUNDS // 2] for times in zip(*pairs, strict=True))
    return cost, plain, fast


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def release_compiler() -> None:
    """End the processes in which torch.compile compiled; they would hold memory for the rest of the run."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()
