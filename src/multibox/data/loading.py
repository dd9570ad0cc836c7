"""Batches prepared between the steps, or ahead of them by threads or worker processes.

On a CPU with few cores each batch is prepared between two steps, by all cores. A thread beside the step would take one
of the cores for which the step's own threads then wait. Worker processes pay off beside a GPU with many cores, where
Python itself is the limit. They hand batches over in memory that needs no /dev/shm. If one of them dies, threads go on
with the same batches.
"""

import contextlib
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Barrier
from typing import NamedTuple

import torch

from multibox.data.augmented import AugmentedImages, make_batch, start_worker
from multibox.data.handover import Arrays, Handed, Places
from multibox.data.sampling import EpochBatches, Key
from multibox.errors import MultiboxError
from multibox.limits import available_cores
from multibox.tensors import Batch

PREFETCH_BYTES = 1 << 30
"""Most memory for batches prepared ahead; two are always prepared."""
MOST_THREADS, MOST_PROCESSES = 4, 8
MOST_BETWEEN = 4
"""Cores up to which batches are prepared between the steps; with more, Python's lock leaves most of them idle."""
_NO_PROCESSES = (OSError, ImportError, NotImplementedError, AssertionError, BrokenProcessPool)
"""What is raised where processes cannot be started: no semaphores, too many processes, in a daemonic process."""
_KILLED = "a worker process that prepares images was killed or crashed, often for lack of memory"

Keys = Sequence[Key | tuple[int, ...]]
Tell = Callable[[str], None]
Reach = Callable[[int], None]


def load_batches(
    images: AugmentedImages,
    batches: EpochBatches | Sequence[Keys],
    workers: int,
    *,
    pin: bool,
    processes: bool = False,
    between: bool = False,
    tell: Tell = lambda line: None,
    reach: Reach = lambda step: None,
) -> Iterator[Batch]:
    """Yield every batch of `batches`, in order.

    An `EpochBatches` may become longer or shorter while it is loaded; batches prepared beyond a new end are dropped.

    Args:
        images: makes the items.
        batches: keys of each batch.
        workers: threads or processes that prepare batches ahead; 0 prepares each when it is taken.
        pin: put batches into page-locked memory.
        processes: whether workers are processes. If they cannot be started or die, threads take over.
        between: whether each batch is prepared when it is taken, its images shared among `workers` threads.
        tell: receives one sentence if that happens.
        reach: is called with each step before its images are asked for.

    Raises:
        ImageError: an image cannot be read.
        MultiboxError: memory ran out.
    """
    step = batches.start_step if isinstance(batches, EpochBatches) else 0
    if between or not workers:
        with _plain_threads(max(1, workers)) as threads:
            while step < _end(batches):
                reach(step)
                yield _prepare(images, _keys(batches, step), pin, threads, max(1, workers))
                step += 1
        return
    ahead = _ahead(images, batches, workers)
    largest = _most_images(batches) * 3 * images.size.height * images.size.width
    with contextlib.closing(_Pool(images, workers, pin, Room(ahead, largest) if processes else None, tell)) as pool:
        waiting: deque[tuple[Keys, Future[Batch]]] = deque()
        while True:
            while len(waiting) < ahead and step < _end(batches):
                reach(step)
                keys = _keys(batches, step)
                waiting.append((keys, pool.submit(keys)))
                step += 1
            if not waiting or step - len(waiting) >= _end(batches):
                return
            yield pool.finish(*waiting.popleft())


def choose_workers(asked: int | str, device: str = "cpu") -> int:
    """Return how many workers prepare images: as asked for or, if -1 or "auto", all cores but one.

    At most 4 threads beside training on a CPU, which needs the cores itself, and at most 8 processes beside a GPU. All
    cores where images are prepared between the steps.
    """
    if isinstance(asked, int) and asked >= 0:
        return asked
    if prepares_between(asked, device):
        return available_cores()
    return min(MOST_THREADS if device == "cpu" else MOST_PROCESSES, max(1, available_cores() - 1))


def use_processes(workers: int, device: str) -> bool:
    """Return whether workers should be processes: beside a GPU, if there are at least three."""
    return device != "cpu" and workers > 2


def prepares_between(asked: int | str, device: str) -> bool:
    """Return whether batches are prepared between the steps: on a CPU of few cores, unless a number was asked for."""
    automatic = not isinstance(asked, int) or asked < 0
    return automatic and device == "cpu" and available_cores() <= MOST_BETWEEN


def in_order(images: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Return batches of (0, index) over all images, in order, the last one smaller."""
    return [[(0, i) for i in range(s, min(s + batch_size, images))] for s in range(0, images, batch_size)]


def _end(batches: EpochBatches | Sequence[Keys]) -> int:
    return batches.steps if isinstance(batches, EpochBatches) else len(batches)


def _keys(batches: EpochBatches | Sequence[Keys], step: int) -> Keys:
    return batches.batch(step) if isinstance(batches, EpochBatches) else batches[step]


class Room(NamedTuple):
    """Of the batches that worker processes hand over."""

    batches: int
    """Prepared at a time."""
    size: int
    """Bytes of a batch's pixels."""


class _Pool:
    """Workers that prepare batches: threads, or processes that threads replace if they fail."""

    def __init__(self, images: AugmentedImages, workers: int, pin: bool, room: Room | None, tell: Tell) -> None:
        self.images = images
        self.pin = pin
        self.tell = tell
        # Beside processes one thread receives and pins their batches
        self.threads = _plain_threads(1 if room else workers)
        self.processes: ProcessPoolExecutor | None = None
        self.places: Places | None = None
        if room is None:
            return
        self.free = deque(range(room.batches))
        with contextlib.suppress(OSError):
            self.places = Places(*room)
        try:
            self.processes = ProcessPoolExecutor(
                workers,
                multiprocessing.get_context("spawn"),
                initializer=start_worker,
                initargs=(images, self.places),
            )
        except _NO_PROCESSES as error:
            self._give_up(f"worker processes cannot be started here ({error})")

    def submit(self, keys: Keys) -> Future[Batch]:
        if self.processes is not None:
            place = self.free.popleft()
            try:
                with _unseen_main(), _blocked_interrupt():
                    sent = self.processes.submit(make_batch, keys, place)
                return self.threads.submit(self._receive, sent, place)
            except BrokenProcessPool:
                self._give_up(_KILLED)
            except _NO_PROCESSES as error:
                self._give_up(f"worker processes cannot be started here ({error})")
        return self.threads.submit(_prepare, self.images, keys, self.pin)

    def _receive(self, sent: Future[Arrays | Handed], place: int) -> Batch:
        batch = sent.result()
        if isinstance(batch, Handed):
            assert self.places is not None
            batch = self.places.take(place, batch)
            if not self.pin:
                batch = batch._replace(images=batch.images.copy())
        ready = _to_batch(batch, self.pin)
        self.free.append(place)
        return ready

    def finish(self, keys: Keys, future: Future[Batch]) -> Batch:
        """Return the batch of a submitted future; prepare it here if its process failed."""
        try:
            return future.result()
        except (BrokenProcessPool, CancelledError):
            why = _KILLED
        except MemoryError:
            why = "a worker process that prepares images ran out of memory"
        # All futures of a dead pool fail, but only the first is told
        if self.processes is not None:
            self._give_up(why)
        return _prepare(self.images, keys, self.pin)

    def close(self) -> None:
        if self.processes is not None:
            self.processes.shutdown(wait=False, cancel_futures=True)
        self.threads.shutdown(wait=True, cancel_futures=True)

    def _give_up(self, why: str) -> None:
        if self.processes is not None:
            self.processes.shutdown(wait=False, cancel_futures=True)
            self.processes = None
        self.tell(f"{why}; a thread of this process prepares the same batches from now on")


def _plain_threads(count: int) -> ThreadPoolExecutor:
    """Return threads in which PyTorch computes without further threads, which would contend with those of the step.

    On a busy machine a resize by several threads takes fifty times as long, since each waits for the slowest.
    """
    pool, started, before = ThreadPoolExecutor(count, "multibox-images"), Barrier(count + 1), torch.get_num_threads()

    def start() -> None:
        # Asked first, as the first question in a thread takes over the number of the process
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    try:
        for _ in range(count):
            pool.submit(start)
        started.wait()
    except BaseException:
        # Ctrl-C, for instance: the threads must not wait for this one, nor the end of the process for them
        started.abort()
        raise
    # Part of the setting is the process's; the threads keep theirs
    torch.set_num_threads(before)
    return pool


def _ahead(images: AugmentedImages, batches: EpochBatches | Sequence[Keys], workers: int) -> int:
    """Return how many batches to prepare ahead."""
    height, width = images.size
    return max(2, min(2 * workers, PREFETCH_BYTES // (_most_images(batches) * 3 * height * width)))


def _most_images(batches: EpochBatches | Sequence[Keys]) -> int:
    return batches.batch_size if isinstance(batches, EpochBatches) else max(map(len, batches), default=1)


def _prepare(images: AugmentedImages, keys: Keys, pin: bool, pool: Executor | None = None, threads: int = 1) -> Batch:
    try:
        return _to_batch(images.batch(keys, pool, threads), pin)
    except MemoryError:
        raise MultiboxError(
            f"memory ran out while {len(keys)} images of {list(images.size)} pixels were prepared; "
            "lower train.batch_size or model.input_size, or end other programs"
        ) from None


def _to_batch(arrays: Arrays, pin: bool) -> Batch:
    batch = Batch(
        images=torch.as_tensor(arrays.images).permute(0, 3, 1, 2),
        gt_xyxy=torch.as_tensor(arrays.gt_xyxy),
        gt_labels=torch.as_tensor(arrays.gt_labels),
        image_names=arrays.image_names,
        sizes=arrays.sizes,
        lost_boxes=arrays.lost_boxes,
        gt_rows=torch.as_tensor(arrays.gt_rows),
        image_rows=torch.as_tensor(arrays.image_rows),
    )
    return batch.pin_memory() if pin else batch


@contextlib.contextmanager
def _unseen_main() -> Generator[None]:
    """Hide the user's script from new processes, which would run it again if it has no `__main__` guard."""
    main = sys.modules["__main__"].__dict__
    kept = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(kept)


@contextlib.contextmanager
def _blocked_interrupt() -> Generator[None]:
    """Let new processes inherit a blocked SIGINT, so that Ctrl-C reaches the main process alone, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
