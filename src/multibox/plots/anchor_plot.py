"""Boxes and anchors in one image: widths and heights, and how well the anchors overlap the boxes of each class."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.plots.curves import COLOURS, LOOK, families, load_matplotlib, new_figure, save_figure
from multibox.plots.labels import drawable_names

Floats = NDArray[np.float64]
MOST_POINTS, MOST_CLASSES = 4000, len(COLOURS) - 1
"""Boxes drawn as points, and classes with a colour and a histogram of their own."""


class AnchorPlot(NamedTuple):
    """What is drawn."""

    boxes_wh: Floats
    """[N, 2] width and height in pixels of the input."""
    labels: NDArray[np.int64]
    """[N]"""
    class_names: tuple[str, ...]
    before_wh: Floats
    """[A, 2] anchor shapes in pixels of the input."""
    before_iou: Floats
    """[N] each box's largest IoU with these anchors."""
    after_wh: Floats | None = None
    """The same of the fitted anchors, where there are any."""
    after_iou: Floats | None = None
    threshold: float = 0.5
    """Overlap from which an anchor learns a box."""


def plot_anchors(path: str | Path, shown: AnchorPlot) -> None:
    """Draw boxes and anchors by width and height, and a histogram of the boxes' best IoU per class.

    Of more than seven classes those with most boxes are shown, the others together.

    Args:
        path: The image to write; its suffix is the format.
        shown: What is drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: The image cannot be written.
    """
    counts = np.bincount(shown.labels, minlength=len(shown.class_names))
    order = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    own = order if len(order) <= MOST_CLASSES else order[: MOST_CLASSES - 1]
    names = dict(zip(own, drawable_names(tuple(shown.class_names[label] for label in own)), strict=True))
    groups = [(names[label], shown.labels == label, COLOURS[place]) for place, label in enumerate(own)]
    if len(own) < len(order):
        groups.append((f"{len(order) - len(own)} other classes", ~np.isin(shown.labels, own), "#777777"))
    with load_matplotlib().rc_context(LOOK | {"font.family": families(name for name, _, _ in groups)}):
        figure = new_figure(11.5, max(5.4, 1.15 * len(groups) + 1.0))
        left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
        _scatter(left.add_subplot(), shown, groups)
        right.suptitle("Best IoU of each box with an anchor", fontsize=11, fontweight="bold")
        _histograms(right.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0], shown, groups)
        save_figure(figure, path)


def _scatter(axes: Any, shown: AnchorPlot, groups: Sequence[tuple[str, Any, str]]) -> None:
    few = np.unique(np.linspace(0, len(shown.labels) - 1, min(MOST_POINTS, len(shown.labels))).astype(int))
    drawn = np.zeros(len(shown.labels), np.bool_)
    drawn[few] = True
    for name, chosen, colour in groups:
        points = shown.boxes_wh[chosen & drawn]
        axes.scatter(*points.T, s=9, color=colour, alpha=0.35, linewidths=0, label=f"{name} ({chosen.sum():,})")
    kinds = [("anchors", shown.before_wh, "s", "none")]
    if shown.after_wh is not None:
        kinds = [("anchors before", shown.before_wh, "s", "none"), ("anchors after", shown.after_wh, "D", "#111111")]
    for name, wh, marker, face in kinds:
        axes.scatter(
            *wh.T, s=34, marker=marker, facecolors=face, edgecolors="#111111" if face == "none" else "white",
            linewidths=1.1, label=name, zorder=3,
        )  # fmt: skip
    every = np.concatenate([shown.boxes_wh, *(wh for _, wh, _, _ in kinds)])
    low, high = np.maximum(every.min(0) * 0.85, 0.5), every.max(0) * 1.18
    axes.set(xscale="log", yscale="log", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(subs=(1, 2, 5))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set(xlabel="width, pixels of the input", ylabel="height, pixels of the input", title="Boxes and anchors")
    legend = axes.legend(fontsize=8, loc="upper left", framealpha=0.9, frameon=True)
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def _histograms(panels: Sequence[Any], shown: AnchorPlot, groups: Sequence[tuple[str, Any, str]]) -> None:
    edges = np.linspace(0, 1, 41)
    for axes, (name, chosen, colour) in zip(panels, groups, strict=True):
        before, after = shown.before_iou[chosen], None if shown.after_iou is None else shown.after_iou[chosen]
        text = f"{name}: {_share(before, shown.threshold)} from {shown.threshold:g} on"
        if after is None:
            axes.hist(before, edges, color=colour, alpha=0.75)
        else:
            axes.hist(after, edges, color=colour, alpha=0.75)
            axes.hist(before, edges, histtype="step", color="#111111", linewidth=1.1)
            text = f"{name}: {_share(before, shown.threshold)} before, {_share(after, shown.threshold)} after"
        axes.axvline(shown.threshold, color="#111111", linestyle=":", linewidth=1)
        axes.set_title(text, fontsize=8.5, fontweight="normal")
        axes.set_xlim(0, 1)
        axes.tick_params(axis="y", labelsize=7)
        axes.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    outline = "" if shown.after_iou is None else "; outline: before"
    panels[-1].set_xlabel(f"best IoU; dotted: threshold{outline}")


def _share(best: Floats, threshold: float) -> str:
    return f"{100 * float((best >= threshold).mean()):.1f} %"
