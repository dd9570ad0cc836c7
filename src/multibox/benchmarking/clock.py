"""Stopwatch: sides take turns, and of each the median and the spread count. No torch here."""

import datetime
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multibox import __version__

SIDE = 2048
"""Of the square matrices that the ceiling is measured with."""
TIMES = 5
PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "numpy", "pillow")


def describe() -> str:
    """Return processor, cores, load, versions and date, as every figure must state them."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    packages = ", ".join(f"{package} {installed}" for package in PACKAGES if (installed := _version(package)))
    return (
        f"{name}, {os.cpu_count()} cores{load}; multibox {__version__}, Python {platform.python_version()}, "
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
    import openvino
    from openvino import opset13

    left = opset13.parameter([SIDE, SIDE], openvino.Type.f32, "left")
    left.output(0).get_tensor().set_names({"left"})
    product = opset13.matmul(left, opset13.constant(_matrix(1)), False, True)
    # A reduction, so that the answer need not be handed over
    answer = opset13.reduce_max(product, opset13.constant(np.array([1])), False)
    compiled = compile_model(openvino.Model([answer], [left], "product"))  # pyright: ignore[reportGeneralTypeIssues]
    feeds = {"left": _matrix(0)}
    return _rate(lambda: compiled(feeds, share_inputs=True))


def _matrix(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32)


def _rate(product: Callable[[], object]) -> float:
    """The fastest of several counts: a ceiling is what the machine can do."""
    product()
    return 2 * SIDE**3 / min(timed(product) for _ in range(TIMES))


PAUSE = 0.05
"""Seconds between sides: the threads of the last one spin for a while before they sleep."""
TURN, MOST = 0.05, 10
"""A side's turn lasts so many seconds, or so many runs where those are more than enough."""

Seconds = dict[str, float]
"""Of the parts of one run."""
Work = Callable[[], Seconds | None]
"""One run; where it answers nothing, the whole of it is what counts."""
WHOLE = "whole"


class Spread(NamedTuple):
    """Of repeated runs, in seconds."""

    median: float
    low: float
    """10 % of the runs were faster."""
    high: float
    """90 % of them."""


def spread(seconds: list[float]) -> Spread:
    """Return the median and the 10th and 90th percentile."""
    low, median, high = np.percentile(seconds, (10, 50, 90))
    return Spread(float(median), float(low), float(high))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def take_turns(
    sides: Mapping[str, Work], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Spread]]:
    """Run all sides in turn and return, for each, the spread of its parts.

    A turn begins with a run that does not count, for the other sides have filled the caches; quick work then runs
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
    return {name: {part: spread(values) for part, values in parts.items()} for name, parts in found.items()}


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


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held so far; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count what the parent held when it started this process
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
