"""The models of a server, by name; each can be read again while requests go on."""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from multibox.analysis.drift import Drift
from multibox.builtin import MODELS, find_model, runnable
from multibox.errors import ConfigError
from multibox.inference.engines import SUFFIXES
from multibox.inference.load import ExportedDetector, load
from multibox.limits import available_cores, decoding_threads
from multibox.serving.batching import Batcher, Late, Looked, Work
from multibox.serving.logs import note
from multibox.serving.looking import AnyDetector, Looker
from multibox.serving.watching import Watch
from multibox.thresholds import lowest_scores

log = logging.getLogger("multibox.serving")

TIMEOUT = 30.0
"""Seconds after which an image that still waits is given up."""
COPIES = 8
"""Detectors of one exported file, at most: each holds the weights and an image's feature maps."""
GPU_BATCH, GPU_WAIT = 16, 0.004
TORCH_BATCH = 4
"""Images that a checkpoint computes together on a CPU; it waits for none."""
MOST_DETECTIONS = 1000


class Room(NamedTuple):
    """What a model may use."""

    cores: int | None = None
    """None takes all of this process."""
    models: int = 1
    """Models that share the cores."""
    batch: int | None = None
    """Images per batch; None takes what suits the device."""
    wait: float | None = None
    """Seconds for which a batch waits for more; None takes what suits the device."""
    timeout: float = TIMEOUT


class Hosted:
    """A model that answers requests.

    Args:
        name: By which clients ask for it.
        source: What `multibox.load` takes.
        room: What it may use.
    """

    def __init__(self, name: str, source: str, room: Room = Room()) -> None:  # noqa: B008 - immutable
        self.name, self.source, self.room = name, source, room
        self._loads = 0
        self._reloading = asyncio.Lock()
        self._opened = self._open()

    @property
    def detector(self) -> AnyDetector:
        """One of the detectors; its names and thresholds are those of all."""
        return self._opened.detector

    @property
    def version(self) -> str:
        """The first digits of the file's SHA-256, and how often it was read: `3f2a91c07b1d-1`."""
        return self._opened.version

    @property
    def ready(self) -> bool:
        """Whether the detectors have computed once; until then requests wait a little longer."""
        return self._opened.batcher.ready

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return self._opened.batcher.waiting

    def wait_ready(self) -> None:
        """Return when the detectors have computed once.

        Raises:
            Exception: They cannot.
        """
        self._opened.batcher.wait_ready()

    def drift(self) -> list[Drift]:
        """Return how the images seen since the model was read differ from those of its training."""
        return [] if self._opened.watch is None else self._opened.watch.drift()

    async def look(
        self,
        image: Any,
        threshold: float | None = None,
        *,
        raw: bool = False,
        nms: float | None = None,
        most: int | None = None,
    ) -> Looked:
        """Return what is found in an image: an encoded file or RGB pixels [H, W, 3].

        If the caller is cancelled, as when a client goes away, the image leaves the queue.

        Args:
            image: The image.
            threshold: Lowest score to report; None takes the model's of each class.
            raw: Whether candidates before suppression are wanted, too.
            nms: Overlap above which the worse of two boxes of a class is suppressed; None takes the model's.
            most: Detections to report at most; None takes the model's number.

        Raises:
            ConfigError: A value is out of its range.
            ImageError: The image cannot be read.
            Busy: Too many images are waiting, or this one waited for too long.
            Exception: The network failed on this image.
        """
        detector, batcher = self._opened.detector, self._opened.batcher
        lowest = lowest_scores(threshold, detector.thresholds, detector.names)
        work = Work(image, lowest, raw, _checked_nms(nms), _checked_most(most))
        try:
            async with asyncio.timeout(self.room.timeout):
                looked = await batcher.look(work)
        except TimeoutError:
            raise Late(self.room.timeout, batcher.retry_after()) from None
        note(model=self.name, queued_ms=round(looked.queued * 1e3, 1), work_ms=round(looked.worked * 1e3, 1))
        return looked

    async def reload(self) -> None:
        """Read the file again; requests that wait are answered by the old model, later ones by the new one.

        Raises:
            MultiboxError: The file cannot be opened; the old model stays.
            Exception: It cannot be run; the old model stays.
        """
        async with self._reloading:
            new = await asyncio.to_thread(self._open)
            try:
                await asyncio.to_thread(new.batcher.wait_ready)
            except BaseException:
                new.batcher.close()
                raise
            old, self._opened = self._opened, new
            await asyncio.to_thread(old.close)

    def close(self, seconds: float | None = None) -> None:
        """Answer what waits, and end, within some seconds if they are given."""
        self._opened.close(seconds)

    def _open(self) -> "_Opened":
        self._loads += 1
        return open_source(self.name, self.source, self.room, self._loads)


class _Opened(NamedTuple):
    """A model file with all that runs it."""

    detector: AnyDetector
    batcher: Batcher
    watch: Watch | None
    pool: ThreadPoolExecutor | None
    version: str

    def close(self, seconds: float | None = None) -> None:
        self.batcher.close(seconds)
        if self.pool is not None:
            self.pool.shutdown(wait=seconds is None)


class Models(dict[str, Hosted]):
    """By name; the first one is the default."""

    draining = False
    """Whether the server ends: then it answers what comes, but asks for no more."""

    @property
    def ready(self) -> bool:
        """Whether clients should send requests."""
        return not self.draining and all(model.ready for model in self.values())


def open_models(arguments: Sequence[str], room: Room = Room()) -> Models:  # noqa: B008 - immutable
    """Open the models of the command line, each `MODEL` or `name=MODEL`; the first one is the default.

    Raises:
        ConfigError: An argument lacks its name or model, or two models have one name.
        MultiboxError: A model cannot be opened.
    """
    named = _named(arguments)
    room = room._replace(models=len(named))
    return Models({name: Hosted(name, source, room) for name, source in named.items()})


def check_sources(arguments: Sequence[str]) -> None:
    """Refuse models of the command line that do not exist, without opening any.

    Raises:
        ConfigError: An argument lacks its name or model, or two models have one name.
        WeightsError: There is no such file or run folder.
    """
    for source in _named(arguments).values():
        find_model(source)


def open_source(name: str, source: str, room: Room, loads: int = 1) -> _Opened:
    """Open a model file and start the threads that run it.

    An exported file on CPUs is opened several times, one image at a time and a thread each: its batches save no time
    there. A checkpoint, and any model on a GPU, is opened once for two lanes: while one computes a batch, the other one
    decodes the next.
    """
    file = runnable(find_model(source))
    version = f"{fingerprint(find_model(source))}-{loads}"
    cores = room.cores or available_cores()
    if file.suffix in SUFFIXES:
        copies = max(1, min(COPIES, cores // room.models))
        threads = max(1, cores // copies)
        first = load(source, threads=threads)
        on_gpu = isinstance(first, ExportedDetector) and first.engine.on_gpu
        detectors = [first] if on_gpu else [first, *(load(source, threads=threads) for _ in range(copies - 1))]
        batch, wait = (GPU_BATCH, GPU_WAIT) if on_gpu else (1, 0.0)
    else:
        first = load(source, threads=room.cores)
        on_gpu = getattr(first, "device", "cpu") != "cpu"
        detectors = [first]
        batch, wait = (GPU_BATCH, GPU_WAIT) if on_gpu else (TORCH_BATCH, 0.0)
    batch = room.batch or batch
    wait = wait if room.wait is None else room.wait
    alone = len(detectors) == 1 and batch > 1
    pool = ThreadPoolExecutor(decoding_threads(), "multibox-decode") if alone else None
    watch = None
    if first.statistics:
        watch = Watch(name, first.statistics, lowest_scores(None, first.thresholds, first.names))
    turn = threading.Lock() if alone else None
    lanes = [
        Looker(detector, turn=turn, pool=pool, watch=watch, batches=batch > 1)
        for detector in (detectors * 2 if alone else detectors)
    ]
    return _Opened(first, Batcher(lanes, batch=batch, wait=wait), watch, pool, version)


def fingerprint(file: Path) -> str:
    """Return the first digits of the SHA-256 of a model file, of OpenVINO's with its weights."""
    digest = hashlib.sha256()
    for part in (file, file.with_suffix(".bin")) if file.suffix == ".xml" else (file,):
        if part.is_file():
            with part.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:12]


def _named(arguments: Sequence[str]) -> dict[str, str]:
    """Return the models of the command line by name."""
    named: dict[str, str] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            name, source = _name_of(argument), argument
        if not source:
            wanted = f"{name}=MODEL" if equals and name else "one"
            raise ConfigError(f"{argument!r} names no model; give {wanted}, such as coco or cats.onnx")
        if not name:
            raise ConfigError(f"{argument!r}: the name before = is empty; give cats={source}, or {source} alone")
        if name in named:
            raise ConfigError(f"{argument}: two models are called {name}; give them names, as in other={source}")
        named[name] = source
    return named


def _name_of(source: str) -> str:
    return source if source in MODELS else Path(source).resolve().stem


def _checked_nms(nms: Any) -> float | None:
    if nms is None:
        return None
    if not isinstance(nms, int | float) or isinstance(nms, bool) or not 0 <= nms <= 1:
        raise ConfigError(f"nms={nms!r}: expected a number from 0 to 1, the overlap above which a box is suppressed")
    return float(nms)


def _checked_most(most: Any) -> int | None:
    if most is None:
        return None
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST_DETECTIONS:
        raise ConfigError(
            f"most={most!r}: expected a whole number from 1 to {MOST_DETECTIONS}, the detections reported"
        )
    return most
