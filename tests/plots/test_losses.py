import builtins
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from multibox.errors import MissingExtraError
from multibox.losses.elementwise import focal_loss, smooth_l1
from multibox.plots.curves import Curve, plot_losses


def _curves() -> tuple[dict[float, Curve], dict[float, Curve]]:
    x = torch.linspace(-2, 2, 201)
    p = torch.linspace(0.01, 1, 100)
    logits = torch.stack([torch.zeros_like(p), torch.logit(p, eps=1e-7)], dim=-1)
    ones = torch.ones(len(p), dtype=torch.int64)
    smooth = {sigma: (x.numpy(), smooth_l1(x, torch.zeros_like(x), sigma).numpy()) for sigma in (10.0, 1.0, 0.5)}
    focal = {gamma: (p.numpy(), focal_loss(logits, ones, 1.0, gamma).numpy()) for gamma in (0.0, 1.0, 5.0)}
    return smooth, focal


def test_two_panels_are_drawn_in_colour_and_nothing_else_is_left(tmp_path):
    found = plot_losses(tmp_path / "losses.png", *_curves())
    assert [path.name for path in tmp_path.iterdir()] == ["losses.png"]
    pixels = np.asarray(Image.open(found).convert("RGB"))
    height, width, _ = pixels.shape
    assert width > 1000 and height > 400
    for half in (pixels[:, : width // 2], pixels[:, width // 2 :]):
        for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
            assert (half == color).all(-1).sum() > 50


def test_the_image_changes_with_the_curves(tmp_path):
    smooth, focal = _curves()
    one = plot_losses(tmp_path / "one.png", smooth, focal).read_bytes()
    flat = {gamma: (x, y * 0.5) for gamma, (x, y) in focal.items()}
    assert plot_losses(tmp_path / "two.png", smooth, flat).read_bytes() != one


@pytest.mark.slow
def test_pyplot_stays_out_of_it(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_losses(tmp_path / "losses.png", *_curves())
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"multibox\[train\]"):
        plot_losses(tmp_path / "losses.png", {}, {})
    assert list(tmp_path.iterdir()) == []


def test_folders_above_are_made(tmp_path):
    found = plot_losses(tmp_path / "new" / "losses.png", *_curves())
    assert found == tmp_path / "new" / "losses.png"
    assert [path.name for path in found.parent.iterdir()] == ["losses.png"]


def test_a_file_in_the_way_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        plot_losses(tmp_path / "file" / "losses.png", *_curves())
    (tmp_path / "losses.png").mkdir()
    with pytest.raises(OSError):
        plot_losses(tmp_path / "losses.png", *_curves())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "losses.png"]


def test_more_curves_than_colours_are_drawn(tmp_path):
    smooth, focal = _curves()
    many = {float(gamma): focal[0.0] for gamma in range(9)}
    assert plot_losses(tmp_path / "losses.png", smooth, many).is_file()
