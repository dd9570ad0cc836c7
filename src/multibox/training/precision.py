"""The number format of the forward pass: which one a machine multiplies in hardware."""

import contextlib
from contextlib import AbstractContextManager

import torch

from multibox.config import TrainConfig

LOW_PRECISION = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(config: TrainConfig, device: str) -> str:
    """Return what `train.precision` says; for auto bfloat16 where the hardware multiplies it.

    Such hardware has AMX, AVX-512 BF16, or is a recent GPU. An older GPU gets float16, another CPU float32.
    """
    if config.precision != "auto":
        return config.precision
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if cpu_flags() & {"amx_bf16", "avx512_bf16"} else "float32"


def autocast(precision: str, device: str) -> AbstractContextManager[None]:
    """Return the context of the forward pass."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, LOW_PRECISION[precision])  # pyright: ignore[reportReturnType]


def make_scaler(precision: str, device: str) -> torch.amp.GradScaler:
    """Return what scales the loss of float16, whose small gradients would be 0; for other formats it does nothing."""
    return torch.amp.GradScaler(torch.device(device).type, enabled=precision == "float16")


def same_random_state(device: str) -> AbstractContextManager[None]:
    """Return a context that leaves the global random state as it was."""
    devices = [device] if device.startswith("cuda") else []
    return torch.random.fork_rng(devices=devices)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def cpu_flags() -> set[str]:
    """Return the processor's feature flags; none where the system does not list them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device file, not a path
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())
