"""`multibox export`."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Target(StrEnum):
    """Values of `--to`."""

    onnx = "onnx"
    openvino = "openvino"
    web = "web"
    triton = "triton"
    kserve = "kserve"
    ovms = "ovms"


class Layout(StrEnum):
    """Values of `--dialect`."""

    plain = "plain"
    ultralytics = "ultralytics"
    jetson = "jetson"


def export(
    model: Annotated[
        str,
        typer.Argument(help="coco, face, a .safetensors file or a run folder; for folders also an exported file."),
    ],
    to: Annotated[
        Target,
        typer.Option(
            help="A file: onnx, or openvino's .xml and .bin. A folder: web for browsers, triton, kserve or ovms for "
            "these servers."
        ),
    ] = Target.onnx,
    raw: Annotated[bool, typer.Option("--raw", help="Logits and offsets instead of boxes.")] = False,
    dialect: Annotated[Layout, typer.Option(help="Names and shapes as other software expects them.")] = Layout.plain,
    fp16: Annotated[bool, typer.Option("--fp16", help="openvino, ovms: weights as float16.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="openvino, ovms: the network in INT8; needs --calibrate.")
    ] = False,
    calibrate: Annotated[Path | None, typer.Option(help="Training images that set INT8's ranges.")] = None,
    data: Annotated[Path | None, typer.Option(help="Images to verify on, and to score INT8 on.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data; needed where there are several.")] = None,
    opset: Annotated[
        int | None,
        typer.Option(help="onnx: version of the operators, 13 to 20; default 15, and 13 for jetson, for old runtimes."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="triton, kserve, ovms: lowest score that the model reports, 0 to 1; default each class's own."
        ),
    ] = None,
    runtime: Annotated[
        Path | None, typer.Option(help="web: the folder node_modules/onnxruntime-web/dist, which is copied.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder to write; default beside the model, a built-in one's in this folder."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file or folder that was exported before.")
    ] = False,
) -> None:
    """Write MODEL as a file or folder that runs without PyTorch, after checking that it gives the same detections.

    Example: multibox export runs/cells --to onnx --out cells.onnx
    """
    from multibox.builtin import find_model, runnable
    from multibox.errors import ConfigError
    from multibox.exporting.folders import FOLDERS, check_target, default_folder, write_folder

    if raw and dialect is not Layout.plain:
        raise ConfigError(f"--raw and --dialect {dialect.value} exclude each other; leave one out")
    weights = find_model(model)
    if to is Target.web:
        # The graph of a built-in model keeps 8-bit weights: a quarter of the bytes that every visitor downloads
        weights = runnable(weights)
    given = {"dialect": "raw" if raw else dialect.value, "half": fp16, "int8": int8, "opset": opset,
             "calibrate": calibrate, "data": data, "split": split}  # fmt: skip
    check_target(to.value, weights, given, runtime, threshold)
    if to.value not in FOLDERS:
        _write_file(weights, to, given, out, overwrite)
        return
    out = out or default_folder(weights, to.value)
    inputs = [path for path in (runtime, data, calibrate) if path is not None]

    def write(file: Path) -> None:
        _export(weights, file, given, out)

    lines = write_folder(
        to.value, weights, out, write, runtime=runtime, threshold=threshold, inputs=inputs, overwrite=overwrite
    )
    for line in lines:
        typer.echo(line)


def _write_file(weights: Path, to: Target, given: Mapping[str, Any], out: Path | None, overwrite: bool) -> None:
    from multibox.builtin import builtin_name
    from multibox.errors import ConfigError
    from multibox.files import check_outputs

    suffix = ".onnx" if to is Target.onnx else ".xml"
    out = out or Path(builtin_name(weights) or weights).with_suffix(suffix)
    if out.suffix != suffix:
        raise ConfigError(f"--out {out}: expected a name that ends in {suffix} for --to {to.value}")
    files = [out] if suffix == ".onnx" else [out, out.with_suffix(".bin")]
    inputs = [weights, *(given[name] for name in ("data", "calibrate") if given[name] is not None)]
    check_outputs(files, overwrite=overwrite, inputs=inputs)
    _export(weights, out, given, out)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB" + (" and its .bin" if suffix == ".xml" else ""))


def _export(weights: Path, file: Path, given: Mapping[str, Any], named: Path) -> None:
    """Export and print the report; `named` is what the user knows as the output."""
    from multibox.exporting import ExportOptions, VerificationError
    from multibox.exporting import export as write
    from multibox.inference.detector import open_checkpoint
    from multibox.models.checkpoint import read_metadata

    detector = open_checkpoint(weights, device="cpu")
    about = read_metadata(weights) or {}
    options = ExportOptions(**given, license=about.get("license", ""), source=about.get("source", ""))
    try:
        report = write(detector, file, options)
    except VerificationError as error:
        typer.echo(f"multibox: {named} was not written: {error}", err=True)
        raise typer.Exit(1) from None
    print_report(report)


def print_report(report: dict[str, Any]) -> None:
    """Print what was compared, line by line."""
    typer.echo(f"verified with {report['runtime']} on {report['images']} images ({report['data']})")
    typer.echo(f"  resize: {report['resize']:.2f} grey levels from Pillow's")
    typer.echo(f"  network: logits within {report['logits']:.1e}, offsets within {report['offsets']:.1e}")
    if report["detections"]:
        typer.echo(
            f"  detections: {report['matched']} of {report['detections']} matched, {report['swapped']} swapped, "
            f"scores within {report['score']:.1e}, boxes within {report['box']:.1e} of the image's side"
        )
    int8 = report.get("int8")
    if int8:
        typer.echo(
            f"  int8: agrees with the float file to {int8['agreement']:.3f} (AP at IoU .5 of its {int8['objects']} "
            f"detections on {int8['images']} calibration images)"
        )
    if int8 and "AP" in int8:
        both = (f"{name} {int8[name]:.4f} (float {int8[f'{name}_eager']:.4f})" for name in ("AP", "AP50"))
        typer.echo(f"  int8 on {int8['labelled_images']} labelled images: {', '.join(both)}")
