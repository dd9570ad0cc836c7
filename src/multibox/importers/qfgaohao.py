"""mb1-ssd, SSD300 over MobileNetV1, of qfgaohao's pytorch-ssd and of dusty-nv's fork (Jetson), a `.pth` state dict."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from multibox.errors import WeightsError
from multibox.importers.common import VOC, Rules, class_names, finish, rename, require
from multibox.models.checkpoint import Checkpoint
from multibox.models.foreign import read_state
from multibox.presets import resolve

RULES: Rules = (
    (r"base_net\.(.*)", r"backbone.layers.\1"),
    (r"extras\.(.*)", r"backbone.extras.\1"),
    (r"classification_headers\.(.*)", r"heads.classification.\1"),
    (r"regression_headers\.(.*)", r"heads.localization.\1"),
)

_EDGES = (60, 105, 150, 195, 240, 285, 330)
SETTINGS: dict[str, Any] = {
    "model.backbone": "mobilenetv1",
    "model.mean": (127.0, 127.0, 127.0),
    "model.std": (128.0, 128.0, 128.0),
    "model.heads": "conv3x3",
    "model.score": "softmax",
    "loss.classification": "cross_entropy",
    "anchors.style": "caffe",
    "anchors.sizes": tuple(pairwise(_EDGES)),
    "anchors.ratios": ((2, 3),) * 6,
    "anchors.design_size": 300,
    "anchors.steps": (16, 32, 64, 100, 150, 300),
    "anchors.clip_shapes": True,
    "anchors.clip_centers": True,
    "post.nms_threshold": 0.45,
    "post.pre_nms_topk": 200,
    "post.max_detections": 200,
}

OTHERS = {
    "source_layer_add_ons.0.scale": "vgg16-ssd",
    "base_net.1.conv.0.weight": "mb2-ssd-lite",
    "base_net.3.squeeze.weight": "sq-ssd-lite",
    "base_net.7.ConvLinear.conv.weight": "Linzaer's RFB face detector (import it as linzaer)",
    # The last one, since most of the others have it as well
    "classification_headers.0.0.weight": "mb1-ssd-lite or a relative",
}
"""Tensors by which the networks of the same family that are not read are known."""


def read(file: Path, names: list[str]) -> Checkpoint:
    """Read mb1-ssd at 300x300; dusty-nv's fork can train at other sizes, which the weights do not tell."""
    state = read_state(file)
    _refuse_others(file, state)
    what = "mb1-ssd of pytorch-ssd (qfgaohao, dusty-nv)"
    require(state, "base_net.13.3.weight", file, what)
    logits = len(require(state, "classification_headers.0.bias", file, what)) // 6
    known = class_names(file, logits - 1, names, (VOC,))
    config = resolve("ssd300-mobilenetv1", changes=SETTINGS)
    return finish(file, config, known, rename(state, RULES), f"pytorch-ssd mb1-ssd, {file.name}")


def _refuse_others(file: Path, state: Mapping[str, Any]) -> None:
    for tensor, name in OTHERS.items():
        if tensor in state:
            raise WeightsError(
                f"{file} holds {tensor}, so it is {name}; of pytorch-ssd only mb1-ssd is read, "
                "which has base_net.13.3.weight and classification_headers.0.bias"
            )
