"""Detectors as files that run without PyTorch, each proven to be the same detector before it is written."""

from multibox.errors import MissingExtraError

try:
    import onnx_ir as _onnx_ir  # noqa: F401
    import onnxscript as _onnxscript  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtraError("Export", "export") from None

from multibox.exporting.export import ExportOptions, export
from multibox.exporting.verify import VerificationError

__all__ = ["ExportOptions", "VerificationError", "export"]
