"""Images that look the same: a hash of what an image shows, and the groups of near-duplicates.

Two images are near-duplicates if their perceptual hashes differ in few bits and their thumbnails agree. The limits were
measured on photographs, blood cells and drawn images (docs/decisions.md): another quality, size, brightness or
sharpness stays one image, two blood films of one microscope do not.
"""

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from multibox.data.checking import Counting
from multibox.data.footprint import stamps_of
from multibox.data.images import image_bytes, load_small, resize_image
from multibox.errors import DataError
from multibox.files import whole_file
from multibox.limits import available_cores
from multibox.structures import Dataset, Labels, Sample, Size

Hashes = NDArray[np.uint64]
"""[N, 97]: one row per image, a 64-bit perceptual hash and its thumbnail, 16 x 16 pixels of RGB. All zeros for an image
that cannot be read."""
NEAR = 6
"""Bits of the perceptual hash in which near-duplicates may differ."""
BURST = 16
"""The same for images whose names say that they were taken one after the other."""
_GRID, _THUMBNAIL = 32, 16
_COLUMNS = 1 + _THUMBNAIL**2 * 3 // 8
_READ = np.uint64(1)  # the bit of the hash that mean brightness would have; set for every image that was read
_CONTRAST = 16.0
"""A coefficient counts as above the median if it is so by this much, so that noise on an even ground gives no bits."""
_ALIKE = 0.9
"""Least correlation of two near-duplicates' thumbnails; a crop of 2 % on each side keeps this."""
_BURST_ALIKE = 0.75
"""The same for neighbours by running number."""
_SAME_COLOUR = 12.0
"""Largest difference of mean colour, of 255, between two images without contrast that count as the same."""
_EVEN = 2.0
"""Standard deviation of a thumbnail, of 255, below which an image has no contrast."""
_BLOCK, _PAIRS = 2048, 8192
"""Images compared at a time, and pairs whose thumbnails are compared at a time: bounds of memory."""

_FREQUENCIES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(_GRID) + 1) / (2 * _GRID)).astype(np.float32)


def image_hashes(samples: Iterable[Sample], progress: Callable[[], object] | None = None) -> Hashes:
    """Return the hash of what each image shows; JPEGs are decoded at a reduced scale, on all cores.

    Args:
        samples: a `Dataset`, or some of its samples.
        progress: called after each image.

    Returns:
        [N, 97]; rows of unreadable images are zero.
    """

    def one(sample: Sample) -> Hashes:
        try:
            pixels = np.asarray(resize_image(load_small(sample, Size(_GRID, _GRID)), Size(_GRID, _GRID)))
            return hash_pixels(pixels)
        except DataError:
            return np.zeros(_COLUMNS, np.uint64)

    rows: list[Hashes] = []
    with ThreadPoolExecutor(available_cores()) as pool:
        for row in pool.map(one, samples):
            rows.append(row)
            if progress is not None:
                progress()
    return np.stack(rows) if rows else np.zeros((0, _COLUMNS), np.uint64)


def remembered_hashes(dataset: Dataset, cache: Path | None, counting: Counting) -> Hashes:
    """Return `image_hashes` of a data set, from the cache if no image's size or time has changed since.

    Args:
        dataset: the images.
        cache: folder of cache files; None for none.
        counting: tells how far it is.
    """
    digest = hashlib.sha256(b"1")
    for text in dataset.paths.texts():
        digest.update(f"{len(text)} {text}\n".encode("utf-8", "surrogatepass"))
    digest.update(dataset.offsets.array.tobytes() + stamps_of(dataset.paths).tobytes())
    stem = "scenes-" + hashlib.sha256(f"{dataset.root.absolute()}\0{dataset.split}".encode()).hexdigest()[:16]
    file = None if cache is None else cache / f"{stem}-{digest.hexdigest()[:16]}.npy"
    if file is not None:
        with suppress(OSError, ValueError, EOFError):
            held: NDArray[np.uint64] = np.load(file, allow_pickle=False)
            if held.dtype == np.uint64 and held.shape == (len(dataset), _COLUMNS):
                return held
    with counting("images compared", len(dataset)) as advance:
        hashes = image_hashes(dataset, lambda: advance(1))
    if file is not None:
        with suppress(OSError):
            for old in file.parent.glob(f"{stem}-*.npy"):
                old.unlink()
            with whole_file(file) as opened:
                np.save(opened, hashes)
    return hashes


def hash_pixels(pixels: NDArray[np.uint8]) -> Hashes:
    """Return the row of `image_hashes` for one image, given as 32 x 32 pixels of RGB.

    The hash is the sign of 63 low frequencies of the brightness (discrete cosine transform) against their median.
    """
    colours = pixels.astype(np.float32)
    brightness = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    waves = (_FREQUENCIES @ brightness @ _FREQUENCIES.T).reshape(-1)
    bits = waves > np.median(waves[1:]) + _CONTRAST
    bits[0] = True
    half = _GRID // _THUMBNAIL
    small = colours.reshape(_THUMBNAIL, half, _THUMBNAIL, half, 3).mean(axis=(1, 3))
    packed = np.packbits(bits, bitorder="little")
    return np.concatenate([packed, np.rint(small).astype(np.uint8).reshape(-1)]).view("<u8").astype(np.uint64)


def near_duplicate_groups(hashes: Hashes, max_distance: int = NEAR) -> Labels:
    """Return the group number of each image; images that look the same, also by way of a third, share one.

    Args:
        hashes: [N, 97], from `image_hashes`. 100,000 take about half a minute on 2 cores.
        max_distance: bits of the perceptual hash in which two images may differ.

    Returns:
        [N]; groups are numbered from 0 in the order of their first image. An unreadable image is a group of its own.
    """
    groups = Groups(len(hashes))
    rows = np.flatnonzero(hashes[:, 0] & _READ)
    _, first, same = np.unique(hashes[rows], axis=0, return_index=True, return_inverse=True)
    groups.join(np.stack([rows[first[same.reshape(-1)]], rows], axis=1))
    rows = np.sort(rows[first])
    signs = np.unpackbits(hashes[rows, :1].astype("<u8").view(np.uint8), axis=1).astype(np.float32) * 2 - 1
    likeness = _Thumbnails(hashes[rows])
    for start in range(0, len(rows), _BLOCK):
        for other in range(start, len(rows), _BLOCK):
            agreeing = signs[start : start + _BLOCK] @ signs[other : other + _BLOCK].T
            if agreeing.max() < 64 - 2 * max_distance:
                continue
            pairs = np.argwhere(agreeing >= 64 - 2 * max_distance) + np.array([start, other])
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            for chunk in range(0, len(pairs), _PAIRS):
                some = pairs[chunk : chunk + _PAIRS]
                some = some[groups.apart(rows[some])]
                groups.join(rows[some[likeness.alike(some)]])
    return groups.numbers()


class _Thumbnails:
    """The thumbnails of images, ready to be compared."""

    def __init__(self, hashes: Hashes) -> None:
        self.pixels = np.ascontiguousarray(hashes[:, 1:].astype("<u8")).view(np.uint8)

    def alike(self, pairs: Labels, correlation: float = _ALIKE) -> NDArray[np.bool_]:
        """Return which pairs [P, 2] of rows show the same, with at least this correlation."""
        sides: list[NDArray[np.float32]] = []
        means: list[NDArray[np.float32]] = []
        for rows in pairs.T:
            pixels = self.pixels[rows].astype(np.float32)
            means.append(pixels.reshape(len(rows), _THUMBNAIL**2, 3).mean(axis=1))
            sides.append(pixels - pixels.mean(axis=1, keepdims=True))
        spread = [np.sqrt(np.square(side).mean(axis=1)) for side in sides]
        even = np.maximum(*spread) < _EVEN
        product = (sides[0] * sides[1]).mean(axis=1)
        similar = product >= correlation * np.maximum(spread[0] * spread[1], _EVEN)
        return np.where(even, (np.abs(means[0] - means[1]) < _SAME_COLOUR).all(axis=1), similar)


class Groups:
    """Numbers 0 to N - 1 in groups that grow as pairs are joined."""

    def __init__(self, count: int) -> None:
        self.parents = np.arange(count)

    def apart(self, pairs: Labels) -> NDArray[np.bool_]:
        """Return which pairs [P, 2] are not in one group yet."""
        roots = self.roots()
        return roots[pairs[:, 0]] != roots[pairs[:, 1]]

    def join(self, pairs: Labels) -> None:
        """Put both members of each pair [P, 2] into one group."""
        parents = self.parents
        for one, other in pairs.tolist():
            while parents[one] != one:
                one = parents[one]
            while parents[other] != other:
                other = parents[other]
            parents[max(one, other)] = min(one, other)

    def roots(self) -> Labels:
        """Return the smallest member [N] of the group of each number."""
        while not np.array_equal(above := self.parents[self.parents], self.parents):
            self.parents = above
        return self.parents

    def numbers(self) -> Labels:
        """Return the number [N] of each one's group, in the order of their first members."""
        return np.unique(self.roots(), return_inverse=True)[1].reshape(-1).astype(np.int64)


def same_bytes_groups(samples: Sequence[Sample]) -> Labels:
    """Return the group number of each image; images with the same bytes share one. Only files of one size are read.

    Returns:
        [N]; a file that cannot be read is a group of its own.
    """
    groups = Groups(len(samples))
    sizes = [_bytes_of(sample) for sample in samples]
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (sizes[i], i))
    for _, same in groupby(order, key=sizes.__getitem__):
        first: dict[bytes, int] = {}
        members = list(same)
        for i in members if len(members) > 1 else []:
            try:
                digest = hashlib.sha256(image_bytes(samples[i])).digest()
            except DataError:
                continue
            groups.join(np.array([[first.setdefault(digest, i), i]]))
    return groups.numbers()


def _bytes_of(sample: Sample) -> int:
    """Return the bytes of an image's file, or another number that images of the same bytes share."""
    if sample.offset is not None:
        return sample.length or -1
    try:
        return Path(sample.path).stat().st_size
    except OSError:
        return 0


def scene_groups(image_names: Sequence[str], hashes: Hashes, group_by: re.Pattern[str] | None = None) -> Labels:
    """Return the group number of each image; images of one scene share one, and should not be divided among splits.

    Near-duplicates share a group, and the images of a burst: neighbours by running number in the name (`IMG_0042.jpg`,
    `IMG_0043.jpg`) that look similar. So do the copies that Roboflow makes of one original (`cat_jpg.rf.0a1b2c.jpg`).

    Args:
        image_names: of N images, with their folders.
        hashes: [N, 97], from `image_hashes`.
        group_by: images whose names agree in its first group, or in the whole match, share a group as well.

    Returns:
        [N]; groups are numbered from 0 in the order of their first image.
    """
    groups = Groups(len(image_names))
    near = near_duplicate_groups(hashes)
    _join_equal(groups, near.tolist())
    _join_equal(groups, [_original(name) for name in image_names])
    if group_by is not None:
        found = [group_by.search(name) for name in image_names]
        _join_equal(groups, [match and (match[1] if match.re.groups else match[0]) for match in found])
    parts = [_running_number(name) for name in image_names]
    order = sorted(range(len(parts)), key=parts.__getitem__)
    neighbours = [(i, j) for i, j in pairwise(order) if parts[i][0] == parts[j][0]]
    pairs = np.array([pair for pair in neighbours if "" not in (parts[pair[0]][2], parts[pair[1]][2])], np.int64)
    pairs = pairs.reshape(-1, 2)
    bits = [np.unpackbits(np.ascontiguousarray(hashes[rows, :1]).view(np.uint8), axis=1) for rows in pairs.T]
    readable = (hashes[pairs, 0] & _READ).all(axis=1)
    pairs = pairs[readable & ((bits[0] != bits[1]).sum(axis=1) <= BURST)]
    groups.join(pairs[_Thumbnails(hashes).alike(pairs, _BURST_ALIKE)])
    return groups.numbers()


def _join_equal(groups: Groups, keys: Sequence[Hashable]) -> None:
    """Join all that have the same key; None is no key."""
    first: dict[Hashable, int] = {}
    pairs = [(first.setdefault(key, i), i) for i, key in enumerate(keys) if key is not None]
    groups.join(np.array(pairs, np.int64).reshape(-1, 2))


def _original(image_name: str) -> str | None:
    """Return the name of the original that Roboflow augmented; None for another tool's names."""
    original, mark, _ = PurePosixPath(image_name).name.rpartition(".rf.")
    return original if mark else None


def _running_number(image_name: str) -> tuple[str, int, str]:
    """Return what stands before and after the last number of a name, that number and its digits."""
    path = PurePosixPath(image_name)
    match = re.search(r"(\d{1,18})(?=\D*$)", path.stem)
    if match is None:
        return (image_name, 0, "")
    return (f"{path.parent}/{path.stem[: match.start()]}#{path.stem[match.end() :]}", int(match[1]), match[1])
