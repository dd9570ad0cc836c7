"""What a light body costs: forward and forward + backward of the body alone, 16 images at 320x320, bfloat16.

How multibox-s got its trunk. Candidates are our own bodies (with their extra maps) and models of timm (to stride 32);
in turn, medians over rounds. They are different networks, so nothing has to be equal.

    python benchmarks/bodies.py --rounds 5
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multibox.limits import keep_freed_memory
from multibox.models.backbones import make_backbone

OURS = {
    "multibox-s: regnetx400-pyramid": ("regnetx400-pyramid", 1.0),
    "mobilenetv1 x 0.75": ("mobilenetv1", 0.75),
    "mobilenetv1-tf x 0.75": ("mobilenetv1-tf", 0.75),
    "mobilenetv2": ("mobilenetv2", 1.0),
    "mobilenetv3": ("mobilenetv3", 1.0),
}
TIMM = ("regnetx_004", "regnety_004", "fasternet_t0", "mobilenetv4_conv_small", "lcnet_100", "starnet_s1", "resnet10t")


def candidates() -> dict[str, nn.Module]:
    bodies = {name: make_backbone(body, width, 6) for name, (body, width) in OURS.items()}
    bodies |= {f"timm:{name}": make_backbone(f"timm:{name}", 1.0, 3) for name in TIMM}
    return {name: body.to(memory_format=torch.channels_last) for name, body in bodies.items()}


def loss(body: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        maps = body(images)
    return sum((features.float().mean() for features in maps), torch.zeros(()))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=320)
    options = parser.parse_args()
    keep_freed_memory(always=True)
    images = torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    bodies = candidates()
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in bodies}
    for round_ in range(options.rounds + 1):
        for name, body in bodies.items():
            train = seconds(lambda body=body: loss(body.train(), images).backward())
            with torch.inference_mode():
                forward = seconds(lambda body=body: loss(body.eval(), images))
            if round_:  # the first one warms up
                times[name][0].append(train)
                times[name][1].append(forward)
    print("| body | 10^9 multiply-adds | M parameters | train s (range) | forward s |\n|---|---|---|---|---|")
    for name, (train, forward) in times.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            bodies[name](images[:1])
        figures = (counter.get_total_flops() / 2e9, sum(p.numel() for p in bodies[name].parameters()) / 1e6)
        spread = f"{statistics.median(train):.2f} ({min(train):.2f} to {max(train):.2f})"
        print(f"| {name} | {figures[0]:.2f} | {figures[1]:.2f} | {spread} | {statistics.median(forward):.2f} |")


if __name__ == "__main__":
    main()
