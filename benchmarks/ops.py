"""multibox_target and multibox_detection beside Apache MXNet 1.9.1 and the d2l book's PyTorch functions, on this CPU.

Every load is computed by all sides first and compared; a time is printed only for equal results, and the exit code is 1
if some differ. The sides run in turn. Loads: sparse (one object an image; one anchor in a hundred above the score
threshold) and dense (30 objects and more; all anchors above it), with boxes that crowd and boxes that do not.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import D2L_HINT, MXNET_VENV, Worker, import_d2l, machine, mxnet_hint, mxnet_python, print_table
from torch import Tensor

from multibox.ops.mxnet import multibox_detection, multibox_prior, multibox_target

TINY_MAPS = {32: (0.2, 0.272), 16: (0.37, 0.447), 8: (0.54, 0.619), 4: (0.71, 0.79), 1: (0.88, 0.961)}
SSD_MAPS = {
    38: (4, 0.1, 0.141),
    19: (6, 0.2, 0.276),
    10: (6, 0.37, 0.447),
    5: (6, 0.54, 0.619),
    3: (4, 0.71, 0.79),
    1: (4, 0.88, 0.961),
}
SHAPES = (1.0, 2.0, 0.5, 3.0, 1 / 3)
CLASSES = 20


class Load(NamedTuple):
    """One line of the table: an operator, its inputs in the order of its arguments, and its options."""

    name: str
    op: str
    inputs: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]
    d2l: bool = False
    """Whether d2l's function, which has neither classes in NMS nor padding, means the same here."""


def tiny_anchors() -> Tensor:
    return torch.cat([multibox_prior((n, n), sizes, SHAPES[:3]) for n, sizes in TINY_MAPS.items()], dim=1)


def ssd_anchors() -> Tensor:
    maps = SSD_MAPS.items()
    return torch.cat([multibox_prior((n, n), sizes, SHAPES[: count - 1]) for n, (count, *sizes) in maps], dim=1)


def target_load(name: str, objects: int) -> Load:
    anchors = tiny_anchors()
    # Near random anchors, so that every object overlaps some: d2l would match one that overlaps none.
    near = anchors[0, torch.randint(0, 5000, (32, objects))] + torch.randn(32, objects, 4) * 0.01
    labels = torch.cat([torch.randint(0, 3, (32, objects, 1)).float(), near], dim=2)
    return Load(name, "target", (anchors, labels, torch.randn(32, 4, anchors.shape[1])), {}, d2l=True)


def detection_load(name: str, share: float = 1.0, small: bool = False, skewed: bool = False, **options: Any) -> Load:
    """Make 8 x 8732 x 20 probabilities of which `share` of the anchors are above the threshold."""
    anchors = ssd_anchors()
    if small:
        center, size = (anchors[..., :2] + anchors[..., 2:]) / 2, (anchors[..., 2:] - anchors[..., :2]) / 16
        anchors = torch.cat([center - size, center + size], dim=2)
    scores = torch.rand(8, CLASSES + 1, anchors.shape[1])
    if skewed:
        scores[:, 3] += 1
    low = torch.rand(8, 1, anchors.shape[1]) >= share
    scores[:, 1:] = torch.where(low, scores[:, 1:] * 1e-4, scores[:, 1:])
    offsets = torch.randn(8, anchors.shape[1], 4) * torch.tensor([1.0, 1.0, 0.0, 0.0])
    inputs = (scores / scores.sum(dim=1, keepdim=True), offsets.flatten(1), anchors)
    d2l = options.get("force_suppress", False) and "nms_topk" not in options
    return Load(name, "detection", inputs, {"clip": False, **options}, d2l=d2l)


def loads() -> list[Load]:
    torch.manual_seed(0)
    cases = [target_load("target, 1 object", 1), target_load("target, 40 objects", 40)]
    limits: tuple[dict[str, Any], ...] = ({}, {"nms_topk": 400})
    for topk in limits:
        tail = ", topk 400" if topk else ""
        cases += [
            detection_load(f"detection, sparse{tail}", share=0.01, **topk),
            detection_load(f"detection, dense, crowded{tail}", **topk),
            detection_load(f"detection, dense, apart{tail}", small=True, **topk),
            detection_load(f"detection, one class, crowded{tail}", skewed=True, **topk),
            detection_load(f"detection, one class, apart{tail}", skewed=True, small=True, **topk),
        ]
    cases += [
        detection_load("detection, class-agnostic, sparse", share=0.01, force_suppress=True),
        detection_load("detection, class-agnostic, crowded", force_suppress=True),
    ]
    return cases


class Ours:
    """This toolkit."""

    name = "ours"

    def run(self, load: Load) -> list[Tensor]:
        """Compute the load."""
        first, second, third = load.inputs
        if load.op == "target":
            return list(multibox_target(first, second, third, **load.options))
        return [multibox_detection(first, second, third, **load.options)]

    def seconds(self, load: Load) -> float:
        """Time one run."""
        return timed(lambda: self.run(load))


class D2L:
    """The book's functions, which take the same tensors."""

    name = "d2l"

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def run(self, load: Load) -> list[Tensor]:
        """Compute the load."""
        if load.op == "target":
            return list(self.module.multibox_target(load.inputs[0], load.inputs[1]))
        return [self.module.multibox_detection(*load.inputs)]

    def seconds(self, load: Load) -> float:
        """Time one run."""
        return timed(lambda: self.run(load))


class MXNet:
    """The worker process."""

    name = "MXNet"

    def __init__(self, python: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="multibox-mxnet-"))
        self.worker = Worker(python, Path(__file__).with_name("mxnet_ops.py"))

    def ask(self, load: Load, save: Path | None = None) -> float:
        """Let the worker run the load once and return the seconds it took."""
        file = self.folder / f"{load.name}.npz".replace(", ", "-").replace(" ", "_")
        if not file.exists():
            np.savez(file, *[tensor.numpy() for tensor in load.inputs])
        return self.worker.ask(op=load.op, file=str(file), options=load.options, save=save and str(save))["seconds"]

    def run(self, load: Load) -> list[Tensor]:
        """Compute the load."""
        answer = self.folder / "answer.npz"
        self.ask(load, answer)
        with np.load(answer) as file:
            return [torch.from_numpy(file[name]) for name in sorted(file)]

    def seconds(self, load: Load) -> float:
        """Time one run, in the worker."""
        return self.ask(load)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def equal(load: Load, ours: list[Tensor], other: list[Tensor], d2l: bool) -> bool:
    """Compare; d2l adds 1e-6 inside the logarithm of offsets, and puts suppressed rows after all others."""
    if load.op == "target":
        exact = torch.equal(ours[1], other[1]) and torch.equal(ours[2].long(), other[2].long())
        return exact and torch.allclose(ours[0], other[0], atol=1e-3 if d2l else 1e-5, rtol=1e-5)
    if not d2l:
        exact = torch.equal(ours[0][..., 0], other[0][..., 0])
        return exact and torch.allclose(ours[0], other[0], atol=1e-5, rtol=1e-5)
    pairs = [(a[a[:, 0] >= 0], b[b[:, 0] >= 0]) for a, b in zip(ours[0], other[0], strict=True)]
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5, rtol=1e-5) for a, b in pairs)


def bench(load: Load, sides: list[Ours | D2L | MXNet], rounds: int) -> list[str]:
    """Compare, then time the sides in turn; return the row of the table."""
    sides = [side for side in sides if load.d2l or not isinstance(side, D2L)]
    reference = sides[0].run(load)
    for side in sides[1:]:
        if not equal(load, reference, side.run(load), isinstance(side, D2L)):
            return [load.name, f"DIFFERENT from {side.name}", "", "", "", ""]
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            time.sleep(0.1)  # the threads of the last side spin for a while before they sleep
            times[side.name].append(side.seconds(load))
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    cells = [f"{medians[name]:.1f}" if name in medians else "" for name in ("ours", "MXNet", "d2l")]
    ratios = [f"{medians[name] / medians['ours']:.1f}" if name in medians else "" for name in ("MXNet", "d2l")]
    return [load.name, *cells, *ratios]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mxnet", type=Path, default=MXNET_VENV, help=f"venv of MXNet, default {MXNET_VENV}")
    parser.add_argument("--only", default="", help="loads whose name contains this")
    options = parser.parse_args()
    sides: list[Ours | D2L | MXNet] = [Ours()]
    d2l, python = import_d2l(), mxnet_python(options.mxnet)
    if python is None:
        print(mxnet_hint(options.mxnet))
    else:
        sides.append(MXNet(python))
    if d2l is None:
        print(D2L_HINT)
    else:
        sides.append(D2L(d2l))
    print(machine())
    rows = [bench(load, sides, options.rounds) for load in loads() if options.only in load.name]
    print("Milliseconds (medians); every line was computed by all its sides and found equal first:")
    print_table(["32 x 5444 target, 8 x 8732 x 20 detection", "ours", "MXNet", "d2l", "x MXNet", "x d2l"], rows)
    return int(any("DIFFERENT" in cell for row in rows for cell in row))


if __name__ == "__main__":
    sys.exit(main())
