"""`multibox export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Target(StrEnum):
    """What `--to` takes."""

    onnx = "onnx"
    openvino = "openvino"


class Layout(StrEnum):
    """What `--dialect` takes."""

    plain = "plain"
    ultralytics = "ultralytics"
    jetson = "jetson"


def export(
    model: Annotated[Path, typer.Argument(help="A .safetensors file or a run folder.")],
    to: Annotated[Target, typer.Option(help="Kind of file: onnx, or openvino's .xml and .bin.")] = Target.onnx,
    raw: Annotated[bool, typer.Option("--raw", help="Logits and offsets instead of boxes.")] = False,
    dialect: Annotated[Layout, typer.Option(help="Names and shapes as other software expects them.")] = Layout.plain,
    fp16: Annotated[bool, typer.Option("--fp16", help="openvino: weights as float16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="openvino: the network in INT8; needs --calibrate.")] = False,
    calibrate: Annotated[Path | None, typer.Option(help="Training pictures that set INT8's ranges.")] = None,
    data: Annotated[Path | None, typer.Option(help="Pictures to verify on, and to score INT8 on.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data; needed where there are several.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default beside the model.")] = None,
) -> None:
    """Write MODEL as one file that runs without PyTorch, after proving that it finds the same objects."""
    from multibox.errors import ConfigError
    from multibox.exporting import ExportOptions, VerificationError
    from multibox.exporting import export as write
    from multibox.inference.detector import find_weights, load
    from multibox.models.checkpoint import read_metadata

    if raw and dialect is not Layout.plain:
        raise ConfigError(f"--raw and --dialect {dialect.value} exclude each other; leave one out")
    weights = find_weights(model)
    detector = load(weights, device="cpu")
    about = read_metadata(weights) or {}
    suffix = ".onnx" if to is Target.onnx else ".xml"
    out = out or weights.with_suffix(suffix)
    if out.suffix != suffix:
        raise ConfigError(f"--out {out}: expected a name that ends in {suffix} for --to {to.value}")
    options = ExportOptions(
        dialect="raw" if raw else dialect.value,
        half=fp16,
        int8=int8,
        calibrate=calibrate,
        data=data,
        split=split,
        license=about.get("license", ""),
        source=about.get("source", ""),
    )
    try:
        report = write(detector, out, options)
    except VerificationError as error:
        typer.echo(f"multibox: {out} was not written: {error}", err=True)
        raise typer.Exit(1) from None
    print_report(report)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB" + (" and its .bin" if suffix == ".xml" else ""))


def print_report(report: dict[str, Any]) -> None:
    """Print what was compared, line by line."""
    typer.echo(f"verified with {report['runtime']} on {report['pictures']} pictures ({report['data']})")
    typer.echo(f"  resize: {report['resize']:.2f} grey levels from Pillow's")
    typer.echo(f"  network: logits within {report['logits']:.1e}, offsets within {report['offsets']:.1e}")
    if report["detections"]:
        typer.echo(
            f"  detections: {report['matched']} of {report['detections']} matched, {report['swapped']} swapped, "
            f"scores within {report['score']:.1e}, boxes within {report['box']:.1e} of the picture's side"
        )
    for name, value in report.get("int8", {}).items():
        typer.echo(f"  int8 {name}: {value}" if value is None or isinstance(value, int) else f"  {name}: {value:.4f}")
