"""The life of the server: it listens, answers, reads models again on SIGHUP, and ends when all is answered."""

import socket
from typing import Any

import uvicorn

from multibox.serving.app import make_app
from multibox.serving.connections import Connection
from multibox.serving.hosted import Models

GRACE = 30
"""Seconds in which requests that were accepted are answered before the server ends."""


def run_server(models: Models, listener: socket.socket) -> None:
    """Answer requests on a socket until SIGTERM or Ctrl-C."""
    server = make_server(models, listener)
    try:
        server.run(sockets=[listener])
    finally:
        for model in models.values():
            model.close()


def make_server(models: Models, listener: socket.socket, **options: Any) -> uvicorn.Server:
    """Return the server for a socket.

    Args:
        models: By name.
        listener: Bound and listening.
        options: Of `uvicorn.Config`, in place of ours.
    """
    app = make_app(models)
    settings: dict[str, Any] = {
        "http": Connection,
        "ws": "none",
        "log_level": "critical",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "lifespan": "off",
        "timeout_graceful_shutdown": GRACE,
        **options,
    }
    return uvicorn.Server(uvicorn.Config(app, **settings))
