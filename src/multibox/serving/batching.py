"""Many requests, few detectors: images wait in a bounded queue and go through the network in batches."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ImageError, MultiboxError
from multibox.structures import Detections
from multibox.thresholds import drop_low_scores

if TYPE_CHECKING:
    from multibox.inference.detector import Detector
    from multibox.inference.load import ExportedDetector

AnyDetector: TypeAlias = Union["Detector", "ExportedDetector"]
Pixels = NDArray[np.uint8]


class Busy(MultiboxError):
    """The queue is full; `seconds` later there may be room."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy; try again in {seconds} s")
        self.seconds = seconds


class Work(NamedTuple):
    """One image to look at."""

    image: bytes | Pixels
    """An encoded file, or RGB pixels [H, W, 3]."""
    lowest: NDArray[np.float32]
    """Lowest score of each class to report [C]."""
    raw: bool = False
    """Whether the candidates before suppression are wanted, too."""


class Looked(NamedTuple):
    """What was found in one image."""

    width: int
    """Of the upright image, as is the height."""
    height: int
    found: Detections
    candidates: Detections | None = None
    """Boxes before suppression, best first, where they were asked for."""


class _Waiting(NamedTuple):
    work: Work
    future: "asyncio.Future[Looked]"
    loop: asyncio.AbstractEventLoop


class Batcher:
    """A queue of images in front of detectors that share the cores, each with a thread of its own.

    Args:
        detectors: Of one model, see `open_copies`.
        most: Images that may wait; more are refused with `Busy`.
        batch: Images that go through the network together, at most.
        wait: Seconds for which a batch that is not full waits for more.
    """

    def __init__(self, detectors: Sequence[AnyDetector], *, most: int = 256, batch: int = 1, wait: float = 0.0) -> None:
        self.detectors = list(detectors)
        self.most, self.batch, self.wait = most, batch, wait
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._threads = [threading.Thread(target=self._serve, args=(each,), daemon=True) for each in self.detectors]
        for thread in self._threads:
            thread.start()

    async def look(self, work: Work) -> Looked:
        """Return what is found in one image.

        Raises:
            Busy: The queue is full.
            ImageError: The image cannot be read.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Looked] = loop.create_future()
        with self._changed:
            if len(self._queue) >= self.most:
                raise Busy(1)
            self._queue.append(_Waiting(work, future, loop))
            self._changed.notify()
        return await future

    def close(self) -> None:
        """End the threads once the queue is empty."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self, detector: AnyDetector) -> None:
        while batch := self._take():
            for waiting, result in zip(batch, look_at(detector, [each.work for each in batch]), strict=True):
                waiting.loop.call_soon_threadsafe(_settle, waiting.future, result)

    def _take(self) -> list[_Waiting]:
        """Return the next batch; an empty one when all is done."""
        with self._changed:
            while not self._queue and self._open:
                self._changed.wait()
            until = time.monotonic() + self.wait
            while len(self._queue) < self.batch and self._open and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            batch = [self._queue.popleft() for _ in range(min(self.batch, len(self._queue)))]
        # Whoever asked may have gone away
        return [each for each in batch if not each.future.done()] or (self._take() if batch else [])


def look_at(detector: AnyDetector, works: Sequence[Work]) -> list[Looked | Exception]:
    """Return what a detector finds in each image, or why it could not be read."""
    results: list[Looked | Exception] = []
    for work in works:
        try:
            results.append(_look(detector, work))
        except Exception as error:
            results.append(error)
    return results


def _look(detector: Any, work: Work) -> Looked:
    from multibox.inference.inputs import pixels_of

    pixels = pixels_of(work.image, detector.background)
    found = detector.detect([detector.prepare(pixels)], work.lowest)[0]
    return Looked(pixels.shape[1], pixels.shape[0], drop_low_scores(found, work.lowest))


def _settle(future: "asyncio.Future[Looked]", result: Looked | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


Open: TypeAlias = Callable[[], Sequence[AnyDetector]]
__all__ = ["Batcher", "Busy", "ImageError", "Looked", "Open", "Work", "look_at"]
