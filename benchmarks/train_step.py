"""One TinySSD training step: multibox beside the d2l book's PyTorch code and Apache MXNet 1.9.1, on this CPU.

All sides start from the same weights and see the same batch. Before any time is printed, class targets, the loss of
every image, gradient norms and the weights after the step are compared; the exit code is 1 if they differ.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ours import Facts, facts, make_batch, make_config, make_stepper, time_parts
from peers import D2L_HINT, MXNET_VENV, Worker, machine, mxnet_hint, mxnet_python, print_table
from torch import Tensor

from multibox.models.build import build_model
from multibox.tensors import Batch
from multibox.training.precision import choose_precision
from multibox.training.step import Stepper


class Tolerance(NamedTuple):
    """How far another side may be from ours in float32."""

    losses: float
    """Relative, per image."""
    gradients: float
    """Of the vector that holds the norm of every parameter's gradient: length of the difference over length."""
    weights: float
    """Absolute, after the step."""


# d2l adds 1e-6 inside the logarithm of its offsets; MXNet sums batch statistics in plain float32
D2L = Tolerance(losses=1e-4, gradients=2e-3, weights=1e-3)
MXNET = Tolerance(losses=1e-4, gradients=5e-3, weights=2e-3)
# bfloat16 keeps 8 bits of every activation; mining then picks other negatives among those of nearly equal loss
BFLOAT16 = {
    "d2l": Tolerance(losses=2e-2, gradients=0.05, weights=5e-2),
    "default": Tolerance(losses=2e-2, gradients=0.2, weights=5e-2),
}


class Peer:
    """Another system's step, in a process of its own, from our weights and our batch."""

    def __init__(
        self, name: str, tolerance: Tolerance, python: Path, script: str, batch: Batch, weights: dict[str, Tensor]
    ) -> None:
        self.name = name
        self.tolerance = tolerance
        folder = Path(tempfile.mkdtemp(prefix="multibox-benchmark-"))
        self.answer = folder / "facts.npz"
        labels = torch.cat([batch.gt_labels[..., None].float(), batch.gt_xyxy], dim=2)
        arrays: dict[str, Any] = {chapter_name(name): tensor.numpy() for name, tensor in weights.items()}
        images = np.ascontiguousarray(batch.images.numpy(), np.float32)
        np.savez(folder / "given.npz", images=images, labels=labels.numpy(), **arrays)
        self.worker = Worker(python, Path(__file__).with_name(script), str(folder / "given.npz"), str(self.answer))

    def facts(self) -> Facts:
        """Run one step and tell what it computed."""
        self.worker.ask(do="facts")
        with np.load(self.answer) as file:
            arrays = {name: torch.from_numpy(array) for name, array in file.items()}
        norms = {our_name(k[9:]): float(v.norm()) for k, v in arrays.items() if k.startswith("gradient/")}
        after = {our_name(k[6:]): v for k, v in arrays.items() if k.startswith("after/")}
        return Facts(arrays["labels"].long(), arrays["losses"], norms, after)

    def seconds(self) -> float:
        """Time one step."""
        return self.worker.ask(do="time")["seconds"]


def compare(name: str, reference: Facts, other: Facts, tolerance: Tolerance) -> bool:
    """Print how far `other` is from `reference` and return whether that is near enough."""
    different = int((reference.labels != other.labels).sum())
    norms = torch.tensor([(norm, other.gradient_norms[name]) for name, norm in reference.gradient_norms.items()])
    distances = Tolerance(
        losses=float(((other.losses - reference.losses).abs() / reference.losses.abs()).max()),
        gradients=float((norms[:, 1] - norms[:, 0]).norm() / norms[:, 0].norm()),
        weights=max(float((other.weights[name] - weight).abs().max()) for name, weight in reference.weights.items()),
    )
    fine = different == 0 and all(d <= most for d, most in zip(distances, tolerance, strict=True))
    said = [
        f"{n} by {d:.1e} (at most {m:.0e})" for n, d, m in zip(Tolerance._fields, distances, tolerance, strict=True)
    ]
    print(f"  {name}: {different} of {reference.labels.numel()} class targets differ, {', '.join(said)}:", end=" ")
    print("equal" if fine else "DIFFERENT")
    return fine


def find_peers(options: argparse.Namespace, batch: Batch, weights: dict[str, Tensor]) -> list[Peer]:
    if not options.peers:
        return []
    peers: list[Peer] = []
    if importlib.util.find_spec("d2l") is None:
        print(D2L_HINT)
    else:
        peers.append(Peer("d2l 1.0.3 (PyTorch)", D2L, Path(sys.executable), "d2l_step.py", batch, weights))
    python = mxnet_python(options.mxnet)
    if python is None:
        print(mxnet_hint(options.mxnet))
    else:
        peers.append(Peer("MXNet 1.9.1 (gluon)", MXNET, python, "mxnet_step.py", batch, weights))
    return peers


def check(peers: list[Peer], batch: Batch, weights: dict[str, Tensor], size: int, fast: str) -> bool:
    """Compare all sides on one step and return whether they agree."""
    good = True
    for recipe in ("d2l", "default"):
        config = make_config(recipe, size)
        print(f"Recipe {recipe}, against ours in float32, same weights and batch:")
        reference = facts(config, batch, "float32", weights)
        if fast != "float32":
            good &= compare(f"ours in {fast}", reference, facts(config, batch, fast, weights), BFLOAT16[recipe])
        if recipe == "d2l":
            for peer in peers:
                good &= compare(peer.name, reference, peer.facts(), peer.tolerance)
    return good


def timed(step: Callable[[], None]) -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    return seconds


def measure(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Time the sides in turn, after one round that does not count."""
    times_of: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, seconds in sides.items():
            time.sleep(0.3)  # the threads of the last side spin for a while before they sleep
            if number > 0:
                times_of[name].append(seconds())
            else:
                seconds()
    return times_of


def print_times(times_of: dict[str, list[float]], peers: list[str], images: int) -> None:
    medians = {name: statistics.median(times) for name, times in times_of.items()}
    rows = [
        [name, f"{medians[name]:.3f}", f"{min(times):.3f} .. {max(times):.3f}", f"{images / medians[name]:.1f}"]
        + [f"{medians[name] / medians[peer]:.2f}" for peer in peers]
        for name, times in times_of.items()
    ]
    print_table(["side", "seconds/step", "range", "images/s", *(f"x {peer.split()[0]}" for peer in peers)], rows)


def print_parts(steppers: dict[str, Stepper], batch: Batch, rounds: int) -> None:
    """Print the median milliseconds of each part of our steps."""
    print("\nWhere our steps' time goes, in milliseconds (medians):")
    for name, stepper in steppers.items():
        runs = [time_parts(stepper, batch) for _ in range(rounds)]
        parts = {part: statistics.median(run[part] for run in runs) * 1e3 for part in runs[0]}
        print(f"  {name}: " + ", ".join(f"{part} {value:.1f}" for part, value in parts.items()))


_OURS_TO_CHAPTER = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}
_CHAPTER_TO_OURS = {number: part for part, number in _OURS_TO_CHAPTER.items()}


def chapter_name(name: str) -> str:
    """Turn our name of a tensor into the chapter's: backbone.stages.1.0.conv1.weight is blk_1.0.weight."""
    kind, place, *rest = name.split(".")[0 if name.startswith("heads") else 1 :]
    if kind == "heads":
        return f"{'cls' if place == 'classification' else 'bbox'}_{'.'.join(rest)}"
    block, part, field = rest
    return ".".join([f"blk_{place}", *([block] if place == "0" else []), _OURS_TO_CHAPTER[part], field])


def our_name(name: str) -> str:
    """Undo `chapter_name`."""
    layer, *path, field = name.split(".")
    kind, place = layer.split("_", 1)
    if kind != "blk":
        return f"heads.{'classification' if kind == 'cls' else 'localization'}.{place}.{field}"
    block, number = path if len(path) == 2 else ("0", path[0])
    return f"backbone.stages.{place}.{block}.{_CHAPTER_TO_OURS[number]}.{field}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--objects", type=int, default=1, help="in every image; the d2l functions know no padding")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="ours alone")
    parser.add_argument("--mxnet", type=Path, default=MXNET_VENV, help=f"venv of MXNet, default {MXNET_VENV}")
    options = parser.parse_args()
    config = make_config("d2l", options.size)
    fast = choose_precision(config.train, "cpu")
    batch = make_batch(options.batch, options.size, options.objects)
    weights = {name: tensor.clone() for name, tensor in build_model(config, classes=1).state_dict().items()}
    peers = find_peers(options, batch, weights)
    print(f"TinySSD step, {options.batch} images of {options.size}x{options.size}, {options.objects} object(s) each")
    print(machine())
    if not check(peers, batch, weights, options.size, fast):
        print("The sides did not compute the same, so no time is printed.")
        return 1
    steppers = {
        f"ours, d2l ({fast})": make_stepper(config, "cpu", fast),
        f"ours, default ({fast})": make_stepper(make_config("default", options.size), "cpu", fast),
        "ours, d2l (float32)": make_stepper(config, "cpu", "float32"),
    }
    sides = {name: timed(lambda s=stepper: s.step(batch)) for name, stepper in steppers.items()}
    times_of = measure(sides | {peer.name: peer.seconds for peer in peers}, options.rounds)
    print()
    print_times(times_of, [peer.name for peer in peers], options.batch)
    print_parts(steppers, batch, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
