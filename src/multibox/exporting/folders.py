"""Folders for servers and browsers around one exported model. No torch here.

Each target is a file of this package whose function fills a scratch folder from the plain model and returns lines to
print.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from multibox.builtin import builtin_name
from multibox.errors import ConfigError, MissingExtraError, WeightsError
from multibox.exporting.web_folder import check_runtime
from multibox.files import check_output_folder, free_path, listed_folder
from multibox.inference.engines import SUFFIXES, open_engine
from multibox.thresholds import lowest_scores

Writer = Callable[..., list[str]]
"""`write(model, folder, *, name)` with `runtime` for the browser and `threshold` for servers: fills the folder and
returns lines to print."""
_WRITERS = {
    "web": ("multibox.exporting.web_folder", "write_web"),
    "triton": ("multibox.exporting.triton", "write_triton"),
    "kserve": ("multibox.exporting.kserve", "write_kserve"),
    "ovms": ("multibox.exporting.ovms", "write_ovms"),
}
FOLDERS = tuple(_WRITERS)
SERVERS = tuple(to for to in FOLDERS if to != "web")


def find_writer(to: str) -> Writer:
    """Return the function that writes a target's folder."""
    module, function = _WRITERS[to]
    return getattr(import_module(module), function)


def name_of(model: Path) -> str:
    """Return the name that a model's folder gets: of the built-in model or run folder, else the stem of the file."""
    if name := builtin_name(model):
        return name
    in_run = model.suffix == ".safetensors" and model.stem in ("best", "last")
    return (model.resolve().parent.name or model.stem) if in_run else model.stem


def default_folder(model: Path, to: str) -> Path:
    """Return a free folder beside the model; for a built-in one, in the working directory."""
    place = Path() if builtin_name(model) else model.parent
    return free_path(place / f"{name_of(model)}-{to}")


def write_folder(
    to: str,
    model: Path,
    folder: Path,
    export: Callable[[Path], None],
    *,
    runtime: Path | None = None,
    threshold: float | None = None,
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
) -> list[str]:
    """Write the folder of a target, whole or not at all, and return lines to print.

    Args:
        to: one of `FOLDERS`.
        model: what the folder is made from; a .onnx or .xml file is taken as it is.
        folder: what to write.
        export: exports any other model to the path given.
        runtime: for the browser, the folder of onnxruntime-web.
        threshold: for servers, the lowest score that the model reports; None takes each class's own.
        inputs: other files and folders that are read.
        overwrite: replace a folder that an export wrote.

    Raises:
        ConfigError: the target and the model or the options do not fit, or the folder may not be written.
        WeightsError: the exported file is foreign, broken or of another dialect.
    """
    write = find_writer(to)
    check_output_folder(folder, overwrite=overwrite, inputs=[model, *inputs])
    with TemporaryDirectory() as scratch:
        if model.suffix in SUFFIXES:
            file = copy_whole(model, Path(scratch))
        else:
            file = Path(scratch) / ("model.xml" if to == "ovms" else "model.onnx")
            export(file)
        options = {"runtime": runtime} if to == "web" else {"threshold": threshold}
        with listed_folder(folder, overwrite=overwrite) as part:
            lines = write(file, part, name=name_of(model), **options)
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return [*lines, f"{folder}: {size / 1e6:.1f} MB"]


def check_target(
    to: str, model: Path, given: Mapping[str, Any], runtime: Path | None, threshold: float | None = None
) -> None:
    """Refuse options that do not fit a target or the model.

    Args:
        to: value of `--to`.
        model: weights or an exported file.
        given: settings of `ExportOptions` by name.
        runtime: for the browser, the folder of onnxruntime-web.
        threshold: for servers, the lowest score that the model reports.

    Raises:
        ConfigError: they do not fit.
    """
    if to == "web":
        check_runtime(runtime)
    if to != "web" and runtime is not None:
        raise ConfigError(f"--runtime is for --to web, and --to {to} has no use for it; leave it out")
    if threshold is not None and to not in SERVERS:
        raise ConfigError(f"--threshold is for --to {', '.join(SERVERS)}, whose models have fixed ones; leave it out")
    lowest_scores(threshold, (), ())
    if to not in FOLDERS:
        return
    if given["dialect"] != "plain":
        raise ConfigError(f"--to {to} writes inputs and outputs of its own; leave out --raw and --dialect")
    own = ("opset",) if to == "ovms" else ("half", "int8", "calibrate")
    refused = [name for name in (own if model.suffix not in SUFFIXES else given) if given[name] and name != "dialect"]
    if refused:
        option = "--fp16" if refused[0] == "half" else f"--{refused[0]}"
        where = f"{model} is exported already" if model.suffix in SUFFIXES else f"--to {to} has no use for it"
        raise ConfigError(f"{option}: {where}; leave it out")
    if model.suffix == ".xml" and to != "ovms":
        raise ConfigError(f"{model} is OpenVINO's; expected a .onnx file, a checkpoint or run folder for --to {to}")


def copy_whole(model: Path, folder: Path) -> Path:
    """Copy an exported file of dialect plain as model.onnx or model.xml and .bin; weights elsewhere are taken in.

    Raises:
        WeightsError: the file is foreign, broken or of another dialect.
        MissingExtraError: the weights lie in another file, and the package onnx is not installed.
    """
    open_engine(model, device="cpu")
    copy = folder / f"model{model.suffix}"
    shutil.copyfile(model, copy)
    if model.suffix == ".xml":
        shutil.copyfile(model.with_suffix(".bin"), copy.with_suffix(".bin"))
    try:
        open_engine(copy, device="cpu")
    except WeightsError:
        if find_spec("onnx") is None:
            raise MissingExtraError(f"{model} has its weights in another file; joining the two", "export") from None
        import onnx

        joined: Any = onnx.load(model)  # pyright: ignore[reportUnknownMemberType]
        copy.write_bytes(joined.SerializeToString())
        open_engine(copy, device="cpu")
    return copy
