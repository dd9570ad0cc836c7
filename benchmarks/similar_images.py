"""How long near-duplicates take to be found among many images, and that exactly those put there are found.

    python benchmarks/similar_images.py [--images 10000 100000]

Hashes are made up: random ones, of which one in ten comes a second time with three bits of its hash changed. Prints
seconds, and seconds of processor time, which other programs on the machine hardly change.
"""

import argparse
import time

import numpy as np

from multibox.data.similar import near_duplicate_groups

AGAIN = 10


def made_hashes(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes [images, 97] and the group of each."""
    originals = images - images // AGAIN
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (originals, 97), dtype=np.uint64) | np.uint64(1)
    again = hashes[: images // AGAIN].copy()
    again[:, 0] ^= np.uint64(0b1110)
    return np.concatenate([hashes, again]), np.concatenate([np.arange(originals), np.arange(len(again))])


def main() -> None:
    """Print a line for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    for images in parser.parse_args().images:
        hashes, expected = made_hashes(images)
        began, used = time.perf_counter(), time.process_time()
        groups = near_duplicate_groups(hashes)
        seconds, processor = time.perf_counter() - began, time.process_time() - used
        assert np.array_equal(groups, expected), "other groups than were put there"
        print(f"{images:,} images, {len(np.unique(groups)):,} groups: {seconds:.1f} s, {processor:.1f} s of processor")


if __name__ == "__main__":
    main()
