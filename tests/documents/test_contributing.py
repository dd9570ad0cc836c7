"""What CONTRIBUTING shows is enough: its body joins the table and trains under anchors for two maps."""

import re
import textwrap
from pathlib import Path

import torch
from torch import Tensor, nn

from multibox.models import backbones
from multibox.models.backbones.layers import RoomyConv2d
from multibox.models.build import build_model
from multibox.presets import resolve

CONTRIBUTING = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_body_shown_is_a_body(monkeypatch):
    block = re.search(r" *```python\n(.*?) *```", CONTRIBUTING, re.DOTALL)
    assert block is not None
    names = {"nn": nn, "Tensor": Tensor, "RoomyConv2d": RoomyConv2d}
    exec(textwrap.dedent(block[1]), names)
    monkeypatch.setitem(backbones.FIXED, "two", names["Two"])
    changes = {
        "model.backbone": "two",
        "anchors.fit": "none",
        "anchors.sizes": [[0.2, 0.272], [0.37, 0.447]],
        "anchors.ratios": [[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]],
    }
    model = build_model(resolve("tinyssd", changes=changes), 3)
    outputs = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert outputs.feature_shapes == ((4, 6), (2, 3))
    assert outputs.logits.shape == (1, 4 * (24 + 6), 4)
