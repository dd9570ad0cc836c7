"""What a lane does with its images: decode them, and run the network on those of one shape together."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

import numpy as np

from multibox.data.images import encoded_size
from multibox.data.pixels import WHITE, Colour
from multibox.errors import ImageError
from multibox.inference.inputs import pixels_of
from multibox.serving.batching import Looked, Pixels, Work
from multibox.serving.watching import Watch
from multibox.structures import Detections
from multibox.thresholds import drop_low_scores

if TYPE_CHECKING:
    from multibox.inference.detector import Detector
    from multibox.inference.load import ExportedDetector

AnyDetector: TypeAlias = Union["Detector", "ExportedDetector"]

ENCODED = "the image given as bytes"
"""How errors name an encoded image."""
CANDIDATE_SCORE, CANDIDATES = 0.05, 500
"""Lowest score and number of the candidates before suppression that `raw` asks for."""
KEEPS_ALL = 1.0
"""Overlap of two boxes that no pair exceeds."""
PIXELS_AT_ONCE = 20_000_000
"""Pixels of the images that one lane decodes before it runs the network, at most, if they are several."""
WARM_SIZE = (480, 640)
MOST_PIXELS = 50_000_000
"""Pixels of an image, at most; the header of an encoded one tells them before anything is decoded."""


def open_pixels(image: bytes | Pixels, background: Colour = WHITE) -> Pixels:
    """Return an image as RGB pixels [H, W, 3].

    Raises:
        ImageError: It cannot be read, or has too many pixels (of kind "huge-image").
    """
    check_size(image)
    return pixels_of(image, background)


def check_size(image: bytes | Pixels) -> None:
    """Refuse an image of more than `MOST_PIXELS`.

    Raises:
        ImageError: It has more (of kind "huge-image"), or its header cannot be read.
    """
    height, width = encoded_size(image, ENCODED) if isinstance(image, bytes) else image.shape[:2]
    if height * width > MOST_PIXELS:
        raise ImageError(
            f"{ENCODED} has {width} x {height} pixels, at most {MOST_PIXELS:,}; make it smaller", kind="huge-image"
        )


class _Opened(NamedTuple):
    place: int
    work: Work
    pixels: Pixels
    prepared: Any


class Looker:
    """A lane: decodes images and runs a detector on them.

    Args:
        detector: Takes the images.
        turn: Held while the detector computes, if several lanes share one: the others decode meanwhile.
        pool: Decodes the images of a batch at the same time; without one, the lane's own thread does it.
        watch: Looks for drift; None where the model has no statistics of its training.
        batches: Whether batches of several images will come, so that they are warmed up, too.
    """

    def __init__(
        self,
        detector: AnyDetector,
        *,
        turn: "threading.Lock | None" = None,
        pool: ThreadPoolExecutor | None = None,
        watch: Watch | None = None,
        batches: bool = False,
    ) -> None:
        self.detector = detector
        self._turn = turn or threading.Lock()
        self._pool, self._watch = pool, watch
        self._sizes = (1, 2) if batches else (1,)

    def warm(self) -> None:
        """Run the network on a grey image."""
        grey: Any = self.detector.prepare(np.full((*WARM_SIZE, 3), 128, np.uint8))
        for count in self._sizes:
            with self._turn:
                self.detector.detect([grey] * count)

    def look(self, works: Sequence[Work]) -> list[Looked | Exception]:
        """Return what is found in each image, or why it failed: one that fails does not hurt the others."""
        results: list[Looked | Exception] = [ImageError("not looked at")] * len(works)
        for part in _parts(works):
            opened: list[_Opened] = []
            for place, one in zip(part, self._open_all([works[place] for place in part], part), strict=True):
                if isinstance(one, Exception):
                    results[place] = one
                else:
                    opened.append(one)
            for group in _alike(opened):
                for one, result in zip(group, self._detect(group), strict=True):
                    results[one.place] = result
        return results

    def _open_all(self, works: list[Work], places: Sequence[int]) -> Iterator["_Opened | Exception"]:
        if self._pool is not None and len(works) > 1:
            return self._pool.map(self._open, works, places)
        return map(self._open, works, places)

    def _open(self, work: Work, place: int) -> "_Opened | Exception":
        try:
            pixels = open_pixels(work.image, self.detector.background)
            return _Opened(place, work, pixels, self.detector.prepare(pixels))
        except Exception as error:
            return error

    def _detect(self, group: list[_Opened]) -> Sequence[Looked | Exception]:
        """Return what is found in images that go through the network together; on a failure, look at each alone."""
        try:
            return self._run(group)
        except Exception as error:
            if len(group) == 1:
                return [error]
            return [self._detect([one])[0] for one in group]

    def _run(self, group: list[_Opened]) -> list[Looked]:
        # Whatever is found above a low threshold begins with all that is found above a higher one
        lowest = np.minimum.reduce([one.work.lowest for one in group])
        nms, most = group[0].work.nms, group[0].work.most
        raw = [one for one in group if one.work.raw]
        with self._turn:
            found = self.detector.detect([one.prepared for one in group], lowest, nms=nms, most=most)
            candidates = self._candidates(raw)
        if self._watch is not None:
            for one, detections in zip(group, found, strict=True):
                self._watch.add(one.pixels, detections, lowest)
        return [
            Looked(
                one.pixels.shape[1],
                one.pixels.shape[0],
                drop_low_scores(detections, one.work.lowest),
                candidates.get(one.place),
            )
            for one, detections in zip(group, found, strict=True)
        ]

    def _candidates(self, raw: list[_Opened]) -> dict[int, Detections]:
        """Return the boxes before suppression by place: what a suppression that keeps all returns."""
        if not raw:
            return {}
        lowest = np.full(len(self.detector.names), CANDIDATE_SCORE, np.float32)
        found = self.detector.detect([one.prepared for one in raw], lowest, nms=KEEPS_ALL, most=CANDIDATES)
        return {one.place: candidates for one, candidates in zip(raw, found, strict=True)}


def _parts(works: Sequence[Work]) -> Iterator[range]:
    """Yield places of images with at most `PIXELS_AT_ONCE` pixels together, or of one."""
    if len(works) == 1:
        yield range(1)
        return
    first = total = 0
    for place, work in enumerate(works):
        pixels = _pixels(work)
        if place > first and total + pixels > PIXELS_AT_ONCE:
            yield range(first, place)
            first, total = place, 0
        total += pixels
    yield range(first, len(works))


def _pixels(work: Work) -> int:
    if not isinstance(work.image, bytes):
        return work.image.shape[0] * work.image.shape[1]
    try:
        height, width = encoded_size(work.image, "the image")
    except Exception:  # decoding it will tell
        return 0
    return height * width


def _alike(opened: list[_Opened]) -> Iterator[list[_Opened]]:
    """Yield images that may share a run: those of one suppression and limit, neighbours of one shape."""
    groups: dict[tuple[float | None, int | None], list[_Opened]] = {}
    for one in opened:
        groups.setdefault((one.work.nms, one.work.most), []).append(one)
    for group in groups.values():
        yield sorted(group, key=lambda one: one.pixels.shape)
