"""Tracks: numbers of objects stay, weak detections keep them alive, every detection comes back in its place."""

import numpy as np
import pytest

from multibox.structures import Detections

pytest.importorskip("trackers", reason="needs the extra video")

from multibox.video.tracks import Tracks, _stretched

NAMES = ("red", "blue")


def found(*rows):
    """Return detections of (x, y, score[, label]), each a box of 40 x 40 pixels."""
    boxes = [(row[0], row[1], row[0] + 40, row[1] + 40) for row in rows]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([row[2] for row in rows], np.float32),
        np.array([row[3] if len(row) > 3 else 0 for row in rows], np.int64),
        NAMES,
    )


def tracks(sure=0.3, rate=30.0):
    return Tracks(rate, np.full(2, sure, np.float32))


def follow(tracker, frames, rate=30.0):
    return [tracker.follow(one, number / rate) for number, one in enumerate(frames)]


def test_an_object_is_confirmed_in_its_second_frame_and_keeps_its_number():
    ids = follow(tracks(), [found((10 + 3 * k, 20, 0.6), (300 - 3 * k, 200, 0.9)) for k in range(60)])
    assert ids[0] == [None, None]
    assert {tuple(each) for each in ids[1:]} == {(0, 1)}


def test_an_object_that_just_reaches_the_threshold_has_a_track():
    assert follow(tracks(), [found((10, 10, 0.3))] * 3) == [[None], [0], [0]]
    assert follow(tracks(0.0), [found((10, 10, 0.0))] * 3) == [[None], [0], [0]]
    assert follow(tracks(1.0), [found((10, 10, 1.0))] * 3) == [[None], [0], [0]]


def test_a_weak_detection_keeps_the_track():
    scores = [0.8, 0.8, *[0.15] * 60, 0.8]
    assert follow(tracks(), [found((10, 10, score)) for score in scores]) == [[None]] + [[0]] * 62


def test_a_weak_detection_begins_no_track():
    tracker = tracks()
    assert follow(tracker, [found((10, 10, 0.2))] * 10) == [[None]] * 10
    assert tracker.count == 0


def test_an_object_that_is_gone_for_long_comes_back_as_another():
    frames = [found((10, 10, 0.8))] * 3
    tracker = tracks()
    follow(tracker, frames)
    for number in range(3, 60):
        tracker.follow(found(), number / 30)
    assert [tracker.follow(found((10, 10, 0.8)), number / 30) for number in (60, 61)] == [[None], [1]]
    assert tracker.count == 2


def test_a_short_gap_keeps_the_number():
    tracker = tracks()
    follow(tracker, [found((10 + 2 * k, 10, 0.8)) for k in range(10)])
    for number in range(10, 20):
        tracker.follow(found(), number / 30)
    assert tracker.follow(found((10 + 2 * 20, 10, 0.8)), 20 / 30) == [0]


def test_two_objects_that_cross_keep_their_numbers():
    def frame(k):
        return found((20 + 4 * k, 100, 0.9), (20 + 4 * (80 - k), 112, 0.8))

    ids = follow(tracks(), [frame(k) for k in range(81)])
    assert {tuple(each) for each in ids[1:]} == {(0, 1)}


def test_detections_stay_in_their_order_whatever_the_order():
    given = found((10, 10, 0.95), (100, 10, 0.9, 1), (200, 10, 0.5), (300, 10, 0.2), (10, 200, 0.4, 1))
    tracker = tracks()
    tracker.follow(given, 0.0)
    ids = tracker.follow(given, 1 / 30)
    assert ids[3] is None and sorted(ids[:3] + ids[4:]) == [0, 1, 2, 3]
    # In another order, the numbers go with their boxes
    assert tracker.follow(given[[4, 2, 0, 3, 1]], 2 / 30) == [ids[4], ids[2], ids[0], None, ids[1]]


def test_frames_looked_at_rarely_are_followed_by_their_time():
    # Every third frame: the square moves by 12 pixels between two looks
    tracker = tracks(rate=10.0)
    ids = [tracker.follow(found((10 + 4 * k, 10, 0.8)), k / 30) for k in range(0, 60, 3)]
    assert ids[1:] == [[0]] * 19


def test_no_frames_and_no_objects():
    tracker = tracks()
    assert tracker.follow(found(), 0.0) == [] and tracker.follow(found(), 0.5) == []


def test_each_class_is_sure_from_its_own_threshold_on():
    scores = np.array([0.0, 0.1, 0.2, 0.3, 0.65, 1.0], np.float32)
    stretched = _stretched(scores, np.full(6, 0.3, np.float32))
    assert stretched == pytest.approx([0, 0.1667, 0.3333, 0.5, 0.75, 1.0], abs=1e-3)
    below = np.nextafter(np.float32(0.3), np.float32(0))
    assert _stretched(np.array([below]), np.full(1, 0.3, np.float32))[0] < 0.5
