import asyncio
import threading
import time

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from multibox.errors import ImageError
from multibox.serving.batching import Batcher, Busy, Late, Looked, Work
from multibox.structures import Detections

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ("cat",))
LOWEST = np.array([0.3], np.float32)


class Lane:
    """Notes its batches, and computes only while `gate` is open; the image is the number of its request."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []

    def warm(self):
        pass

    def look(self, works):
        self.gate.wait(10)
        self.batches.append([int(work.image) for work in works])
        if b"13" in [work.image for work in works]:
            raise RuntimeError("thirteen")
        return [Looked(int(work.image), 1, NOTHING) for work in works]


def work(number):
    return Work(str(number).encode(), LOWEST)


def run(steps, **options):
    """Run `steps(batcher, lane)` in an event loop and return its result."""
    lane = Lane()
    batcher = Batcher([lane], **options)
    try:
        return asyncio.run(steps(batcher, lane))
    finally:
        lane.gate.set()
        batcher.close()


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


async def blocked(batcher, lane):
    """Return the task of an image on which the lane is busy until the gate opens."""
    lane.gate.clear()
    task = asyncio.create_task(batcher.look(work(0)))
    await asyncio.sleep(0)
    await until(lambda: batcher.waiting == 0)
    return task


def test_each_request_gets_its_own_result():
    async def steps(batcher, lane):
        return await asyncio.gather(*(batcher.look(work(number)) for number in range(20, 60)))

    assert [looked.width for looked in run(steps, batch=8)] == list(range(20, 60))


def test_what_waits_goes_through_together_up_to_the_batch():
    async def steps(batcher, lane):
        first = await blocked(batcher, lane)
        others = [asyncio.create_task(batcher.look(work(number))) for number in range(1, 8)]
        await until(lambda: batcher.waiting == 7)
        lane.gate.set()
        looked = [await task for task in (first, *others)]
        return lane.batches, [one.batch for one in looked]

    batches, sizes = run(steps, batch=4)
    assert batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert sizes == [1, 4, 4, 4, 4, 3, 3, 3]


def test_a_batch_waits_for_more_until_its_deadline():
    async def steps(batcher, lane):
        first = asyncio.create_task(batcher.look(work(1)))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher.look(work(2)))
        return lane.batches

    assert run(steps, batch=4, wait=0.5) == [[1, 2]]


def test_a_full_batch_does_not_wait():
    async def steps(batcher, lane):
        started = time.monotonic()
        await asyncio.gather(*(batcher.look(work(number)) for number in range(4)))
        return time.monotonic() - started

    assert run(steps, batch=4, wait=30) < 10


def test_more_images_than_the_queue_takes_are_refused():
    async def steps(batcher, lane):
        first = await blocked(batcher, lane)
        waiting = [asyncio.create_task(batcher.look(work(number))) for number in (1, 2)]
        await until(lambda: batcher.waiting == 2)
        with pytest.raises(Busy) as caught:
            await batcher.look(work(3))
        lane.gate.set()
        await asyncio.gather(first, *waiting)
        assert caught.value.seconds >= 1
        return await batcher.look(work(4))

    assert run(steps, most_images=2).width == 4


def test_more_bytes_than_the_queue_takes_are_refused_but_one_large_image_is_not():
    async def steps(batcher, lane):
        first = await blocked(batcher, lane)
        large = asyncio.create_task(batcher.look(work(10**20)))
        await until(lambda: batcher.waiting == 1)
        with pytest.raises(Busy):
            await batcher.look(work(1))
        large.cancel()
        await until(lambda: batcher.waiting == 0)
        small = asyncio.create_task(batcher.look(work(1)))
        await until(lambda: batcher.waiting == 1)
        lane.gate.set()
        await asyncio.gather(first, small)
        return lane.batches

    assert run(steps, most_bytes=5) == [[0], [1]]


def test_the_image_of_a_client_that_went_away_costs_nothing():
    async def steps(batcher, lane):
        first = await blocked(batcher, lane)
        gone, stays = (asyncio.create_task(batcher.look(work(number))) for number in (1, 2))
        await until(lambda: batcher.waiting == 2)
        gone.cancel()
        await until(lambda: batcher.waiting == 1)
        lane.gate.set()
        await asyncio.gather(first, stays)
        return lane.batches

    assert run(steps, batch=4) == [[0], [2]]


def test_a_client_that_goes_away_while_its_image_is_computed_does_not_matter():
    async def steps(batcher, lane):
        first = await blocked(batcher, lane)
        first.cancel()
        lane.gate.set()
        return await batcher.look(work(1))

    assert run(steps).width == 1


def test_an_exception_is_that_request_s_own_and_the_thread_goes_on():
    async def steps(batcher, lane):
        with pytest.raises(RuntimeError, match="thirteen"):
            await batcher.look(work(13))
        return await batcher.look(work(14))

    assert run(steps).width == 14


def test_closing_answers_what_waits():
    async def steps(batcher, lane):
        first = await blocked(batcher, lane)
        others = [asyncio.create_task(batcher.look(work(number))) for number in range(1, 4)]
        await until(lambda: batcher.waiting == 3)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        lane.gate.set()
        looked = await asyncio.gather(first, *others)
        await closing
        return [one.width for one in looked]

    assert run(steps) == [0, 1, 2, 3]


def test_retry_after_grows_with_the_queue_and_its_pace():
    async def steps(batcher, lane):
        assert batcher.retry_after() == 1
        batcher._pace = 0.5
        first = await blocked(batcher, lane)
        others = [asyncio.create_task(batcher.look(work(number))) for number in range(1, 8)]
        await until(lambda: batcher.waiting == 7)
        seconds = batcher.retry_after()
        lane.gate.set()
        await asyncio.gather(first, *others)
        return seconds

    assert run(steps) == 4


def test_a_lane_that_cannot_compute_says_so():
    class Broken(Lane):
        def warm(self):
            raise ImageError("it cannot run")

    batcher = Batcher([Broken()])
    with pytest.raises(ImageError, match="cannot run"):
        batcher.wait_ready()
    assert not batcher.ready
    batcher.close()


def test_late_is_busy_and_says_how_long_it_waited():
    assert "within 30 s" in str(Late(30.0, 4))
    assert isinstance(Late(30.0, 4), Busy)
    assert Late(30.0, 4).seconds == 4
