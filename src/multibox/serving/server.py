"""The life of the server: it listens, answers, reads models again on SIGHUP, and ends when all is answered."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn

from multibox.serving.connections import Connection
from multibox.serving.hosted import Models
from multibox.serving.logs import Envelope
from multibox.serving.workers import hears_hangups

if TYPE_CHECKING:
    from multibox.serving.workers import Control

log = logging.getLogger("multibox.serving")

GRACE = 30.0
"""Seconds in which requests that were accepted are answered before the server ends."""
DRAIN = 5.0
"""Seconds for which an ending server still accepts connections, at most."""
QUIET = 0.5
"""Seconds without a request after which an ending server expects none."""
KEEP_ALIVE = 75
"""Seconds for which a connection may be idle; longer than proxies keep theirs, so that they are the ones to close."""
BACKLOG = 2048
TICK = 0.02
LAST_WORDS = 2.0
"""Seconds that threads get to end after all was answered."""


class Server(uvicorn.Server):
    """uvicorn's server, ending without losing a request, and reading its models again on SIGHUP.

    On the first SIGTERM or Ctrl-C it goes on accepting while requests come, at most `DRAIN` seconds, but tells each
    client to close its connection (`Connection: close`), so that none sends a request on a connection that is being
    closed. Then it stops listening, answers what it has, and ends. A second Ctrl-C ends it at once.

    Args:
        config: uvicorn's.
        models: By name.
        control: Its parent, if it is one of several workers: told `ready` when the models have computed once, and
            `reloaded` or `kept` after a reload.
        hangups: SIGHUPs that came before the server could handle them; if there are any, it reads its models again
            once they are ready.
    """

    def __init__(
        self, config: uvicorn.Config, models: Models, control: "Control | None" = None, hangups: Sequence[int] = ()
    ) -> None:
        super().__init__(config)
        self.models, self.control, self.hangups = models, control, hangups
        self.failure: Exception | None = None
        """Why the models cannot compute, if they cannot."""
        self._jobs: set[asyncio.Task[None]] = set()
        self._reloads = 0
        self._had_terminal = _has_terminal()

    @property
    def draining(self) -> bool:
        """Whether the server ends."""
        return self.models.draining

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to end; on a second Ctrl-C end at once. uvicorn would raise the signal again afterwards."""
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.end()

    def end(self) -> None:
        """Begin to end."""
        self.models.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and let the models compute once meanwhile."""
        await super().startup(sockets)
        for each in sockets or []:
            # `backlog` of uvicorn is also the number of connections accepted in a row: 1 among several workers
            each.listen(BACKLOG)
        self._do(self._warm())
        if self.control is None and _may_handle_hangups() and hears_hangups():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        if self.control is not None:
            self.control.obey(self)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what comes until it is quiet, then stop listening, answer the rest, and end."""
        self.models.draining = True
        began = time.monotonic()
        log.info("ending: answering what is left", extra={"event": "draining"})
        await self._until_quiet(began + DRAIN)
        late = _accept_all(sockets or [])
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for each in late:
            with suppress(OSError):  # the client has closed it
                await loop.connect_accepted_socket(self._protocol, each)
        grace = float(self.config.timeout_graceful_shutdown or GRACE)
        await self._until_quiet(began + grace)
        self.config.timeout_graceful_shutdown = max(1, round(began + grace - time.monotonic()))
        await super().shutdown(sockets)
        log.info("ended", extra={"event": "ended", "requests": self.server_state.total_requests})

    def reload(self) -> None:
        """Read all models again while requests go on; one that cannot be read stays as it is."""
        self._reloads += 1
        if self._reloads == 1:
            self._do(self._reload())

    async def _reload(self) -> None:
        # One more for all requests that came meanwhile: the files may have changed after they were read
        while self._reloads:
            self._reloads, said = 1, "reloaded"
            for name, model in self.models.items():
                try:
                    await model.reload()
                except Exception as error:
                    said = "kept"
                    extra = {"event": "reload_failed", "model": name, "version": model.version}
                    log.error("%s stays as it is: %s", name, error, extra=extra)
                else:
                    extra = {"event": "reloaded", "model": name, "version": model.version}
                    log.info("%s was read again: version %s", name, model.version, extra=extra)
            self._tell(said)
            self._reloads -= 1

    async def _warm(self) -> None:
        try:
            for model in self.models.values():
                await asyncio.to_thread(model.wait_ready)
        except Exception as error:
            self.failure = error
            self.end()
        else:
            self._tell("ready")
            versions = {name: model.version for name, model in self.models.items()}
            log.info("ready", extra={"event": "ready", "models": versions})
            # A worker reads its models after its parent got the signal
            if self.hangups and self.control is None:
                self._on_hangup()

    def _tell(self, word: str) -> None:
        if self.control is not None:
            self.control.tell(word)

    def _on_hangup(self) -> None:
        """Read the models again; but where the terminal was closed, end."""
        if self._had_terminal and not _has_terminal():
            self.end()
        else:
            self.reload()

    async def _until_quiet(self, until: float) -> None:
        """Return when no connection is left, when no request was there for `QUIET` seconds, or at a time."""
        state, busy = self.server_state, time.monotonic()
        total = state.total_requests
        while (now := time.monotonic()) < until and state.connections and not self.force_exit:
            if state.tasks or state.total_requests != total:
                busy, total = now, state.total_requests
            if now - busy > QUIET:
                return
            await asyncio.sleep(TICK)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        loop = asyncio.get_running_loop()
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop)

    def _do(self, job: Any) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


def run_server(server: Server, listener: socket.socket) -> None:
    """Answer requests on a socket until SIGTERM or Ctrl-C; the models are closed afterwards.

    Raises:
        Exception: The models cannot compute.
    """
    try:
        server.run(sockets=[listener])
    finally:
        if server.force_exit:
            # Threads may be in the middle of an image; nothing is lost that was not given up
            os._exit(130)
        for model in server.models.values():
            model.close(LAST_WORDS)
    if server.failure is not None:
        raise server.failure


def make_server(
    models: Models,
    app: Any,
    *,
    grace: float = GRACE,
    control: "Control | None" = None,
    hangups: Sequence[int] = (),
) -> Server:
    """Return the server.

    Args:
        models: By name.
        app: Answers the requests.
        grace: Seconds in which requests that were accepted are answered before the server ends.
        control: The parent of this process, if others accept connections on the same socket.
        hangups: SIGHUPs that came before.
    """
    config = uvicorn.Config(
        Envelope(app, lambda: models.draining),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(grace)),
        backlog=BACKLOG if control is None else 1,
    )
    return Server(config, models, control, hangups)


def _accept_all(sockets: list[socket.socket]) -> list[socket.socket]:
    """Accept the connections that the system has made on listening sockets, but nobody has taken."""
    accepted: list[socket.socket] = []
    for each in sockets:
        with suppress(OSError):
            each.setblocking(False)
            while True:
                connection, _ = each.accept()
                connection.setblocking(False)
                accepted.append(connection)
    return accepted


def _may_handle_hangups() -> bool:
    """Return whether the system has SIGHUP and this thread may handle it."""
    return hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()


def _has_terminal() -> bool:
    """Return whether the process has a terminal; it loses it when its window is closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
