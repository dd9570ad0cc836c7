"""The resize inside an exported graph: Pillow's antialiased bilinear filter as two products with banded matrices.

An output row is a weighted sum of the few source rows under its triangle. `GROUP` neighbouring output rows share one
window of source rows, gathered as bytes, and one small matrix product; a product with the full matrix would multiply
mostly zeros (measured in docs/decisions.md). Windows and weights are computed in the graph from the picture's size.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

GROUP = 16
"""Output rows that share a window of source rows."""


def resize(op: Any, images: ir.Value, size: tuple[int, int]) -> ir.Value:
    """Add the resize of uint8 [b, h, w, 3] to float [b, 3, *size], grey levels 0 to 255, not rounded.

    Pillow rounds to whole levels after each of its two passes; so its answer lies within one level of this exact one.
    """
    height, width = size
    batch, columns = op.Shape(images, start=0, end=1), op.Shape(images, start=2, end=3)
    rows = op.Reshape(images, op.Concat(batch, op.Shape(images, start=1, end=2), [-1], axis=0))
    rows = _resize_rows(op, rows, height)
    rows = op.Reshape(rows, op.Concat(batch, [height], columns, [3], axis=0))
    across = op.Reshape(op.Transpose(rows, perm=[0, 2, 3, 1]), op.Concat(batch, columns, [3 * height], axis=0))
    across = _resize_rows(op, across, width)
    return op.Transpose(op.Reshape(across, [-1, width, 3, height]), perm=[0, 2, 3, 1])


def _resize_rows(op: Any, rows: ir.Value, size: int) -> ir.Value:
    """Resize [b, n, m] of any number type to float [b, size, m]."""
    groups = -(-size // GROUP)
    index, weights = _windows(op, op.Shape(rows, start=1, end=2), size, groups)
    window = op.Cast(op.Gather(rows, index, axis=1), to=ir.DataType.FLOAT)
    flat = op.Concat(op.Shape(rows, start=0, end=1), [groups * GROUP, -1], axis=0)
    resized = op.Reshape(op.MatMul(weights, window), flat)
    return resized if groups * GROUP == size else op.Slice(resized, [0], [size], [1])


def _windows(op: Any, count: ir.Value, size: int, groups: int) -> tuple[ir.Value, ir.Value]:
    """Return the source rows of each group [g, r] and their weights [g, GROUP, r], for `count` [1] source rows.

    Output i is centred on (i + 1/2) * count / size and its triangle reaches max(count / size, 1) to either side. In
    units of 1 / (2 * size) all of that is whole, so that large pictures lose no precision.
    """
    outputs = 2 * np.arange(groups * GROUP, dtype=np.int64) + 1
    reach = op.Mul(op.Max(count, [size]), [2])
    first = op.Sub(op.Add(op.Mul(count, _constant(op, outputs[::GROUP])), [size]), reach)
    first = op.Div(op.Max(first, [0]), [2 * size])
    span = op.Add(op.Div(op.Add(op.Mul(count, [2 * (GROUP - 1)]), op.Mul(reach, [2])), [2 * size]), [2])
    span = op.Min(span, count)
    # A window is moved inwards at the far border rather than cut, so that all have one length
    first = op.Unsqueeze(op.Max(op.Min(first, op.Sub(count, span)), [0]), [1])
    index = op.Add(first, op.Range(0, op.Squeeze(span, [0]), 1))
    centers = op.Mul(count, _constant(op, outputs.reshape(groups, GROUP, 1)))
    places = op.Mul(op.Add(op.Mul(op.Unsqueeze(index, [1]), [2]), [1]), [size])
    distance = op.Cast(op.Abs(op.Sub(places, centers)), to=ir.DataType.FLOAT)
    weights = op.Relu(op.Sub(1.0, op.Div(distance, op.Cast(reach, to=ir.DataType.FLOAT))))
    # Rows beyond the last output, which only fill up the last group, may see no pixel
    total = op.Max(op.ReduceSum(weights, [2], keepdims=1), 1e-6)
    return index, op.Div(weights, total)


def _constant(op: Any, values: np.ndarray) -> ir.Value:
    return op.Constant(value=ir.tensor(values))
