"""Several processes that answer on one socket: they are started, replaced when they die, and ended together."""

import asyncio
import contextlib
import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibox.serving.server import Server

log = logging.getLogger("multibox.serving")

CONTROL = "MULTIBOX_WORKER"
"""Environment variable of a worker: its number, and the file descriptors of the listener and of its control socket."""
SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that names the folder through which processes count together (prometheus-client)."""
LONG_LIFE = 20.0
"""Seconds after which the death of a worker is an accident, not a habit."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before a worker that dies young is started again; doubled each time."""
RELOAD_TIME = 120.0
SPARE = 5.0
"""Seconds after the grace in which workers have to be gone."""


@dataclass(eq=False)
class _Worker:
    number: int
    process: asyncio.subprocess.Process | None = None
    control: socket.socket | None = None
    said: "asyncio.Queue[str]" = field(default_factory=lambda: asyncio.Queue())
    ready: bool = False


class Workers:
    """The parent of several `multibox serve` processes.

    Each is told its number and descriptors by the environment. It says `ready`, and `reloaded` or `kept` after it was
    told to `reload`. It ends when it loses its parent.

    Args:
        command: The command line of a worker.
        count: Processes.
        listener: On which all accept connections.
        grace: Seconds in which they end.
    """

    def __init__(self, command: Sequence[str], count: int, listener: socket.socket, grace: float) -> None:
        self.command, self.listener, self.grace = list(command), listener, grace
        self.workers = [_Worker(number + 1) for number in range(count)]
        self.folder = tempfile.mkdtemp(prefix="multibox-serve-")
        self._ending = asyncio.Event()
        self._ready = asyncio.Event()
        self._code = 0
        self._reloads = 0
        self._jobs: set[asyncio.Task[None]] = set()

    def run(self) -> int:
        """Keep the workers running until SIGTERM or Ctrl-C; return the exit code."""
        try:
            return asyncio.run(self._run())
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        if hears_hangups():
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        keeping = [asyncio.create_task(self._keep(worker)) for worker in self.workers]
        await self._ending.wait()
        self.listener.close()
        self._signal(signal.SIGTERM)
        _, late = await asyncio.wait(keeping, timeout=self.grace + SPARE)
        if late:
            self._signal(signal.SIGKILL)
            await asyncio.wait(late)
        return self._code

    def _end(self, number: int = signal.SIGTERM) -> None:
        if self._ending.is_set() and number == signal.SIGINT:
            self._code = 130
            self._signal(signal.SIGKILL)
        self._ending.set()

    def _signal(self, number: int) -> None:
        for worker in self.workers:
            if worker.process is not None and worker.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    worker.process.send_signal(number)

    async def _keep(self, worker: _Worker) -> None:
        """Start a worker, and again whenever it ends."""
        delay = 0.0
        if worker is not self.workers[0]:
            # A mistake in the command line or a model is then said once
            await self._either(self._ready)
        while not self._ending.is_set():
            began = time.monotonic()
            code = await self._live(worker)
            if self._ending.is_set():
                return
            if not self._ready.is_set() and code == 2:
                # A mistake in the command line or the model: it has said so, and would do so again
                self._code = code
                self._ending.set()
                return
            young = time.monotonic() - began < LONG_LIFE
            delay = min(LONGEST_DELAY, max(FIRST_DELAY, 2 * delay)) if young else 0.0
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            extra = {"event": "worker_died", "worker": worker.number, "code": code, "delay": delay}
            log.error("worker %d ended %s; the next one starts in %g s", worker.number, how, delay, extra=extra)
            await self._either(None, delay)

    async def _either(self, event: asyncio.Event | None, seconds: float | None = None) -> None:
        """Return when an event comes, when the seconds are over, or when all is to end."""
        events = [each for each in (event, self._ending) if each is not None]
        waiting = [asyncio.create_task(each.wait()) for each in events]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    async def _live(self, worker: _Worker) -> int:
        """Run a worker to its end and return its exit code."""
        own, theirs = socket.socketpair()
        with own, theirs:
            descriptors = self.listener.fileno(), theirs.fileno()
            environment = {
                **os.environ,
                SHARED: self.folder,
                CONTROL: ",".join(map(str, (worker.number, *descriptors))),
            }
            process = await asyncio.create_subprocess_exec(*self.command, pass_fds=descriptors, env=environment)
            theirs.close()
            worker.process, worker.control = process, own
            listening = asyncio.create_task(self._listen(worker, own))
            code = await process.wait()
            listening.cancel()
            worker.ready, worker.control = False, None
            worker.said.put_nowait("died")
        _forget(process.pid, self.folder)
        return code

    async def _listen(self, worker: _Worker, own: socket.socket) -> None:
        own.setblocking(False)
        reader, _ = await asyncio.open_connection(sock=own.dup())
        while line := await reader.readline():
            word = line.decode().strip()
            if word == "ready":
                worker.ready = True
                self._ready.set()
            else:
                worker.said.put_nowait(word)

    def _reload(self) -> None:
        self._reloads += 1
        if self._reloads == 1:
            task = asyncio.get_running_loop().create_task(self._reload_all())
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)

    async def _reload_all(self) -> None:
        """Let one worker after another read its models again; where one cannot, the rest keep theirs, too."""
        while self._reloads:
            self._reloads = 1
            for worker in self.workers:
                if worker.control is None or not worker.ready:
                    continue  # it reads the files when it starts
                while not worker.said.empty():
                    worker.said.get_nowait()
                worker.control.send(b"reload\n")
                said = "nothing"
                with contextlib.suppress(TimeoutError):
                    said = await asyncio.wait_for(worker.said.get(), RELOAD_TIME)
                if said == "kept":
                    break
            self._reloads -= 1


class Control:
    """A worker's side: what its parent told it, and the socket through which they talk."""

    def __init__(self, text: str) -> None:
        self.number, listener, control = map(int, text.split(","))
        self.listener = socket.socket(fileno=listener)
        self._socket = socket.socket(fileno=control)
        for each in (self.listener, self._socket):
            os.set_inheritable(each.fileno(), False)
        self._ignore()

    @classmethod
    def of_environment(cls) -> "Control | None":
        """Return it if this process is a worker."""
        text = os.environ.pop(CONTROL, None)
        return None if text is None else cls(text)

    def tell(self, word: str) -> None:
        """Tell the parent something."""
        with contextlib.suppress(OSError):
            self._socket.send(f"{word}\n".encode())

    def obey(self, server: "Server") -> None:
        """Let the server do what the parent says; without a parent it ends. Ctrl-C and SIGHUP are the parent's."""
        # uvicorn has set its own
        self._ignore()
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)

        def hear() -> None:
            try:
                words = self._socket.recv(1024)
            except BlockingIOError:
                return
            except OSError:
                words = b""
            if b"reload" in words:
                server.reload()
            if not words:
                loop.remove_reader(self._socket)
                server.end()

        loop.add_reader(self._socket, hear)

    @staticmethod
    def _ignore() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def hears_hangups() -> bool:
    """Return whether SIGHUP can read models again; if it is ignored since the start, as by nohup, it stays so."""
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        return True
    log.info(
        "SIGHUP is ignored since the start, as by nohup: the server outlives its terminal, and reads models again only "
        "when it is restarted",
        extra={"event": "hangups_ignored"},
    )
    return False


def worker_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of a worker: that of its parent."""
    return [sys.executable, "-m", "multibox", *arguments]


def _forget(process: int, folder: str) -> None:
    """Drop what a dead process counted that only counts while it lives."""
    with contextlib.suppress(ImportError):
        multiprocess: Any = importlib.import_module("prometheus_client.multiprocess")
        multiprocess.mark_process_dead(process, folder)
