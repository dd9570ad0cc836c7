"""Tracks: which detections of successive frames are one object. The work is done by the package `trackers`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MissingExtraError
from multibox.structures import Detections

_SURE = 0.5
"""Score, as the tracker sees it, of a detection that is just sure."""


class Tracks:
    """ByteTrack over the detections of one video.

    ByteTrack links boxes by their overlap with where a Kalman filter expects each object. Sure detections begin tracks
    and are linked first; weak ones only continue a track, as of a half-hidden object. Classes are not asked: a car seen
    as a truck in between keeps its track. An object gets a number when it is found in two frames in a row.

    Args:
        rate: frames per second that the detector looks at.
        sure: score of each class [C] from which a detection is sure; the model's own thresholds.

    Raises:
        MissingExtraError: the package trackers is not installed.
    """

    def __init__(self, rate: float, sure: NDArray[np.float32]) -> None:
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ModuleNotFoundError:
            raise MissingExtraError("--track", "video") from None
        self._boxes: Any = supervision.Detections
        self._tracker: Any = ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=_SURE, high_conf_det_threshold=_SURE
        )
        self._sure = sure
        self.count = 0
        """Tracks with a number so far."""

    def follow(self, found: Detections, time: float) -> list[int | None]:
        """Return the track of each detection; None while it belongs to none.

        Args:
            found: in one frame.
            time: of the frame in seconds, greater than that of the frame before.
        """
        boxes = self._boxes(
            xyxy=found.boxes,
            confidence=_stretched(found.scores, self._sure[found.labels]),
            class_id=found.labels,
            data={"index": np.arange(len(found))},
        )
        tracked = self._tracker.update(boxes, timestamp=time)
        ids = np.full(len(found), -1)
        if len(tracked):
            ids[tracked.data["index"]] = tracked.tracker_id
        self.count = max(self.count, int(ids.max(initial=-1)) + 1)
        return [None if track < 0 else track for track in ids.tolist()]


def _stretched(scores: NDArray[np.float32], sure: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores where `sure` becomes `_SURE`, as the tracker has one limit for all classes; 0 and 1 stay."""
    low = np.divide(scores, sure, out=np.ones_like(scores), where=sure > 0) * np.float32(_SURE)
    high = _SURE + (scores - sure) / np.maximum(1 - sure, np.float32(1e-6)) * (1 - _SURE)
    below = np.nextafter(np.float32(_SURE), np.float32(0))
    return np.where(scores >= sure, np.maximum(high, _SURE), np.minimum(low, below)).astype(np.float32)
