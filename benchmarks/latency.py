"""How long an image takes: torchvision, the network alone, ours exported and ours in PyTorch, on this CPU.

All sides have the same weights and take turns in one run. Before a time is printed, all that give boxes are compared.
`--only` takes one part of the table: ssd300, ssd300x8 (batch of 8), ssdlite, post (post-processing alone).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lively import lively_detector
from peers import print_table

from multibox.benchmarking.clock import WHOLE, Spread, Work, as_work, describe, take_turns, torch_ceiling
from multibox.benchmarking.subjects import (
    DisagreementError,
    exported_subject,
    fixed_network,
    onnx_parts,
    post_of,
    run_compiled,
)
from multibox.benchmarking.torchvision_peer import (
    EXACT,
    agree,
    comparable,
    compare,
    eager_subject,
    torchvision_twin,
    twin_subject,
)
from multibox.benchmarking.workload import LOADS, count_candidates, synthetic_images, synthetic_outputs
from multibox.exporting import export
from multibox.inference.detector import Detector, open_checkpoint
from multibox.inference.engines import compile_openvino
from multibox.inference.load import open_exported
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.presets import resolve
from multibox.structures import Size

CLASSES = 20
SIZE = Size(375, 500)
PEER, FLOOR, ONNX_FLOOR = "torchvision float32", "network alone, OpenVINO", "network alone, onnxruntime float32"
FILE, EAGER = "ours, exported, OpenVINO", "ours, PyTorch bfloat16"
GRAPH, ONNX_GRAPH, EAGER_POST = "ours, graph in OpenVINO", "ours, graph in onnxruntime", "ours, PyTorch"


class Section(NamedTuple):
    """One part of the table."""

    preset: str
    recipe: str
    batch: int


class Bar(NamedTuple):
    """What one side may take at most, as a multiple of another one's time."""

    side: str
    other: str
    most: float


SECTIONS = {
    "ssd300": Section("ssd300-vgg16", "torchvision-ssd", 1),
    "ssd300x8": Section("ssd300-vgg16", "torchvision-ssd", 8),
    "ssdlite": Section("ssdlite320-mobilenetv3", "torchvision-ssdlite", 1),
    "post": Section("ssd300-vgg16", "torchvision-ssd", 1),
}
BARS = {
    "ssd300": (Bar(FILE, FLOOR, 1.17), Bar(FILE, PEER, 1 / 8.5)),
    "ssd300x8": (Bar(FILE, FLOOR, 1.12),),
    "ssdlite": (Bar(FILE, FLOOR, 1.4), Bar(FILE, PEER, 1 / 6)),
    "post, sparse": (Bar(GRAPH, PEER, 1 / 10), Bar(ONNX_GRAPH, PEER, 1 / 10), Bar(EAGER_POST, PEER, 1 / 5)),
    "post, dense": (Bar(GRAPH, PEER, 1), Bar(ONNX_GRAPH, PEER, 1), Bar(EAGER_POST, PEER, 1)),
}
"""Targets set when the exported graph was made."""
SMALL = Section("ssdlite320-mobilenetv3", "torchvision-ssdlite", 1)
SMALL_SIDE = 96


class Made(NamedTuple):
    """A detector with its exported file and torchvision's network of the same weights."""

    detector: Detector
    twin: Any
    path: Path


def make(section: Section, folder: Path, small: bool) -> Made:
    """Make what is measured, or take it from `folder`, where an earlier run left it."""
    weights, path = (folder / f"{section.preset}{suffix}" for suffix in (".safetensors", ".onnx"))
    if not weights.exists():
        size = Size(SMALL_SIDE, SMALL_SIDE) if small else resolve(section.preset, section.recipe).model.input_size
        made = comparable(lively_detector(section.preset, CLASSES, size, recipe=section.recipe))
        save_checkpoint(weights, Checkpoint(made.model.state_dict(), made.config, made.names))
    detector = comparable(open_checkpoint(weights))
    if not path.exists():
        print(f"exporting {section.preset}", file=sys.stderr, flush=True)
        export(detector, path)
    return Made(detector, torchvision_twin(detector), path)


def bench_network(name: str, section: Section, made: Made, rounds: int) -> dict[str, dict[str, Spread]]:
    """Time a decoded image to boxes; compared first, on images of the network's size and then of this one."""
    detector, size = made.detector, made.detector.config.model.input_size
    peers = [twin_subject(made.twin, detector, each) for each in ("float32", "bfloat16")]
    ours = [eager_subject(detector, "bfloat16"), exported_subject(made.path)]
    print(f"\n{name}: {section.preset}, {CLASSES} classes, batch of {section.batch}", flush=True)
    for note in compare([peers[0], eager_subject(detector, "float32"), peers[1], *ours], size):
        print(f"  {note}")
    images = synthetic_images(section.batch, SIZE)
    found = {each.name: each.predict(images) for each in (peers[0], *ours)}
    counts = {side: round(np.mean([len(each) for each in boxes])) for side, boxes in found.items()}
    print("  boxes an image: " + ", ".join(f"{side} {count}" for side, count in counts.items()))
    floor = run_compiled(compile_openvino(fixed_network(made.path, section.batch, size), None, None))
    works: dict[str, Work] = {
        PEER: as_work(partial(peers[0].predict, images)),
        "torchvision bfloat16 (autocast)": as_work(partial(peers[1].predict, images)),
        FLOOR: network_alone(floor, section.batch, size),
        FILE: as_work(partial(ours[1].predict, images)),
        EAGER: as_work(partial(ours[0].predict, images)),
    }
    if section.preset.startswith("ssdlite"):
        works[ONNX_FLOOR] = network_alone(onnx_parts(made.path, None).network, section.batch, size)
    times = take_turns(works, rounds)
    flops = ours[0].flops or 0
    fastest, ceiling = times[FLOOR][WHOLE].median, torch_ceiling("bfloat16")
    print(
        f"  the floor computes {flops * section.batch / fastest / 1e12:.2f} TFLOP/s, "
        f"{flops * section.batch / fastest / ceiling:.0%} of a large matrix product's {ceiling / 1e12:.2f} in bfloat16"
    )
    return {name: {side: parts[WHOLE] for side, parts in times.items()}}


def network_alone(run: Callable[[Any], Any], batch: int, size: Size) -> Work:
    """Return the network on images that are resized already."""
    resized = np.random.default_rng(0).uniform(0, 255, (batch, 3, *size)).astype(np.float32)
    return as_work(partial(run, {"resized": resized}))


def bench_post(name: str, made: Made, rounds: int) -> dict[str, dict[str, Spread]]:
    """Time post-processing alone, from outputs to boxes in pixels, with few and with many candidates."""
    detector, exported = made.detector, open_exported(made.path)
    twin, eager = twin_subject(made.twin, detector, "float32"), eager_subject(detector, "float32")
    graph = exported_subject(made.path)
    assert twin.post and eager.post and graph.post and eager.outputs
    sides = {
        PEER: twin.post,
        EAGER_POST: eager.post,
        GRAPH: graph.post,
        ONNX_GRAPH: partial(post_of, onnx_parts(made.path, None), exported),
    }
    found: dict[str, dict[str, Spread]] = {}
    for kind in LOADS:
        outputs = synthetic_outputs(kind, (1, *eager.outputs), "softmax", eager.threshold)
        works = {side: post(outputs, SIZE) for side, post in sides.items()}
        count = count_candidates(outputs, "softmax", eager.threshold)
        print(f"\n{name}, {kind}: {eager.outputs[0]} x {eager.outputs[1]}, {count:.0f} candidates", flush=True)
        wanted = works[PEER]()
        for side, work in works.items():
            if side != PEER:
                alike = agree(f"{PEER} and {side}", wanted, work(), EXACT)
                print(f"  {side}: {alike.share:.1%} of {alike.detections} boxes are {PEER}'s")
        times = take_turns({side: as_work(work) for side, work in works.items()}, rounds)
        found[f"{name}, {kind}"] = {side: parts[WHOLE] for side, parts in times.items()}
    return found


def show(name: str, times: dict[str, Spread]) -> list[dict[str, Any]]:
    """Print a section's table and its bars; return the bars."""
    print(f"\n{name}, milliseconds")
    floor = times.get(FLOOR)
    rows = []
    for side, taken in times.items():
        ratio = f"{taken.median / floor.median:.2f}" if floor else ""
        cells = [f"{value * 1e3:.2f}" for value in taken]
        rows.append([side, *cells, f"{times[PEER].median / taken.median:.1f}", ratio])
    print_table(["side", "median", "10 %", "90 %", "times as fast as torchvision", "of the floor"], rows)
    bars = [judge(bar, times) for bar in BARS.get(name, ())]
    for bar in bars:
        word = "reached" if bar["reached"] else "MISSED"
        print(f"  {word}: {bar['side']} takes {bar['ratio']:.3f} of {bar['other']}, expected {bar['most']:.3f} at most")
    return bars


def judge(bar: Bar, times: dict[str, Spread]) -> dict[str, Any]:
    """Return how a side stands to its bar."""
    ratio = times[bar.side].median / times[bar.other].median
    return {**bar._asdict(), "ratio": ratio, "reached": ratio <= bar.most}


def run(name: str, folder: Path, rounds: int, small: bool) -> dict[str, dict[str, Spread]]:
    section = SMALL._replace(batch=SECTIONS[name].batch) if small else SECTIONS[name]
    made = make(section, folder, small)
    if name == "post":
        return bench_post(name, made, rounds)
    return bench_network(name, section, made, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(SECTIONS), help="one part of the table")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--keep", type=Path, help="folder for the exported files; a second run finds them there")
    parser.add_argument("--small", action="store_true", help="a small network everywhere: a test of this script")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe(), "times": {}, "bars": {}}
    print(report["machine"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in [options.only] if options.only else SECTIONS:
            try:
                found = run(name, folder, options.rounds, options.small)
            except DisagreementError as error:
                print(f"DIFFERENT: {error}")
                return 1
            for part, times in found.items():
                report["bars"][part] = show(part, times)
                report["times"][part] = {side: taken._asdict() for side, taken in times.items()}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
