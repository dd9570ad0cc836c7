"""The images are written, whole, for complete and for poor columns; and show what they should."""

import sys

import numpy as np
import pytest
from PIL import Image

from multibox.errors import MissingExtraError
from multibox.plots import curves
from multibox.plots.curves import plot_losses, plot_precision_recall, plot_training

LOSSES = [{1.0: (np.arange(3.0), np.arange(3.0))}] * 2


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that are saved."""
    kept, save = [], curves.save_figure
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.slow
def test_a_run_gets_a_panel_for_each_kind_of_figure(tmp_path, drawn):
    metrics = {
        "epoch": ["1", "2", "3", "4"],
        "loss": ["2.5", "1.5", "1.2", "nan"],
        "classification": [2, 1, 0.8, 0.7],
        "validation_loss": ["", "1.7", None, "1.4"],
        "learning_rate": [0.2, 0.2, 0.2, 0.02],
        "class_error": [3e-3, 2e-3, 2e-3, 2e-3],
        "bbox_mae": [3e-3, 2e-3, 2e-3, 2e-3],
        "mAP": ["", 0.3, "", 0.6],
        "seconds": [9, 9, 9, 9],
        "localization": ["", "", "", ""],
    }
    plot_training(tmp_path / "run.png", metrics)
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    assert list(panels) == ["Loss", "mAP", "Errors", "Learning rate"]
    lines = {line.get_label(): line for line in panels["Loss"].lines}
    assert list(lines) == ["loss", "classification", "validation loss"]
    assert lines["loss"].get_xydata().tolist() == [[1, 2.5], [2, 1.5], [3, 1.2]]
    assert lines["validation loss"].get_xydata().tolist() == [[2, 1.7], [4, 1.4]]
    assert panels["mAP"].get_ylim() == (0, 1)
    assert len({line.get_color() for line in lines.values()}) == 3
    assert pixels(tmp_path / "run.png").shape[1] > 800
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]


@pytest.mark.parametrize(
    "metrics",
    [{}, {"epoch": []}, {"loss": []}, {"loss": [1.0]}, {"epoch": [1, 2], "loss": [1.0, 2.0, 3.0]}, {"name": ["x"]}],
)
def test_poor_columns_are_no_trouble(tmp_path, metrics):
    plot_training(tmp_path / "run.png", metrics)
    assert pixels(tmp_path / "run.png").size


def test_losses_that_fall_far_have_a_logarithmic_axis(tmp_path, drawn):
    plot_training(tmp_path / "a.png", {"loss": [50.0, 5.0, 0.5]})
    plot_training(tmp_path / "b.png", {"loss": [50.0, 5.0, 0.0]})
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["log", "linear"]


def test_precision_and_recall(tmp_path, drawn):
    recall, precision = np.array([0.25, 0.5]), np.array([1.0, 0.8])
    given = {"cat": (recall, precision, 0.45), "absent": ([], [], None), "$missed_": ([], [], 0.0)}
    plot_precision_recall(tmp_path / "pr.png", given)
    left, right = drawn[0].axes
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["cat", "$missed_"]
    assert [bar.get_width() for bar in right.patches] == [0.45, 0.0]
    assert left.lines[1].get_xydata().tolist() == [[0, 1], [0.25, 1], [0.5, 0.8]]
    assert right.patches[0].get_facecolor()[:3] == pytest.approx(
        tuple(int("0072b2"[i : i + 2], 16) / 255 for i in (0, 2, 4))
    )
    assert "mean 0.225" in right.get_title(loc="left")
    assert pixels(tmp_path / "pr.png").size


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 1, 8, 9, 80])
def test_any_number_of_classes(tmp_path, drawn, classes):
    line = np.linspace(0.1, 1, 5)
    plot_precision_recall(tmp_path / "pr.svg", {f"class {i}": (line, 1 - line, i / 80) for i in range(classes)})
    coloured = {bar.get_facecolor() for bar in drawn[0].axes[1].patches}
    assert len(coloured) == min(classes, 9)
    assert (tmp_path / "pr.svg").read_text().startswith("<?xml")


def test_both_losses_are_drawn(tmp_path, drawn):
    x = np.linspace(-2, 2, 9)
    smooth = {float(sigma): (x, sigma * abs(x)) for sigma in range(1, 10)}
    focal = {gamma: (x, (1 - x) ** gamma) for gamma in (0.0, 5.0)}
    path = plot_losses(tmp_path / "new" / "losses.png", smooth, focal)
    assert [file.name for file in path.parent.iterdir()] == ["losses.png"]
    left, right = drawn[0].axes
    assert [line.get_label() for line in right.lines] == [r"$\gamma$ = 0", r"$\gamma$ = 5"]
    assert len(left.lines) == 9 and left.lines[2].get_ydata().tolist() == (3 * abs(x)).tolist()
    assert pixels(path).shape == (630, 1500, 3)


def test_a_file_in_the_way_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "losses.png").mkdir()
    for path in (tmp_path / "file" / "losses.png", tmp_path / "losses.png"):
        with pytest.raises(OSError):
            plot_losses(path, *LOSSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "losses.png"]


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path):
    import matplotlib

    before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    plot_training(tmp_path / "run.png", {"loss": [1.0, 0.5]})
    plot_losses(tmp_path / "losses.png", *LOSSES)
    assert (dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules) == (before, pyplot)


@pytest.mark.parametrize("draw", [lambda path: plot_training(path, {}), lambda path: plot_losses(path, *LOSSES)])
def test_a_missing_library_is_named(tmp_path, monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"multibox\[train\]"):
        draw(tmp_path / "run.png")
    assert not list(tmp_path.iterdir())
