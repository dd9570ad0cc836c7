"""What is measured, whatever runs it: the one face of eager PyTorch, exported files and peers. No torch here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from multibox.benchmarking.clock import Seconds
from multibox.benchmarking.workload import Outputs, Pictures
from multibox.errors import MultiboxError
from multibox.structures import Detections

PARTS = ("preprocess", "network", "post-process")


class DisagreementError(MultiboxError):
    """Two sides of a comparison found different objects; times mean nothing then."""


class Subject(NamedTuple):
    """A detector in an engine."""

    name: str
    """Of engine and precision."""
    predict: Callable[[Pictures], list[Detections]]
    """Decoded pictures to detections above the config's score threshold."""
    run: Callable[[Pictures], Seconds]
    """The same, with a stopwatch: the seconds of `PARTS` (where they can be told apart) and of the whole."""
    post: Callable[[Outputs, tuple[int, int]], Callable[[], list[Detections]]] | None
    """From a network's outputs and the pictures' (width, height) to post-processing alone, ready to run."""
    flops: int | None
    """Of the network for one picture; a multiplication and an addition count as two."""
    ceiling: Callable[[], float]
    """Measures the FLOP/s of a large matrix product in the same engine and precision."""
    outputs: tuple[int, int] | None
    """Anchors and logits an anchor; None where they are not known."""
    score: Any
    """softmax or sigmoid."""
    threshold: float
    """Scores above it are candidates."""
    exact: bool
    """Computed in float32."""
    how: str
    """How the parts were told apart."""
