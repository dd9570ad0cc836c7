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
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    flip: bool = False,
) -> Union["Detector", "ExportedDetector"]:
    """Open a built-in model, a checkpoint, a run folder (its `best.safetensors`, else `last`) or an exported file.

    Args:
        path: the name of a built-in model (`multibox list models`), a `.safetensors` file, a run folder, or a `.onnx`
            or `.xml` file. A built-in name wins over a file of that name: `./coco` is the path. Built-in models and
            exported files run without PyTorch.
        device: "cpu", "cuda" or, for checkpoints, "mps"; "auto" takes CUDA where it is present, else the CPU. Exported
            files run on CUDA where onnxruntime-gpu is installed. A built-in model runs without PyTorch on "cpu" and
            "auto", and in PyTorch elsewhere.
        threads: CPU threads of its forward passes; None leaves it to the runtime. PyTorch's setting of this process
            stays as it is.
        precision: "float32" or "bfloat16"; None takes what is fastest here for an exported file in OpenVINO, and for a
            checkpoint float32, so that it answers the same on every machine.
        flip: average over every image and its mirror image, at twice the time; not for exported files. A built-in
            model then runs in PyTorch.

    Raises:
        WeightsError: the file is missing, broken, foreign or of a newer version.
        MissingExtraError: what runs this kind of file is not installed.
        ConfigError: an unknown precision, a device that this machine or this kind of file does not have, or settings
            that the kind of file does not know.
    """
    file = find_model(path)
    if device in ("cpu", "auto") and not flip:
        file = runnable(file)
    if file.suffix in SUFFIXES:
        from multibox.inference.exported import open_exported

        if flip:
            raise ConfigError(f"{file}: averaging over mirror images is for checkpoints; an exported file looks once")
        return open_exported(file, checked_threads(threads), precision, device)
    try:
        from multibox.inference import detector
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "jaxtyping"):
            raise
        what = f"{builtin_name(file)} on device {device}" if builtin_name(file) else f"Opening {file}"
        raise MissingExtraError(what, "train") from None
    return detector.load(file, device=device, threads=threads, flip=flip).quicken(precision or "float32")


def choose_device(asked: str = "auto") -> str:
    """Return where PyTorch computes: for "auto" `cuda` where there is one, else `cpu`; or what was asked for.

    Raises:
        ConfigError: this machine, or this PyTorch, has no such device.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {asked} cannot be used here ({reason}); give cpu, cuda or auto") from None
    return str(asked)


def checked_threads(threads: int | None) -> int | None:
    """Return the number of threads.

    Raises:
        ConfigError: it is no whole number of at least 1.
    """
    # A caller may give anything, whatever the annotation says
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise ConfigError(f"threads={threads!r}: expected a whole number of at least 1, or None for the runtime's own")
    return threads
