"""Many image files through a detector: decoding, network and drawing at the same time, in bounded memory."""

import io
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.images import decode_image, read_image
from multibox.data.pixels import Colour
from multibox.errors import ImageError
from multibox.files import write_bytes_whole
from multibox.inference.inputs import AHEAD, BATCH, ahead
from multibox.limits import decoding_threads
from multibox.plots.detections import draw_detections
from multibox.structures import Detections

if TYPE_CHECKING:
    from multibox.inference.detector import Detector
    from multibox.inference.load import ExportedDetector

PIXELS_AHEAD = 40_000_000
"""Pixels decoded ahead, and pixels waiting to be drawn, at most; Pillow takes 4 bytes for each."""
COPIES = 4
"""Detectors that share the work, at most: each holds the weights and a batch's feature maps."""
SMALL_BATCH = 4
"""Images that each of several detectors takes at a time."""
QUALITY = 90
"""Quality of drawn JPEG files."""
_LONGEST_JPEG = 65_500
"""Largest width and height that libjpeg writes."""

AnyDetector: TypeAlias = Union["Detector", "ExportedDetector"]


class Seen(NamedTuple):
    """One image file with its detections, or with the error that reading it gave."""

    path: Path
    image: Image.Image | None
    """Upright RGB; None if it cannot be read."""
    found: Detections | ImageError


class Encoded(NamedTuple):
    """An image file that is no file here: it lies in an archive, a table or an object store."""

    name: str
    """What errors call it."""
    data: Callable[[], bytes]
    """Returns its bytes; called in a thread that decodes."""


class _Decoded(NamedTuple):
    path: Path
    image: Image.Image
    pixels: NDArray[np.uint8]


def predict_stream(
    detectors: AnyDetector | Sequence[AnyDetector],
    paths: Iterable[str | Path | Encoded],
    threshold: float | None = None,
    *,
    decoders: int | None = None,
) -> Generator[Seen, None, None]:
    """Yield every image file with its detections, in the order given.

    Files are decoded ahead in threads, and the network works on the next batch while the caller uses the last one.
    Memory does not grow with the number of images.

    Args:
        detectors: from `multibox.load`; several of one model share the work, see `open_copies`.
        paths: the image files, or where their bytes come from; may be a generator.
        threshold: lowest score to report; None takes the model's.
        decoders: threads that read and decode; None takes one per core.

    Yields:
        An image that cannot be read comes with its error; the stream goes on.
    """
    shared = list(detectors) if isinstance(detectors, Sequence) else [detectors]
    # One thread per detector, which may hold the images of one caller only
    networks = [ThreadPoolExecutor(1, "multibox-network") for _ in shared]
    try:
        running: deque[Future[list[Seen]]] = deque()
        items = (path if isinstance(path, Encoded) else Path(path) for path in paths)
        decoded = ahead(partial(_decode, background=shared[0].background), items, _room, decoders)
        batches = _in_batches(decoded, BATCH if len(shared) == 1 else SMALL_BATCH)
        for batch, network, detector in zip(batches, cycle(networks), cycle(shared), strict=False):
            running.append(network.submit(_look, detector, batch, threshold))
            if len(running) > len(shared):
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        for network in networks:
            network.shutdown(cancel_futures=True)


def open_copies(open_one: Callable[[int], AnyDetector]) -> list[AnyDetector]:
    """Return detectors of one exported file that share the processor's cores, for `predict_stream`.

    On 2 cores, two copies of the COCO detector with one thread each took 6.4 ms of processor time per image, one with
    two threads 8.2 (OpenVINO 2026.4, 2026-11-28): threads of one copy wait for each other after every layer.

    Args:
        open_one: opens the file with the given number of threads.
    """
    cores = decoding_threads()
    copies = min(COPIES, cores)
    with ThreadPoolExecutor(copies) as pool:
        return list(pool.map(open_one, [max(1, cores // copies)] * copies))


@contextmanager
def drawing(quality: int = QUALITY) -> Generator[Callable[[Path, Image.Image, Detections], None], None, None]:
    """Yield a function that draws detections on an image and writes it as a JPEG file, in threads.

    The function returns at once unless too many images are waiting. When the block ends, all files are written.

    Raises:
        OSError: a file cannot be written; raised by a later call or at the end of the block.
    """
    pool = ThreadPoolExecutor(decoding_threads(), "multibox-draw")
    waiting: deque[tuple[int, Future[None]]] = deque()
    try:

        def draw(target: Path, image: Image.Image, found: Detections) -> None:
            pixels = image.width * image.height
            waiting.append((pixels, pool.submit(_draw, target, image, found, quality)))
            while len(waiting) > 1 and (len(waiting) > AHEAD or sum(size for size, _ in waiting) > PIXELS_AHEAD):
                waiting.popleft()[1].result()

        yield draw
        while waiting:
            waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _look(detector: AnyDetector, batch: list[_Decoded | Seen], threshold: float | None) -> list[Seen]:
    """Run the network on a batch, sorted so that images of one size go through together."""
    decoded = sorted((each for each in batch if isinstance(each, _Decoded)), key=lambda each: each.pixels.shape)
    found = detector.predict([each.pixels for each in decoded], threshold)
    of = {id(each): detections for each, detections in zip(decoded, found, strict=True)}
    return [Seen(each.path, each.image, of[id(each)]) if isinstance(each, _Decoded) else each for each in batch]


def _decode(source: Path | Encoded, background: Colour) -> _Decoded | Seen:
    path = source if isinstance(source, Path) else Path(source.name)
    try:
        if isinstance(source, Path):
            image = read_image(source, background)
        else:
            image = decode_image(source.data(), source.name, background)
    except ImageError as error:
        return Seen(path, None, error)
    return _Decoded(path, image, np.asarray(image))


def _pixels(decoded: _Decoded | Seen) -> int:
    return decoded.image.width * decoded.image.height if decoded.image is not None else 0


def _room(decoded: _Decoded | Seen) -> int:
    """Return how many images of this size to decode ahead."""
    return min(AHEAD, max(1, PIXELS_AHEAD // max(1, _pixels(decoded))))


def _in_batches(decoded: Iterator[_Decoded | Seen], most: int) -> Iterator[list[_Decoded | Seen]]:
    """Yield up to `most` images at a time, fewer of large ones."""
    batch: list[_Decoded | Seen] = []
    for each in decoded:
        batch.append(each)
        if len(batch) == most or sum(map(_pixels, batch)) * 2 > PIXELS_AHEAD:
            yield batch
            batch = []
    if batch:
        yield batch


def _draw(target: Path, image: Image.Image, found: Detections, quality: int) -> None:
    drawn = draw_detections(image, found)
    drawn.thumbnail((_LONGEST_JPEG, _LONGEST_JPEG))
    data = io.BytesIO()
    drawn.save(data, "JPEG", quality=quality)
    write_bytes_whole(target, data.getvalue())
