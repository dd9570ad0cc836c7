"""The resize inside an exported graph: Pillow's antialiased bilinear filter as two products with banded matrices.

An output row is a weighted sum of the few source rows under its triangle. Neighbouring output rows share one window of
source rows, gathered as bytes, and one small matrix product; a product with the full matrix would multiply mostly zeros
(measured in docs/decisions.md). Windows and weights are computed in the graph from the picture's size.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

MIDDLE = 128.0
"""Grey level that the second product sees as 0: half the range is half the rounding in bfloat16."""
ROWS, COLUMNS = 16, 32
"""So many neighbouring outputs share a window, about. Columns in longer runs are quicker put into place."""


def resize(op: Any, images: ir.Value, size: tuple[int, int]) -> ir.Value:
    """Add the resize of uint8 [b, h, w, 3] to float [b, 3, *size], grey levels 0 to 255, not rounded.

    Pillow rounds to whole levels after each of its two passes; so its answer lies within one level of this exact one.
    """
    (tall, high), (wide, broad) = _groups(size[0], ROWS), _groups(size[1], COLUMNS)
    batch, columns = op.Shape(images, start=0, end=1), op.Shape(images, start=2, end=3)
    index, weights = _windows(op, op.Shape(images, start=1, end=2), size[0], (tall, high))
    window = op.Cast(op.Gather(images, index, axis=1), to=ir.DataType.FLOAT)
    # Behind the cast for OpenVINO, which multiplies in float32 what comes from integers directly
    window = op.Reshape(window, op.Concat(batch, [tall], op.Shape(index, start=1, end=2), [-1], axis=0))
    down = op.Sub(_product(op, window, weights, 4), MIDDLE)
    down = op.Reshape(down, op.Concat(batch, [tall], columns, [3 * high], axis=0))
    index, weights = _windows(op, columns, size[1], (wide, broad))
    across = _product(op, op.Gather(down, index, axis=2), weights, 5)
    # From blocks of high x broad outputs to planes
    across = op.Reshape(across, op.Concat(batch, [tall, wide, 3, high, broad], axis=0))
    across = op.Transpose(across, perm=[0, 3, 1, 4, 2, 5])
    planes = op.Add(op.Reshape(across, op.Concat(batch, [3, tall * high, wide * broad], axis=0)), MIDDLE)
    return planes if (tall * high, wide * broad) == size else op.Slice(planes, [0, 0], [*size], [2, 3])


def _groups(size: int, longest: int) -> tuple[int, int]:
    """Return number and length of the groups of outputs that share a window, without rest if that can be."""
    lengths = range(longest, longest * 3 // 4 - 1, -1)
    length = next((length for length in lengths if size % length == 0), longest)
    return -(-size // length), length


def _product(op: Any, window: ir.Value, weights: ir.Value, rank: int) -> ir.Value:
    """Add the sums of windows [..., r, m] weighted by [g, r, o], as [..., m, o].

    Turned like this, which a matrix product does for nothing, as the other side is contracted next.
    """
    return op.MatMul(op.Transpose(window, perm=[*range(rank - 2), rank - 1, rank - 2]), weights)


def _windows(op: Any, count: ir.Value, size: int, groups: tuple[int, int]) -> tuple[ir.Value, ir.Value]:
    """Add the source rows [g, r] of each group and their weights [g, r, o] for its outputs; `count` [1] source rows.

    Output i is centred on (i + 1/2) * count / size and its triangle reaches max(count / size, 1) to either side. In
    units of 1 / (2 * size) all of that is whole, so that neither large pictures nor bfloat16 lose precision.
    """
    number, length = groups
    outputs = 2 * np.arange(number * length, dtype=np.int64).reshape(number, 1, length) + 1
    longer = op.Max(count, [size])
    reach = op.Mul(longer, [2])
    span = op.Min(op.Add(op.Div(op.Mul(longer, [length + 1]), [size]), [2]), count)
    first = op.Add(op.Mul(count, _constant(op, outputs[:, :, 0])), op.Sub([size], reach))
    # A window is moved inwards at the far border rather than cut, so that all have one length
    first = op.Min(op.Div(op.Max(first, [0]), [2 * size]), op.Sub(count, span))
    index = op.Add(first, op.Range(0, op.Squeeze(span, [0]), 1))
    places = op.Add(op.Mul(op.Unsqueeze(index, [2]), [2 * size]), [size])
    distance = op.Abs(op.Sub(places, op.Mul(count, _constant(op, outputs))))
    weights = op.Cast(op.Max(op.Sub(reach, distance), [0]), to=ir.DataType.FLOAT)
    # Rows beyond the last output, which only fill up the last group, may see no pixel
    return index, op.Div(weights, op.Max(op.ReduceSum(weights, [1], keepdims=1), 1.0))


def _constant(op: Any, values: np.ndarray) -> ir.Value:
    return op.Constant(value=ir.tensor(values))
