"""`multibox serve`."""

import os
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multibox.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from multibox.serving.hosted import Models

HOST, PORT = "127.0.0.1", 8000
TOKEN = "MULTIBOX_TOKEN"
_MODELS = "coco, face, a model file or run folder, each also as name=MODEL; the first one answers where none is named."
_HOST = "Address to listen on; 0.0.0.0 for all. Beyond this machine a token is required."
_WORKERS = "Processes that share the port and the cores. Useful from 8 cores on."
_TOKEN = "Secret that every request has to bring (Authorization: Bearer ...). Better given in the environment."
_ALLOW = "Further name under which it may be asked, as behind a proxy; repeatable; * allows all."
_BATCH = "Images that go through the network together, at most. Default: 1 for exported files on CPUs, 16 on GPUs."
_WAIT = "Milliseconds for which a batch waits for more images. Default: 0 on CPUs, 4 on GPUs."
_TIMEOUT = "Seconds after which a request that still waits is answered with 503."
_GRACE = "Seconds for which an ending server answers what it has accepted."
_LOG = "One line per request and event on standard error: text, or JSON."


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=_MODELS)],
    host: Annotated[str, typer.Option(help=_HOST)] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = PORT,
    workers: Annotated[int, typer.Option(min=1, max=256, help=_WORKERS)] = 1,
    token: Annotated[str | None, typer.Option(help=_TOKEN, envvar=TOKEN)] = None,
    allow_host: Annotated[list[str] | None, typer.Option("--allow-host", metavar="NAME", help=_ALLOW)] = None,
    batch: Annotated[int | None, typer.Option(min=1, max=256, help=_BATCH)] = None,
    wait: Annotated[float | None, typer.Option(min=0, max=1000, help=_WAIT)] = None,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help=_TIMEOUT)] = 30.0,
    grace: Annotated[float, typer.Option(min=1, max=3600, help=_GRACE)] = 30.0,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    log: Annotated[Literal["text", "json"], typer.Option(help=_LOG)] = "text",
) -> None:
    """Answer requests with detections over HTTP, and show a page to try it; Ctrl-C ends it, SIGHUP reads models again.

    Example: multibox serve coco
    """
    from multibox.cli import hangups
    from multibox.cli.monitor import listen, open_browser, page_address, require_serve

    require_serve("multibox serve")
    check_token(host, token)
    if workers > 1 and os.name == "nt":
        raise ConfigError("--workers: processes share no port on Windows; start several servers, each on its own port")
    from multibox.serving.hosted import check_sources
    from multibox.serving.workers import Control

    check_sources(models)
    control = Control.of_environment()
    listener = listen(host, port, "--port 0 to take a free one") if control is None else control.listener

    def answer() -> None:
        """Open the models and answer, in this process."""
        from multibox.limits import available_cores
        from multibox.serving.hosted import Room, open_models
        from multibox.serving.server import make_server, run_server

        cores = max(1, available_cores() // workers)
        hosted = open_models(
            models, Room(cores, batch=batch, wait=None if wait is None else wait / 1e3, timeout=timeout)
        )
        if control is None:
            say(", ".join(hosted))
        app = _app(hosted, host=host, listener=listener, token=token, allowed_hosts=allow_host or (), timeout=timeout)
        run_server(make_server(hosted, app, grace=grace, control=control, hangups=hangups), listener)

    def say(what: str) -> None:
        # Without the token: what is printed may be kept in a log
        typer.echo(f"{what} at {page_address(host, listener, None)}; Ctrl-C ends")
        if open_:
            shown = page_address(host, listener, token)
            threading.Thread(target=open_browser, args=(shown,), daemon=True).start()

    with _logging(log, None if control is None else control.number):
        if workers > 1 and control is None:
            from multibox.serving.workers import Workers, worker_command

            say(f"{', '.join(models)}, {workers} processes,")
            raise typer.Exit(Workers(worker_command(sys.argv[1:]), workers, listener, grace).run())
        answer()


def check_token(host: str, token: str | None) -> None:
    """Refuse a token that is no token, and to be reached by others without one.

    Raises:
        ConfigError: So it is.
    """
    from multibox.cli.monitor import TOKEN as KIND
    from multibox.pages.page_guard import is_loopback

    if token is not None and not KIND.fullmatch(token):
        raise ConfigError(f"--token, {TOKEN}: expected 8 to 200 letters, digits or . _ ~ -")
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached by others, so requests need a token: set {TOKEN} in the environment, for "
            "instance to the output of openssl rand -hex 16, or listen on 127.0.0.1"
        )


def _app(
    models: "Models", *, host: str, listener: "socket.socket", token: str | None, allowed_hosts: Sequence[str],
    timeout: float,
) -> Any:  # fmt: skip
    from multibox.serving.app import Limits, make_app
    from multibox.serving.logs import tell_exchange

    return make_app(
        models,
        host=host,
        port=listener.getsockname()[1],
        token=token,
        allowed_hosts=allowed_hosts,
        # A request with several images gets more
        limits=Limits(answer=2 * timeout),
        told=tell_exchange,
        ready=lambda: models.ready,
    )


@contextmanager
def _logging(kind: str, worker: int | None) -> Generator[None]:
    from multibox.serving.logs import end_logging, start_logging

    handler = start_logging(kind, worker)
    try:
        yield
    finally:
        end_logging(handler)
