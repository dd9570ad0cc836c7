"""Detectors as files that run without PyTorch, each verified before it is written."""

from importlib.util import find_spec

from multibox.errors import MissingExtraError

if not (find_spec("onnx_ir") and find_spec("onnxscript")):
    raise MissingExtraError("Export", "export")

from multibox.exporting.export import ExportOptions, export
from multibox.exporting.verify import VerificationError

__all__ = ["ExportOptions", "VerificationError", "export"]
