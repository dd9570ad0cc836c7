"""What a training step has room for: the size of its images, their number, and its memory before it is taken."""

import copy
import math
from collections.abc import Callable

import torch

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.limits import available_memory
from multibox.models.ssd import SSD
from multibox.structures import Dataset, Size
from multibox.tensors import Batch
from multibox.training.norms import train_mode
from multibox.training.precision import same_random_state
from multibox.training.step import MULTIPLE, Stepper, sizes_between

MOST_CPU, MOST_CUDA = 32, 128
FEW = 2
"""Images per step at least: batch norms need two."""
SHARE = 0.7
"""Of the available memory that steps on a CPU may take: images, workers and validation want theirs."""
CAUTIOUS = 6000
"""Bytes per pixel of a training step that no network of ours exceeds; SSD300 over VGG16 takes 1800."""
BESIDE = 1.15
"""Peak memory of a step over what is kept for its backward pass. Measured: 1.08 to 1.15 for TinySSD, multibox-coco and
SSD300, float32 and bfloat16, 256 to 640 pixels (2026-11-28)."""
TRIED = 256
"""Side of the images of the step that is measured."""
OBJECTS = 16
"""Labels per image while trying; matching's memory is small beside the network's."""


def choose_batch_size(model: SSD, config: Config, training: Dataset, *, device: str, precision: str) -> tuple[int, str]:
    """Return the largest power of two that fits, and the reason in words.

    It is at least 2 and at most 32 (CPU), 128 (CUDA) or a quarter of the training images. On CUDA, steps of a copy of
    the network are tried until memory runs out; elsewhere memory is estimated.
    """
    cuda = device.startswith("cuda")
    quarter = max(FEW, len(training) // 4)
    limit = 1 << (min(quarter, MOST_CUDA if cuda else MOST_CPU).bit_length() - 1)
    size = limit
    if cuda:
        with same_random_state(device):
            size = _largest_that_runs(_make_step(model, config, device, precision), limit)
    elif (free := available_memory()) is None or (estimate := _estimate(model, config, precision)) is None:
        return limit, "memory could not be measured here"
    else:
        fixed, per_image = estimate
        while size > FEW and fixed + at_once(size, config) * per_image > SHARE * free:
            size //= 2
    if size < limit:
        return max(FEW, size), f"memory has no room for {2 * max(FEW, size)}"
    return size, f"at most a quarter of {len(training)} images" if 2 * limit > quarter else f"the most for {device}"


def check_input_size(model: SSD, config: Config) -> None:
    """Refuse an input that the network does not take, and single images where batch norms need more.

    Raises:
        ConfigError: the size of the images, or the batch.
    """
    for size in {tuple(config.model.input_size), *map(tuple, sizes_between(config))}:
        _check_size(model, config, *size)
    model.train()


def _check_size(model: SSD, config: Config, height: int, width: int) -> None:
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            model.eval()(image)
            if config.train.batch_size != "auto" and config.train.batch_size // config.train.accumulate == 1:
                copy.deepcopy(model).train()(image)
    except ValueError:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size}: a batch norm over a map of one cell has nothing to go by in "
            f"one image; give 2 images or more for each of the {config.train.accumulate} parts (train.accumulate)"
        ) from None
    except RuntimeError as error:
        if (height, width) == tuple(config.model.input_size):
            said, instead = f"model.input_size={[height, width]} does not fit", "another one, such as [256, 256]"
        else:
            said = f"train.scales={list(config.train.scales)} makes images of {height} x {width}, which do not fit"
            instead = "scales nearer to 1, or a larger model.input_size"
        raise ConfigError(f"{said} {config.model.backbone} ({error}); give {instead}") from None


def check_memory(model: SSD, config: Config, *, device: str, precision: str) -> None:
    """Refuse a batch and an input size for which memory has no room; without it a process on a CPU is killed.

    Takes a step of two small images unless a cautious bound says that there is room. A batch size of "auto" counts
    as 2, the least that is tried.

    Raises:
        ConfigError: with the estimate, what is available, and the batch and the input size that fit.
    """
    free = available_memory() if device == "cpu" else torch.cuda.mem_get_info(device)[0] if "cuda" in device else None
    asked = config.train.batch_size
    images = at_once(FEW if asked == "auto" else asked, config)
    if free is None or images * math.prod(sizes_between(config)[1]) * CAUTIOUS < SHARE * free:
        return
    estimate = _estimate(model, config, precision)
    if estimate is None or (need := estimate[0] + estimate[1] * images) <= free:
        return
    fixed, per_image = estimate
    room = max(0.0, SHARE * free - fixed)
    scale = math.sqrt(room / (per_image * images))
    smaller = [max(MULTIPLE, int(side * scale) // MULTIPLE * MULTIPLE) for side in config.model.input_size]
    fitting = int(room / per_image)
    fewer = ""
    if asked != "auto" and fitting >= FEW:
        fewer = f"--set train.accumulate={-(-asked // fitting)}, --set train.batch_size={fitting}, or "
    raise ConfigError(
        f"model.input_size={list(config.model.input_size)} with {images} images at once takes about "
        f"{_gigabytes(need)} of memory, and {_gigabytes(free)} are available; "
        f"give {fewer}--set model.input_size={smaller}"
    )


def at_once(images: int, config: Config) -> int:
    """Return how many of a batch's images are computed at once, as `train.accumulate` says."""
    return -(-images // config.train.accumulate)


def _estimate(model: SSD, config: Config, precision: str) -> tuple[float, float] | None:
    """Return the bytes that training takes beside the weights, and per image of a step; None if it cannot be tried.

    Counts what the forward pass and the loss keep for the backward pass in a small step of a copy of the network.
    """
    largest = sizes_between(config)[1]
    scale = min(1.0, TRIED / max(largest))
    height, width = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in largest)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Storages are held, so that no address is used twice
        kept[storage.data_ptr()] = storage
        return tensor

    with same_random_state("cpu"):
        stepper = _copy_stepper(model, config.updated({"train.accumulate": 1}), "cpu", precision)
        weights = {p.untyped_storage().data_ptr() for p in stepper.model.parameters()}
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                stepper.step(_random_batch(FEW, Size(height, width)))
        except (RuntimeError, ValueError):
            # A small image may not fit the network
            return None
    held = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    # Gradients, two moments and an average, beside the weights that are held already
    fixed = 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    return fixed, BESIDE * held / (FEW * height * width) * math.prod(largest)


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _make_step(model: SSD, config: Config, device: str, precision: str) -> Callable[[int], None]:
    stepper = _copy_stepper(model, config, device, precision)

    def step(images: int) -> None:
        stepper.step(_random_batch(images, sizes_between(config)[1]).to(device))

    return step


def _copy_stepper(model: SSD, config: Config, device: str, precision: str) -> Stepper:
    stepper = Stepper(copy.deepcopy(model), config, device=device, precision=precision)
    train_mode(stepper.model)
    return stepper


def _random_batch(images: int, size: Size) -> Batch:
    corner = torch.rand(1, OBJECTS, 2) * 0.7
    boxes = torch.cat([corner, corner + 0.1 + 0.2 * torch.rand(1, OBJECTS, 2)], 2).expand(images, -1, -1).contiguous()
    pixels = torch.randint(0, 256, (images, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.zeros(images, OBJECTS, dtype=torch.int64)
    return Batch(pixels, boxes, labels, [""] * images, [size] * images)


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
