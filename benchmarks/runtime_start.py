"""How long an exported SSDLite320 takes from the start of Python's import to its first boxes, and how much memory.

Each measurement is a fresh process in which torch cannot be imported. Exit code 1 if a bar of issue 5 is missed:
import, load and first image under 1.5 s together, at most 250 MB.

    python benchmarks/runtime_start.py [model.onnx] [--rounds 5]

Without a model one is made first, which takes a minute.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import print_table

SECONDS, MEGABYTES = 1.5, 250
PARTS = ("import", "load", "first image", "second image")
CHILD = """
import sys, time

class Absent:
    names = {"torch", "torchvision", "jaxtyping"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
times = [time.perf_counter()]
import multibox
from multibox.inference import engines
load = multibox.load
times.append(time.perf_counter())
if sys.argv[2] == "onnxruntime":
    engines.find_spec = lambda name: None
detector = load(sys.argv[1])
times.append(time.perf_counter())
for _ in range(2):
    found = detector.predict(sys.argv[3], 0.001)
    times.append(time.perf_counter())
import json
from multibox.benchmarking.clock import peak_memory
assert "torch" not in sys.modules
print(json.dumps({
    "seconds": [after - before for before, after in zip(times, times[1:])],
    "megabytes": peak_memory() / 1e6,
    "engine": detector.engine.name,
    "boxes": len(found),
}))
"""


def start(model: Path, engine: str, image: Path) -> dict[str, Any]:
    """Run a fresh process and return what it measured."""
    command = [sys.executable, "-c", CHILD, str(model), engine, str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the process ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def measure(model: Path, engine: str, image: Path, rounds: int) -> dict[str, Any]:
    """Return medians of fresh processes; one more comes first, for the files to be in memory."""
    runs = [start(model, engine, image) for _ in range(rounds + 1)][1:]
    seconds = [statistics.median(each) for each in zip(*(run["seconds"] for run in runs), strict=True)]
    return {**runs[0], "seconds": seconds, "megabytes": max(run["megabytes"] for run in runs)}


def make(folder: Path) -> Path:
    """Export a SSDLite320 with the 80 classes of COCO."""
    from lively import lively_detector

    from multibox.exporting import export
    from multibox.structures import Size

    path = folder / "ssdlite320.onnx"
    export(lively_detector("ssdlite320-mobilenetv3", 80, Size(320, 320)), path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from multibox.benchmarking.clock import describe
    from multibox.benchmarking.workload import as_jpeg, synthetic_images

    missed, rows = False, []
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or make(Path(scratch))
        image = Path(scratch) / "image.jpg"
        image.write_bytes(as_jpeg(synthetic_images(1)[0]))
        for engine in ("openvino", "onnxruntime"):
            found = measure(model, engine, image, options.rounds)
            total = sum(found["seconds"][:3])
            missed |= total > SECONDS or found["megabytes"] > MEGABYTES
            cells = [f"{value:.3f}" for value in (*found["seconds"], total)]
            rows.append([found["engine"], *cells, f"{found['megabytes']:.0f}", str(found["boxes"])])
    print(describe())
    print(f"{model.name}: seconds, medians of {options.rounds} fresh processes; torch was imported in none")
    print_table(["engine", *PARTS, "first three", "MB at most", "boxes"], rows)
    print(f"asked: the first three under {SECONDS} s, at most {MEGABYTES} MB: {'MISSED' if missed else 'reached'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
