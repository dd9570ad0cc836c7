"""`multibox serve`."""

from contextlib import suppress
from typing import Annotated

import typer

HOST, PORT = "127.0.0.1", 8000


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="coco, a model file, or name=MODEL.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = PORT,
) -> None:
    """Answer requests with detections over HTTP, and show a page to try it; Ctrl-C ends it.

    Example: multibox serve coco
    """
    from multibox.cli.monitor import listen, page_address
    from multibox.serving.hosted import open_models
    from multibox.serving.server import run_server

    hosted = open_models(models)
    listener = listen(host, port)
    typer.echo(f"{', '.join(hosted)} at {page_address(host, listener, None)}; Ctrl-C ends")
    with suppress(KeyboardInterrupt):
        run_server(hosted, listener)
