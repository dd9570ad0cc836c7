"""The index of a million images: time to open it from its cache, and the memory that it and four workers take.

Makes a data set of N images with 7 boxes each: `labels.csv` and a folder of hard links to a few tiny JPEG files, or
tar files of 1,000 images (WebDataset), whose runs and order for `train.sampling=shards` are then measured too. Reads
it without a cache, then opens it from the cache in a process of its own, and asserts that both hold the same before
any time is printed. Then four processes, started and fed as `multibox train` starts its workers, read every label of
an epoch in random order, for three epochs. Memory is from /proc/PID/smaps_rollup: "private dirty" is what belongs to
one process alone and was written; "resident" counts the shared pages of the mapped file as well.

    python benchmarks/index.py [--images 1000000] [--boxes 7] [--format csv | coco | webdataset] [--folder DIR]

No image is decoded. With `--folder` the data set and its cache are kept there for another measurement.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multibox.data.formats import open_dataset
from multibox.data.formats.index_cache import dataset_arrays
from multibox.data.sampling import EpochBatches
from multibox.data.shards import find_runs
from multibox.structures import Dataset

PER_TAR = 1000
MOST_LINKS = 50_000
"""To one file; ext4 allows 65,000."""
WORKERS = 4
ENOUGH_S, ENOUGH_MB = 2.0, 300


def make(folder: Path, images: int, boxes: int, format: str) -> None:
    """Write the data set."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (images, boxes, 2))
    corners = np.concatenate([corners, corners + rng.integers(5, 25, (images, boxes, 2))], axis=2)
    labels = rng.integers(0, 80, (images, boxes))
    (folder / "images").mkdir(parents=True)
    if format == "webdataset":
        (folder / "images").rmdir()
        _write_tars(folder, corners, labels)
        return
    for start in range(0, images, MOST_LINKS):
        source = folder / f"source-{start}.jpg"
        Image.new("RGB", (64, 48), (start // MOST_LINKS % 256, 90, 90)).save(source)
        for image in range(start, min(start + MOST_LINKS, images)):
            os.link(source, folder / "images" / f"{image:07}.jpg")
        source.unlink()
    if format == "csv":
        _write_csv(folder / "labels.csv", corners, labels)
    else:
        _write_coco(folder / "labels.json", corners, labels)


def _write_tars(folder: Path, corners: Any, labels: Any) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 90, 90)).save(encoded, "JPEG")
    for first in range(0, len(corners), PER_TAR):
        with (folder / f"train-{first // PER_TAR:06}.tar").open("wb") as tar:
            for image in range(first, min(first + PER_TAR, len(corners))):
                places, classes = corners[image].tolist(), labels[image].tolist()
                boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in places]
                objects = {"bbox": boxes, "category": [f"class{label}" for label in classes]}
                label = json.dumps({"width": 64, "height": 48, "objects": objects}).encode()
                for kind, content in (("jpg", encoded.getvalue()), ("json", label)):
                    info = tarfile.TarInfo(f"{image:07}.{kind}")
                    info.size = len(content)
                    tar.write(info.tobuf() + content + bytes(-len(content) % 512))
            tar.write(bytes(1024))


def measure_order(dataset: Dataset) -> None:
    """Print time and memory of the runs of a data set in tar files, and of an epoch's order."""
    before, started = memory()["Private_Dirty"], time.process_time()
    runs = find_runs(dataset)
    found, held = time.process_time() - started, memory()["Private_Dirty"] - before
    batches = EpochBatches(len(dataset), 256, 1 << 40, runs=runs)
    started = time.process_time()
    batches.batch(0)
    ordered = time.process_time() - started
    batches.batch(batches.steps_per_epoch)
    both = memory()["Private_Dirty"] - before
    print(f"{len(runs.files):,} runs in {len(runs.paths):,} files: {found:.1f} s of processor, {held / 1e6:.0f} MB; "
          f"an epoch's order: {ordered:.2f} s, with two epochs {both / 1e6:.0f} MB")  # fmt: skip


def _write_csv(path: Path, corners: Any, labels: Any) -> None:
    with path.open("w") as file:
        file.write("filename,xmin,ymin,xmax,ymax,class\n")
        for image, (rows, classes) in enumerate(zip(corners, labels, strict=True)):
            for row, label in zip(rows.tolist(), classes.tolist(), strict=True):
                file.write(f"{image:07}.jpg,{','.join(map(str, row))},class{label}\n")


def _write_coco(path: Path, corners: Any, labels: Any) -> None:
    with path.open("w") as file:
        names = ",".join(f'{{"id":{label + 1},"name":"class{label}"}}' for label in range(80))
        file.write(f'{{"categories":[{names}],"images":[')
        file.write(",".join(f'{{"id":{image},"file_name":"{image:07}.jpg"}}' for image in range(len(corners))))
        file.write('],"annotations":[')
        number = 0
        for image, (rows, classes) in enumerate(zip(corners, labels, strict=True)):
            for (x1, y1, x2, y2), label in zip(rows.tolist(), classes.tolist(), strict=True):
                file.write("," * (number > 0) + f'{{"id":{number},"image_id":{image},"category_id":{label + 1},'
                           f'"bbox":[{x1},{y1},{x2 - x1},{y2 - y1}],"iscrowd":0}}')  # fmt: skip
                number += 1
        file.write("]}")


def memory() -> dict[str, int]:
    """Return this process's memory in bytes, by the names of the kernel."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def read_part(dataset: Dataset, part: int, epoch: int) -> tuple[int, int, int]:
    """Read this worker's share of an epoch in random order; return boxes seen, private dirty and resident memory."""
    order = np.random.default_rng(epoch).permutation(len(dataset))[part::WORKERS]
    boxes = sum(len(dataset[index].labels) for index in order)
    del order
    found = memory()
    return boxes, found["Private_Dirty"], found["Rss"]


_held: list[Dataset] = []


def hold(dataset: Dataset) -> None:
    """Keep the worker's data set, as `multibox.data.augmented.start_worker` does."""
    _held[:] = [dataset]


def read_held(part: int, epoch: int) -> tuple[int, int, int]:
    """Read a share of the data set that this worker holds."""
    return read_part(_held[0], part, epoch)


def same(one: Dataset, other: Dataset) -> bool:
    """Return whether two data sets hold the same, names, paths and notes included."""
    (about, arrays), (others, other_arrays) = dataset_arrays(one), dataset_arrays(other)
    return about == others and all(np.array_equal(arrays[name], other_arrays[name]) for name in arrays)


def open_once(data: Path, cache: Path) -> None:
    """Open the data set from its cache and print seconds and memory; runs in a process of its own."""
    before = memory()
    started = time.perf_counter()
    dataset = open_dataset(data, cache=cache)
    seconds = time.perf_counter() - started
    after = memory()
    uss = {name: found["Private_Dirty"] + found["Private_Clean"] for name, found in (("b", before), ("a", after))}
    dirty = after["Private_Dirty"] - before["Private_Dirty"]
    assert not dataset.boxes_xyxy.flags.writeable, "not opened from the cache"
    print(seconds, dirty / 1e6, (uss["a"] - uss["b"]) / 1e6)


def measure_workers(data: Path, cache: Path) -> None:
    """Print the memory of four workers over three epochs of labels."""
    dataset = open_dataset(data, cache=cache)
    before = memory()["Private_Dirty"]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context, initializer=hold, initargs=(dataset,)) as pool:
        rows: list[list[tuple[int, int, int]]] = []
        for epoch in range(3):
            started = time.perf_counter()
            rows.append(list(pool.map(read_held, range(WORKERS), [epoch] * WORKERS)))
            seconds = time.perf_counter() - started
            assert sum(boxes for boxes, _, _ in rows[-1]) == len(dataset.labels)
            print(f"epoch {epoch} of labels, {WORKERS} workers: {len(dataset) / seconds:,.0f} images/s")
    for name, column in (("private dirty", 1), ("resident", 2)):
        values = [[f"{worker[column] / 1e6:.0f}" for worker in epoch] for epoch in rows]
        print(f"{name} of the workers after epoch 0, 1, 2 (MB): {'; '.join(', '.join(one) for one in values)}")
    print(f"private dirty of the main process grew by {(memory()['Private_Dirty'] - before) / 1e6:.0f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--boxes", type=int, default=7)
    parser.add_argument("--format", choices=("csv", "coco", "webdataset"), default="csv")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        data, cache = folder / "set", folder / "runs" / ".multibox-cache"
        label_file = data / {"csv": "labels.csv", "coco": "labels.json", "webdataset": ""}[asked.format]
        if asked.open:
            open_once(label_file, cache)
            return 0
        if not data.exists():
            make(data, asked.images, asked.boxes, asked.format)
        started = time.perf_counter()
        fresh = open_dataset(label_file)
        reading = time.perf_counter() - started
        private = memory()["Private_Dirty"] / 1e6
        started = time.perf_counter()
        written = open_dataset(label_file, cache=cache)
        writing = time.perf_counter() - started
        assert same(fresh, written) and same(fresh, open_dataset(label_file, cache=cache)), (
            "the cache holds another index"
        )
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
              f"Python {platform.python_version()}, numpy {np.__version__}, {date.today()}")  # fmt: skip
        print(
            f"{len(fresh):,} images, {len(fresh.labels):,} boxes, {asked.format}; the cached index equals the one read"
        )
        print(f"read without a cache: {reading:.1f} s, {private:.0f} MB private after it; "
              f"read or opened with a cache the first time: {writing:.1f} s")  # fmt: skip
        print(f"cache files: {sum(file.stat().st_size for file in cache.iterdir()) / 1e6:.0f} MB")
        del fresh, written
        command = [sys.executable, __file__, "--open", "--format", asked.format, "--folder", str(folder)]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(3)]
        seconds, dirty, private = (sorted(float(run[column]) for run in runs)[1] for column in range(3))
        taken = f"{dirty:.0f} MB private dirty, {private:.0f} MB private"
        print(f"opened from the cache: {seconds:.2f} s, {taken} (median of 3)")
        measure_workers(label_file, cache)
        if asked.format == "webdataset":
            measure_order(open_dataset(label_file, cache=cache))
    return int(seconds > ENOUGH_S or private > ENOUGH_MB)


if __name__ == "__main__":
    sys.exit(main())
