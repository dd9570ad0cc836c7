"""How long `multibox doctor` takes on a data set made here, and that it finds exactly the damage put into it.

    python benchmarks/doctor.py [--images 10000] [--width 640] [--height 480] [--preset NAME]

JPEG images of smooth noise, seven boxes each, VOC. One box in a hundred is reversed. Files are in the cache of the
system, as they were just written. Prints the seconds of the fast part (as training takes it) and of the whole.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from multibox import examine

BOXES = 7
REVERSED = 100


def write(folder: Path, images: int, width: int, height: int) -> int:
    """Write the data set and return how many boxes are reversed."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    count = 0
    names = [f"{number:06}" for number in range(images)]
    for number, name in enumerate(names):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / "JPEGImages" / f"{name}.jpg", quality=90)
        objects = ""
        for place in range(BOXES):
            x, y = place * width // BOXES + 4, int(rng.integers(4, height // 2))
            x2, y2 = x + int(rng.integers(20, width // BOXES - 4)), y + int(rng.integers(20, height // 3))
            if (number * BOXES + place) % REVERSED == 0:
                x, x2, count = x2, x, count + 1
            corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            objects += f"<object><name>thing{place}</name><bndbox>{corners}</bndbox></object>"
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    cut = images * 9 // 10
    for split, part in (("train", names[:cut]), ("val", names[cut:])):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--preset")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    try:
        faulty = write(folder / "data", options.images, options.width, options.height)
        for what, fast in (("labels and headers", True), ("everything", False)):
            started = time.perf_counter()
            found = examine(folder / "data", fast=fast, preset=options.preset)
            seconds = time.perf_counter() - started
            kinds = {one.kind for one in found if one.severity != "note"}
            count = sum(one.kind == "reversed-box" for one in found)
            assert (kinds, count) == ({"reversed-box"}, faulty), (kinds, count, faulty)
            print(f"{what}: {seconds:.1f} s for {options.images:,} images of {options.width} x {options.height}, "
                  f"{options.images * BOXES:,} boxes, on {len(os.sched_getaffinity(0))} cores")  # fmt: skip
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
