"""The network as an ONNX graph, traced by torch.export, and graphs rewritten for older opsets."""

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from multibox.errors import ConfigError
from multibox.models.prediction import fold_norms
from multibox.models.ssd import SSD
from multibox.structures import Size

OPSET = 20
"""Opset that graphs are built at."""
OLDEST = 13
"""Axes of Squeeze and ReduceSum became inputs there; onnxruntime 1.6 (2020) and TensorRT 8.0 read it."""
DEFAULT = 15
"""The oldest that needs no further operators; onnxruntime reads it from 1.10 (2021) on."""
JETSON = 13
"""TensorRT's parser reads up to it in versions 8.0 to 8.4, those of JetPack 4.6 and 5.0 (docs/operators.md of
onnx-tensorrt, 8.4)."""
REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare")


def trace(model: SSD, size: Size) -> ir.Graph:
    """Return the graph `resized` float [b, 3, *size] (grey levels) -> `logits`, `offsets`, batch norms folded."""
    export: Callable[..., Any] = torch.onnx.export  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter's notes about itself
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = export(
            _Traceable(model).eval(),
            (torch.zeros(2, 3, *size),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["resized"],
            output_names=["logits", "offsets"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    return program.model.graph


class _Traceable(nn.Module):
    """A copy of a network that returns plain tensors and traces to few nodes.

    Its weights are contiguous and on the CPU, batch norms folded, nothing in place: channels_last weights leave strides
    in the trace, and every module in place or norm costs seconds of tracing.
    """

    def __init__(self, model: SSD) -> None:
        super().__init__()
        copied = copy.deepcopy(model).cpu().float()
        self.model = copied.to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
        fold_norms(self.model)
        for module in self.model.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # pyright: ignore[reportArgumentType]

    def forward(self, resized: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(resized)
        return outputs.logits, outputs.offsets


def checked_opset(opset: int | None, dialect: str) -> int:
    """Return the opset to write; None takes the dialect's own.

    Raises:
        ConfigError: it is outside the range that can be written.
    """
    if opset is None:
        return JETSON if dialect == "jetson" else DEFAULT
    if not OLDEST <= opset <= OPSET:
        raise ConfigError(f"opset {opset}: expected {OLDEST} to {OPSET}; without it files have {DEFAULT}, and {JETSON} "
                          "for dialect jetson")  # fmt: skip
    return opset


def lower(model: ir.Model, opset: int) -> None:
    """Rewrite, in place, a model that was built at `OPSET`; the IR version becomes the oldest that has the opset."""
    from onnx import helper

    rewrite: dict[str, Callable[[ir.Node], None]] = {}
    if opset < 18:
        rewrite |= dict.fromkeys(REDUCTIONS, _axes_as_attribute)
        rewrite["Split"] = _split_equally
    if opset < 15:
        rewrite["Shape"] = _slice_shape
    if opset < 14:
        rewrite |= {"HardSwish": _spell_out, "Reshape": _allow_no_zero}
    for node in list(model.graph):
        if change := rewrite.get(node.op_type):
            change(node)
    for node in model.graph:
        _drop_defaults(node, opset)
    for name, value in list(model.graph.initializers.items()):
        # Axes that became attributes; onnxruntime warns of unused initialisers
        if not value.uses() and not value.is_graph_output():
            model.graph.initializers.pop(name)
    model.graph.opset_imports[""] = opset
    model.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def _drop_defaults(node: ir.Node, opset: int) -> None:
    """Drop attributes newer than the opset if they hold the operator's older behaviour; the checker reports others."""
    from onnx import defs, helper

    known = defs.get_schema(node.op_type, opset).attributes
    built = defs.get_schema(node.op_type, OPSET).attributes
    for name, attribute in list(node.attributes.items()):
        if name in known:
            continue
        default = built[name].default_value
        value = helper.get_attribute_value(default) if default.type else None
        if default.type and attribute.value == (value.decode() if isinstance(value, bytes) else value):
            node.attributes.pop(name)


def _allow_no_zero(node: ir.Node) -> None:
    """Drop what a 0 in a shape means: no length is 0, for a batch holds at least one image."""
    node.attributes.pop("allowzero", None)


def _split_equally(node: ir.Node) -> None:
    """Drop the number of parts: without lengths, Split gives equal parts, one per output."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes.pop("num_outputs", None)


def _axes_as_attribute(node: ir.Node) -> None:
    """Turn the input `axes` into an attribute."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    axes = ir.convenience.get_const_tensor(node.inputs[1])
    assert axes is not None, f"{node.op_type} with axes that are computed"
    node.resize_inputs(1)
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.numpy().ravel()])


def _slice_shape(node: ir.Node) -> None:
    """Slice the shape behind the node, not in it."""
    start, end = (node.attributes.pop(name, None) for name in ("start", "end"))
    if start is None and end is None:
        return
    first = start.as_int() if start is not None else 0
    last = end.as_int() if end is not None else np.iinfo(np.int64).max
    whole = ir.Value()
    bounds = [ir.node("Constant", [], attributes={"value": ir.tensor(np.array([bound]))}) for bound in (first, last)]
    cut = ir.node("Slice", [whole, *(bound.outputs[0] for bound in bounds)])
    _replace(node, [ir.node("Shape", list(node.inputs), outputs=[whole]), *bounds, cut])


def _spell_out(node: ir.Node) -> None:
    """Write HardSwish(x) as x times HardSigmoid(x) with a slope of 1/6."""
    gate = ir.node("HardSigmoid", list(node.inputs), attributes={"alpha": 1 / 6, "beta": 0.5})
    _replace(node, [gate, ir.node("Mul", [node.inputs[0], gate.outputs[0]])])


def _replace(node: ir.Node, by: list[ir.Node]) -> None:
    """Replace a node by others; the output of the last one replaces the node's."""
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], by, node.outputs, by[-1].outputs)  # pyright: ignore[reportArgumentType]
