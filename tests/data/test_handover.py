"""Batches that worker processes hand over in shared memory."""

import pickle

import numpy as np

from multibox.data.handover import ROOM, Arrays, Handed, Places
from multibox.structures import Size


def batch_of(images, rows=2):
    pixels = np.random.default_rng(images).integers(0, 256, (images, 6, 8, 3), dtype=np.uint8)
    boxes, labels = np.zeros((images, rows, 4), np.float32), np.ones((images, rows), np.int64)
    return Arrays(pixels, boxes, labels, labels + 4, np.arange(images), ["a"] * images, [Size(6, 8)] * images, 3)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_copy_in_another_process_puts_and_the_owner_takes():
    places = Places(2, 4 * 6 * 8 * 3)
    copy = pickle.loads(pickle.dumps(places))
    sent = [copy.put(place, batch_of(4 - place)) for place in range(2)]
    assert all(isinstance(one, Handed) for one in sent)
    # Far below what a pipe takes whole
    assert len(pickle.dumps(sent[0])) < 500
    assert [same(places.take(place, sent[place]), batch_of(4 - place)) for place in range(2)] == [True, True]


def test_a_batch_too_large_for_its_place_is_sent_itself():
    places = Places(1, 6 * 8 * 3)
    large = batch_of(1, rows=ROOM // 20)
    assert places.put(0, large) is large


def test_a_process_that_cannot_open_the_memory_sends_batches_themselves():
    places = Places(1, 6 * 8 * 3)
    copy = Places.__new__(Places)
    copy.__setstate__((places.size, "/nowhere"))
    batch = batch_of(1)
    assert copy.put(0, batch) is batch
