"""What a step takes of memory: estimated before it is taken, and the largest batch found by trying."""

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.limits import available_memory, read_kilobytes
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.tensors import Batch
from multibox.training.norms import train_mode
from multibox.training.step import MULTIPLE, Stepper, largest_size

MOST_CPU, MOST_CUDA = 32, 128
FEW = 2
SHARE = 0.7
"""Of the available memory that a run on a CPU may take: images, workers and validation want theirs."""
CAUTIOUS = 6000
"""Bytes per pixel of a training step that no network of ours exceeds; SSD300 over VGG16 takes 1800."""
BESIDE = 1.15
"""Peak memory of a step over what is kept for its backward pass: gradients on their way. Measured: 1.08 to 1.15 for
TinySSD, multibox-coco and SSD300, float32 and bfloat16, 256 to 640 pixels (2026-11-28)."""
TRIED = 256
"""Side of the images of the step that is measured."""
OBJECTS = 16
"""Labels an image while trying; matching's memory is small beside the network's."""


def choose_batch_size(model: SSD, config: Config, training: Dataset, *, device: str, precision: str) -> tuple[int, str]:
    """Return the largest power of two that fits, and the reason in words.

    At most 32 (CPU) or 128 (CUDA), and a quarter of the training images, but 2 at least: batch norms need two. Steps
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
    return size, f"at most a quarter of {len(training)} images" if 2 * limit > quarter else f"the most for {device}"


def check_memory(model: SSD, config: Config, *, device: str, precision: str) -> None:
    """Refuse a batch and an input size for which memory has no room; without it a process on a CPU is killed.

    Takes a step of two small images if a cautious bound does not already say that there is room. A batch size of "auto"
    counts as 2, the least that is tried.

    Raises:
        ConfigError: with the estimate, what is available, and the batch and the input size that fit.
    """
    free = available_memory() if device == "cpu" else torch.cuda.mem_get_info(device)[0] if "cuda" in device else None
    asked = config.train.batch_size
    images = asked if isinstance(asked, int) and asked > 0 else FEW
    pixels = math.prod(largest_size(config))
    if free is None or images * pixels * CAUTIOUS < SHARE * free:
        return
    each = _bytes_per_pixel(model, config, precision)
    # Gradients, two moments and an average, beside the weights that are held already
    fixed = 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    if each is None or (need := fixed + each * pixels * images) <= free:
        return
    room = max(0.0, SHARE * free - fixed)
    height, width = config.model.input_size
    scale = math.sqrt(room / (each * pixels * images))
    smaller = [max(MULTIPLE, int(side * scale) // MULTIPLE * MULTIPLE) for side in (height, width)]
    fitting = int(room / (each * pixels))
    fewer = f"--set train.batch_size={fitting}, or " if fitting >= FEW else ""
    raise ConfigError(
        f"model.input_size={[height, width]} with {images} images per step takes about {_gigabytes(need)} of memory, "
        f"and {_gigabytes(free)} are available; give {fewer}--set model.input_size={smaller}"
    )


def _bytes_per_pixel(model: SSD, config: Config, precision: str) -> float | None:
    """Return the memory of a training step per pixel of its images; None where a small image does not fit the network.

    Counts what the forward pass and the loss keep for the backward pass of a small step on a copy of the network.
    """
    height, width = largest_size(config)
    scale = min(1.0, TRIED / max(height, width))
    height, width = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Storages are held, so that no address is used twice
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.random.fork_rng(devices=[]):
        stepper = _copy_stepper(model, config, "cpu", precision)
        weights = {p.untyped_storage().data_ptr() for p in stepper.model.parameters()}
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                stepper.step(_random_batch(FEW, height, width))
        except (RuntimeError, ValueError):
            return None
    held = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    return BESIDE * held / (FEW * height * width)


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def largest_predicted(step: Callable[[int], None], limit: int) -> int | None:
    """Return the largest doubling of `FEW` up to `limit` that memory has room for; None where the system is silent.

    Steps of 2, 4, 8 ... images are taken. A doubling adds twice what the one before added, so it is known to fit
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
    stepper = _copy_stepper(model, config, device, precision)
    height, width = largest_size(config)

    def step(images: int) -> None:
        stepper.step(_random_batch(images, height, width).to(device))

    return step


def _copy_stepper(model: SSD, config: Config, device: str, precision: str) -> Stepper:
    stepper = Stepper(copy.deepcopy(model), config, device=device, precision=precision)
    train_mode(stepper.model)
    return stepper


def _random_batch(count: int, height: int, width: int) -> Batch:
    corner = torch.rand(1, OBJECTS, 2) * 0.7
    boxes = torch.cat([corner, corner + 0.1 + 0.2 * torch.rand(1, OBJECTS, 2)], 2)
    pixels = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.zeros(count, OBJECTS, dtype=torch.int64)
    return Batch(pixels, boxes.expand(count, -1, -1).contiguous(), labels, [""] * count, [(width, height)] * count)


def _largest_that_runs(step: Callable[[int], None], limit: int) -> int:
    """Return the largest power of two up to `limit` whose step does not run out of the GPU's memory."""
    size = FEW
    fits = 0
    while size <= limit:
        try:
            # Two steps: the optimiser's moments come with the first, and twice the images leave room for validation
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
