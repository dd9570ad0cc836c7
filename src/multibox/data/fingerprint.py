"""A fingerprint of the data of a run: a resumed run goes on with the same images and labels or not at all."""

import hashlib
from pathlib import Path

import numpy as np

from multibox.structures import Dataset

_PER_PIXEL = 100
"""Boxes are compared in hundredths of a pixel, so that rounding of another machine changes nothing."""


def fingerprint(training: Dataset, validation: Dataset | None) -> str:
    """Return 64 hexadecimal digits that change with any image name, image file size, box, label, flag or class name.

    File sizes are bytes (of the record file for RecordIO): an image that was edited has another size, and 100,000 of
    them are found in about a second without reading any. Folders, the order of images and the names of splits do not
    count, so data may move. Exchanging training and validation images changes it.
    """
    digest = hashlib.sha256()
    for role, dataset in (("training", training), ("validation", validation)):
        digest.update(f"\0{role}\0".encode())
        if dataset is not None:
            _add(digest, dataset)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", dataset: Dataset) -> None:
    order = sorted(range(len(dataset)), key=dataset.names.__getitem__)
    counts = np.diff(dataset.starts)[order]
    # The rows of each image, in the order of the names
    rows = np.repeat(dataset.starts[:-1][order] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    sizes: dict[Path, int] = {}
    for path in dataset.paths:
        if path not in sizes:
            sizes[path] = _bytes_of(path)
    texts = ["\0".join(dataset.class_names), *(dataset.names[i] for i in order)]
    digest.update("\n".join(f"{len(text)} {text}" for text in texts).encode("utf-8", "surrogatepass"))
    boxes = np.rint(dataset.boxes_xyxy[rows] * _PER_PIXEL).astype(np.int64)
    flags = np.stack([dataset.difficult[rows], dataset.crowd[rows]]).astype(np.uint8)
    lengths = np.array([sizes[dataset.paths[i]] for i in order], np.int64)
    for column in (lengths, counts.astype(np.int64), boxes, dataset.labels[rows].astype(np.int64), flags):
        # Little-endian whatever the machine
        digest.update(np.ascontiguousarray(column.astype(column.dtype.newbyteorder("<"))).tobytes())


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # Whoever opens the image says that it is missing
        return -1
