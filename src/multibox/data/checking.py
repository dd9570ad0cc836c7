"""Open every image once before anything depends on it: better a sentence at the start than a stop at night."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.formats.text import OnBad
from multibox.data.images import load_image
from multibox.data.left_out import OTHER_CLASS, UNREADABLE_IMAGE, drop_boxes
from multibox.errors import ImageError
from multibox.limits import available_cores
from multibox.structures import Dataset, Labels, Sample

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


def _add(digest: Any, dataset: Dataset) -> None:
    order = sorted(range(len(dataset)), key=dataset.image_names.__getitem__)
    counts: Labels = np.diff(dataset.starts)[order]
    # The rows of each image, in the order of the names
    rows: Labels = np.repeat(dataset.starts[:-1][order] - np.cumsum(counts) + counts, counts)
    rows += np.arange(len(rows))
    sizes: dict[Path, int] = {}
    for path in dataset.paths:
        if path not in sizes:
            sizes[path] = _bytes_of(path)
    texts = ["\0".join(dataset.class_names), *(dataset.image_names[i] for i in order)]
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


def check_images(dataset: Dataset, on_bad: OnBad) -> Dataset:
    """Return the data set without images that cannot be decoded, and a note that counts them.

    Costs one decoding of every image, on all cores.

    Raises:
        ImageError: an image is missing, truncated or none, and `on_bad` is "stop"; or none is left.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        errors = list(pool.map(_problem, dataset))
    found = [error for error in errors if error is not None]
    if not found:
        return dataset
    if on_bad == "stop":
        raise ImageError(f"{found[0]}; mend or remove it, or give --on-bad skip")
    if len(found) == len(dataset):
        raise ImageError(f"no image of {dataset.root} ({dataset.split}) can be read; the first: {found[0]}")
    kept = dataset.subset(index for index, error in enumerate(errors) if error is None)
    note = f"{len(found)} images that cannot be read were skipped; the first: {found[0]}"
    left_out = Counter(dataset.left_out) + Counter({UNREADABLE_IMAGE: len(found)})
    return dataclasses.replace(kept, notes=(*dataset.notes, note), left_out=dict(left_out))


def _problem(sample: Sample) -> ImageError | None:
    try:
        load_image(sample)
    except ImageError as error:
        return error
    return None


def with_classes(dataset: Dataset, names: Sequence[str], renamed: Mapping[str, str] | None = None) -> Dataset:
    """Return the data set with other class names; objects of other classes are dropped and counted.

    Args:
        dataset: the data set.
        names: its classes from now on, in order.
        renamed: its present class names to those among `names`; several may become one. Others keep theirs.
    """
    if dataset.class_names == tuple(names) and not renamed:
        return dataset
    present = [(renamed or {}).get(name, name) for name in dataset.class_names]
    table = np.array([names.index(name) if name in names else -1 for name in present], np.int64)
    labels = table[dataset.labels]
    renumbered = dataclasses.replace(dataset, class_names=tuple(names), labels=labels)
    return drop_boxes(renumbered, labels < 0, OTHER_CLASS)
