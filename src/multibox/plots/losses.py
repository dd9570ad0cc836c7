"""The two figures of the TinySSD tutorial: smooth L1 for several sigmas, focal loss for several gammas."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MissingExtraError
from multibox.files import write_bytes_whole

Curve = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]
"""The x and the y values of one line."""

_INK = "#333333"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours, told apart by every kind of eye."""
_DASHES = ("-", "--", "-.", ":")
"""For grey print."""


def plot_losses(path: str | Path, smooth_l1_curves: Mapping[float, Curve], focal_curves: Mapping[float, Curve]) -> Path:
    """Draw both losses side by side into one PNG and return its path.

    Args:
        path: The PNG to write, whole or not at all; folders above it are made.
        smooth_l1_curves: For each sigma, prediction - target and the loss; the tutorial has 10, 1 and 0.5 over -2..2.
        focal_curves: For each gamma, the probability of the true class and the loss; the tutorial has 0, 1 and 5.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: The folder cannot be written to; nothing is left behind.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Drawing the losses", "train") from error
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw(left, smooth_l1_curves, r"$\sigma$")
    left.set(title="Smooth L1: errors of the boxes", xlabel="prediction - target", ylabel="loss")
    _draw(right, focal_curves, r"$\gamma$")
    right.set(title="Focal loss: errors of the classes", xlabel="probability of the true class", ylabel="loss")
    right.set_xlim(0, 1)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    target = Path(path)
    write_bytes_whole(target, png.getvalue())
    return target


def _draw(axes: Any, curves: Mapping[float, Curve], symbol: str) -> None:
    for index, (value, (x, y)) in enumerate(curves.items()):
        color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
        axes.plot(x, y, color=color, linestyle=dashes, linewidth=2, label=f"{symbol} = {value:g}")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.legend(frameon=False)
