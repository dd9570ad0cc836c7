"""torchvision's two SSDs, `ssd300_vgg16` and `ssdlite320_mobilenet_v3_large`, as state dicts."""

from pathlib import Path

from torch import Tensor

from multibox.importers.common import Rules, class_names, coco_names, finish, rename, require
from multibox.models.checkpoint import Checkpoint
from multibox.models.weights import read_state
from multibox.presets import resolve

HEADS: Rules = (
    (r"head\.classification_head\.module_list\.(.*)", r"heads.classification.\1"),
    (r"head\.regression_head\.module_list\.(.*)", r"heads.localization.\1"),
)
TAP = 13
"""Block of MobileNetV3 that torchvision cuts in two."""
FULL_TAIL = 960
"""Channels of its last layer where the last stage is not halved."""
POOL4 = 23
"""First layer behind conv4_3; torchvision counts again from there."""
CONVS_BEHIND_POOL4 = (1, 3, 5)

VGG_RULES: Rules = (
    (r"backbone\.scale_weight", "backbone.norm.scale"),
    (r"backbone\.(features\..*)", r"backbone.\1"),
    *((rf"backbone\.extra\.0\.{i}\.(.*)", rf"backbone.features.{i + POOL4}.\1") for i in CONVS_BEHIND_POOL4),
    (r"backbone\.extra\.0\.7\.1\.(.*)", r"backbone.fc6.\1"),
    (r"backbone\.extra\.0\.7\.3\.(.*)", r"backbone.fc7.\1"),
    *((rf"backbone\.extra\.{i + 1}\.(.*)", rf"backbone.extras.{i}.\1") for i in range(4)),
    *HEADS,
)

SSDLITE_RULES: Rules = (
    (rf"backbone\.features\.0\.{TAP}\.(.*)", rf"backbone.features.{TAP}.block.0.\1"),
    (r"backbone\.features\.0\.(.*)", r"backbone.features.\1"),
    (r"backbone\.features\.1\.0\.(.*)", rf"backbone.features.{TAP}.block.\1"),
    *((rf"backbone\.features\.1\.{i}\.(.*)", rf"backbone.features.{TAP + i}.\1") for i in range(1, 4)),
    (r"backbone\.extra\.(.*)", r"backbone.extras.\1"),
    *HEADS,
)


def read(file: Path, names: list[str]) -> Checkpoint:
    """Read either network; which one is told by its layers."""
    state = read_state(file)
    return _ssd300(file, state, names) if "backbone.scale_weight" in state else _ssdlite(file, state, names)


def _ssd300(file: Path, state: dict[str, Tensor], names: list[str]) -> Checkpoint:
    logits = len(require(state, "head.classification_head.module_list.0.bias", file, "torchvision's SSD300")) // 4
    known = class_names(file, logits - 1, names, (coco_names(gaps=True),))
    config = resolve("ssd300-vgg16", "torchvision-ssd")
    return finish(file, config, known, rename(state, VGG_RULES), f"torchvision ssd300_vgg16, {file.name}")


def _ssdlite(file: Path, state: dict[str, Tensor], names: list[str]) -> Checkpoint:
    first = "head.classification_head.module_list.0.1.bias"
    logits = len(require(state, first, file, "a torchvision SSD300 or SSDLite320")) // 6
    known = class_names(file, logits - 1, names, (coco_names(gaps=True),))
    renamed = rename(state, SSDLITE_RULES)
    # Fine-tuned from ImageNet, torchvision keeps the body's last stage whole
    last = renamed.get("backbone.features.16.0.weight")
    full = {"model.backbone": "mobilenetv3-full"} if last is not None and len(last) == FULL_TAIL else {}
    config = resolve("ssdlite320-mobilenetv3", "torchvision-ssdlite", full)
    return finish(file, config, known, renamed, f"torchvision ssdlite320_mobilenet_v3_large, {file.name}")
