"""Detectors as files that run without PyTorch, each verified before it is written."""

from typing import Any

from multibox.errors import MissingExtraError

_PACKAGES = ("torch", "torchvision", "jaxtyping", "onnx", "onnx_ir", "onnxscript")
try:
    from multibox.exporting.export import ExportOptions, export
    from multibox.exporting.verify import VerificationError
except ModuleNotFoundError as error:
    if error.name not in _PACKAGES:
        raise

    # Not raised here: `folders` of a model exported before need none of these packages
    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise MissingExtraError("Export", "export")
        raise AttributeError(f"module 'multibox.exporting' has no attribute {name!r}")


__all__ = ["ExportOptions", "VerificationError", "export"]
