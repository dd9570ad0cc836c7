"""Which machine a figure comes from, and the most that it computes. No torch unless torch is what is asked about."""

import datetime
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from multibox import __version__
from multibox.benchmarking.clock import timed

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
