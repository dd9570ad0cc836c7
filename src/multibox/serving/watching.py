"""Whether the images that a server sees are like those that its model learned from."""

import logging
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.analysis.drift import BLOCK, GRID, Drift, Seen, drifts
from multibox.serving.batching import Pixels
from multibox.structures import Detections
from multibox.thresholds import drop_low_scores

log = logging.getLogger("multibox.serving")

EVERY = 50
"""Images between two comparisons with training."""
_SIDE = GRID * BLOCK


class Watch:
    """Statistics of the images of one model, in constant memory; several threads may add to it.

    Args:
        name: The model's, for the log.
        statistics: Of its training.
        own: Its own lowest score of each class [C].
    """

    def __init__(self, name: str, statistics: dict[str, Any], own: NDArray[np.float32]) -> None:
        self.name, self._own = name, own
        self._seen = Seen(statistics)
        self._images = 0
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def add(self, pixels: Pixels, found: Detections, lowest: NDArray[np.float32]) -> None:
        """Count an image [H, W, 3] and what was found in it above a lowest score per class."""
        height, width = pixels.shape[:2]
        # The pixels that `measure_image` would choose, without a copy of all of them
        rows = (np.arange(_SIDE) * 2 + 1) * height // (2 * _SIDE)
        columns = (np.arange(_SIDE) * 2 + 1) * width // (2 * _SIDE)
        few = Image.fromarray(pixels[rows[:, None], columns])
        complete = bool((lowest <= self._own).all())
        with self._lock:
            self._seen.add(few, drop_low_scores(found, self._own) if complete else None, (height, width))
            self._images += 1
            compare = self._images % EVERY == 0
        if compare:
            self._warn()

    def drift(self) -> list[Drift]:
        """Return the statistics that are far from those of training, the farthest first."""
        with self._lock:
            return drifts(self._seen.statistics, self._seen)

    def _warn(self) -> None:
        """Say once of each statistic that it is far from training."""
        for drift in self.drift():
            if drift.name not in self._told:
                self._told.add(drift.name)
                extra = {"event": "drift", "model": self.name, "statistic": drift.name, "seen": drift.seen}
                log.warning("%s: images differ from those of training: %s", self.name, drift, extra=extra)
