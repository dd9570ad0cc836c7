"""The table of presets: parameters, file size and time per image of every preset, exported, on this CPU.

Fresh weights and 20 classes; one decoded image of 500x375 to boxes of score 0.5 or more, of which fresh weights have
none, so this is resize, network and the search for candidates. All presets and runtimes take turns in one process.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import multibox
from multibox.benchmarking.clock import WHOLE, Spread, describe, take_turns
from multibox.benchmarking.workload import synthetic_images
from multibox.presets import PRESETS

CLASSES = [f"class{index}" for index in range(20)]
RUNTIMES = {"onnxruntime": None, "OpenVINO float32": "float32", "OpenVINO bfloat16": "bfloat16"}
"""Precision that each is asked for; onnxruntime computes in float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(PRESETS), default=list(PRESETS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {preset: export(preset, Path(folder)) for preset in options.only}
        image = synthetic_images(1)[0]
        sides = {
            f"{preset} {runtime}": partial(open_in(runtime, file, options.threads).predict, image, 0.5)
            for preset, file in files.items()
            for runtime in RUNTIMES
        }
        times = take_turns({name: partial(run, work) for name, work in sides.items()}, options.rounds)
        print(f"{describe()}\n{options.threads} threads; milliseconds: median (10th to 90th percentile)")
        for preset, file in files.items():
            spreads = [times[f"{preset} {runtime}"][WHOLE] for runtime in RUNTIMES]
            size = file.stat().st_size / 1e6
            print(f"{preset:24}{size:7.1f} MB  " + "  ".join(map(shown, spreads)), flush=True)
    print("columns: " + ", ".join(RUNTIMES))


def export(preset: str, folder: Path) -> Path:
    file = folder / f"{preset}.onnx"
    # Fresh scores of this preset lie on its threshold, where the verification of the export finds a difference
    weights = "face" if preset == "rfb320-face" else None
    multibox.export(multibox.create(preset, names=CLASSES, weights=weights, device="cpu"), file)
    print(f"exported {preset}", file=sys.stderr, flush=True)
    return file


def open_in(runtime: str, file: Path, threads: int):
    """Open a file in one runtime; without OpenVINO `multibox.load` takes onnxruntime."""
    if runtime != "onnxruntime":
        return multibox.load(file, device="cpu", threads=threads, precision=RUNTIMES[runtime])
    hidden = sys.modules.get("openvino")
    sys.modules["openvino"] = None
    try:
        return multibox.load(file, device="cpu", threads=threads)
    finally:
        sys.modules.pop("openvino")
        if hidden is not None:
            sys.modules["openvino"] = hidden


def run(work) -> None:
    """Run once; no parts."""
    work()


def shown(times: Spread) -> str:
    return f"{1e3 * times.median:.1f} ({1e3 * times.low:.1f} to {1e3 * times.high:.1f})"


if __name__ == "__main__":
    main()
