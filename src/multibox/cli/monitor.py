"""`multibox monitor`, and the monitor that `multibox train --open` starts beside a run."""

import errno
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import uvicorn

HOST, PORT, PORTS = "127.0.0.1", 8010, 100
"""Where it listens by default, and how many ports are tried from there."""
TAKEN = (errno.EADDRINUSE, errno.EACCES)
"""Errors of a port that another program has; on Windows the second one."""
TOKEN = re.compile(r"[\w.~-]{8,200}", re.ASCII)
LAST_WORDS = 2.5
"""Seconds in which pages learn how a run ended before the monitor ends with it."""
_RUNS = "Folder of run folders, or one run folder."
_HOST = "Address to listen on; 0.0.0.0 for all. Beyond this machine a token is required."
_PORT = "Default: 8010, or the next one that is free."
_TOKEN = "What a browser has to know; made and printed if none is given and others can reach the page."
_JSON = "Write the state of every run here and end; - for standard output."


def monitor(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help=_RUNS)] = Path("runs"),
    host: Annotated[str, typer.Option(help=_HOST)] = HOST,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help=_PORT)] = None,
    token: Annotated[str | None, typer.Option(help=_TOKEN, envvar="MULTIBOX_MONITOR_TOKEN")] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page, where there is a browser.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help=_JSON)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --json.")] = False,
    until_input_ends: Annotated[bool, typer.Option("--until-input-ends", hidden=True)] = False,
) -> None:
    """Show training runs as a live page: curves, sample predictions, time left, a stop button; Ctrl-C ends it.

    Example: multibox monitor runs
    """
    if json_file is not None:
        _write_states(runs, json_file, overwrite)
        return
    require_serve()
    from multibox.pages.page_guard import is_loopback

    if token is not None and not TOKEN.fullmatch(token):
        raise ConfigError("--token: expected at least 8 letters, digits or . _ ~ -; leave it away, and one is made")
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"{runs} is a file; give a folder of run folders, such as runs, or one run folder")
    listener = listen(host, port)
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    address = page_address(host, listener, token)
    waiting = "" if runs.is_dir() else f" (there is no folder {runs} yet; the page waits for it)"
    typer.echo(f"watch {runs} at {address}{waiting}; Ctrl-C ends")
    server = make_server(runs, host, listener, token)
    if until_input_ends:
        threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    if open_:
        threading.Thread(target=open_browser, args=(address,), daemon=True).start()
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _write_states(runs: Path, json_file: Path, overwrite: bool) -> None:
    from multibox.cli.console import write_json
    from multibox.files import check_outputs
    from multibox.pages.monitor_hub import Hub

    if not runs.is_dir():
        raise ConfigError(f"{runs} is no folder; give a folder of run folders, such as runs, or one run folder")
    to_stdout = json_file == Path("-")
    check_outputs([] if to_stdout else [json_file], overwrite=overwrite)
    write_json(json_file, Hub(runs).all_states())


def require_serve(what: str = "The page of multibox monitor") -> None:
    """Refuse to go on without the packages of the extra `serve`; `what` needs them.

    Raises:
        MissingExtraError: One is missing.
    """
    try:
        import starlette  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import uvicorn  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise MissingExtraError(what, "serve") from None


def listen(host: str, port: int | None, free: str = "leave it away to take a free one") -> socket.socket:
    """Return a socket that listens on a port: the one asked for, else `PORT` or the next that is free.

    Args:
        host: An address of this machine.
        port: None takes a free one.
        free: How to get a free one, for the message.

    Raises:
        ConfigError: The port is taken, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}; give an address of this machine, or 0.0.0.0") from None
    for each in range(PORT, PORT + PORTS) if port is None else (port,):
        listener = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # there it would share a port that is taken
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], each, *address[2:]))
            listener.listen()
        except OSError as error:
            listener.close()
            if port is None and error.errno in TAKEN:
                continue
            advice = f"give another --port, or {free}"
            if error.errno not in TAKEN:
                advice = "give another --host; 127.0.0.1 is this machine alone"
            raise ConfigError(f"{host}, port {each}: cannot listen there ({error.strerror}); {advice}") from None
        return listener
    raise ConfigError(f"no port from {PORT} to {PORT + PORTS - 1} is free on {host}; give one with --port")


def page_address(host: str, listener: socket.socket, token: str | None) -> str:
    """Return the address of the page for a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{listener.getsockname()[1]}/" + ("" if token is None else f"?token={token}")


def make_server(runs: Path, host: str, listener: socket.socket, token: str | None) -> "uvicorn.Server":
    """Return the server; it ends within a second however many pages look."""
    import uvicorn

    from multibox.pages.monitor import make_app

    port = listener.getsockname()[1]
    app = make_app(runs, host=host, token=token, port=port, ending=lambda: server.should_exit)
    # No access log: an address may hold the token
    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    return server


def _end_with_input(server: "uvicorn.Server") -> None:
    """End the server when the training that started it ends, however it ends: its end of the pipe closes."""
    with suppress(OSError, ValueError):
        while sys.stdin.buffer.read(1):
            pass
    time.sleep(LAST_WORDS)
    server.should_exit = True


def open_browser(address: str) -> None:
    """Open a page where there is a browser with windows; one for the terminal would take that over."""
    import webbrowser

    windows = sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    if windows:
        with suppress(Exception):  # whatever a browser does must not matter here
            webbrowser.open(address)


@contextmanager
def monitor_beside(runs: Path | None) -> Generator[None]:
    """Show the runs below a folder while the block runs, by a process that ends with this one; None shows nothing.

    Says the address on standard error, or in one note why there is no page; never fails.
    """
    if runs is None:
        yield
        return
    process: subprocess.Popen[bytes] | None = None
    try:
        require_serve()
        with listen(HOST, None) as listener:
            address = page_address(HOST, listener, None)
            port = str(listener.getsockname()[1])
        command = [sys.executable, "-m", "multibox", "monitor", str(runs), "--port", port, "--until-input-ends"]
        quiet = subprocess.DEVNULL
        # A session of its own: the Ctrl-C that asks the training to save and end does not reach it
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True, env=_plain_environment()
        )
        typer.echo(f"watch the run at {address} until it ends; later: multibox monitor {runs}", err=True)
    except Exception as error:
        typer.echo(f"there is no page to watch: {error}", err=True)
    try:
        yield
    finally:
        if process is not None and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
            # It ends a little later; whoever goes on in this process should not find it undead
            threading.Thread(target=process.wait, daemon=True).start()


def _plain_environment() -> dict[str, str]:
    """Return the environment without a token, which the address that is printed here does not have."""
    return {name: value for name, value in os.environ.items() if name != "MULTIBOX_MONITOR_TOKEN"}
