"""Clips of coloured squares, and a detector that finds squares by their colour: everything can be worked by hand."""

import struct
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from multibox.structures import Detections
from multibox.thresholds import drop_low_scores, lowest_scores

av = pytest.importorskip("av", reason="needs the extra video")

RED, BLUE, GREY = (220, 30, 30), (30, 30, 220), (128, 128, 128)


class Square(NamedTuple):
    """A square of one colour on a frame."""

    left: int
    top: int
    side: int = 24
    colour: tuple[int, int, int] = RED


def drawn(squares, size=(160, 120)):
    """Return a grey frame, RGB [H, W, 3], with squares."""
    pixels = np.full((size[1], size[0], 3), GREY, np.uint8)
    for square in squares:
        pixels[square.top : square.top + square.side, square.left : square.left + square.side] = square.colour
    return pixels


def write_clip(
    path,
    frames=30,
    squares=None,
    *,
    size=(160, 120),
    rate=30,
    codec="libx264",
    times=None,
    sound=False,
    options=None,
    pixel_format=None,
    picture=None,
):
    """Write a clip; by default a red square goes right by 2 pixels per frame.

    Args:
        path: file to write; its ending decides the container.
        frames: their number.
        squares: the squares of frame k, given k.
        size: width and height.
        rate: frames per second.
        codec: of the video.
        times: of each frame in milliseconds; None spaces them by `rate`.
        sound: add silence.
        options: of the encoder.
        pixel_format: FFmpeg's name of the layout of pixels.
        picture: pixels of frame k, given k, instead of squares.
    """
    squares = squares or (lambda k: [Square(10 + 2 * k, 40)])
    pixel_format = pixel_format or ("yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            codec, rate=rate, options={**({"crf": "10"} if "26" in codec else {}), **(options or {})}
        )
        video.width, video.height, video.pix_fmt = *size, pixel_format
        if times is not None:
            video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        if sound:
            audio = container.add_stream("aac", rate=44100)
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            silence.sample_rate = 44100
            for number in range(frames * 44100 // rate // 1024):
                silence.pts = number * 1024
                container.mux(audio.encode(silence))
        for number in range(frames):
            pixels = drawn(squares(number), size) if picture is None else picture(number)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound:
            container.mux(audio.encode())
    return path


def turn(path, degrees):
    """Write into an MP4 file that a player shall turn it clockwise, as phones do (QuickTime's matrix in `tkhd`)."""
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 32 + 4  # version 0: after times, id, length, layer, group, volume
    plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    place = data.index(plain, place)
    a, b, c, d = (value * 65536 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def frames_of(path):
    """Return the frames of a video as (time in seconds, RGB pixels), read by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames = container.decode(stream)
        return [(float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")) for frame in frames]


class SquareFinder:
    """A detector that finds red and blue squares; a square's score is the share of its box that it fills."""

    names = ("red", "blue")
    thresholds = ()
    background = (255, 255, 255)

    def __init__(self):
        self.looked, self.statistics = 0, {}

    def prepare(self, image):
        return image

    def detect(self, images, lowest=None):
        return [drop_low_scores(self.find(image), lowest) for image in images]

    def predict(self, image, threshold=None):
        found = self.detect(image if isinstance(image, list) else [image], lowest_scores(threshold, (), self.names))
        return found if isinstance(image, list) else found[0]

    def find(self, pixels):
        self.looked += 1
        boxes, scores, labels = [], [], []
        values = pixels.astype(int)
        for label, colour in enumerate((RED, BLUE)):
            like = np.abs(values - colour).max(-1) < 70
            regions, _ = ndimage.label(like)
            for region, (rows, columns) in enumerate(ndimage.find_objects(regions), 1):
                if like[rows, columns].size >= 100:
                    boxes.append((columns.start, rows.start, columns.stop, rows.stop))
                    scores.append((regions[rows, columns] == region).mean())
                    labels.append(label)
        order = np.argsort(-np.array(scores, np.float32), kind="stable") if scores else np.zeros(0, np.int64)
        return Detections(
            np.array(boxes, np.float32).reshape(-1, 4)[order],
            np.array(scores, np.float32)[order],
            np.array(labels, np.int64)[order],
            self.names,
        )
