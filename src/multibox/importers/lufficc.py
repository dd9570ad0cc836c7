"""SSD300 and SSD512 over VGG16 of lufficc's SSD, a `.pth` checkpoint with the weights under `model`."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from multibox.importers.common import VOC, Rules, class_names, coco_names, finish, rename, require
from multibox.importers.ssd_pytorch import VGG_RULES
from multibox.models.checkpoint import Checkpoint
from multibox.models.foreign import read_state
from multibox.presets import resolve
from multibox.presets.preset import COCO300_SIZES

RULES: Rules = (
    (r"backbone\.l2_norm\.weight", "backbone.norm.scale"),
    (r"box_head\.predictor\.cls_headers\.(.*)", r"heads.classification.\1"),
    (r"box_head\.predictor\.reg_headers\.(.*)", r"heads.localization.\1"),
    *((rf"backbone\.{theirs}", ours) for theirs, ours in VGG_RULES),
)

SETTINGS: dict[str, Any] = {"anchors.clip_shapes": True, "anchors.clip_centers": True, "post.max_detections": 100}
COCO_LOGITS = 81

_EDGES_512_VOC = (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.65)
"""The last is 537.6 in the paper's release."""
_EDGES_512_COCO = (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)


def read(file: Path, names: list[str]) -> Checkpoint:
    """Read either network: SSD512 has more extra layers; the number of classes tells VOC's anchors from COCO's."""
    state = read_state(file)
    what = "SSD300 or SSD512 over VGG16 of lufficc's SSD (of its backbones only vgg is read)"
    require(state, "backbone.vgg.33.weight", file, what)
    logits = len(require(state, "box_head.predictor.cls_headers.0.bias", file, what)) // 4
    known = class_names(file, logits - 1, names, (VOC, coco_names()))
    large = "backbone.extras.9.weight" in state
    config = resolve("ssd512-vgg16" if large else "ssd300-vgg16", changes=SETTINGS | _sizes(large, logits))
    return finish(file, config, known, rename(state, RULES), f"lufficc's SSD, {file.name}")


def _sizes(large: bool, logits: int) -> dict[str, Any]:
    if large:
        edges = _EDGES_512_COCO if logits == COCO_LOGITS else _EDGES_512_VOC
        return {"anchors.sizes": tuple(pairwise(edges))}
    return {"anchors.sizes": COCO300_SIZES} if logits == COCO_LOGITS else {}
