"""What runs in a worker process: batches of arrays from keys, until the parent process ends.

It imports neither PyTorch nor the user's script, so a worker starts in a fraction of a second and takes about 60 MB.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import connection, parent_process

from multibox.data.augmented import Arrays, AugmentedPictures

_held: list[AugmentedPictures] = []


def start_worker(pictures: AugmentedPictures, cache_bytes: int) -> None:
    """Keep the images that this worker makes items of.

    Args:
        pictures: the worker's own copy.
        cache_bytes: this worker's share of the memory for decoded images.
    """
    # Ctrl-C ends the main process, which ends its workers; Windows cannot block the signal before the start
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    pictures.cache_left = cache_bytes
    _held[:] = [pictures]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def make_batch(keys: Sequence[tuple[int, ...]]) -> Arrays:
    """Return the batch of `keys`.

    Raises:
        PictureError: an image cannot be read.
    """
    return _held[0].batch(keys)


def _end_with_parent() -> None:
    """End this process when its parent is gone: the pool's pipe stays open, so nothing else would tell."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
