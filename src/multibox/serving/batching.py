"""Many requests, few detectors: images wait in a bounded queue and go through the network in batches."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MultiboxError
from multibox.structures import Detections

Pixels = NDArray[np.uint8]

MOST_IMAGES = 256
"""Images that wait for one model, at most."""
MOST_BYTES = 256_000_000
"""Memory that they take as they came, encoded or as pixels, at most."""
LONGEST_RETRY = 60
"""Seconds after which a client is asked to try again, at most."""
_MEMORY = 0.9
"""Weight of the past in the running mean of the time per image."""


class Busy(MultiboxError):
    """The queue is full; `seconds` later there may be room."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy; try again in {seconds} s")
        self.seconds = seconds


class Late(Busy):
    """The time for a request is over, and its image was still waiting; answered like `Busy`."""

    def __init__(self, waited: float, seconds: int) -> None:
        super().__init__(seconds)
        self.args = (f"no result within {waited:g} s, because the server is busy; try again in {seconds} s",)


class Work(NamedTuple):
    """One image to look at."""

    image: bytes | Pixels
    """An encoded file, which stays encoded while it waits, or RGB pixels [H, W, 3]."""
    lowest: NDArray[np.float32]
    """Lowest score of each class to report [C]."""
    raw: bool = False
    """Whether the candidates before suppression are wanted, too."""
    nms: float | None = None
    """Overlap above which the worse of two boxes of a class is suppressed; None takes the model's."""
    most: int | None = None
    """Detections to report at most; None takes the model's number."""

    @property
    def size(self) -> int:
        """Bytes that the image takes while it waits."""
        return len(self.image) if isinstance(self.image, bytes) else self.image.nbytes


class Looked(NamedTuple):
    """What was found in one image."""

    width: int
    """Of the upright image, as is the height."""
    height: int
    found: Detections
    candidates: Detections | None = None
    """Boxes before suppression, best first, where they were asked for."""
    queued: float = 0.0
    """Seconds in the queue."""
    worked: float = 0.0
    """Seconds of decoding and network, of the whole batch."""
    batch: int = 1
    """Images that went through together."""


class Lane(Protocol):
    """What one thread of a `Batcher` does."""

    def warm(self) -> None:
        """Compute once, so that the first request need not wait for what a runtime prepares."""
        ...

    def look(self, works: Sequence[Work]) -> list[Looked | Exception]:
        """Return what is found in each image, or why it failed."""
        ...


@dataclass(eq=False, slots=True)
class _Waiting:
    work: Work
    future: "asyncio.Future[Looked]"
    loop: asyncio.AbstractEventLoop
    entered: float = field(default_factory=time.monotonic)


class Batcher:
    """A queue of images in front of lanes, each with a thread of its own.

    Args:
        lanes: Share the work.
        batch: Images that one lane takes together, at most.
        wait: Seconds for which the first image of a batch that is not full waits for more.
        most_images: Images that may wait; more are refused with `Busy`.
        most_bytes: Bytes that may wait; a single image may have more.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        batch: int = 1,
        wait: float = 0.0,
        most_images: int = MOST_IMAGES,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.batch, self.wait = batch, wait
        self.most_images, self.most_bytes = most_images, most_bytes
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._open = True
        self._pace = 0.0
        self._cold = len(lanes)
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"multibox-lane-{number}", daemon=True)
            for number, lane in enumerate(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """Whether all lanes have computed once and answer."""
        return self._cold == 0 and self._failure is None

    def wait_ready(self) -> None:
        """Return when all lanes have computed once.

        Raises:
            Exception: What one of them raised.
        """
        with self._changed:
            while self._cold and self._failure is None:
                self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def look(self, work: Work) -> Looked:
        """Return what is found in one image; if the caller is cancelled, its image leaves the queue.

        Raises:
            Busy: The queue is full.
            Exception: The image cannot be read, or the network failed on it.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(work, loop.create_future(), loop)
        self._enter(waiting)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._leave(waiting)
            raise

    def retry_after(self) -> int:
        """Return the seconds in which the images that wait now are done, at the present speed; at least 1."""
        return min(LONGEST_RETRY, max(1, math.ceil(len(self._queue) * self._pace)))

    def close(self, seconds: float | None = None) -> None:
        """End the threads once the queue is empty, and wait for that, some seconds at most."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(seconds)

    def _enter(self, waiting: _Waiting) -> None:
        with self._changed:
            size = waiting.work.size
            full = len(self._queue) >= self.most_images or (self._queue and self._bytes + size > self.most_bytes)
            if full:
                raise Busy(self.retry_after())
            self._queue.append(waiting)
            self._bytes += size
            self._changed.notify()

    def _leave(self, waiting: _Waiting) -> None:
        with self._changed, suppress(ValueError):  # a lane may have taken it
            self._queue.remove(waiting)
            self._bytes -= waiting.work.size

    def _serve(self, lane: Lane) -> None:
        try:
            lane.warm()
        except Exception as error:
            self._failure = error
        with self._changed:
            self._cold -= 1
            self._changed.notify_all()
        while batch := self._take():
            started = time.monotonic()
            try:
                results = lane.look([each.work for each in batch])
            except Exception as error:
                results = [error] * len(batch)
            self._settle(batch, results, started)

    def _take(self) -> list[_Waiting]:
        """Return the next batch; an empty one when all is done."""
        with self._changed:
            while True:
                while self._open and not self._queue:
                    self._changed.wait()
                if not self._queue:
                    return []
                left = self._queue[0].entered + self.wait - time.monotonic()
                if self._open and left > 0 and len(self._queue) < self.batch:
                    # Afterwards another lane may have taken the images
                    self._changed.wait(left)
                    continue
                batch = [self._queue.popleft() for _ in range(min(self.batch, len(self._queue)))]
                self._bytes -= sum(each.work.size for each in batch)
                # Whoever asked may have gone away a moment ago
                if wanted := [each for each in batch if not each.future.cancelled()]:
                    return wanted

    def _settle(self, batch: list[_Waiting], results: Sequence[Looked | Exception], started: float) -> None:
        """Hand the results to those who wait for them, in their own threads."""
        worked = time.monotonic() - started
        pace = worked / len(batch) / len(self._threads)
        self._pace = _MEMORY * self._pace + (1 - _MEMORY) * pace if self._pace else pace
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Looked], Looked | Exception]]] = {}
        for each, result in zip(batch, results, strict=True):
            if not isinstance(result, Exception):
                result = result._replace(queued=started - each.entered, worked=worked, batch=len(batch))
            by_loop.setdefault(each.loop, []).append((each.future, result))
        for loop, settled in by_loop.items():
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_hand_over, settled)


def _hand_over(settled: list[tuple["asyncio.Future[Looked]", Looked | Exception]]) -> None:
    for future, result in settled:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
