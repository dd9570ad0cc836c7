"""What a source of `predict` means: a video file, the address of a stream, or a camera."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from multibox.data.image_listing import IMAGE_SUFFIXES, Listing, find_images
from multibox.errors import ConfigError

LIVE = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt"})
"""Schemes of streams that do not wait: frames that nobody takes are lost."""
WAITING = frozenset({"http", "https"})
"""Schemes of streams that wait until the next frame is asked for."""
SECONDS = 15
"""Time that a server has to answer, and to send the next frame."""
_CAMERA = re.compile(r"camera:(?P<device>.*)")
_DEVICES = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's names of camera interfaces, by `sys.platform`."""


class Video(NamedTuple):
    """One video and how PyAV opens it."""

    target: str
    """File, address or device."""
    shown: str
    """How it is called in messages and results: as the user wrote it, without a password."""
    stem: str
    """For names of output files."""
    format: str | None = None
    """FFmpeg's name of the input; None lets it look."""
    options: tuple[tuple[str, str], ...] = ()
    live: bool = False
    """True if frames that nobody takes are lost."""

    @property
    def is_file(self) -> bool:
        """True for a file of this machine."""
        return self.format is None and "://" not in self.target


class Sources(NamedTuple):
    """Images and videos that the sources of `predict` mean."""

    images: list[Path]
    videos: list[Video]
    notes: list[str]
    """Sentences that count the files passed over."""


def find_sources(sources: Iterable[str]) -> Sources:
    """List images and videos: files, folders and glob patterns as `find_images` does, addresses and `camera:0`.

    Raises:
        ImageError: a source does not exist, holds nothing that can be read, or is of a kind that cannot be read.
        ConfigError: a camera on a system for which no interface is known.
    """
    given = list(sources)
    streams = {source: video for source in given if (video := as_stream(source)) is not None}
    files = [source for source in given if source not in streams]
    listed = find_images(files, videos=True) if files else Listing([], [], [])
    videos = [*map(as_file, listed.videos), *streams.values()]
    return Sources(listed.paths, videos, listed.notes)


def as_file(path: Path) -> Video:
    """Return a video file."""
    # FFmpeg takes "name:rest" for a protocol, such as concat: or http:, unless told that it is a file
    return Video(f"file:{path}", str(path), path.stem)


def as_stream(source: str) -> Video | None:
    """Return the stream or camera that a source names; None for files, folders and patterns."""
    camera = _CAMERA.fullmatch(source)
    if camera is not None:
        return _as_camera(source, camera["device"])
    scheme, _, rest = source.partition("://")
    scheme = scheme.lower()
    if not rest or scheme not in LIVE | WAITING:
        return None
    if scheme in WAITING and urlsplit(source).path.lower().endswith(IMAGE_SUFFIXES):
        return None
    # Over TCP no packet is lost, so no frame is damaged on the way
    options = (("rtsp_flags", "prefer_tcp"),) if scheme in ("rtsp", "rtsps") else ()
    shown = without_password(source)
    parts = urlsplit(shown)
    stem = Path(parts.path).stem or parts.hostname or scheme
    return Video(source, shown, _plain(stem), None, options, scheme in LIVE)


def without_password(address: str) -> str:
    """Return an address without user name and password, which results and messages must not show."""
    return re.sub(r"^(\w+://)[^/?#]*@", r"\1", address)


def _as_camera(source: str, device: str) -> Video:
    interface = next((name for system, name in _DEVICES.items() if sys.platform.startswith(system)), None)
    if interface is None:
        raise ConfigError(f"{source}: cameras are read on Linux, macOS and Windows, and this is {sys.platform}")
    if not device or (interface == "v4l2" and not (device.isdigit() or device.startswith("/"))):
        raise ConfigError(f"{source}: expected the number of a camera, such as camera:0, the first camera")
    target, options = device, ()
    if interface == "v4l2":
        target = f"/dev/video{device}" if device.isdigit() else device
    elif interface == "avfoundation":
        options = (("framerate", "30"),)
    elif device.isdigit():
        target = f"video={_windows_camera(source, int(device))}"
    else:
        target = f"video={device}"
    return Video(target, source, _plain(f"camera-{device}"), interface, options, live=True)


def _windows_camera(source: str, number: int) -> str:
    """Return the name of a camera, which DirectShow knows by name only."""
    from av.device import enumerate_input_devices

    names = [device.name for device in enumerate_input_devices("dshow") if "video" in device.media_types]
    if number >= len(names):
        there = ", ".join(names) or "none"
        raise ConfigError(f"{source}: there is no camera of this number; cameras of this machine: {there}")
    return names[number]


def _plain(text: str) -> str:
    """Return a text as part of a file name that every system takes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "video"
