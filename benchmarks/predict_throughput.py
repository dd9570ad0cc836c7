"""`multibox predict MODEL FOLDER --json` against `detector.predict(paths)` of the same engine, on many images.

Both sides look at the same files; that they find the same boxes is asserted before a time is printed. The command also
draws every image and writes it as a JPEG file, which the engine's side does not. Turns alternate, and the median of
each side is compared. A machine with other work beside it shows more in wall-clock time than in processor time, so
both are printed.

    python benchmarks/predict_throughput.py model.onnx [FOLDER] [--images 500] [--rounds 5]

Without FOLDER, images of 640x480 are made: noise laid over sprites, 60 kB each as JPEG.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multibox.data.image_listing import list_images
from multibox.data.sprites import render
from multibox.inference.load import load
from multibox.inference.results import ImageResult, result_files
from multibox.inference.streaming import drawing, open_copies, predict_stream
from multibox.structures import Detections

BAR = 0.85
"""Share of the engine's throughput that the command is to reach."""


def make_images(folder: Path, count: int) -> None:
    """Write JPEG files of 640x480 with sprites in them."""
    rng = np.random.default_rng(0)
    scenes = [Image.fromarray(render(index, classes=3, objects=(2, 6), size=480)[0]) for index in range(8)]
    for index in range(count):
        scene = np.asarray(scenes[index % len(scenes)].resize((640, 480)), np.int16)
        noisy = np.clip(scene + rng.integers(-12, 13, scene.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:05}.jpg", quality=85)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall-clock and processor time, children included, in seconds."""
    before, started = os.times(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - started, os.times()
    return wall, sum(after[:4]) - sum(before[:4])


def stream(detectors: Sequence[Any], paths: list[Path], scratch: Path) -> None:
    """Do the command's work with a detector that is loaded: look, draw, write."""
    files = [str(path) for path in paths]
    with result_files(files, detectors[0].names, json_file=scratch / "s.json") as add, drawing() as draw:
        for index, seen in enumerate(predict_stream(detectors, paths)):
            assert seen.image is not None and isinstance(seen.found, Detections), seen.found
            draw(scratch / "s" / f"{seen.path.stem}.jpg", seen.image, seen.found)
            add(index, ImageResult(files[index], seen.image.width, seen.image.height, seen.found))


def whole_command(model: Path, folder: Path, scratch: Path) -> None:
    """Run the command as a user does, from the start of Python to its end."""
    command = [sys.executable, "-m", "multibox", "predict", str(model), str(folder), "--json", str(scratch / "p.json")]
    command += ["--out", str(scratch / "d"), "--overwrite"]
    subprocess.run(command, check=True, capture_output=True)


def assert_same(detector: Any, paths: list[Path], file: Path) -> None:
    """Assert that the JSON file holds what the engine finds, and print how many boxes that are.

    In bfloat16 many scores tie. Of overlapping boxes with equal scores, which one is kept depends on the size of the
    batch in OpenVINO, so one box in two hundred may be another; their number and labels are the same in every image.
    """
    rows = json.loads(file.read_text())
    found = detector.predict(paths)
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    boxes = same = 0
    for row, expected in zip(rows, found, strict=True):
        written = np.array([[*each["box"], each["score"], each["label"]] for each in row["detections"]]).reshape(-1, 6)
        wanted = np.column_stack([expected.boxes, expected.scores, expected.labels])
        assert sorted(written[:, 5]) == sorted(wanted[:, 5]), row["file"]
        apart = np.abs(written[:, None] - wanted[None]) / (0.05, 0.05, 0.05, 0.05, 1e-4, 0.5)
        boxes += len(wanted)
        same += int((apart.max(-1) <= 1).any(1).sum())
    assert same >= 0.995 * boxes, f"{same} of {boxes} boxes are the same"
    print(f"{len(paths)} images: {same} of {boxes} boxes are the same on both sides, the others tie")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / "images"
        folder.mkdir()
        if asked.folder is None:
            make_images(folder, asked.images)
        else:
            given = list_images(asked.folder)
            for index in range(asked.images):
                source = given[index % len(given)].resolve()
                (folder / f"{index:05}{source.suffix.lower()}").symlink_to(source)
        measure(asked.model, folder, scratch, asked.rounds)


def measure(model: Path, folder: Path, scratch: Path, rounds: int) -> None:
    """Print the times of both sides."""
    paths = list_images(folder)
    detector = load(model)
    copies = open_copies(lambda threads: load(model, threads=threads))
    stream(copies, paths, scratch)
    whole_command(model, folder, scratch)
    assert_same(detector, paths, scratch / "p.json")
    sides: dict[str, Callable[[], object]] = {
        "engine: detector.predict(paths)": lambda: detector.predict(paths),
        "stream, drawn and written": lambda: stream(copies, paths, scratch),
        "command, as a user runs it": lambda: whole_command(model, folder, scratch),
    }
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            times[side].append(timed(sides[side]))
    first = next(iter(sides))
    for side, found in times.items():
        wall, processor = (statistics.median(values) / len(paths) * 1e3 for values in zip(*found, strict=True))
        ratios = [engine[0] / own[0] for engine, own in zip(times[first], found, strict=True)]
        print(
            f"{side:36} {wall:7.2f} ms per image (least {min(found)[0] / len(paths) * 1e3:.2f}), "
            f"{processor:6.2f} ms of processor time, {statistics.median(ratios):.2f} of the engine's throughput"
        )
    whole = times["command, as a user runs it"]
    reached = statistics.median(engine[0] / own[0] for engine, own in zip(times[first], whole, strict=True))
    print(f"{'reached' if reached >= BAR else 'MISSED'}: {reached:.2f} of the engine's throughput, wanted {BAR}")


if __name__ == "__main__":
    main()
