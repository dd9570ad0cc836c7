"""Open every image once before anything depends on it: better a sentence at the start than a stop at night."""

import contextlib
import dataclasses
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from multibox.columns import Integers, ragged
from multibox.data.footprint import stamps_of
from multibox.data.formats import DataPaths, open_dataset
from multibox.data.formats.text import OnBad
from multibox.data.images import load_image, size_of
from multibox.data.left_out import OTHER_CLASS, UNREADABLE_IMAGE, counted, drop_boxes
from multibox.data.verdicts import Verdicts, known_verdicts, remember_verdicts
from multibox.errors import ImageError
from multibox.limits import available_cores
from multibox.structures import Dataset, Labels, Sample, Size, Sizes

Counting = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]
"""Begins to tell how far something is, given what and how many; what it yields takes how many more are done."""

_PER_PIXEL = 100
"""Boxes are compared in hundredths of a pixel, so that rounding of another machine changes nothing."""
_LARGEST = 2.0**62
"""Of these hundredths; a coordinate beyond it counts as that."""
_BLOCK = 1 << 16
"""Rows handled at once, so that working memory stays small."""
_TOGETHER = 32
"""Images that one thread decodes before it hands them in."""


@contextlib.contextmanager
def silence(what: str, total: int) -> Generator[Callable[[int], None], None, None]:
    """Tell nothing."""
    yield lambda done: None


def fingerprint(training: Dataset, validation: Dataset | None) -> str:
    """Return 64 hexadecimal digits that change with any image name, image file size, box, label, flag or class name.

    File sizes are bytes (of the record file for RecordIO): an image that was edited has another size, and 100,000 of
    them are found in a quarter of a second without reading any. Folders, the order of images and the names of splits
    do not count, so data may move. Exchanging training and validation images changes it.
    """
    digest = hashlib.sha256()
    for role, dataset in (("training", training), ("validation", validation)):
        digest.update(f"\0{role}\0".encode())
        if dataset is not None:
            _add(digest, dataset)
    return digest.hexdigest()


def _add(digest: Any, dataset: Dataset) -> None:
    names = list(dataset.image_names)
    order = sorted(range(len(names)), key=names.__getitem__)
    _add_texts(digest, "\0".join(dataset.class_names), map(names.__getitem__, order))
    del names
    images = np.array(order, np.int64)
    starts, rows = ragged(dataset.starts, images)
    _add_numbers(digest, stamps_of(dataset.paths)[:, 0][images])
    _add_numbers(digest, np.diff(starts))
    for first in range(0, len(rows), _BLOCK):
        boxes = dataset.boxes_xyxy[rows[first : first + _BLOCK]]
        # Boxes beyond all reason have whole numbers, too
        whole = np.clip(np.nan_to_num(np.rint(boxes * _PER_PIXEL)), -_LARGEST, _LARGEST)
        _add_numbers(digest, whole.astype(np.int64))
    _add_numbers(digest, dataset.labels[rows].astype(np.int64))
    for flags in (dataset.difficult, dataset.crowd):
        _add_numbers(digest, flags[rows].astype(np.uint8))


def _add_texts(digest: Any, first: str, others: Iterable[str]) -> None:
    digest.update(f"{len(first)} {first}".encode("utf-8", "surrogatepass"))
    for text in others:
        digest.update(f"\n{len(text)} {text}".encode("utf-8", "surrogatepass"))


def _add_numbers(digest: Any, column: Any) -> None:
    # Little-endian whatever the machine
    digest.update(np.ascontiguousarray(column.astype(column.dtype.newbyteorder("<"), copy=False)))


def open_checked(
    path: DataPaths,
    split: str | None,
    *,
    format: str | None = None,
    on_bad: OnBad,
    cache: Path | None,
    counting: Counting = silence,
) -> Dataset:
    """Return a split whose images were all decoded once, now or at the time that `cache` remembers.

    Args:
        path: as `open_dataset` takes it, as are the next three.
        split: its name.
        format: its format.
        on_bad: what to do with an image that cannot be decoded.
        cache: folder of cache files; None for none.
        counting: tells how far the check is.

    Raises:
        DataError: as `open_dataset` does; as `check_images` does.
    """
    dataset = open_dataset(path, split, format=format, on_bad=on_bad, cache=cache)
    verdicts = look_at_images(dataset, cache, counting)
    if cache is not None and _were_resized(dataset, verdicts):
        # Boxes may be fractions of the image or belong to another size: they depend on the images' sizes
        dataset = open_dataset(path, split, format=format, on_bad=on_bad, cache=cache, refresh=True)
        verdicts = look_at_images(dataset, cache, counting)
    return _sound(dataset, verdicts, on_bad)


def check_images(
    dataset: Dataset, on_bad: OnBad, *, cache: Path | None = None, counting: Counting = silence
) -> Dataset:
    """Return the data set without images that cannot be decoded, and a note that counts them.

    Costs one decoding of every image that `cache` does not know, on all cores.

    Raises:
        ImageError: an image is missing, truncated or none, and `on_bad` is "stop"; or none is left.
    """
    return _sound(dataset, look_at_images(dataset, cache, counting), on_bad)


def look_at_images(dataset: Dataset, cache: Path | None = None, counting: Counting = silence) -> Verdicts:
    """Return for each image its size as shown, or what is wrong with it.

    Args:
        dataset: the images; those whose file has the size and time that `cache` remembers are not opened.
        cache: folder of cache files; None for none.
        counting: tells how far it is, of the images that are opened.
    """
    stamps = stamps_of(dataset.paths)
    known = known_verdicts(dataset, stamps, cache)
    rows = np.flatnonzero(~known.looked_at) if known is not None else np.arange(len(dataset))
    if known is not None and not len(rows):
        return known
    sizes = np.full((len(dataset), 2), -1, np.int32) if known is None else known.sizes.array.copy()
    problems = {} if known is None else dict(known.problems)
    looked_at = np.zeros(len(dataset), np.bool_) if known is None else known.looked_at.copy()
    try:
        with counting("images checked", len(rows)) as advance:
            for row, found in _decoded(dataset, rows):
                looked_at[row] = True
                if isinstance(found, Size):
                    sizes[row] = found
                else:
                    problems[row] = str(found)
                advance(1)
    finally:
        # Also when Ctrl-C came: the next run goes on from here
        verdicts = Verdicts(Sizes(sizes), problems, looked_at)
        remember_verdicts(dataset, stamps, verdicts, cache)
    return verdicts


def _decoded(dataset: Dataset, rows: Integers) -> Iterator[tuple[int, Size | ImageError]]:
    """Yield each row with its image's size or what is wrong with it, decoded on all cores; Ctrl-C ends it at once."""
    stopped = False

    def several(part: list[int]) -> list[tuple[int, Size | ImageError]]:
        return [(row, _look(dataset[row])) for row in part if not stopped]

    parts = (rows[first : first + _TOGETHER].tolist() for first in range(0, len(rows), _TOGETHER))
    pool = ThreadPoolExecutor(available_cores(), "multibox-check")
    waiting: deque[Future[list[tuple[int, Size | ImageError]]]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(several, part))
            if len(waiting) > 2 * available_cores():
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        stopped = True
        pool.shutdown(cancel_futures=True)


def _look(sample: Sample) -> Size | ImageError:
    try:
        return size_of(load_image(sample))
    except ImageError as error:
        return error


def _were_resized(dataset: Dataset, verdicts: Verdicts) -> bool:
    """Return whether an image has another size than the index took it for."""
    indexed, found = dataset.sizes.array, verdicts.sizes.array
    return bool(((indexed != found) & (indexed > 0) & (found > 0)).any())


def _sound(dataset: Dataset, verdicts: Verdicts, on_bad: OnBad) -> Dataset:
    """Return the data set without the images that have a problem, or raise the first problem."""
    if not verdicts.problems:
        return dataset
    first = verdicts.problems[min(verdicts.problems)]
    if on_bad == "stop":
        raise ImageError(f"{first}; mend or remove it, or give --on-bad skip")
    if len(verdicts.problems) == len(dataset):
        raise ImageError(f"no image of {dataset.root} ({dataset.split}) can be read; the first: {first}")
    keep = np.ones(len(dataset), np.bool_)
    keep[list(verdicts.problems)] = False
    one, many = "image that cannot be read was skipped", "images that cannot be read were skipped"
    note = f"{counted(len(verdicts.problems), one, many)}; the first: {first}"
    left_out = Counter(dataset.left_out) + Counter({UNREADABLE_IMAGE: len(verdicts.problems)})
    kept = dataset.subset(np.flatnonzero(keep).tolist())
    return dataclasses.replace(kept, notes=(*dataset.notes, note), left_out=dict(left_out))


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
    labels: Labels = table[dataset.labels]
    renumbered = dataclasses.replace(dataset, class_names=tuple(names), labels=labels)
    return drop_boxes(renumbered, labels < 0, OTHER_CLASS)
