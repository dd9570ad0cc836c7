"""Curves of losses, of a training run, and of precision over recall, as image files.

Colours are those of Okabe and Ito, which people with any kind of colour vision tell apart. Line styles repeat the
difference for grey print.
"""

import importlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multibox.errors import MissingExtraError
from multibox.files import write_bytes_whole
from multibox.plots.labels import drawable_names, extra_fonts

Curve = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]
"""The x and the y values of one line."""
Floats = NDArray[np.float64]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a4b9a", "#333333")
STYLES = ("-", "--", "-.", ":")
PALE = "#b8b8b8"
LOOK = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.dpi": 120,
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "text.parse_math": False,
}
PANELS = {
    "Loss": r"loss|^total$|classification|locali[sz]ation|^l2$",
    "mAP": r"map|(^|_)ap(\d|_|$)",
    "Errors": r"err|mae",
    "Learning rate": r"learning_rate|^lr",
}
"""Titles of panels and patterns of column names; a column belongs to the first panel that matches."""


def plot_losses(path: str | Path, smooth_l1_curves: Mapping[float, Curve], focal_curves: Mapping[float, Curve]) -> Path:
    """Draw both losses side by side and return the path of the image.

    Args:
        path: The image to write; its suffix is the format.
        smooth_l1_curves: By sigma, prediction - target and the loss; the tutorial has 10, 1 and 0.5 over -2..2.
        focal_curves: By gamma, the probability of the true class and the loss; the tutorial has 0, 1 and 5.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: The image cannot be written.
    """
    with load_matplotlib().rc_context(LOOK | {"font.size": 10, "figure.dpi": 150, "text.parse_math": True}):
        figure = new_figure(10, 4.2)
        left, right = figure.subplots(1, 2)
        _parameter_curves(left, smooth_l1_curves, r"$\sigma$")
        left.set(title="Smooth L1: errors of the boxes", xlabel="prediction - target", ylabel="loss")
        _parameter_curves(right, focal_curves, r"$\gamma$")
        right.set(title="Focal loss: errors of the classes", xlabel="probability of the true class", ylabel="loss")
        right.set_xlim(0, 1)
        save_figure(figure, path)
    return Path(path)


def _parameter_curves(axes: Any, curves: Mapping[float, Curve], symbol: str) -> None:
    for index, (value, (x, y)) in enumerate(curves.items()):
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        axes.plot(x, y, color=colour, linestyle=style, linewidth=2, label=f"{symbol} = {value:g}")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.legend()


def plot_training(path: str | Path, metrics: Mapping[str, Sequence[object]]) -> None:
    """Draw the columns of a run's `metrics.csv` over its epochs: losses, mAP, errors and learning rate.

    Args:
        path: The image to write; its suffix is the format.
        metrics: Columns by name, as numbers or texts. Cells that are empty or not finite are left out, and so are
            columns without any number and columns of other names.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: The image cannot be written.
    """
    columns = {name: _numbers(cells) for name, cells in metrics.items()}
    longest = max((len(values) for values in columns.values()), default=0)
    epochs = columns.pop("epoch", np.arange(1.0, longest + 1))
    panels = _panels(columns)
    with load_matplotlib().rc_context(LOOK):
        figure = new_figure(9.0 if len(panels) > 1 else 5.5, 3.0 * math.ceil(max(1, len(panels)) / 2) + 0.3)
        rows, places = math.ceil(len(panels) / 2), min(2, len(panels))
        for number, (title, lines) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, places, number, sharex=figure.axes[0] if figure.axes else None)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            _lines(axes, epochs, lines)
            _scale(axes, title, np.concatenate(list(lines.values())))
        if not panels:
            figure.text(0.5, 0.5, "no metrics yet", ha="center", va="center")
        save_figure(figure, path)


def plot_precision_recall(
    path: str | Path, curves: Mapping[str, tuple[ArrayLike, ArrayLike, float | None]], title: str = "IoU 0.5"
) -> None:
    """Draw each class's precision over recall, and its average precision as a bar that serves as the legend.

    Of more than eight classes, the four best and the four worst are coloured.

    Args:
        path: The image to write; its suffix is the format.
        curves: Recall [N], precision [N] and average precision by class; None for a class without objects, which is
            left out.
        title: Of the left panel, such as the overlap that counts.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: The image cannot be written.
    """
    scored = {name: (np.asarray(r), np.asarray(p), ap) for name, (r, p, ap) in curves.items() if ap is not None}
    ranked = sorted(scored, key=lambda name: scored[name][2], reverse=True)
    half = len(COLOURS) // 2
    shown = ranked if len(ranked) <= len(COLOURS) else ranked[:half] + ranked[-half:]
    looks = {name: (COLOURS[i], STYLES[i % len(STYLES)]) for i, name in enumerate(shown)}
    drawn = dict(zip(ranked, drawable_names(tuple(ranked)), strict=True))
    with load_matplotlib().rc_context(LOOK | {"font.family": families(drawn.values())}):
        figure = new_figure(9.5, max(4.2, 0.17 * len(ranked) + 0.9))
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for name in [name for name in ranked if name not in looks] + shown[::-1]:
            recall, precision, _ = scored[name]
            colour, style = looks.get(name, (PALE, "-"))
            start = precision[:1]
            left.plot(
                np.concatenate([np.zeros(len(start)), recall]),
                np.concatenate([start, precision]),
                color=colour,
                linestyle=style,
                linewidth=1.6 if name in looks else 0.7,
            )
        left.set_box_aspect(0.75)
        left.set_anchor("N")
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
        _bars(right, {name: scored[name][2] for name in ranked}, looks, drawn)
        save_figure(figure, path)


def _bars(
    axes: Any, precisions: dict[str, float], looks: Mapping[str, tuple[str, str]], drawn: Mapping[str, str]
) -> None:
    """Draw one bar per class, best on top, with its name as `drawn` and its value."""
    places = np.arange(len(precisions))
    colours = [looks.get(name, (PALE, "-"))[0] for name in precisions]
    axes.barh(places, list(precisions.values()), color=colours, height=0.72)
    size = 8 if len(precisions) <= 30 else 6.5
    for place, value in zip(places, precisions.values(), strict=True):
        axes.annotate(f"{value:.2f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=size)
    axes.set_yticks(places, [drawn[name] for name in precisions], fontsize=size)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    mean = f", mean {np.mean(list(precisions.values())):.3f}" if precisions else ": no class has objects"
    axes.set(xlim=(0, 1.12), ylim=(max(6, len(precisions)) - 0.4, -0.6), title=f"average precision{mean}")
    axes.set_xticks(np.arange(0, 1.01, 0.25))


def _panels(columns: Mapping[str, Floats]) -> dict[str, dict[str, Floats]]:
    """Sort the columns into panels; leave out panels without a number."""
    panels: dict[str, dict[str, Floats]] = {title: {} for title in PANELS}
    for name, values in columns.items():
        title = next((title for title, look in PANELS.items() if re.search(look, name, re.IGNORECASE)), None)
        if title is not None and np.isfinite(values).any():
            panels[title][name] = values
    return {title: lines for title, lines in panels.items() if lines}


def _lines(axes: Any, epochs: Floats, lines: Mapping[str, Floats]) -> None:
    """Draw the columns of one panel; a column with gaps is joined across them."""
    labels = [re.sub("^_", " _", name).replace("_", " ") for name in lines]
    for number, (label, values) in enumerate(zip(labels, lines.values(), strict=True)):
        count = min(len(epochs), len(values))
        there = np.isfinite(values[:count]) & np.isfinite(epochs[:count])
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number // 2 % len(STYLES)]
        marker = "o" if there.sum() <= 25 else None
        x, y = epochs[:count][there], values[:count][there]
        axes.plot(x, y, style, color=colour, marker=marker, markersize=3, label=label)
    if [label.lower() for label in labels] != [axes.get_title(loc="left").lower()]:
        axes.legend(fontsize=8)


def _scale(axes: Any, title: str, values: Floats) -> None:
    """Set the vertical axis: mAP from 0 to 1, logarithmic where losses or errors fall far, else from 0."""
    real = values[np.isfinite(values)]
    positive = real[real > 0]
    if title == "mAP":
        axes.set_ylim(0, 1)
    elif title in ("Loss", "Errors") and len(positive) == len(real) and real.max() > 30 * real.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if real.max() < 1000 * real.min() else (1,))
        axes.yaxis.set_minor_formatter("")
    elif real.min() >= 0:
        axes.set_ylim(bottom=0)


def _numbers(cells: Sequence[object]) -> Floats:
    """Return the cells as numbers, NaN for a cell without one."""

    def number(cell: object) -> float:
        try:
            return float(str(cell))
        except ValueError:
            return math.nan

    return np.array([number(cell) for cell in cells], np.float64)


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure in inches, outside pyplot and its global state."""
    figure = importlib.import_module("matplotlib.figure").Figure((width, height), layout="constrained")
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def families(texts: Iterable[str]) -> list[str]:
    """Return Matplotlib's font families for texts, with system fonts for letters that its own font lacks."""
    manager = importlib.import_module("matplotlib.font_manager")
    families = ["DejaVu Sans"]
    for file in extra_fonts(texts):
        manager.fontManager.addfont(file)
        families.append(manager.FontProperties(fname=file).get_name())
    return families


def save_figure(figure: Any, path: str | Path) -> None:
    """Write the figure whole or not at all."""
    path = Path(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix(".") or "png")
    write_bytes_whole(path, buffer.getvalue())


def load_matplotlib() -> Any:
    """Return matplotlib.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("matplotlib")
    except ImportError as missing:
        raise MissingExtraError("Drawing curves", "train") from missing
