"""Streams: a server of files, a server that breaks off, and RTSP, all on this machine."""

import http.server
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from multibox.errors import DataError
from multibox.video import reading
from multibox.video.addresses import Video, as_stream
from multibox.video.pipeline import Plan, Progress, predict_video

from .clips import SquareFinder, frames_of, write_clip


@contextmanager
def serving(data, *, sent=None, stall=0.0):
    """Serve bytes at every path; only `sent` of them if given, then wait and break off."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(data) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            try:
                self.wfile.write(data[first:sent])
                time.sleep(stall)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def predict(video, target=None, **plan):
    progress = Progress()
    return list(predict_video(video, Plan([SquareFinder()], **plan), target, progress)), progress


def test_a_video_from_a_server_is_that_of_the_file(tmp_path):
    path = write_clip(tmp_path / "clip.ts", 40)
    with serving(path.read_bytes()) as address:
        looked, progress = predict(as_stream(f"{address}/live/clip.ts"), tmp_path / "out.mp4")
    assert (len(looked), progress.frames, progress.bad) == (40, 40, 0)
    plain = SquareFinder()
    assert [found for _, found, _ in looked] == [plain.predict(pixels) for _, pixels in frames_of(path)]
    assert len(frames_of(tmp_path / "out.mp4")) == 40


def test_a_connection_that_breaks_off_is_told_and_keeps_what_came(tmp_path):
    path = write_clip(tmp_path / "clip.ts", 200, options={"g": "20"})
    data = path.read_bytes()
    with serving(data, sent=len(data) // 2) as address:
        looked, progress = predict(as_stream(f"{address}/clip.ts"), tmp_path / "out.mp4")
    assert 40 < len(looked) < 160
    assert progress.bad and progress.complaint
    assert len(frames_of(tmp_path / "out.mp4")) == progress.frames


@pytest.mark.slow
def test_a_server_that_sends_nothing_more_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SECONDS", 1)
    path = write_clip(tmp_path / "clip.ts", 200, options={"g": "20"})
    data = path.read_bytes()
    with serving(data, sent=len(data) // 2, stall=30.0) as address:
        looked, progress = predict(as_stream(f"{address}/clip.ts"), tmp_path / "out.mp4")
    assert 40 < len(looked) < 160 and "broke off" in progress.complaint


def test_what_is_no_video_there(tmp_path):
    with serving(b"<html>no video here</html>" * 50) as address, pytest.raises(DataError, match="cannot be opened"):
        predict(as_stream(f"{address}/page"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SENDER = """
import sys, time
import av, numpy as np

for _ in range(100):
    try:
        container = av.open(sys.argv[1], "w", format="rtsp", options={"rtsp_transport": "tcp"})
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10"}
        video = container.add_stream("libx264", rate=30, options=options)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        container.start_encoding()
        break
    except OSError:
        time.sleep(0.2)
for number in range(60):
    pixels = np.full((120, 160, 3), 128, np.uint8)
    pixels[40:64, 10 + number : 34 + number] = (220, 30, 30)
    container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    time.sleep(1 / 60)
container.mux(video.encode())
container.close()
"""
"""Sends two seconds to a listening receiver, as a camera does; a process, as PyAV connects with Python's lock held."""


@pytest.mark.slow
def test_rtsp(tmp_path):
    address = f"rtsp://127.0.0.1:{free_port()}/cam"
    sender = subprocess.Popen([sys.executable, "-c", SENDER, address], stderr=subprocess.DEVNULL)
    video = Video(address, address, "cam", None, (("rtsp_flags", "listen"), ("listen_timeout", "30")), live=True)
    try:
        looked, progress = predict(video, tmp_path / "out.mp4", track=True)
    finally:
        sender.kill()
        sender.wait()
    assert len(looked) >= 5 and progress.frames == len(looked)
    assert all(len(found) == 1 for _, found, _ in looked)
    times = np.array([seconds for seconds, _ in frames_of(tmp_path / "out.mp4")])
    assert times[0] == pytest.approx(0, abs=0.04) and (np.diff(times) > 0).all()
