"""How many pictures a step may have before memory runs out, found by trying."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path

import torch

from multibox.config import Config
from multibox.limits import available_memory, read_kilobytes
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.tensors import Batch
from multibox.training.norms import train_mode
from multibox.training.scales import largest_size
from multibox.training.step import Stepper

MOST_CPU, MOST_CUDA = 32, 128
FEW = 2
SHARE = 0.7
"""Of the available memory that a run on a CPU may take: pictures, workers and validation want theirs."""
OBJECTS = 16
"""Labels a picture while trying; matching's memory is small beside the network's."""


def choose_batch_size(model: SSD, config: Config, training: Dataset, *, device: str, precision: str) -> tuple[int, str]:
    """Return the largest power of two that fits, and the reason in words.

    At most 32 (CPU) or 128 (CUDA), and a quarter of the training pictures, but 2 at least: batch norms need two. Steps
    are tried on a copy of the network, at the largest of `train.scales`: on CUDA until memory runs out, on a CPU as far
    as their growth says that it will not.
    """
    cpu = device == "cpu"
    quarter = max(FEW, len(training) // 4)
    limit = 1 << (min(quarter, MOST_CPU if cpu else MOST_CUDA).bit_length() - 1)
    with torch.random.fork_rng(devices=[] if cpu else [device]):
        step = _make_step(model, config, device, precision)
        size = largest_predicted(step, limit) if cpu else _largest_that_runs(step, limit)
    if size is None:
        return limit, "memory could not be measured here"
    if size < limit:
        return max(FEW, size), f"memory has no room for {2 * max(FEW, size)}"
    return size, f"at most a quarter of {len(training)} pictures" if 2 * limit > quarter else f"the most for {device}"


def largest_predicted(step: Callable[[int], None], limit: int) -> int | None:
    """Return the largest doubling of `FEW` up to `limit` that memory has room for; None where the system is silent.

    Steps of 2, 4, 8 ... pictures are taken. A doubling adds twice what the one before added, so it is known to fit
    before it is tried: running out of memory ends a process on a CPU. (Memory that was freed and kept hides the first
    doublings; it is there for the later ones.)
    """
    size, high = FEW, _held("VmRSS:")
    while True:
        _forget_peak()
        step(size)
        peak, held, free = _held("VmHWM:"), _held("VmRSS:"), available_memory()
        if high is None or peak is None or held is None or free is None:
            return None
        grown, high = max(0, peak - high), max(peak, high)
        if 2 * size > limit or high + 2 * grown - held > SHARE * free:
            return size
        size *= 2


def _make_step(model: SSD, config: Config, device: str, precision: str) -> Callable[[int], None]:
    stepper = Stepper(copy.deepcopy(model), config, device=device, precision=precision)
    train_mode(stepper.model)
    height, width = largest_size(config)
    corner = torch.rand(1, OBJECTS, 2) * 0.7
    boxes = torch.cat([corner, corner + 0.1 + 0.2 * torch.rand(1, OBJECTS, 2)], 2)

    def step(pictures: int) -> None:
        images = torch.randint(0, 256, (pictures, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.zeros(pictures, OBJECTS, dtype=torch.int64)
        names, sizes = [""] * pictures, [(width, height)] * pictures
        stepper.step(Batch(images, boxes.expand(pictures, -1, -1).contiguous(), labels, names, sizes).to(device))

    return step


def _largest_that_runs(step: Callable[[int], None], limit: int) -> int:
    """Return the largest power of two up to `limit` whose step does not run out of the GPU's memory."""
    size = FEW
    fits = 0
    while size <= limit:
        try:
            # Two steps: the optimiser's moments come with the first, and twice the pictures leave room for validation
            step(size)
            step(size)
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            break
        fits, size = size, 2 * size
    torch.cuda.empty_cache()
    return fits


def _held(name: str) -> int | None:
    """Return the bytes that this process holds (VmRSS) or has held at most (VmHWM)."""
    return read_kilobytes(Path("/proc/self/status"), name)


def _forget_peak() -> None:
    # 5 sets the mark of the most memory back to what is held now
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
