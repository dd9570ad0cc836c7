"""Single-shot detectors (SSD): train on your own images, see why it works or fails, ship one small file."""

import importlib
from typing import TYPE_CHECKING, Any

from multibox.privacy import block_reports

if TYPE_CHECKING:
    from multibox import losses, ops
    from multibox.analysis.comparison import compare
    from multibox.api import coverage, create, evaluate, export, inspect_matches, make_report, train
    from multibox.config import Config
    from multibox.doctor.examine import examine
    from multibox.doctor.findings import Finding
    from multibox.errors import MultiboxError
    from multibox.inference.detector import Detector
    from multibox.inference.load import load
    from multibox.structures import Dataset, Detections, Sample

block_reports()

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Dataset",
    "Detections",
    "Detector",
    "Finding",
    "MultiboxError",
    "Sample",
    "compare",
    "coverage",
    "create",
    "evaluate",
    "examine",
    "export",
    "inspect_matches",
    "load",
    "losses",
    "make_report",
    "ops",
    "train",
]

_HOMES = {
    "Config": "multibox.config",
    "Dataset": "multibox.structures",
    "Detections": "multibox.structures",
    "Detector": "multibox.inference.detector",
    "Finding": "multibox.doctor.findings",
    "MultiboxError": "multibox.errors",
    "Sample": "multibox.structures",
    "compare": "multibox.analysis.comparison",
    "coverage": "multibox.api",
    "create": "multibox.api",
    "evaluate": "multibox.api",
    "examine": "multibox.doctor.examine",
    "export": "multibox.api",
    "inspect_matches": "multibox.api",
    "load": "multibox.inference.load",
    "losses": "multibox.losses",
    "make_report": "multibox.api",
    "ops": "multibox.ops",
    "train": "multibox.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import multibox` is fast and needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'multibox' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if error.name in ("torch", "torchvision", "jaxtyping"):
            from multibox.errors import MissingExtraError

            raise MissingExtraError(f"multibox.{name}", "train") from None
        raise
    return home if name in ("losses", "ops") else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
