"""Reading runs of large files ahead of training, so that a disk sees reads of some MB instead of one per image.

What is read goes to the system's file cache, from where whoever decodes an image takes it, in whichever thread or
process. Files are read and not only announced (`posix_fadvise`), since an announcement does not tell when it is done,
and only some systems know it.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO

from multibox.data.sampling import Key
from multibox.data.shards import BUFFER, Runs

AHEAD = 32
"""Steps whose images are read before they are asked for."""
READERS = 4
"""Runs read at the same time: a network file system or an SSD gives a single reader a part of its rate only."""
FORGOTTEN = 4 * BUFFER
"""Steps after which a run that no batch wanted is read again: between two of its images lie at most 2 `BUFFER`."""
_BLOCK = 1 << 20


class ReadAhead:
    """Reads the runs of coming batches, in their order, in threads of its own.

    Args:
        runs: of the data set.
        batch: returns the keys of a step, counted from 0.
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
        self._readers = ThreadPoolExecutor(READERS, "multibox-read-ahead")
        self._steps: dict[int, list[Future[None]]] = {}
        """What was begun for each step that is still to come."""
        self._next = 0
        self._wanted: dict[int, int] = {}
        """Runs that were read, and the last step that wanted each."""

    def reach(self, step: int) -> None:
        """Return when the images of a step are read, and begin with those of the next `AHEAD` steps.

        Waiting is what keeps a slow disk at long reads: whoever went on would ask it for single images in between.
        """
        for coming in range(max(self._next, step), step + AHEAD + 1):
            self._steps[coming] = self._begin(coming)
        self._next = step + AHEAD + 1
        for one in [one for one in self._steps if one <= step]:
            for read in self._steps.pop(one):
                read.result()

    def close(self) -> None:
        """End the threads; what they have begun to read they read to its end."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int) -> list[Future[None]]:
        """Begin to read the runs of a step's images, except those that were just read."""
        places = [key.place for key in self.batch(step) if not self.present(key.place)]
        runs = sorted(set(self.runs.of_image[places].tolist()))
        new = [run for run in runs if self._wanted.get(run, -FORGOTTEN) <= step - FORGOTTEN]
        self._wanted.update(dict.fromkeys(runs, step))
        if step % FORGOTTEN == 0:
            self._wanted = {run: last for run, last in self._wanted.items() if last > step - FORGOTTEN}
        return [self._readers.submit(self._read, run) for run in new]

    def _read(self, run: int) -> None:
        """Read a run front to back, which leaves it in the system's file cache."""
        at, end = int(self.runs.first[run]), int(self.runs.end[run])
        block = memoryview(bytearray(min(_BLOCK, end - at)))
        # An image that cannot be read is told by whoever decodes it
        with contextlib.suppress(OSError), FileIO(self.runs.paths[int(self.runs.files[run])]) as file:
            file.seek(at)
            while at < end and (got := file.readinto(block[: end - at])):
                at += got
