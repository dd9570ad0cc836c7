"""Reading runs of large files ahead of training, so that a disk sees reads of some MB instead of one per image.

What is read goes to the system's file cache, from where whoever decodes an image takes it, in whichever thread or
process. Files are read and not only announced (`posix_fadvise`): Linux cuts an announcement to what the disk takes at
once, often 128 kB, and other systems know none.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO

from multibox.data.sampling import Key
from multibox.data.shards import BUFFER, Runs

AHEAD = 32
"""Steps whose images are read before they are asked for."""
FORGOTTEN = 4 * BUFFER
"""Steps after which a run that no batch wanted is read again: between two of its images lie at most 2 `BUFFER`."""
_BLOCK = 1 << 20
_OPEN = 64
"""Files kept open."""


class ReadAhead:
    """Reads the runs of coming batches, in their order, in a thread of its own.

    Args:
        runs: of the data set.
        batch: returns the keys of a step, counted from 0; called from two threads.
        present: tells whether an image need not be read, as it is kept decoded.
    """

    def __init__(
        self,
        runs: Runs,
        batch: Callable[[int], Sequence[Key]],
        present: Callable[[int], bool] = lambda image: False,
    ) -> None:
        self.runs = runs
        self.batch = batch
        self.present = present
        self._thread = ThreadPoolExecutor(1, "multibox-read-ahead")
        self._steps: dict[int, Future[None]] = {}
        self._next = 0
        self._wanted: dict[int, int] = {}
        """Runs that were read, and the last step that wanted each."""
        self._files: dict[int, FileIO] = {}
        self._buffer = memoryview(bytearray(_BLOCK))

    def reach(self, step: int) -> None:
        """Return when the images of a step are read, and begin with those of the next `AHEAD` steps.

        Waiting is what keeps a slow disk at long reads: whoever went on would ask it for single images in between.
        """
        self._next = max(self._next, step)
        while self._next <= step + AHEAD:
            self._steps[self._next] = self._thread.submit(self._read_step, self._next)
            self._next += 1
        for done in [one for one in self._steps if one < step]:
            del self._steps[done]
        if step in self._steps:
            self._steps[step].result()

    def close(self) -> None:
        """End the thread and close the files."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _read_step(self, step: int) -> None:
        """Read the runs of a step's images, except those that were just read."""
        places = [key.place for key in self.batch(step) if not self.present(key.place)]
        for run in sorted(set(self.runs.of_image[places].tolist())):
            if self._wanted.get(run, -FORGOTTEN) <= step - FORGOTTEN:
                # An image that cannot be read is told by whoever decodes it
                with contextlib.suppress(OSError):
                    self._read_run(run)
            self._wanted[run] = step
        if step % FORGOTTEN == 0:
            self._wanted = {run: last for run, last in self._wanted.items() if last > step - FORGOTTEN}

    def _read_run(self, run: int) -> None:
        """Read a run front to back, which leaves it in the system's file cache.

        Raises:
            OSError: its file cannot be read.
        """
        file, at, end = self._open(int(self.runs.files[run])), int(self.runs.first[run]), int(self.runs.end[run])
        file.seek(at)
        while at < end and (got := file.readinto(self._buffer[: min(_BLOCK, end - at)])):
            at += got

    def _open(self, place: int) -> FileIO:
        """Return a file of the runs, opened."""
        if place not in self._files:
            if len(self._files) >= _OPEN:
                self._files.pop(next(iter(self._files))).close()
            self._files[place] = FileIO(self.runs.paths[place])
        return self._files[place]
