"""What a light backbone costs: forward and forward + backward of the backbone alone, 16 images at 320x320, bfloat16.

How multibox-s got its backbone. Candidates are our own (with their extra maps) and models of timm (to stride 32);
in turn, medians over rounds. They are different networks, so nothing has to be equal.

    python benchmarks/backbones.py --rounds 5
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
    backbones = {name: make_backbone(backbone, width, 6) for name, (backbone, width) in OURS.items()}
    backbones |= {f"timm:{name}": make_backbone(f"timm:{name}", 1.0, 3) for name in TIMM}
    return {name: backbone.to(memory_format=torch.channels_last) for name, backbone in backbones.items()}


def loss(backbone: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(images)
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
    backbones = candidates()
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in backbones}
    for round_ in range(options.rounds + 1):
        for name, backbone in backbones.items():
            train = seconds(lambda backbone=backbone: loss(backbone.train(), images).backward())
            with torch.inference_mode():
                forward = seconds(lambda backbone=backbone: loss(backbone.eval(), images))
            if round_:  # the first one warms up
                times[name][0].append(train)
                times[name][1].append(forward)
    print("| backbone | 10^9 multiply-adds | M parameters | train s (range) | forward s |\n|---|---|---|---|---|")
    for name, (train, forward) in times.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbones[name](images[:1])
        figures = (counter.get_total_flops() / 2e9, sum(p.numel() for p in backbones[name].parameters()) / 1e6)
        spread = f"{statistics.median(train):.2f} ({min(train):.2f} to {max(train):.2f})"
        print(f"| {name} | {figures[0]:.2f} | {figures[1]:.2f} | {spread} | {statistics.median(forward):.2f} |")


if __name__ == "__main__":
    main()
