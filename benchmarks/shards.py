"""Images in tar files: what order costs on a cold disk, and what one core decodes and augments.

    python benchmarks/shards.py [--images 8000] [--per-tar 1000] [--batch 32] [--threads 8] [--folder DIR] [--small]

Writes tar files of 640x480 photographs of about 80 kB. Then it reads one epoch the way a run does, twice per order of
images: uniform, and along the files (`train.sampling=shards`). Before each reading the files are dropped from the
system's file cache, so every byte comes from the disk. It asserts that both orders see the same images with the same
bytes, and that an image is the same from a loose file, from a tar and through the loader, before it prints a time.

Requests of the disk are those of all processes (/proc/diskstats), so they mean something on a quiet machine only.
Processor time per image is of one thread, for decoding alone and for decoding with augmentation.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from peers import machine, print_table
from PIL import Image

from multibox.data.augmentation import find_augmentation
from multibox.data.augmented import AugmentedImages
from multibox.data.formats import open_dataset
from multibox.data.images import image_bytes, read_image
from multibox.data.read_ahead import ReadAhead
from multibox.data.sampling import EpochBatches
from multibox.data.shards import find_runs
from multibox.structures import Dataset, Size

WIDTH, HEIGHT, KINDS = 640, 480, 32
"""Of the photographs, and how many different ones there are."""
ROUNDS = 2


class Reading(NamedTuple):
    """One epoch read from a cold disk."""

    seconds: float
    processor: float
    requests: int
    """Of the disk, by all processes."""
    from_disk: int
    """Bytes that this process made the disk read."""
    seen: dict[int, int]
    """Checksum of the bytes of each image."""


def photographs() -> list[bytes]:
    """Return JPEG files of smooth scenes with grain, of about the size of COCO's."""
    rng = np.random.default_rng(0)
    files: list[bytes] = []
    for _ in range(KINDS):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 9, (HEIGHT, WIDTH, 1)).astype(np.float32)
        encoded = io.BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=85)
        files.append(encoded.getvalue())
    return files


def make(folder: Path, images: int, per_tar: int) -> None:
    """Write the tar files."""
    folder.mkdir(parents=True)
    files, rng = photographs(), np.random.default_rng(1)
    for first in range(0, images, per_tar):
        with tarfile.open(folder / f"train-{first // per_tar:06}.tar", "w") as tar:
            for image in range(first, min(first + per_tar, images)):
                x, y = rng.integers(0, 300, 2).tolist()
                objects = {"bbox": [[x, y, 150, 120]] * 7, "category": [f"class{image % 20}"] * 7}
                label = json.dumps({"objects": objects, "width": WIDTH, "height": HEIGHT}).encode()
                # Bytes behind a JPEG's end are no pixels: each image gets bytes of its own
                data = files[image % KINDS] + b"%08d" % image
                for kind, content in (("jpg", data), ("json", label)):
                    info = tarfile.TarInfo(f"{image:08}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def drop_from_cache(dataset: Dataset) -> None:
    """Make the next reads of all files come from the disk."""
    for path in set(dataset.paths.texts()):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def read_epoch(dataset: Dataset, batches: EpochBatches, threads: int) -> Reading:
    """Read the bytes of the images of one epoch by so many threads, each batch after the other."""
    drop_from_cache(dataset)
    seen: dict[int, int] = {}

    def read(place: int) -> None:
        seen[place] = zlib.crc32(image_bytes(dataset[place]))

    began = _disk_requests(), _own_bytes()
    started, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool, closing(_ahead(batches)) as reach:
        for step in range(batches.steps_per_epoch):
            next(reach)
            list(pool.map(read, [key.place for key in batches.batch(step)]))
    taken = time.perf_counter() - started, time.process_time() - processor
    return Reading(*taken, _disk_requests() - began[0], _own_bytes() - began[1], seen)


def _ahead(batches: EpochBatches) -> Iterator[None]:
    """Read ahead for one step at each `next`, as the loader does."""
    if batches.runs is None:
        while True:
            yield
    with closing(ReadAhead(batches.runs, batches.batch)) as ahead:
        step = 0
        while True:
            ahead.reach(step)
            step += 1
            yield


def _disk_requests() -> int:
    """Return the requests to read that all disks finished."""
    rows = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return sum(int(row[3]) for row in rows if not row[2][-1].isdigit() or row[2].startswith("nvme"))


def _own_bytes() -> int:
    """Return the bytes that this process made disks read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def compare_orders(dataset: Dataset, batch: int, threads: int) -> None:
    """Print how long an epoch takes to read in both orders."""
    runs = find_runs(dataset)
    orders = {
        "uniform": EpochBatches(len(dataset), batch, 1 << 30),
        "along the files": EpochBatches(len(dataset), batch, 1 << 30, runs=runs),
    }
    read = {name: [read_epoch(dataset, order, threads) for _ in range(ROUNDS)] for name, order in orders.items()}
    uniform, along = (found[0].seen for found in read.values())
    assert all(one.seen == found[0].seen for found in read.values() for one in found), "an epoch is not repeatable"
    assert len(uniform) == len(along) == batch * (len(dataset) // batch), "an image came twice"
    assert all(uniform[place] == along[place] for place in uniform.keys() & along.keys()), "bytes differ"
    total = sum(int(length) for length in dataset.lengths.array)
    rows: list[list[str]] = []
    for name, found in read.items():
        seconds, processor = median(one.seconds for one in found), median(one.processor for one in found)
        requests, from_disk = median(one.requests for one in found), median(one.from_disk for one in found)
        images = len(found[0].seen)
        numbers = (images / seconds, total / seconds / 1e6, 1e6 * processor / images, from_disk / total)
        rates = [f"{value:.{digits}f}" for value, digits in zip(numbers, (0, 0, 0, 2), strict=True)]
        rows.append([name, *rates, f"{from_disk / max(1, requests) / 1e3:.0f}"])
    print(
        f"One epoch of {len(dataset):,} images of {total / len(dataset) / 1e3:.0f} kB in {len(runs.paths)} tar files "
        f"and {len(runs.files)} runs; cold disk, {threads} threads, batches of {batch}; the same bytes:"
    )
    print_table(["order", "images/s", "MB/s", "µs of processor per image", "times the data", "kB per request"], rows)


def processor_time(work: Callable[[int], object], count: int) -> float:
    """Return milliseconds of processor time per call, the median of five parts."""
    work(0)
    parts: list[float] = []
    for part in range(5):
        started = time.thread_time()
        for index in range(part * count, (part + 1) * count):
            work(index)
        parts.append(1e3 * (time.thread_time() - started) / count)
    return median(parts)


def measure_core(dataset: Dataset, count: int) -> None:
    """Print what one core decodes and augments."""
    rows: list[list[str]] = []
    for side in (300, 512):
        for recipe in ("default", "caffe"):
            images = AugmentedImages(dataset, Size(side, side), find_augmentation(recipe))
            decode = processor_time(lambda index, images=images: images.decoded[index % len(dataset)], count)
            both = processor_time(lambda index, images=images: images[0, index % len(dataset)], count)
            decoded = images.decoded[0].pixels.nbytes / 1e3
            times = (f"{decode:.2f}", f"{both - decode:.2f}", f"{both:.2f}", f"{1e3 / both:.0f}")
            rows.append([f"{side}, {recipe}", *times, f"{decoded:.0f}"])
    print("Processor time of one thread per image, bytes already in memory:")
    print_table(["input, recipe", "decode ms", "augment ms", "both ms", "images/s per core", "decoded kB"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--per-tar", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=8, help="that read at the same time")
    parser.add_argument("--folder", type=Path, help="keep the tar files there; the default removes them")
    parser.add_argument("--small", action="store_true", help="a test of the script: hundreds of images")
    asked = parser.parse_args()
    images, per_tar, count = (300, 100, 4) if asked.small else (asked.images, asked.per_tar, 100)
    with tempfile.TemporaryDirectory(prefix="multibox-shards-") as scratch:
        folder = (asked.folder or Path(scratch)) / "set"
        if not folder.exists():
            make(folder, images, per_tar)
        dataset = open_dataset(folder, "train")
        loose = Path(scratch) / "loose.jpg"
        loose.write_bytes(image_bytes(dataset[1]))
        pixels = AugmentedImages(dataset, Size(300, 300), ()).decoded[1].pixels
        assert np.array_equal(np.asarray(read_image(loose)), pixels), "an image differs in a tar file"
        # As in the threads and processes of a run's loader
        torch.set_num_threads(1)
        print(machine())
        compare_orders(dataset, asked.batch, asked.threads)
        measure_core(dataset, count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
