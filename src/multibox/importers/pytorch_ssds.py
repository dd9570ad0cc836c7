"""SSD300 over VGG16 of amdegroot's ssd.pytorch, a `.pth` state dict.

The network sees RGB: its transforms subtract Caffe's means in BGR order and swap the channels afterwards.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from multibox.errors import WeightsError
from multibox.importers.common import VOC, Rules, class_names, coco_names, finish, rename, require
from multibox.models.checkpoint import Checkpoint
from multibox.models.weights import read_state
from multibox.presets import resolve
from multibox.presets.networks import COCO300_SIZES

VGG_RULES: Rules = (
    (r"vgg\.31\.(.*)", r"backbone.fc6.\1"),
    (r"vgg\.33\.(.*)", r"backbone.fc7.\1"),
    (r"vgg\.(.*)", r"backbone.features.\1"),
    # Two convolutions a map, numbered through; ours count the map, and the ReLU between the two
    *((rf"extras\.{i}\.(.*)", rf"backbone.extras.{i // 2}.{i % 2 * 2}.\1") for i in range(10)),
)
"""Numbers of the body's layers, which lufficc's SSD shares."""

SSD_PYTORCH_RULES: Rules = (
    (r"L2Norm\.weight", "backbone.norm.scale"),
    (r"conf\.(.*)", r"heads.classification.\1"),
    (r"loc\.(.*)", r"heads.localization.\1"),
    *VGG_RULES,
)

SSD_PYTORCH_SETTINGS: dict[str, Any] = {
    "anchors.clip_shapes": True,
    "anchors.clip_centers": True,
    "post.pre_nms_topk": 200,
}
COCO_MOST = 201
"""Logits of the original's config for COCO; those behind the 81st mean nothing. Older versions said 81."""
VOC_LOGITS = 21


def read_ssd_pytorch(file: Path, names: list[str]) -> Checkpoint:
    """Read the weights; the number of classes tells whether the anchors are those of VOC or of COCO.

    Like the original, every count but VOC's 21 gets those of COCO.
    """
    state = read_state(file)
    what = "SSD300 of ssd.pytorch (other bodies, and the body alone, are not read)"
    require(state, "vgg.33.weight", file, what)
    require(state, "L2Norm.weight", file, what)
    logits = len(require(state, "conf.0.bias", file, what)) // 4
    coco = coco_names()
    spare = [f"unused {index}" for index in range(len(coco) + 1, COCO_MOST)]
    known = class_names(file, logits - 1, names, (VOC, coco, coco + spare))
    sizes = {} if logits == VOC_LOGITS else {"anchors.sizes": COCO300_SIZES}
    config = resolve("ssd300-vgg16", changes=SSD_PYTORCH_SETTINGS | sizes)
    return finish(file, config, known, rename(state, SSD_PYTORCH_RULES), f"ssd.pytorch, {file.name}")


LUFFICC_RULES: Rules = (
    (r"backbone\.l2_norm\.weight", "backbone.norm.scale"),
    (r"box_head\.predictor\.cls_headers\.(.*)", r"heads.classification.\1"),
    (r"box_head\.predictor\.reg_headers\.(.*)", r"heads.localization.\1"),
    *((rf"backbone\.{theirs}", ours) for theirs, ours in VGG_RULES),
)

LUFFICC_SETTINGS: dict[str, Any] = {
    "anchors.clip_shapes": True,
    "anchors.clip_centers": True,
    "post.max_detections": 100,
}
COCO_LOGITS = 81

_EDGES_512_VOC = (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.65)
"""The last is 537.6 in the paper's release."""
_EDGES_512_COCO = (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)


def read_lufficc(file: Path, names: list[str]) -> Checkpoint:
    """Read either network: SSD512 has more extra layers; the number of classes tells VOC's anchors from COCO's."""
    state = read_state(file)
    what = "SSD300 or SSD512 over VGG16 of lufficc's SSD (of its backbones only vgg is read)"
    require(state, "backbone.vgg.33.weight", file, what)
    logits = len(require(state, "box_head.predictor.cls_headers.0.bias", file, what)) // 4
    known = class_names(file, logits - 1, names, (VOC, coco_names()))
    large = "backbone.extras.9.weight" in state
    config = resolve("ssd512-vgg16" if large else "ssd300-vgg16", changes=LUFFICC_SETTINGS | _sizes(large, logits))
    return finish(file, config, known, rename(state, LUFFICC_RULES), f"lufficc's SSD, {file.name}")


def _sizes(large: bool, logits: int) -> dict[str, Any]:
    if large:
        edges = _EDGES_512_COCO if logits == COCO_LOGITS else _EDGES_512_VOC
        return {"anchors.sizes": tuple(pairwise(edges))}
    return {"anchors.sizes": COCO300_SIZES} if logits == COCO_LOGITS else {}


QFGAOHAO_RULES: Rules = (
    (r"base_net\.(.*)", r"backbone.layers.\1"),
    (r"extras\.(.*)", r"backbone.extras.\1"),
    (r"classification_headers\.(.*)", r"heads.classification.\1"),
    (r"regression_headers\.(.*)", r"heads.localization.\1"),
)

_EDGES = (60, 105, 150, 195, 240, 285, 330)
QFGAOHAO_SETTINGS: dict[str, Any] = {
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


def read_qfgaohao(file: Path, names: list[str]) -> Checkpoint:
    """Read mb1-ssd at 300x300; dusty-nv's fork can train at other sizes, which the weights do not tell."""
    state = read_state(file)
    _refuse_others(file, state)
    what = "mb1-ssd of pytorch-ssd (qfgaohao, dusty-nv)"
    require(state, "base_net.13.3.weight", file, what)
    logits = len(require(state, "classification_headers.0.bias", file, what)) // 6
    known = class_names(file, logits - 1, names, (VOC,))
    config = resolve("ssd300-mobilenetv1", changes=QFGAOHAO_SETTINGS)
    return finish(file, config, known, rename(state, QFGAOHAO_RULES), f"pytorch-ssd mb1-ssd, {file.name}")


def _refuse_others(file: Path, state: Mapping[str, Any]) -> None:
    for tensor, name in OTHERS.items():
        if tensor in state:
            raise WeightsError(
                f"{file} holds {tensor}, so it is {name}; of pytorch-ssd only mb1-ssd is read, "
                "which has base_net.13.3.weight and classification_headers.0.bias"
            )


LINZAER_RULES: Rules = (
    (r"base_net\.7\.ConvLinear\.conv\.(.*)", r"backbone.layers.7.join.0.\1"),
    (r"base_net\.7\.ConvLinear\.bn\.(.*)", r"backbone.layers.7.join.1.\1"),
    (r"base_net\.7\.(.*)\.conv\.(.*)", r"backbone.layers.7.\1.0.\2"),
    (r"base_net\.7\.(.*)\.bn\.(.*)", r"backbone.layers.7.\1.1.\2"),
    (r"base_net\.(.*)", r"backbone.layers.\1"),
    (r"extras\.0\.(.*)", r"backbone.extra.\1"),
    (r"classification_headers\.(.*)", r"heads.classification.\1"),
    (r"regression_headers\.(.*)", r"heads.localization.\1"),
)


def read_linzaer(file: Path, names: list[str]) -> Checkpoint:
    """Read the weights; class 0 of its two logits is the background, as ours is."""
    state = read_state(file)
    what = "an RFB face detector (the slim one has other layers)"
    require(state, "base_net.7.ConvLinear.conv.weight", file, what)
    logits = len(require(state, "classification_headers.0.2.bias", file, what)) // 3
    known = class_names(file, logits - 1, names, (["face"],))
    config = resolve("rfb320-face")
    return finish(file, config, known, rename(state, LINZAER_RULES), f"Linzaer's face detector, {file.name}", "MIT")
