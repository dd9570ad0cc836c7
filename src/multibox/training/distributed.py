"""How a process joins those that train together: found by torchrun's environment, told by rank 0 what to train."""

import atexit
import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous  # pyright: ignore[reportUnknownVariableType]

from multibox.config import Config
from multibox.errors import ConfigError, MultiboxError
from multibox.inference.load import choose_device
from multibox.limits import available_cores
from multibox.training.folder import Packed
from multibox.training.optimizer import known_batch_size
from multibox.training.ranks import ALONE, MISTAKE, Ranks

PREPARING = timedelta(days=2)
"""Longest time that processes wait while rank 0 reads the data and chooses what is to be chosen."""


@dataclass(frozen=True)
class Start:
    """What rank 0 tells the others before the first step."""

    config: str
    """As TOML, with the data."""
    folder: Path
    """The run folder, where rank 0 has it."""
    started: float
    """When the command began, by rank 0's clock."""
    state: Packed
    """What to begin with, as the run folder keeps it."""


def join(device: str) -> Ranks:
    """Return who this process is, joined with the others if torchrun started several.

    Raises:
        ConfigError: fewer GPUs than processes on this machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return ALONE
    if not distributed.is_initialized():
        on_gpu = own_device(device).startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(own_device(device))
        if os.environ.get("OMP_NUM_THREADS") == "1":
            # torchrun says so where nobody said anything
            torch.set_num_threads(available_cores())
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, store=_own_store(), rank=int(os.environ["RANK"]), world_size=count)
        atexit.register(distributed.destroy_process_group)
    return Ranks(distributed.get_rank(), distributed.get_world_size(), _hosts())


def refuse_several(what: str) -> None:
    """Refuse what no processes do together.

    Args:
        what: It, as the beginning of a sentence.

    Raises:
        ConfigError: torchrun started several processes.
    """
    ranks = join("cpu")
    if ranks.count > 1:
        ranks.end(ConfigError(f"{what} in one process; start the command without torchrun"))


def _own_store() -> Any:
    """Return where the processes of this start find each other.

    torchrun keeps one store for all its restarts. The addresses of workers that were killed stand there still, so those
    of each start have a prefix of their own.
    """
    store, _, _ = next(iter(rendezvous("env://")))
    prefix = f"multibox, restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return distributed.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]


def own_device(asked: str) -> str:
    """Return the device of this process: of several on one machine each has a GPU of its own.

    Raises:
        ConfigError: fewer GPUs than processes on this machine, or a device that is not there.
    """
    device = choose_device(asked)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local == 1 or device != "cuda":
        return device
    if local > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started {local} processes on this machine, which has {torch.cuda.device_count()} GPUs; "
            "give as many by --nproc-per-node, or --device cpu"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def telling(ranks: Ranks) -> Generator[Callable[[Callable[[], Start]], None]]:
    """Yield what tells the others how to start; if the block fails before, they end without a word."""
    told = False

    def tell(make: Callable[[], Start]) -> None:
        nonlocal told
        told = True
        if ranks.count > 1:
            ranks.from_first(make())
            _all_ready(ranks)

    try:
        yield tell
    except BaseException as error:
        if not told:
            ranks.from_first(error.code if isinstance(error, SystemExit) else MISTAKE)
        raise


@contextmanager
def told(ranks: Ranks) -> Generator[Start]:
    """Yield what rank 0 says; if the block fails, rank 0 tells why.

    Raises:
        SystemExit: rank 0 failed, which it says itself, or another process.
    """
    nothing: Any = None
    start = ranks.from_first(nothing)
    if not isinstance(start, Start):
        raise SystemExit(start)
    try:
        yield start
    except MultiboxError as error:
        ranks.gather(f"process {ranks.rank} on {socket.gethostname()}: {error}")
        raise SystemExit(MISTAKE) from None
    if any(ranks.gather("")):
        raise SystemExit(MISTAKE)


def _all_ready(ranks: Ranks) -> None:
    """Wait until all can start.

    Raises:
        MultiboxError: what kept one of them.
    """
    problem = next((problem for problem in ranks.gather("") if problem), None)
    if problem is not None:
        raise MultiboxError(problem)


def check_shares(config: Config, images: int, ranks: Ranks) -> None:
    """Refuse batches that leave a process without an image.

    Raises:
        ConfigError: there are fewer images per batch than processes, times the parts of `train.accumulate`.
    """
    batch, parts = min(known_batch_size(config.train), images), config.train.accumulate
    if ranks.count > 1 and batch < ranks.count * parts:
        raise ConfigError(
            f"{batch} images per batch leave some of {ranks.count} processes without an image"
            f"{f' for each of train.accumulate={parts} parts' if parts > 1 else ''}; give --set "
            f"train.batch_size={ranks.count * parts} or more, or train in fewer processes"
        )


_groups: list[Any] = []


def _hosts() -> Any:
    """Return the group of the hosts, one for all runs of this process."""
    if not _groups:
        _groups.append(distributed.new_group(backend="gloo", timeout=PREPARING))
    return _groups[0]
