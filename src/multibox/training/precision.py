"""What this machine computes fastest in."""

import contextlib
from contextlib import AbstractContextManager

import torch

from multibox.config import TrainConfig


def choose_precision(config: TrainConfig, device: str) -> str:
    """Return float32 or bfloat16: the latter where the hardware multiplies it (AMX, AVX-512 BF16, recent GPUs)."""
    if config.precision != "auto":
        return config.precision
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    flags = cpu_flags()
    return "bfloat16" if flags & {"amx_bf16", "avx512_bf16"} else "float32"


def autocast(precision: str, device: str) -> AbstractContextManager[None]:
    """Return the context of the forward pass."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)  # pyright: ignore[reportReturnType]


def cpu_flags() -> set[str]:
    """Return the processor's feature flags where the system lists them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device file, not a path
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())
