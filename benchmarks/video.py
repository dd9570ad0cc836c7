"""`multibox predict MODEL clip.mp4 --track` against the engine alone on the same decoded frames.

The clip is made here: 60 s of 640x480 at 30 frames per second, a camera that pans over photographs of ../shared (or
over sprites). That the video's rows are those of `detector.predict` on every frame is asserted before a time is
printed. Then four things alternate, and medians are compared:

* engine: the same copies of the exported file, as many threads, on decoded RGB frames in memory;
* the rest: the whole pipeline with a detector that knows its detections already: decoding, conversion to RGB, tracks,
  drawing, encoding, rows;
* pipeline: all of it, in this process;
* command: `multibox predict MODEL clip.mp4 --track`, from the start of Python to its end.

Decoding, drawing and encoding take processor time from the network, which cannot be had twice: on a machine where the
network fills all cores, the wall-clock ratio to the engine alone cannot reach 1. So the share that counts is the
engine's throughput on the processor time that the rest leaves: engine time / (cores * wall - the rest's time). It means
something on a quiet machine only. Engine time / (pipeline's time - the rest's) is printed, too.

    python benchmarks/video.py [MODEL] [--seconds 60] [--rounds 3]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import av
import numpy as np
from PIL import Image
from predict_throughput import timed

from multibox.analysis.drift import Seen
from multibox.data.sprites import render
from multibox.inference.load import load
from multibox.inference.streaming import open_copies
from multibox.limits import available_cores
from multibox.thresholds import lowest_scores
from multibox.video.addresses import as_file
from multibox.video.pipeline import Plan, Progress, predict_video
from multibox.video.tables import open_tables

BAR = 0.9
RATE, SIZE = 30, (640, 480)
PHOTOS = Path(__file__).resolve().parents[2] / "shared/data/photos"
HELD = 300
"""Frames held in memory for the engine's side, which goes through them again and again."""


def make_clip(path: Path, seconds: int) -> None:
    """Write the clip: five seconds of each photograph, seen through a window that moves."""
    photos = [Image.open(photo).convert("RGB") for photo in sorted(PHOTOS.glob("*.jpg"))]
    if not photos:
        photos = [Image.fromarray(render(index, classes=3, objects=(2, 6), size=480)[0]) for index in range(12)]
    wide, high = round(SIZE[0] * 1.25), round(SIZE[1] * 1.25)
    scenes = [np.asarray(photo.resize((wide, high), Image.Resampling.LANCZOS)) for photo in photos]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(seconds * RATE):
            scene = scenes[number // (5 * RATE) % len(scenes)]
            share = number % (5 * RATE) / (5 * RATE)
            left, top = round(share * (wide - SIZE[0])), round((1 - share) * (high - SIZE[1]))
            window = np.ascontiguousarray(scene[top : top + SIZE[1], left : left + SIZE[0]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())


def decode(path: Path):
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


class Known:
    """A detector that knows its detections: what a frame costs without the network."""

    def __init__(self, detector: Any, found: list[Any]) -> None:
        self.names, self.thresholds, self.statistics = detector.names, detector.thresholds, detector.statistics
        self.found = iter(found)

    def prepare(self, image: Any) -> Any:
        """Return the image as it is."""
        return image

    def detect(self, images: list[Any], lowest: Any = None) -> list[Any]:
        """Return what was found before."""
        return [next(self.found) for _ in images]


def pipeline(clip: Path, detectors: list[Any], target: Path) -> list[Any]:
    """Do all that the command does, and return the reported detections of every frame."""
    with open_tables(target.with_suffix(".jsonl")) as add:
        stream = predict_video(
            as_file(clip), Plan(detectors, track=True), target, Progress(), add=add, seen=Seen(detectors[0].statistics)
        )
        return [found for _, found, _ in stream]


def engine(frames: list[Any], count: int, detectors: list[Any], lowest: Any) -> list[Any]:
    """Run the network on frames in memory, in as many threads as there are copies."""
    free: SimpleQueue[Any] = SimpleQueue()
    for detector in detectors:
        free.put(detector)

    def look(pixels: Any) -> Any:
        detector = free.get()
        try:
            return detector.detect([pixels], lowest)[0]
        finally:
            free.put(detector)

    with ThreadPoolExecutor(len(detectors)) as pool:
        return list(pool.map(look, islice(cycle(frames), count)))


def assert_same(clip: Path, detector: Any, found: list[Any]) -> None:
    """Assert that the pipeline reports what `detector.predict` finds in each frame; equal scores in any order."""
    lowest = lowest_scores(None, detector.thresholds, detector.names)
    boxes = 0
    for number, (pixels, own) in enumerate(zip(decode(clip), found, strict=True)):
        plain = detector.detect([pixels], lowest)[0]
        rows = [sorted(np.column_stack([e.scores, e.labels, e.boxes]).tolist()) for e in (plain, own)]
        assert rows[0] == rows[1], f"frame {number}"
        boxes += len(plain)
    print(f"{len(found)} frames: all {boxes} boxes, scores and classes are those of frame-by-frame prediction")


def profile(work: Callable[[], object]) -> Counter[str]:
    """Return processor seconds by kind of thread while `work` runs, as Linux counts them; empty elsewhere."""
    seen: dict[str, tuple[str, float]] = {}
    done = threading.Event()

    def watch() -> None:
        import os

        tick = os.sysconf("SC_CLK_TCK")
        while not done.wait(0.1):
            for task in Path("/proc/self/task").iterdir():
                try:
                    name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
                except OSError:
                    continue
                fields = rest.split()
                seen[task.name] = (name, (int(fields[11]) + int(fields[12])) / tick)

    if not Path("/proc/self/task").exists():
        return Counter()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    time.sleep(0.3)
    before = dict(seen)
    work()
    time.sleep(0.2)
    done.set()
    watcher.join()
    total: Counter[str] = Counter()
    for task, (name, seconds) in seen.items():
        total[name] += seconds - before.get(task, (name, 0.0))[1]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="coco")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clip = Path(name, "clip.mp4")
        make_clip(clip, asked.seconds)
        measure(asked.model, clip, asked.rounds)


def measure(model: str, clip: Path, rounds: int) -> None:
    detectors = open_copies(lambda threads: load(model, threads=threads))
    detector: Any = detectors[0]
    drawn = clip.with_name("drawn.mp4")
    found = pipeline(clip, detectors, drawn)
    assert_same(clip, detector, found)
    count, frames = len(found), list(islice(decode(clip), HELD))
    lowest = lowest_scores(None, detector.thresholds, detector.names)
    command = [
        sys.executable,
        "-m",
        "multibox",
        "predict",
        model,
        str(clip),
        "--track",
        "--out",
        str(clip.parent / "o"),
    ]
    command += ["--json", str(clip.parent / "o.jsonl"), "--overwrite"]
    sides: dict[str, Callable[[], object]] = {
        "engine": lambda: engine(frames, count, detectors, lowest),
        "the rest": lambda: pipeline(clip, [Known(detector, found)], drawn),
        "pipeline": lambda: pipeline(clip, detectors, drawn),
        "command": lambda: subprocess.run(command, check=True, capture_output=True),
    }
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            times[side].append(timed(sides[side]))
    cores = available_cores()
    wall, spent = ({side: statistics.median(t[i] for t in each) for side, each in times.items()} for i in (0, 1))
    for side in sides:
        print(
            f"{side:9} {count / wall[side]:7.1f} frames/s, {wall[side] / count * 1e3:6.2f} ms per frame, "
            f"{spent[side] / count * 1e3:6.2f} ms of processor time"
        )
    print(f"wall-clock: {wall['engine'] / wall['pipeline']:.2f} of the engine alone on all {cores} cores")
    left = cores * wall["pipeline"] - spent["the rest"]
    share = spent["engine"] / left
    print(
        f"{'reached' if share >= BAR else 'MISSED'}: {share:.2f} of the engine's throughput on the processor time that "
        f"decoding, tracks, drawing and encoding leave; wanted {BAR}"
    )
    own = spent["engine"] / (spent["pipeline"] - spent["the rest"])
    print(f"by processor time alone, which other programs disturb less: {own:.2f}")
    parts = profile(sides["pipeline"])
    print("processor ms per frame: " + ", ".join(f"{n} {s / count * 1e3:.2f}" for n, s in parts.most_common(8)))


if __name__ == "__main__":
    main()
