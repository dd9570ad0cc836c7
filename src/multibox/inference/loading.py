"""Any model of ours by its name or file, without torch where it needs none."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from multibox.builtin import builtin_name, find_model, runnable
from multibox.errors import ConfigError, MissingExtraError
from multibox.inference.engines import SUFFIXES

if TYPE_CHECKING:
    from multibox.inference.detector import Detector
    from multibox.inference.exported import ExportedDetector


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    flip: bool = False,
) -> Union["Detector", "ExportedDetector"]:
    """Open a built-in model, a checkpoint, a run folder (its `best.safetensors`, else `last`) or an exported file.

    Args:
        path: the name of a built-in model (`multibox list models`), a `.safetensors` file, a run folder, or a `.onnx`
            or `.xml` file. A built-in name wins over a file of that name: `./coco` is the path. Built-in models and
            exported files run without PyTorch.
        device: where a checkpoint runs, such as "cpu" or "cuda". A built-in model runs in PyTorch where this is neither
            "cpu" nor "auto".
        threads: CPU threads to use; None leaves it to the runtime.
        precision: "float32" or "bfloat16"; None takes what is fastest here for an exported file in OpenVINO, and for a
            checkpoint float32, so that it answers the same on every machine.
        flip: average over every image and its mirror image, at twice the time; not for exported files. A built-in
            model then runs in PyTorch.

    Raises:
        WeightsError: the file is missing, broken, foreign or of a newer version.
        MissingExtraError: what runs this kind of file is not installed.
        ConfigError: an unknown precision, or settings that the kind of file does not know.
    """
    file = find_model(path)
    if device in ("cpu", "auto") and not flip:
        file = runnable(file)
    if file.suffix in SUFFIXES:
        from multibox.inference.exported import open_exported

        if flip:
            raise ConfigError(f"{file}: averaging over mirror images is for checkpoints; an exported file looks once")
        return open_exported(file, threads, precision)
    try:
        from multibox.inference import detector
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "jaxtyping"):
            raise
        what = f"{builtin_name(file)} on device {device}" if builtin_name(file) else f"Opening {file}"
        raise MissingExtraError(what, "train") from None
    return detector.load(file, device=device, threads=threads, flip=flip).quicken(precision or "float32")
