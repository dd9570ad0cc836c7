"""`multibox predict --ray` on a local cluster against the engine of one process, on the same images and cores.

Both sides look at the same files in the same batches; that their detections are equal is asserted before a time is
printed. The start of Ray and of its actors is left out: a cluster's time counts from the first finished part to the
last, for the images of the parts between, and the engine's from a loaded model on. The cluster's side also writes its
results as Parquet. Turns alternate; the median of the rounds is compared.

    python benchmarks/cluster.py [MODEL] [FOLDER] [--images 4096] [--rounds 3]

Without FOLDER, images of 640x480 are made: noise laid over sprites, 60 kB each as JPEG. At the end some blocks are done
without Ray, one process per core, to tell Ray's share, and the processor time of an image (docs/explain/scale.md).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from multibox.builtin import find_model, runnable
from multibox.cluster.block_worker import BlockWorker, ModelFiles, Task, model_files, model_hash
from multibox.cluster.image_sources import find_blocks
from multibox.cluster.plan import Block, Plan, finish, make_plan, open_folder
from multibox.cluster.ray_job import choose_pool, cluster, do_blocks
from multibox.data.image_listing import list_images
from multibox.data.sprites import render
from multibox.inference.load import load
from multibox.inference.streaming import open_copies, predict_stream
from multibox.limits import available_cores
from multibox.structures import Detections

BAR = 0.85
"""Share of the engine's throughput that the cluster is to reach."""


def make_images(folder: Path, count: int) -> None:
    """Write JPEG files of 640x480 with sprites in them; 256 of them differ."""
    rng = np.random.default_rng(0)
    scenes = [Image.fromarray(render(index, classes=3, objects=(2, 6), size=480)[0]) for index in range(8)]
    for index in range(count):
        target = folder / f"{index:05}.jpg"
        if index >= 256:
            target.write_bytes((folder / f"{index % 256:05}.jpg").read_bytes())
            continue
        scene = np.asarray(scenes[index % len(scenes)].resize((640, 480)), np.int16)
        noisy = np.clip(scene + rng.integers(-12, 13, scene.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(target, quality=85)


def engine_side(detectors: Sequence[Any], paths: Sequence[Path]) -> float:
    """Return the engine's images per second."""
    started = time.perf_counter()
    count = sum(isinstance(seen.found, Detections) for seen in predict_stream(detectors, paths))
    assert count == len(paths)
    return count / (time.perf_counter() - started)


def cluster_side(ray: Any, blocks: Sequence[Block], files: ModelFiles, task: Task) -> tuple[float, float]:
    """Return the cluster's images per second between its first and its last part, and the seconds until the first."""
    started = time.perf_counter()
    times: list[tuple[float, int]] = []
    parts = []
    for part in do_blocks(ray, list(enumerate(blocks)), files, task, choose_pool(ray, "cpu")):
        times.append((time.perf_counter() - started, part.images))
        parts.append(part)
    finish(task.out, parts, task.plan)
    # When the first part is done, each actor is about to end its first block: none of these count
    images = sum(count for _, count in times[available_cores() :])
    return images / (times[-1][0] - times[0][0]), times[0][0]


def process_side(blocks: Sequence[Block], files: ModelFiles, task: Task) -> tuple[float, float]:
    """Return images per second and processor time per image, in ms, of blocks done in processes without Ray."""
    some = [(number, block.encode()) for number, block in enumerate(blocks[: 4 * available_cores()])]
    with ProcessPoolExecutor(available_cores(), initializer=_open, initargs=(files, task)) as pool:
        list(pool.map(_one, [some[0]] * available_cores()))
        started = time.perf_counter()
        processor = sum(pool.map(_one, some))
        images = sum(block.images or 0 for block in blocks[: len(some)])
        return images / (time.perf_counter() - started), processor / images * 1e3


def _open(files: ModelFiles, task: Task) -> None:
    global _worker
    _worker = BlockWorker(task, lambda: files)


def _one(block: tuple[int, bytes]) -> float:
    """Do a block; return its processor time in seconds."""
    before = time.process_time()
    _worker({"number": [block[0]], "block": [block[1]]})
    return time.process_time() - before


def assert_same(detectors: Sequence[Any], paths: Sequence[Path], out: str) -> None:
    """Assert that the parts hold what the engine finds."""
    rows = pq.read_table(out).to_pylist()
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    boxes = 0
    for row, seen in zip(rows, predict_stream(detectors, paths), strict=True):
        assert isinstance(seen.found, Detections) and row["error"] is None
        wanted = np.column_stack([seen.found.boxes, seen.found.scores, seen.found.labels])
        written = np.array([[*each["box"], each["score"], each["label"]] for each in row["detections"]]).reshape(-1, 6)
        assert written.shape == wanted.shape and np.allclose(written, wanted, atol=1e-3), row["file"]
        boxes += len(wanted)
    size = sum(path.stat().st_size for path in Path(out).glob("part-*"))
    print(f"{len(paths)} images: {boxes} boxes are the same on both sides; {size / len(paths):.0f} bytes per image")


def measure(model: str, folder: Path, scratch: Path, rounds: int) -> None:
    """Print the throughput of both sides."""
    paths = list_images(folder)
    files = model_files(runnable(find_model(model)))
    blocks, _ = find_blocks([str(folder)])
    plan: Plan = make_plan(blocks, model_hash(files), None)
    detectors = open_copies(lambda threads: load(model, device="cpu", threads=threads))

    def task(name: str) -> Task:
        out = str(scratch / name)
        open_folder(out, plan)
        return Task(plan, out, str(Path.cwd()), "cpu", 1, False)

    with cluster("local") as ray:
        cluster_side(ray, blocks, files, task("first"))
        assert_same(detectors, paths, str(scratch / "first"))
        found: list[tuple[float, float, float]] = []
        for turn in range(rounds):
            ours = lambda turn=turn: cluster_side(ray, blocks, files, task(f"round-{turn}"))  # noqa: E731
            if turn % 2:
                (rate, start), engine = ours(), engine_side(detectors, paths)
            else:
                engine, (rate, start) = engine_side(detectors, paths), ours()
            found.append((engine, rate, start))
            print(
                f"engine {engine:.1f}, cluster {rate:.1f} images per second; first part after {start:.1f} s", flush=True
            )
    alone, processor = process_side(blocks, files, task("processes"))
    print(f"processes without Ray: {alone:.1f} images per second, {processor:.2f} ms of processor time per image")
    engine, rate, start = (statistics.median(values) for values in zip(*found, strict=True))
    share = statistics.median(rate / engine for engine, rate, _ in found)
    print(
        f"engine {engine:.1f}, cluster {rate:.1f} images per second on {available_cores()} cores; start {start:.1f} s"
    )
    print(f"{'reached' if share >= BAR else 'MISSED'}: {share:.2f} of the engine's throughput, wanted {BAR}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="coco")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    # Ray's workers step back behind other processes otherwise, and the engine's threads do not
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / "images"
        folder.mkdir()
        if asked.folder is None:
            make_images(folder, asked.images)
        measure(asked.model, (asked.folder or folder).resolve(), scratch, asked.rounds)


if __name__ == "__main__":
    main()
