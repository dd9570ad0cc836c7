"""SSD300 over VGG16 of amdegroot's ssd.pytorch, a `.pth` state dict.

The network sees RGB: its transforms subtract Caffe's means in BGR order and swap the channels afterwards.
"""

from pathlib import Path
from typing import Any

from multibox.importers.common import VOC, Rules, class_names, coco_names, finish, rename, require
from multibox.models.checkpoint import Checkpoint
from multibox.models.foreign import read_state
from multibox.presets import resolve
from multibox.presets.preset import COCO300_SIZES

VGG_RULES: Rules = (
    (r"vgg\.31\.(.*)", r"backbone.fc6.\1"),
    (r"vgg\.33\.(.*)", r"backbone.fc7.\1"),
    (r"vgg\.(.*)", r"backbone.features.\1"),
    # Two convolutions a map, numbered through; ours count the map, and the ReLU between the two
    *((rf"extras\.{i}\.(.*)", rf"backbone.extras.{i // 2}.{i % 2 * 2}.\1") for i in range(10)),
)
"""Numbers of the body's layers, which lufficc's SSD shares."""

RULES: Rules = (
    (r"L2Norm\.weight", "backbone.norm.scale"),
    (r"conf\.(.*)", r"heads.classification.\1"),
    (r"loc\.(.*)", r"heads.localization.\1"),
    *VGG_RULES,
)

SETTINGS: dict[str, Any] = {"anchors.clip_shapes": True, "anchors.clip_centers": True, "post.pre_nms_topk": 200}
COCO_MOST = 201
"""Logits of the original's config for COCO; those behind the 81st mean nothing. Older versions said 81."""
VOC_LOGITS = 21


def read(file: Path, names: list[str]) -> Checkpoint:
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
    config = resolve("ssd300-vgg16", changes=SETTINGS | sizes)
    return finish(file, config, known, rename(state, RULES), f"ssd.pytorch, {file.name}")
