"""Tracks: which detections of successive frames are one object. The work is done by the package `trackers`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MissingExtraError
from multibox.structures import Detections
from multibox.thresholds import lowest_scores

WEAK = 1 / 3
"""Share of the lowest score reported from which a detection may continue a track, though it is not reported itself."""
_SURE = 0.5
"""Score, as the tracker sees it, of a detection that is just reported."""


class Tracks:
    """ByteTrack over the detections of one video.

    ByteTrack links boxes by their overlap with where a Kalman filter expects each object. Detections too weak to be
    reported keep a track alive, as of a half-hidden object. Classes are not asked: a car seen as a truck in between
    keeps its track. An object is confirmed, and gets a number, when it is found in two frames in a row.

    Args:
        rate: frames per second that the detector looks at.
        lowest: lowest score reported of each class [C].

    Raises:
        MissingExtraError: the package trackers is not installed.
    """

    def __init__(self, rate: float, lowest: NDArray[np.float32]) -> None:
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ModuleNotFoundError:
            raise MissingExtraError("--track", "video") from None
        self._boxes: Any = supervision.Detections
        # Scores are stretched so that each class is sure from its own threshold on
        self._tracker: Any = ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=_SURE, high_conf_det_threshold=_SURE
        )
        self._lowest = lowest
        self.count = 0
        """Tracks confirmed so far."""

    def follow(self, found: Detections, time: float) -> tuple[Detections, list[int | None]]:
        """Return the detections that are reported, and the track of each; None while unconfirmed.

        Args:
            found: of one frame, from the scores of `weak_scores` on.
            time: of the frame in seconds, greater than that of the frame before.
        """
        lowest = self._lowest[found.labels]
        reported = found.scores >= lowest
        boxes = self._boxes(
            xyxy=found.boxes,
            confidence=_stretched(found.scores, lowest),
            class_id=found.labels,
            data={"index": np.arange(len(found))},
        )
        tracked = self._tracker.update(boxes, timestamp=time)
        ids = np.full(len(found), -1)
        if len(tracked):
            ids[tracked.data["index"]] = tracked.tracker_id
        self.count = max(self.count, int(ids.max(initial=-1)) + 1)
        return found[reported], [None if track < 0 else track for track in ids[reported].tolist()]


def weak_scores(
    threshold: float | None, own: tuple[float, ...], names: tuple[str, ...], track: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the lowest score of each class that is reported, and that the detector is asked for, [C] each."""
    lowest = lowest_scores(threshold, own, names)
    return lowest, lowest * np.float32(WEAK) if track else lowest


def _stretched(scores: NDArray[np.float32], lowest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores where `lowest` becomes `_SURE`; 0 and 1 stay as they are."""
    low = np.divide(scores, lowest, out=np.ones_like(scores), where=lowest > 0) * np.float32(_SURE)
    rest = np.maximum(np.float32(1) - lowest, np.float32(1e-6))
    high = _SURE + (scores - lowest) / rest * np.float32(1 - _SURE)
    return np.where(scores >= lowest, np.maximum(high, np.float32(_SURE)), np.minimum(low, 0.4999)).astype(np.float32)
