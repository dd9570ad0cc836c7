"""The video with boxes: encoded and written in a thread of its own, playable at any moment."""

import contextlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

import av
import av.error
from av.video.frame import VideoFrame

from multibox.errors import MultiboxError
from multibox.limits import available_cores
from multibox.structures import Detections
from multibox.video.painting import FORMAT, paint, to_planes
from multibox.video.reading import Frame, Reader, Sound
from multibox.video.wholeness import OWN_MARK

ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf", "mpeg4")
"""H.264, which browsers play, from whichever library this PyAV has; the last is MPEG-4 part 2, which all have."""
SOUNDS = ("aac", "mp3", "mp3float", "ac3", "eac3", "alac", "flac", "opus")
"""Sound that is copied: players take it in MP4."""
QUALITY = {"libx264": {"preset": "ultrafast", "crf": "23"}, "mpeg4": {"q": "4"}}
"""Options of encoders: x264's fastest preset takes a tenth of the network's time, and makes larger files."""
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
"""Each fragment can be played when it is written, whatever becomes of the rest; unflushed, 32 KB would wait."""
FRAGMENT = 1.0
"""Seconds of a fragment, which is what a killed process loses at most besides the frames under way."""

EARLY = 10_000
"""Packets of sound that are kept until the first frame comes."""


class _Shot(NamedTuple):
    """A frame to draw and write."""

    frame: Frame
    found: Detections | None
    tracks: Sequence[int | None] | None


class Recorder:
    """Draws, encodes and writes frames in a thread. The file begins with the first frame.

    Args:
        target: the file to write, .mp4.
        reader: the video that is drawn on; its sound is copied where MP4 takes it.
        room: frames that may wait.
    """

    def __init__(self, target: Path, reader: Reader, room: int) -> None:
        self.target, self.reader = target, reader
        self.frames = 0
        """Frames written."""
        self.codec = _encoder()
        self.notes: list[str] = []
        self._waiting: Queue[_Shot | Sound | None] = Queue(room)
        self._failed: BaseException | None = None
        self._container: Any = None  # from the first frame on
        self._video: Any = None
        self._audio: Any = None
        self._early: list[Sound] = []
        """Packets of sound that came before the first frame."""
        self._size = (0, 0)
        self._thread = Thread(target=self._work, name="multibox-record", daemon=True)
        self._thread.start()

    def add(self, frame: Frame, found: Detections | None, tracks: Sequence[int | None] | None = None) -> None:
        """Draw and write a frame; returns at once unless too many are waiting.

        Raises:
            MultiboxError: the file cannot be written.
        """
        self._put(_Shot(frame, found, tracks))

    def add_sound(self, packet: Sound) -> None:
        """Write a packet of the source's sound."""
        self._put(packet)

    def close(self) -> None:
        """Write what is waiting, and end the file.

        Raises:
            MultiboxError: the file cannot be written.
        """
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _put(self, item: "_Shot | Sound") -> None:
        if self._failed is not None:
            raise self._failed
        self._waiting.put(item)

    def _work(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                if isinstance(item, _Shot):
                    self._write(item)
                else:
                    self._write_sound(item)
            self._finish()
        except BaseException as error:
            self._failed = self._complaint(error)
            with contextlib.suppress(Exception):
                self._container.close()
            # Whoever waits for room must not wait for ever
            while self._waiting.get() is not None:
                pass

    def _complaint(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError | av.error.FFmpegError):
            return error
        return MultiboxError(
            f"{self.target} cannot be written ({error.strerror}); make room on the disk or give another --out; its "
            "first part can be played"
        )

    def _write(self, shot: _Shot) -> None:
        picture = to_planes(shot.frame)
        if shot.found is not None:
            paint(picture, shot.found, shot.tracks)
        if not self.frames:
            self._begin(shot.frame, picture)
        if (picture.width, picture.height) != self._size:
            # A stream may change its size, the file may not
            picture = picture.reformat(*self._size)
        picture.pts, picture.time_base = shot.frame.ticks, self.reader.time_base
        picture.pict_type = 0
        self._container.mux(self._video.encode(picture))
        self.frames += 1

    def _begin(self, frame: Frame, picture: VideoFrame) -> None:
        reader = self.reader
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self.target), "w", format="mp4", options=FRAGMENTS)
        self._container.metadata["comment"] = OWN_MARK
        threads = str(max(1, min(4, available_cores() // 2)))
        options = {"bf": "0", "threads": threads, **QUALITY.get(self.codec, {})}
        self._video = self._container.add_stream(self.codec, options=options)
        self._size = (picture.width, picture.height)
        context = self._video.codec_context
        context.width, context.height, context.pix_fmt = *self._size, FORMAT
        context.time_base = self._video.time_base = reader.time_base
        context.framerate = Fraction(reader.rate).limit_denominator(1001)
        context.gop_size = max(1, round(reader.rate * FRAGMENT))
        self._copy_looks(frame)
        self._copy_sound()
        self._container.start_encoding()
        early, self._early = self._early, []
        for packet in early:
            self._write_sound(packet)

    def _copy_looks(self, frame: Frame) -> None:
        """Give the new video the pixel shape and colour space of the source, where its planes are unchanged."""
        source, context = self.reader.stream.codec_context, self._video.codec_context
        shape = source.sample_aspect_ratio
        if shape:
            context.sample_aspect_ratio = 1 / shape if frame.turns % 2 else shape
        if not frame.turns and source.pix_fmt == FORMAT:
            for name in ("color_range", "color_primaries", "color_trc", "colorspace"):
                setattr(context, name, getattr(source, name))

    def _copy_sound(self) -> None:
        audio = self.reader.audio
        if audio is None:
            return
        if audio.codec_context.name not in SOUNDS:
            self.notes.append(f"its sound ({audio.codec_context.name}) is left out, as MP4 does not take it")
            return
        try:
            self._audio = self._container.add_stream_from_template(audio)
        except (av.error.FFmpegError, ValueError):
            self.notes.append(f"its sound ({audio.codec_context.name}) is left out, as it cannot be copied")

    def _write_sound(self, packet: Sound) -> None:
        if self._audio is None and not self.frames and len(self._early) < EARLY:
            self._early.append(packet)
        if self._audio is None or packet.dts is None:
            return
        offset = round(self.reader.start / packet.time_base)
        packet.dts -= offset
        packet.pts = packet.dts if packet.pts is None else packet.pts - offset
        if packet.dts < 0:
            # A packet before the beginning would move all the frames
            return
        packet.stream = self._audio
        try:
            self._container.mux(packet)
        except ValueError:
            # Damaged sound, such as a time before the last one: the video matters more
            self.notes.append("its sound is damaged, and left out from there on")
            self._audio = None

    def _finish(self) -> None:
        if self._container is not None:
            self._container.mux(self._video.encode())
            self._container.close()


def _encoder() -> str:
    for name in ENCODERS:
        with contextlib.suppress(ValueError):
            av.Codec(name, "w")
            return name
    raise MultiboxError(f"this PyAV has no encoder for videos: expected one of {', '.join(ENCODERS)}")
