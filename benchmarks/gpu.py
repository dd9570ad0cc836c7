"""Everything there is to measure on a GPU, in one call; on a CPU it runs small, as a test of itself.

First the operations and one training step on the device are compared with the CPU (exit code 1 if they differ). Then
TinySSD's training and inference in images a second, beside what the card does at best: its bf16 matrix rate and its
copy bandwidth. There batches are uint8 images that lie on the device. A step is the product's own: forward, matching,
loss, backward, optimiser, average of weights, metrics of the epoch. At last matching with the loss at SSD300's size,
and whole training runs of SSD300-VGG16, SSD300-ResNet50 and TinySSD, loader and augmentation included.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import machine, print_table
from torch.utils._python_dispatch import TorchDispatchMode

from multibox.errors import MissingExtraError

MISSING = "gpu.py needs the package {0}, which multibox imports: pip install {0}, or carry its wheel here"
RUNS = ("ssd300-vgg16", "ssd300-resnet50", "tinyssd")
"""Presets whose whole runs are measured."""
WAITING = ("nonzero", "_local_scalar_dense", "equal", "masked_select", "unique_consecutive", "_unique2", "bincount")
"""Operations after which the host cannot go on before a GPU has finished."""


class Rehearsal(TorchDispatchMode):
    """Counts on a CPU, by line of the package, the operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in WAITING or (name in ("index", "index_put_") and _has_mask(args[1])):
            place = _caller()
            # Adam counts its steps on the CPU, wherever its parameters are
            if not place.startswith("adam"):
                self.places[f"{place} {name}"] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)


def _caller() -> str:
    """Return the innermost running line of multibox, or adam.py if that is nearer."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "multibox" in path.parts:
            return f"{path.parent.name}/{path.name}:{frame.f_lineno}"
        if path.name in ("adam.py", "adamw.py"):
            return path.name
        frame = frame.f_back
    return "elsewhere"


def host_waits(step: Callable[[], object], device: str) -> Counter[str]:
    """Return the places at which the host waits for the device in a step; on a CPU, at which it would."""
    if device == "cpu":
        with Rehearsal() as rehearsal:
            step()
        return rehearsal.places
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in found if "synchroniz" in str(each.message)]
    return Counter("{}/{}:{}".format(*Path(each.filename).parts[-2:], each.lineno) for each in waits)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_each(function: Callable[[], object], device: str, warm: int, times: int) -> float:
    """Return the mean seconds of a call, the device's work included."""
    for _ in range(warm):
        function()
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        function()
    wait(device)
    return (time.perf_counter() - started) / times


def matrix_rate(device: str, side: int) -> float:
    """Return bf16 TFLOP/s of a matrix product of random numbers."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_each(lambda: left @ right, device, 3, 10) / 1e12


def copy_rate(device: str, size: int) -> float:
    """Return GB/s of a copy on the device, bytes read and written both counted."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_each(lambda: target.copy_(source), device, 3, 10) / 1e9


def check(options: argparse.Namespace) -> bool:
    from gpu_checks import all_checks

    print(f"\n{options.device} against CPU, float32:")
    good = True
    for result in all_checks(options.device, min(options.size, 128), images=4):
        print(result.line())
        good &= result.distance <= result.most
    return good


def measure_training(options: argparse.Namespace, precision: str, images: int, compiled: bool) -> list[str]:
    """Return a row of the table: one precision and batch size, the whole step."""
    from ours import make_batch, make_config, make_stepper

    stepper = make_stepper(make_config(options.recipe, options.size), options.device, precision)
    if compiled:
        stepper.model.compile()
    batch = make_batch(images, options.size, options.objects).to(options.device)
    return _row("training", options, precision, images, compiled, lambda: stepper.step(batch))


def measure_inference(options: argparse.Namespace, precision: str, images: int, compiled: bool) -> list[str]:
    """Return a row of the table: forward pass and post-processing, boxes left on the device."""
    from ours import make_batch, make_config, make_stepper

    from multibox.config import PostConfig
    from multibox.models.anchor_layout import anchors_for
    from multibox.postprocess import postprocess
    from multibox.training.precision import autocast

    config = make_config(options.recipe, options.size)
    model = make_stepper(config, options.device, precision).model.eval()
    if compiled:
        model.compile()
    batch = make_batch(images, options.size, options.objects).to(options.device)
    post = PostConfig(score_threshold=0.3)

    def run() -> None:
        with torch.inference_mode():
            with autocast(precision, options.device):
                outputs = model(batch.images)
            postprocess(outputs, anchors_for(outputs, config), post, config.model)

    return _row("inference", options, precision, images, compiled, run)


def _row(
    what: str, options: argparse.Namespace, precision: str, images: int, compiled: bool, run: Callable[[], object]
) -> list[str]:
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    name = [what, precision + (", compiled" if compiled else ""), str(images)]
    try:
        seconds = seconds_each(run, options.device, *((5, 20) if on_gpu else (1, 1)))
    except torch.cuda.OutOfMemoryError:
        return [*name, "out of memory", "", ""]
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if on_gpu else "-"
    return [*name, f"{images / seconds:,.0f}", f"{seconds * 1e3:.1f}", peak]


def measure(options: argparse.Namespace) -> None:
    rows: list[list[str]] = []
    kinds = [("float32", False), ("bfloat16", False)] + [("bfloat16", True)] * options.compiled
    for images in options.batches:
        for precision, compiled in kinds:
            rows.append(measure_training(options, precision, images, compiled))
            rows.append(measure_inference(options, precision, images, compiled))
            if compiled:
                torch.compiler.reset()
    print(f"\nTinySSD, {options.size}x{options.size}, recipe {options.recipe}, {options.objects} objects an image:")
    print_table(
        ["", "precision", "batch", "images/s", "ms", "peak GiB"], sorted(rows, key=lambda r: r[0] == "inference")
    )


def explain(options: argparse.Namespace) -> None:
    """Say where a step's time goes, what it computes at least, and where the host waits for the device."""
    from ours import make_batch, make_config, make_stepper, time_parts
    from torch.utils.flop_counter import FlopCounterMode

    images = options.batches[0]
    stepper = make_stepper(make_config(options.recipe, options.size), options.device, "bfloat16")
    batch = make_batch(images, options.size, options.objects).to(options.device)
    for _ in range(3):
        stepper.step(batch)
    parts = time_parts(stepper, batch, lambda: wait(options.device))
    print(f"\nOne bfloat16 step of {images} images, every part waited for, in ms:")
    print("  " + ", ".join(f"{part} {seconds * 1e3:.1f}" for part, seconds in parts.items()))
    with FlopCounterMode(display=False) as counter:
        stepper.step(batch)
    print(f"  {counter.get_total_flops() / images / 1e9:.2f} GFLOP an image in convolutions, forward and backward")
    waits = host_waits(lambda: stepper.step(batch), options.device)
    print(f"  the host waits for the device {waits.total()} times a step:")
    for place, times in waits.most_common():
        print(f"    {times} x {place}")
    if options.profile:
        profile(options, lambda: stepper.step(batch))


def profile(options: argparse.Namespace, step: Callable[[], object]) -> None:
    """Print the kernels that take longest, over three steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device != "cpu")
    with record(activities=activities) as found:
        for _ in range(3):
            step()
        wait(options.device)
    order = "self_cpu_time_total" if options.device == "cpu" else "self_device_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60))


def measure_runs(options: argparse.Namespace) -> bool:
    """Print whole runs, and matching with the loss; return whether the device matches as the CPU does."""
    from gpu_runs import matching_and_loss, training_run

    images, objects = (2, 10) if options.small else (64, 100)
    timing = matching_and_loss(options.device, images, objects)
    said = f"{images} images x 8,732 anchors x {objects} objects"
    if not timing.equal:
        print(f"\nTargets or loss of {said} differ from those of the CPU, so no time is printed.")
        return False
    print(f"\nMatching and loss of {said}, equal to the CPU's: {timing.milliseconds:.2f} ms")
    with tempfile.TemporaryDirectory(prefix="multibox-gpu-") as folder:
        rows = [training_run(Path(folder), name, options.device, small=options.small) for name in options.runs]
    print("\nWhole runs: decoded store, full augmentation, loader, steps:")
    print_table(["preset", "precision", "batch", "images/s", "device idle %"], rows)
    return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small sizes, as on a CPU")
    parser.add_argument("--batches", type=int, nargs="+", help="images a step; default 128 512 1024, small 2")
    parser.add_argument("--size", type=int, help="height and width in pixels; default 256, small 64")
    parser.add_argument("--objects", type=int, default=1, help="in every image")
    parser.add_argument("--recipe", default="default", help="of the training step")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave torch.compile out")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take longest")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=RUNS, help="presets that are trained")
    options = parser.parse_args()
    options.small |= options.device == "cpu"
    options.size = options.size or (64 if options.small else 256)
    options.batches = options.batches or ([2] if options.small else [128, 512, 1024])
    # Compiling for a CPU takes minutes and is no part of the product
    options.compiled &= options.device != "cpu"
    return options


def main() -> int:
    options = parse()
    print(machine())
    try:
        good = check(options)
    except ModuleNotFoundError as error:
        print(MISSING.format(error.name))
        return 2
    except MissingExtraError as error:
        print(error)
        return 2
    if not good:
        print("The device does not compute what the CPU computes, so no speed is printed.")
        return 1
    side, size = (512, 1 << 24) if options.small else (8192, 1 << 32)
    rates = matrix_rate(options.device, side), copy_rate(options.device, size)
    print(f"\nAt best: {rates[0]:,.1f} TFLOP/s (bf16 matrix product of {side}), {rates[1]:,.0f} GB/s (copy)")
    measure(options)
    explain(options)
    return 0 if measure_runs(options) else 1


if __name__ == "__main__":
    sys.exit(main())
