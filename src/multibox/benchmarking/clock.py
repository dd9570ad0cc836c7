"""Stopwatch whose sides take turns, the machine's description, its ceiling and memory. No torch here."""

import datetime
import itertools
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from multibox import __version__
from multibox.limits import PROC, processor_name, read_kilobytes
from multibox.privacy import import_openvino

PAUSE = 0.05
"""Seconds between sides: the threads of the last one spin for a while before they sleep."""
TURN, MOST = 0.05, 10
"""Seconds that a turn lasts, and runs that end it earlier."""
WHOLE = "whole"
SIDE = 2048
"""Rows and columns of the matrices that measure the ceiling."""
TIMES = 5
PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "numpy", "pillow")

Seconds = dict[str, float]
"""Seconds of the parts of one run."""
Work = Callable[[], Seconds | None]
"""One run; if it returns None, the whole of it is timed."""


class Spread(NamedTuple):
    """Seconds of repeated runs."""

    median: float
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def seconds_of(parts: Sequence[str], stamps: Sequence[float]) -> Seconds:
    """Return the seconds of consecutive parts, given the times at which they begin and at which the last one ends."""
    return {part: after - before for part, (before, after) in zip(parts, itertools.pairwise(stamps), strict=True)}


def as_work(call: Callable[[], object]) -> Work:
    """Return a call as work that is timed as a whole."""

    def work() -> None:
        call()

    return work


def take_turns(
    sides: Mapping[str, Work], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Spread]]:
    """Run all sides in turn and return the spread of each side's parts.

    A turn begins with a run that does not count, because the other sides have filled the caches. Quick work then runs
    several times.

    Args:
        sides: work by name.
        rounds: turns of each side.
        tick: called after each turn.
    """
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            time.sleep(PAUSE)
            for part, values in _turn(work).items():
                found[name][part] += values
            tick()
    return {name: {part: _spread(values) for part, values in parts.items()} for name, parts in found.items()}


def _spread(seconds: list[float]) -> Spread:
    low, median, high = np.percentile(seconds, (10, 50, 90))
    return Spread(float(median), float(low), float(high))


def _turn(work: Work) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    work()
    end = time.perf_counter() + TURN
    for _ in range(MOST):
        started = time.perf_counter()
        parts = work() or {WHOLE: time.perf_counter() - started}
        for part, value in parts.items():
            found[part].append(value)
        if time.perf_counter() > end:
            break
    return found


def describe() -> str:
    """Return processor, cores, load, versions and date, which every published time must state."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    packages = ", ".join(f"{package} {installed}" for package in PACKAGES if (installed := _version(package)))
    cores = f"{processor_name()}, {os.cpu_count()} cores"
    return (
        f"{cores}{load}; multibox {__version__}, Python {platform.python_version()}, "
        f"{packages}; {datetime.date.today().isoformat()}"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def torch_ceiling(precision: str) -> float:
    """Return FLOP/s of a large matrix product in PyTorch, in "float32" or "bfloat16"."""
    import torch

    left, right = (torch.randn(SIDE, SIDE).to(getattr(torch, precision)) for _ in range(2))
    return _rate(lambda: left @ right)


def numpy_ceiling() -> float:
    """Return FLOP/s of a large matrix product in numpy, in float32."""
    left, right = (_matrix(seed) for seed in range(2))
    return _rate(lambda: left @ right)


def openvino_ceiling(compile_model: Callable[[Any], Any]) -> float:
    """Return FLOP/s of a large matrix product in OpenVINO, compiled as `compile_model` compiles."""
    openvino = import_openvino()
    opset = openvino.opset13
    left = opset.parameter([SIDE, SIDE], openvino.Type.f32, "left")
    left.output(0).get_tensor().set_names({"left"})
    product = opset.matmul(left, opset.constant(_matrix(1)), False, True)
    # A reduction, so that the product is not copied out
    greatest = opset.reduce_max(product, opset.constant(np.array([1])), False)
    compiled = compile_model(openvino.Model([greatest], [left], "product"))
    feeds = {"left": _matrix(0)}
    return _rate(lambda: compiled(feeds, share_inputs=True))


def _matrix(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32)


def _rate(product: Callable[[], object]) -> float:
    """Return FLOP/s of the fastest of several products: a ceiling is what the machine can do."""
    product()
    return 2 * SIDE**3 / min(timed(product) for _ in range(TIMES))


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held so far; None if the system does not say."""
    # getrusage would count what the parent held when it started this process
    if (most := read_kilobytes(PROC / "self/status", "VmHWM:")) is not None:
        return most
    try:
        import resource
    except ModuleNotFoundError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
