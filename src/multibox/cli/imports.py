"""`multibox import`."""

from pathlib import Path
from typing import Annotated

import typer


def import_weights(
    kind: Annotated[str, typer.Argument(help="Where the file comes from; see `multibox list importers`.")],
    file: Annotated[Path, typer.Argument(help="The weights, such as ssd.params or model.tflite.")],
    out: Annotated[Path, typer.Option(help="The checkpoint to write, .safetensors.")],
    names: Annotated[
        str, typer.Option(help="Class names, separated by commas; default VOC's, COCO's or class0 ...")
    ] = "",
    license: Annotated[str, typer.Option(help="Licence of the weights, kept in the checkpoint.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that exists.")] = False,
) -> None:
    """Convert weights of another code base to a multibox checkpoint, without that code base.

    Example: multibox import mxnet ssd.params --out ssd.safetensors
    """
    from multibox.files import check_outputs
    from multibox.importers import import_file

    check_outputs([out], overwrite=overwrite, inputs=[file])
    typer.echo(import_file(kind, file, out, [n.strip() for n in names.split(",") if n.strip()], license))
