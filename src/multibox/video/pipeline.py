"""A video through a detector: decoding, network, and drawing with encoding at the same time, in bounded memory."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, NamedTuple

import numpy as np
from av.packet import Packet
from numpy.typing import NDArray
from PIL import Image

from multibox.analysis.drift import Seen
from multibox.errors import DataError
from multibox.inference.inputs import AHEAD, BATCH
from multibox.inference.streaming import PIXELS_AHEAD, AnyDetector
from multibox.structures import Detections
from multibox.thresholds import lowest_scores
from multibox.video.addresses import Video
from multibox.video.reading import Frame, Reader, Sound
from multibox.video.recording import Recorder
from multibox.video.tables import Entry, frame_entry
from multibox.video.tracks import Tracks

LIVE_AHEAD = 4
"""Frames of a live stream that wait; more would only make the results late."""
DRIFT_EVERY = 10
"""Frames looked at, of which one is compared with the images of training."""

_PATIENCE = 2.0
"""Seconds to wait for the thread that reads, when a video is stopped."""


class Looked(NamedTuple):
    """One frame and what was found in it."""

    frame: Frame
    found: Detections | None
    """None if the network did not look at this frame."""
    image: Image.Image | None
    """Now and then the frame as an image, to compare with those of training."""


@dataclass
class Progress:
    """Counts of one video."""

    frames: int = 0
    looked: int = 0
    objects: int = 0
    tracks: int = 0
    missed: int = 0
    """Frames of a live stream that came while the network was busy."""
    bad: int = 0
    complaint: str = ""
    """What is wrong with the first damaged frame, or why the video ended early."""
    notes: tuple[str, ...] = ()


class Plan(NamedTuple):
    """How videos are predicted."""

    detectors: Sequence[AnyDetector]
    """Copies of one model."""
    threshold: float | None = None
    """Lowest score reported; None takes the model's."""
    track: bool = False
    every: int = 1
    """The network looks at every N-th frame."""
    stop_on_bad: bool = False
    """A damaged frame ends the video."""


def predict_video(
    video: Video,
    plan: Plan,
    target: Path | None,
    progress: Progress,
    *,
    add: Callable[[Entry], None] | None = None,
    seen: Seen | None = None,
    tell: Callable[[int, int | None], None] | None = None,
) -> Generator[tuple[Frame, Detections, Sequence[int | None] | None], None, None]:
    """Predict a video, write it with boxes, and yield each frame that the network looked at, with its detections.

    However the iteration ends, the video written so far is complete and can be played.

    Args:
        video: what to open.
        plan: detectors, thresholds and tracking.
        target: the .mp4 file to write; None writes none.
        progress: counts, which are kept up to date.
        add: takes the object of each frame for result files.
        seen: takes frames to compare with the images of training.
        tell: takes the number of frames done and their total, None if unknown.

    Yields:
        The frame, its reported detections, and the track of each (None while unconfirmed); None without tracking.

    Raises:
        DataError: the video cannot be opened, or holds no frame.
        MultiboxError: the video with boxes cannot be written.
    """
    first = plan.detectors[0]
    # The same call as that of `predict`: among boxes of equal scores, the lowest score asked for decides which is kept
    lowest = lowest_scores(plan.threshold, first.thresholds, first.names)
    sure = lowest_scores(None, first.thresholds, first.names)
    with _opened(video) as reader, _recording(target, reader, progress) as recorder, ExitStack() as stack:
        tracks = Tracks(reader.rate / plan.every, sure) if plan.track else None
        found, ids = None, None
        stream = stack.enter_context(closing(_look_ahead(reader, plan, lowest, progress)))
        for looked in stream:
            if not isinstance(looked, Looked):
                if recorder is not None:
                    recorder.add_sound(looked)
                continue
            progress.frames += 1
            if looked.found is not None:
                found, ids = looked.found, None
                if tracks is not None:
                    ids = tracks.follow(found, looked.frame.time)
                    progress.tracks = tracks.count
                _count(progress, looked, found, plan, seen)
                if add is not None:
                    add(frame_entry(video.shown, looked.frame, found, ids))
                yield looked.frame, found, ids
            if recorder is not None:
                recorder.add(looked.frame, found, ids)
            if tell is not None:
                tell(progress.frames, reader.total)


def _count(progress: Progress, looked: Looked, found: Detections, plan: Plan, seen: Seen | None) -> None:
    progress.looked += 1
    progress.objects += len(found)
    if seen is not None and looked.image is not None:
        # A threshold of the user's finds other numbers of objects than the model's own
        seen.add(looked.image, found if plan.threshold is None else None)


def _look_ahead(
    reader: Reader, plan: Plan, lowest: NDArray[np.float32], progress: Progress
) -> Generator[Looked | Sound, None, None]:
    """Yield every frame in order, looked at where it is its turn, and the packets of sound between them.

    Raises:
        DataError: there is no frame, or a damaged one and `plan.stop_on_bad` is set.
    """
    looker = _Looker(plan, lowest)
    # Packets of sound are small: only frames are counted, when they are taken in and when they are handed out
    line: SimpleQueue[Future[list[Looked]] | Sound | Exception | None] = SimpleQueue()
    room = _room(reader)
    slots = Semaphore(room)
    source = Thread(
        target=_feed, args=(reader, looker, plan, slots, room, line, progress), daemon=True, name="multibox-read"
    )
    source.start()
    try:
        while (item := line.get()) is not None:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Packet):
                yield item
                continue
            for looked in item.result():
                slots.release()
                yield looked
        _tell_end(reader, progress)
    finally:
        reader.stop.set()
        slots.release(room)
        looker.close()
        # A server that sends nothing more is waited for no longer
        source.join(_PATIENCE)
        reader.abandoned = source.is_alive()


def _feed(
    reader: Reader,
    looker: "_Looker",
    plan: Plan,
    slots: Semaphore,
    room: int,
    line: "SimpleQueue[Future[list[Looked]] | Sound | Exception | None]",
    progress: Progress,
) -> None:
    """Read the video, and queue frames for the network as results to come."""
    batch: list[Frame] = []
    try:
        for item in reader:
            if plan.stop_on_bad and reader.bad:
                break
            if not isinstance(item, Frame):
                line.put(item)
            elif not slots.acquire(blocking=not reader.video.live):
                progress.missed += 1
            else:
                batch.append(item)
                if looker.is_enough(batch, room):
                    line.put(looker.submit(batch))
                    batch = []
        if batch:
            line.put(looker.submit(batch))
        if plan.stop_on_bad and (reader.bad or reader.broken_off):
            line.put(DataError(f"{reader.video.shown}: {reader.first_bad or reader.broken_off}"))
        line.put(None)
    except Exception as error:
        line.put(error)


class _Looker:
    """Detectors that each work in one thread at a time."""

    def __init__(self, plan: Plan, lowest: NDArray[np.float32]) -> None:
        self.every, self.lowest = plan.every, lowest
        self.batch = BATCH if len(plan.detectors) == 1 and _gains(plan.detectors[0]) else 1
        self.free: SimpleQueue[AnyDetector] = SimpleQueue()
        for detector in plan.detectors:
            self.free.put(detector)
        self.pool = ThreadPoolExecutor(len(plan.detectors), "multibox-network")

    def is_enough(self, frames: Sequence[Frame], room: int) -> bool:
        """Return whether these frames make a batch."""
        wanted = sum(self._is_turn(frame) for frame in frames)
        return wanted >= self.batch or len(frames) >= max(1, room // 2)

    def submit(self, frames: Sequence[Frame]) -> "Future[list[Looked]]":
        return self.pool.submit(self._look, frames)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _is_turn(self, frame: Frame) -> bool:
        return frame.number % self.every == 0

    def _look(self, frames: Sequence[Frame]) -> list[Looked]:
        pixels = {frame.number: frame.pixels() for frame in frames if self._is_turn(frame)}
        detector: Any = self.free.get()
        try:
            prepared = [detector.prepare(each) for each in pixels.values()]
            found = dict(zip(pixels, detector.detect(prepared, self.lowest) if prepared else [], strict=True))
        finally:
            self.free.put(detector)
        images = {number: Image.fromarray(each) for number, each in pixels.items() if self._is_compared(number)}
        return [Looked(frame, found.get(frame.number), images.get(frame.number)) for frame in frames]

    def _is_compared(self, number: int) -> bool:
        return number // self.every % DRIFT_EVERY == 0


def _gains(detector: AnyDetector) -> bool:
    """Return whether batches save time: on GPUs they do.

    In OpenVINO they save none, and of overlapping boxes with equal scores another may be kept than for one image.
    """
    engine = getattr(detector, "engine", None)
    return engine is None or engine.name != "OpenVINO"


def _tell_end(reader: Reader, progress: Progress) -> None:
    """Count what was wrong with a video that has ended.

    Raises:
        DataError: it has no frame.
    """
    progress.bad = reader.bad + bool(reader.broken_off)
    progress.complaint = reader.first_bad or reader.broken_off
    if not progress.frames:
        why = f": {progress.complaint}" if progress.complaint else ""
        raise DataError(f"{reader.video.shown} holds no frame that can be read{why}")


@contextmanager
def _opened(video: Video) -> Generator[Reader, None, None]:
    reader = Reader(video)
    try:
        yield reader
    finally:
        reader.stop.set()
        if not reader.abandoned:
            reader.close()


@contextmanager
def _recording(target: Path | None, reader: Reader, progress: Progress) -> Generator[Recorder | None, None, None]:
    if target is None:
        yield None
        return
    recorder = Recorder(target, reader, _room(reader))
    try:
        yield recorder
    finally:
        recorder.close()
        progress.notes = tuple(recorder.notes)


def _room(reader: Reader) -> int:
    """Return how many frames may wait in one place."""
    if reader.video.live:
        return LIVE_AHEAD
    context = reader.stream.codec_context
    return max(2, min(AHEAD, PIXELS_AHEAD // max(1, context.width * context.height)))
