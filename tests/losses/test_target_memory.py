"""Matching of a large batch stays small in memory: images are weighed a few at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

MATCH = """
import sys, time, torch
from multibox.config import MatchingConfig, ModelConfig
from multibox.losses.targets import make_targets
from multibox.structures import Size
from multibox.tensors import HeadOutputs

def resident(name):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(name)).split()[1]) / 1024

def boxes(*shape):
    corner = torch.rand(*shape, 2) * 0.8
    return torch.cat([corner, corner + 0.02 + 0.18 * torch.rand(*shape, 2)], -1)

torch.set_num_threads(1)
torch.manual_seed(0)
sides, per_cell, images, objects = (64, 32, 16, 8, 4, 2, 1), (4, 6, 6, 6, 6, 4, 4), 64, 300
count = sum(side * side * cell for side, cell in zip(sides, per_cell))
assert count == 24564
anchors, gt, labels = boxes(count), boxes(images, objects), torch.randint(0, 5, (images, objects))
outputs = HeadOutputs(torch.rand(images, count, 6), torch.rand(images, count, 4), tuple(Size(n, n) for n in sides))
matching = MatchingConfig(matcher=sys.argv[1])
make_targets(anchors, gt[:1, :2], labels[:1, :2], matching, ModelConfig(), HeadOutputs(
    outputs.logits[:1], outputs.offsets[:1], outputs.feature_shapes), per_cell)
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
make_targets(anchors, gt, labels, matching, ModelConfig(), outputs, per_cell)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's record of the largest memory")
@pytest.mark.parametrize("matcher", ["bipartite", "simota"])
def test_64_images_of_24564_anchors_and_300_objects_need_under_a_gigabyte(matcher):
    done = subprocess.run([sys.executable, "-c", MATCH, matcher], capture_output=True, text=True, check=True)
    # One table of IoUs of the whole batch alone would be 1,800 MB
    assert float(done.stdout) < 1000
