"""Any model of ours from its file, without torch where the file needs none."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from multibox.errors import ConfigError
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
    """Open a checkpoint, a run folder (its `best.safetensors`, or `last` where there is no best) or an exported file.

    Args:
        path: a `.safetensors` file, a run folder, or a `.onnx` or `.xml` file, which runs without PyTorch.
        device: where a checkpoint runs, such as "cpu" or "cuda".
        threads: CPU threads to use; None leaves it to the runtime.
        precision: "float32" or "bfloat16"; None takes what is fastest here for an exported file in OpenVINO, and for a
            checkpoint float32, so that it answers the same on every machine.
        flip: average over every picture and its mirror image, at twice the time; checkpoints only.

    Raises:
        WeightsError: the file is missing, broken, foreign or of a newer version.
        MissingExtraError: what runs this kind of file is not installed.
        ConfigError: an unknown precision, or settings that the kind of file does not know.
    """
    path = Path(path)
    if path.suffix in SUFFIXES:
        from multibox.inference.exported import open_exported

        if flip:
            raise ConfigError(f"{path}: averaging over mirror images is for checkpoints; an exported file looks once")
        return open_exported(path, threads, precision)
    from multibox.inference import detector

    return detector.load(path, device=device, threads=threads, flip=flip).quicken(precision or "float32")
