"""Boxes and names drawn on the planes of a video frame, which need no conversion for the encoder.

A frame lies in memory as brightness (Y) and two colour planes of half its width and height (U, V). Boxes are slices of
them. Pillow draws each text once; it is pasted wherever it is needed again.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from multibox.plots.detections import PALETTE
from multibox.plots.labels import drawable_names, font_for, height, shortened, width
from multibox.structures import Detections
from multibox.video.reading import Frame

FORMAT = "yuv420p"
"""Layout of the planes, which every player knows."""
LETTERS = 0.03
"""Height of letters as a share of the frame's side, as in drawn images; so is `LINE`."""
LINE = 1 / 220
UNKNOWN = "#808080"
"""Colour of boxes that belong to no track yet."""
_TO_YUV = np.array([[0.257, 0.504, 0.098], [-0.148, -0.291, 0.439], [0.439, -0.368, -0.071]])
_BLACK = np.array([16, 128, 128])
"""BT.601, where brightness goes from 16 to 235."""

Plane = NDArray[np.uint8]


class _Tile(NamedTuple):
    """A text on its colour, as planes of even sides."""

    brightness: Plane
    blue: Plane
    red: Plane


def to_planes(frame: Frame) -> VideoFrame:
    """Return an upright copy of a frame, of even width and height, for painting and encoding.

    H.264 takes even sides only: of odd ones, the last column or row is repeated.
    """
    picture: Any = frame.picture
    if frame.turns:
        picture = VideoFrame.from_ndarray(cast("Any", frame.pixels()), format="rgb24")
    if picture.format.name != FORMAT:
        picture = picture.reformat(format=FORMAT, dst_color_range=ColorRange.MPEG)
    wide, high = frame.size
    copy = VideoFrame(wide + wide % 2, high + high % 2, FORMAT)
    for index in range(3):
        source, target = _plane(picture, index), _plane(copy, index)
        rows, columns = source.shape
        target[:rows, :columns] = source
        target[rows:, :columns] = source[-1:]
        target[:, columns:] = target[:, columns - 1 : columns]
    return copy


def paint(picture: VideoFrame, found: Detections, tracks: Sequence[int | None] | None = None) -> None:
    """Draw boxes on a frame, the best on top: by class with name and score, or by track with name and number.

    Args:
        picture: from `to_planes`; it is changed.
        found: boxes in pixels of the upright frame.
        tracks: of each detection; None without tracking.
    """
    if not len(found):
        return
    planes = [_plane(picture, index) for index in range(3)]
    high, wide = planes[0].shape
    side = math.sqrt(wide * high)
    line, letters = max(1, round(side * LINE / 2)) * 2, round(side * LETTERS)
    names = drawable_names(found.names)
    boxes = _even(found, wide, high)
    for index in reversed(range(len(found))):
        left, top, right, bottom = boxes[index]
        if right <= left or bottom <= top:
            continue
        label = int(found.labels[index])
        if tracks is None:
            colour, text = PALETTE[label % len(PALETTE)], f"{names[label]} {found.scores[index]:.2f}"
        else:
            track = tracks[index]
            colour = UNKNOWN if track is None else PALETTE[track % len(PALETTE)]
            text = names[label] if track is None else f"{names[label]} {track}"
        _outline(planes, (left, top, right, bottom), line, colour)
        tile = _tile(shortened(text, letters, wide), letters, colour)
        tall = tile.brightness.shape[0]
        _paste(planes, tile, left, top - tall if top >= tall else top)


def _even(found: Detections, wide: int, high: int) -> list[list[int]]:
    """Return boxes inside the frame with corners at even pixels, where colour has pixels, too."""
    corners = np.nan_to_num(found.boxes.astype(np.float64)).clip(0, [wide, high, wide, high]) / 2
    rounded = np.concatenate([np.floor(corners[:, :2]), np.ceil(corners[:, 2:])], axis=1) * 2
    return rounded.astype(int).tolist()


def _plane(picture: VideoFrame, index: int) -> Plane:
    plane: Any = picture.planes[index]
    rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]


def _outline(planes: Sequence[Plane], box: tuple[int, int, int, int], line: int, colour: str) -> None:
    left, top, right, bottom = box
    for plane, value in zip(planes, _yuv(colour), strict=True):
        part = plane[top:bottom, left:right]
        part[:line] = part[-line:] = value
        part[:, :line] = part[:, -line:] = value
        # The planes of colour have half the width and height
        if plane is planes[0]:
            left, top, right, bottom, line = left // 2, top // 2, right // 2, bottom // 2, line // 2


def _paste(planes: Sequence[Plane], tile: _Tile, left: int, top: int) -> None:
    wide = planes[0].shape[1]
    left = max(0, min(left, wide - tile.brightness.shape[1])) // 2 * 2
    for plane, part in zip(planes, tile, strict=True):
        place = plane[top : top + part.shape[0], left : left + part.shape[1]]
        place[:] = part[: place.shape[0], : place.shape[1]]
        if plane is planes[0]:
            left, top = left // 2, top // 2


@lru_cache(maxsize=64)
def _yuv(colour: str) -> tuple[int, int, int]:
    y, u, v = np.rint(_TO_YUV @ np.array(ImageColor.getrgb(colour)[:3]) + _BLACK).astype(int).tolist()
    return y, u, v


@lru_cache(maxsize=4096)
def _tile(text: str, letters: int, colour: str) -> _Tile:
    """Return a text in black or white on a colour."""
    font = font_for(text, letters)
    pad = max(1, round(font.size / 6))
    wide, tall = math.ceil((width(text, letters) + 2 * pad) / 2) * 2, math.ceil(height(font) / 2) * 2
    image = Image.new("RGB", (wide, tall), colour)
    ink = "#000000" if _yuv(colour)[0] > 120 else "#ffffff"
    ImageDraw.Draw(image).text((pad, tall / 2), text, ink, font, anchor="lm")
    planes = np.rint(np.asarray(image, np.float64) @ _TO_YUV.T + _BLACK)
    halved = planes.reshape(tall // 2, 2, wide // 2, 2, 3).mean((1, 3)).round()
    return _Tile(planes[..., 0].astype(np.uint8), halved[..., 1].astype(np.uint8), halved[..., 2].astype(np.uint8))
