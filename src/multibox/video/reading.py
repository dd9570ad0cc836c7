"""Frames of a video, upright and with their times. Damaged frames are counted and left out."""

from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from multibox.errors import DataError
from multibox.video.addresses import SECONDS, Video
from multibox.video.wholeness import missing_end

if TYPE_CHECKING:
    Sound: TypeAlias = Packet[AudioStream]
    Packets: TypeAlias = Packet[Any]
else:
    # These classes of PyAV take no type arguments when they run
    Sound = Packets = Packet

RETRIES = 20
"""Damaged places in a row, without a packet between them, after which a file is given up."""
_UNTIL_RETRY = 0.002
"""Seconds until a camera without a new frame is asked again; only macOS's interface does not wait itself."""


class Frame(NamedTuple):
    """One frame of a video."""

    number: int
    """Counted from 0 in the order shown, damaged frames that the decoder repaired included."""
    ticks: int
    """Time since the beginning, in units of the reader's `time_base`; greater than that of the frame before."""
    time: float
    """The same in seconds."""
    picture: VideoFrame
    """As stored: not turned."""
    turns: int
    """Quarter turns to the left that make it upright."""

    def pixels(self) -> NDArray[np.uint8]:
        """Return the frame as a person sees it, uint8 RGB [H, W, 3]."""
        stored: Any = self.picture.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(stored, self.turns)) if self.turns else stored

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright frame."""
        wide, high = self.picture.width, self.picture.height
        return (high, wide) if self.turns % 2 else (wide, high)


class Reader:
    """An opened video. Iterating gives its frames and, if `audio` is set, its packets of sound.

    Args:
        video: what to open.
        stop: ends the iteration when set.

    Raises:
        DataError: it cannot be opened, or holds no video.
    """

    def __init__(self, video: Video, stop: Event | None = None) -> None:
        self.video = video
        self.stop = stop or Event()
        self.container = _open(video)
        self.stream = _video_stream(self.container, video)
        self.audio: AudioStream | None = self.container.streams.best("audio")
        self.time_base = self.stream.time_base or Fraction(1, 90_000)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = float(rate) if rate and 0 < rate <= 1000 else 30.0
        """Frames per second, as the file says; 30 where it does not."""
        self.bad, self.first_bad = 0, ""
        """Number of damaged frames and places, and what is wrong with the first."""
        self.broken_off = ""
        """Why the video ended early; empty if it did not."""
        self.abandoned = False
        """True if a thread still waits for the server, so that nothing may be closed."""
        # Threads that each decode a frame would delay a live stream by as many frames
        self.stream.thread_type = "SLICE" if video.live else "AUTO"
        self._start: Fraction | None = None
        if not video.live and self.container.start_time is not None:
            self._start = Fraction(self.container.start_time, av.time_base)

    @property
    def total(self) -> int | None:
        """Number of frames, by the file's own word or by its length; None if unknown, as for streams."""
        if self.video.live:
            return None
        if self.stream.frames:
            return self.stream.frames
        seconds = float(self.stream.duration * self.time_base) if self.stream.duration else 0.0
        seconds = seconds or (self.container.duration or 0) / av.time_base
        return round(seconds * self.rate) or None

    def close(self) -> None:
        """Close the file or connection."""
        self.container.close()

    def __iter__(self) -> Generator[Frame | Sound, None, None]:
        number, last, packets = 0, -1, 0
        for packet in self._packets():
            if isinstance(packet.stream, AudioStream):
                if self._start is not None and packet.dts is not None:
                    yield packet
                continue
            packets += packet.size > 0
            for picture in self._decoded(packet):
                seconds = self._seconds(picture, last)
                ticks = max(last + 1, round(seconds / self.time_base))
                if picture.is_corrupt:
                    self._count(f"frame {number} is damaged")
                else:
                    time = float(ticks * self.time_base)
                    yield Frame(number, ticks, time, picture, round(picture.rotation / 90) % 4)
                number, last = number + 1, ticks
        expected = self.stream.frames if "mp4" in self.container.format.name else 0
        if not self.stop.is_set() and packets < expected and not self.broken_off:
            self.broken_off = f"it ends after {packets:,} of {expected:,} frames: was it cut off?"
        if self.video.is_file and not self.stop.is_set() and not self.broken_off:
            self.broken_off = missing_end(Path(self.video.shown), self.container.metadata.get("comment", ""))

    @property
    def start(self) -> Fraction:
        """Time stamp, in seconds, from which times are counted."""
        return self._start or Fraction(0)

    def _seconds(self, picture: VideoFrame, last: int) -> Fraction:
        """Return the time of a frame since the beginning; one frame after the last where it has none."""
        if picture.pts is None:
            step = Fraction(1 / self.rate).limit_denominator(100_000)
            return last * self.time_base + step if last >= 0 else Fraction(0)
        stamp = picture.pts * (picture.time_base or self.time_base)
        if self._start is None:
            self._start = stamp
        return stamp - self._start

    def _packets(self) -> Iterator[Packets]:
        streams = [self.stream] if self.audio is None else [self.stream, self.audio]
        failed = 0
        while not self.stop.is_set() and failed <= RETRIES:
            try:
                for packet in self.container.demux(streams):
                    if self.stop.is_set():
                        return
                    failed = 0
                    yield packet
                return
            except av.error.BlockingIOError:
                self.stop.wait(_UNTIL_RETRY)
            except av.error.FFmpegError as error:
                if self.stop.is_set():
                    return
                if not self.video.is_file:
                    self.broken_off = f"it broke off: {error.strerror}"
                    return
                failed += 1
                self._count(str(error.strerror))

    def _decoded(self, packet: Packets) -> Iterator[VideoFrame]:
        try:
            yield from packet.decode()
        except av.error.FFmpegError as error:
            self._count(str(error.strerror))

    def _count(self, what: str) -> None:
        self.bad += 1
        self.first_bad = self.first_bad or what


def expected_frames(video: Video) -> int | None:
    """Return how many frames a file has, as `Reader.total` does; None for a stream, a camera or an unreadable file."""
    if not video.is_file:
        return None
    try:
        reader = Reader(video)
    except DataError:
        return None
    reader.close()
    return reader.total


def _open(video: Video) -> Any:
    path = Path(video.shown)
    if video.is_file and path.is_file() and not path.stat().st_size:
        raise DataError(f"{video.shown} is empty, expected a video")
    timeout = None if video.is_file else (SECONDS, SECONDS)
    try:
        return av.open(video.target, format=video.format, options=dict(video.options), timeout=timeout)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(_why_not(video, error)) from None


def _why_not(video: Video, error: Exception) -> str:
    """Return a sentence on a video that cannot be opened; FFmpeg's own would show a password."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    if video.format is not None:
        advice = {
            "PermissionError": "may not be opened; on Linux its users belong to the group video",
            "FileNotFoundError": f"is not there: this machine has no {video.target}",
        }.get(type(error).__name__, f"cannot be opened ({reason}); is it in use, or not a camera?")
        return f"{video.shown} {advice}"
    if not video.is_file:
        return f"{video.shown} cannot be opened ({reason}); look at the address, and whether the server can be reached"
    if isinstance(error, av.error.InvalidDataError):
        return f"{video.shown} is no video that can be read: it is of another kind, damaged, or was cut off ({reason})"
    return f"{video.shown} cannot be opened ({reason})"


def _video_stream(container: Any, video: Video) -> VideoStream:
    streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if not streams:
        others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise DataError(f"{video.shown} holds no video, only {others}")
    best = container.streams.best("video")
    return best if best in streams else streams[0]
