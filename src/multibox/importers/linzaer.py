"""Linzaer's RFB-320 face detector, a `.pth` state dict."""

from pathlib import Path

from multibox.importers.common import Rules, class_names, finish, rename, require
from multibox.models.checkpoint import Checkpoint
from multibox.models.foreign import read_state
from multibox.presets import resolve

RULES: Rules = (
    (r"base_net\.7\.ConvLinear\.conv\.(.*)", r"backbone.layers.7.join.0.\1"),
    (r"base_net\.7\.ConvLinear\.bn\.(.*)", r"backbone.layers.7.join.1.\1"),
    (r"base_net\.7\.(.*)\.conv\.(.*)", r"backbone.layers.7.\1.0.\2"),
    (r"base_net\.7\.(.*)\.bn\.(.*)", r"backbone.layers.7.\1.1.\2"),
    (r"base_net\.(.*)", r"backbone.layers.\1"),
    (r"extras\.0\.(.*)", r"backbone.extra.\1"),
    (r"classification_headers\.(.*)", r"heads.classification.\1"),
    (r"regression_headers\.(.*)", r"heads.localization.\1"),
)


def read(file: Path, names: list[str]) -> Checkpoint:
    """Read the weights; class 0 of its two logits is the background, as ours is."""
    state = read_state(file)
    what = "an RFB face detector (the slim one has other layers)"
    require(state, "base_net.7.ConvLinear.conv.weight", file, what)
    logits = len(require(state, "classification_headers.0.2.bias", file, what)) // 3
    known = class_names(file, logits - 1, names, (["face"],))
    config = resolve("rfb320-face")
    return finish(file, config, known, rename(state, RULES), f"Linzaer's face detector, {file.name}", "MIT")
