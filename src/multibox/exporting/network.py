"""The network as an ONNX graph, by way of torch.export."""

import copy
import logging
import warnings

import onnx_ir as ir
import torch
from torch import Tensor, nn

from multibox.models.folding import fold_norms
from multibox.models.ssd import SSD

OPSET = 20


class _Outputs(nn.Module):
    """Pictures in, plain tensors out."""

    def __init__(self, model: SSD) -> None:
        super().__init__()
        self.model = model

    def forward(self, resized: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(resized)
        return outputs.logits, outputs.offsets


def trace(model: SSD, size: tuple[int, int]) -> ir.Graph:
    """Return the graph `resized` float [b, 3, *size] (grey levels) -> `logits`, `offsets`, batch norms folded."""
    plain = _Outputs(_plain(model)).eval()
    images = torch.zeros(2, 3, *size)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        # Notes of the exporter about itself
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            plain,
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["resized"],
            output_names=["logits", "offsets"],
            dynamic_shapes=({0: batch},),
        )
    assert program is not None
    return program.model.graph


def _plain(model: SSD) -> SSD:
    """Return a copy that traces to few nodes: weights contiguous, on the CPU, batch norms folded, nothing in place.

    channels_last weights leave strides in the trace, and every module in place or norm costs seconds of tracing.
    """
    model = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
    fold_norms(model)
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # pyright: ignore[reportArgumentType]
    return model
