"""The detectors that the package carries, and the meaning of a model argument. No torch here.

Each is one `.safetensors` file, a checkpoint like any other (8-bit weights with their scales for `coco`), and one
`.onnx` graph that reads its weights from that file. `scripts/make_builtin.py` makes both.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from multibox.errors import WeightsError, did_you_mean

FOLDER = Path(__file__).parent / "builtin_models"
NO_WEIGHTS = "none"
"""What `--weights` takes to start from nothing."""
EXPECTED = "a .safetensors, .onnx or .xml file, or a run folder"
"""What a model argument names beside a built-in model, for messages."""


class BuiltinModel(NamedTuple):
    """A detector that the package carries."""

    use: str
    """What it is good for."""
    network: str
    license: str
    """SPDX identifier of the weights' licence."""
    source: str
    """Where the weights were published."""
    accuracy: str
    """What was measured; the commands stand in docs/weights.md."""


MODELS = {
    "coco": BuiltinModel(
        "everyday objects in photographs; weights to start training from",
        "SSD MobileNetV1 0.75",
        "Apache-2.0",
        "https://storage.googleapis.com/download.tensorflow.org/models/tflite/"
        "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.zip",
        "COCO AP 0.222, AP50 0.384 (50 images of val2017)",
    ),
    "face": BuiltinModel(
        "faces, also small ones, on slow machines",
        "RFB-320",
        "MIT",
        "https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB",
        "the original's faces; no labelled set at hand",
    ),
}


def find_model(model: str | Path) -> Path:
    """Return the weights or exported file that a model argument means.

    Args:
        model: the name of a built-in model, or the path of a file or run folder (its `best.safetensors`, else `last`).
            A built-in name wins over a file of that name, with a note on stderr; `./coco` and any `Path` are paths.

    Raises:
        WeightsError: there is no such file, or the folder is no run folder.
    """
    if isinstance(model, str) and model in MODELS:
        if Path(model).exists():
            _note(model, Path.cwd())
        return FOLDER / f"{model}.safetensors"
    path = Path(model)
    if path.is_dir():
        return _best_of(path)
    if not path.exists():
        names = " and ".join(MODELS)
        raise WeightsError(
            f"{model} does not exist: no such file; built-in models are {names}{did_you_mean(str(model), MODELS)}"
        )
    return path


def runnable(file: Path) -> Path:
    """Return the graph of a built-in model's checkpoint, which runs without PyTorch; any other file as it is."""
    return file.with_suffix(".onnx") if file.parent == FOLDER else file


def builtin_name(file: Path) -> str | None:
    """Return the name of the built-in model whose file this is; None for any other file."""
    return file.stem if file.parent == FOLDER else None


def about(name: str) -> dict[str, Any]:
    """Return what a built-in model's checkpoint says of itself: config, class names, licence and source."""
    from safetensors import safe_open

    with cast(Any, safe_open(FOLDER / f"{name}.safetensors", framework="numpy")) as file:
        return json.loads(file.metadata()["multibox"])


def size_on_disk(name: str) -> int:
    """Return the bytes of a built-in model's two files."""
    return sum((FOLDER / f"{name}{suffix}").stat().st_size for suffix in (".safetensors", ".onnx"))


def _best_of(folder: Path) -> Path:
    for name in ("best.safetensors", "last.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder} holds neither best.safetensors nor last.safetensors; give a run folder or a model file"
    )


@cache
def _note(model: str, folder: Path) -> None:
    """Say, once per working directory, that the built-in model was meant."""
    kind = "folder" if (folder / model).is_dir() else "file"
    sys.stderr.write(f"note: {model} is the built-in model; for the {kind} here write ./{model}\n")
