"""State dicts of PyTorch projects: torchvision, ssd.pytorch, lufficc's SSD, pytorch-ssd and Linzaer's face detector.

Each reader asks for the tensors that tell its network, counts the classes by the bias of the first class head, and
renames the rest. The number of classes often tells the data set, and so the anchors, that a network was trained with.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from multibox.errors import WeightsError
from multibox.importers.common import VOC, Rules, coco_names, finish, name_classes, rename, require
from multibox.models.checkpoint import Checkpoint
from multibox.models.weights import read_state
from multibox.presets import resolve
from multibox.presets.networks import COCO300_SIZES

VOC_LOGITS, COCO_LOGITS = 21, 81
CLIPPED: dict[str, Any] = {"anchors.clip_shapes": True, "anchors.clip_centers": True}
"""All but torchvision's and Linzaer's cut centre, width and height of anchors to 0 to 1."""


def _logits(state: Mapping[str, Tensor], file: Path, what: str, per_cell: int, *needed: str) -> int:
    """Return the logits per anchor; of the tensors needed, the last is the bias for `per_cell` anchors of a cell."""
    *_, bias = (require(state, name, file, what) for name in needed)
    return len(bias) // per_cell


_POOL4, _TAP = 23, 13
"""torchvision counts VGG16's layers again after conv4_3, and cuts block 13 of MobileNetV3 in two."""
_FULL_TAIL = 960
"""Channels of MobileNetV3's last layer where the last stage is not halved."""
_TORCHVISION_HEADS: Rules = (
    (r"head\.classification_head\.module_list\.(.*)", r"heads.classification.\1"),
    (r"head\.regression_head\.module_list\.(.*)", r"heads.localization.\1"),
)
TORCHVISION_SSD300: Rules = (
    (r"backbone\.scale_weight", "backbone.norm.scale"),
    (r"backbone\.(features\..*)", r"backbone.\1"),
    *((rf"backbone\.extra\.0\.{i}\.(.*)", rf"backbone.features.{i + _POOL4}.\1") for i in (1, 3, 5)),
    (r"backbone\.extra\.0\.7\.1\.(.*)", r"backbone.fc6.\1"),
    (r"backbone\.extra\.0\.7\.3\.(.*)", r"backbone.fc7.\1"),
    *((rf"backbone\.extra\.{i + 1}\.(.*)", rf"backbone.extras.{i}.\1") for i in range(4)),
    *_TORCHVISION_HEADS,
)
TORCHVISION_SSDLITE: Rules = (
    (rf"backbone\.features\.0\.{_TAP}\.(.*)", rf"backbone.features.{_TAP}.block.0.\1"),
    (r"backbone\.features\.0\.(.*)", r"backbone.features.\1"),
    (r"backbone\.features\.1\.0\.(.*)", rf"backbone.features.{_TAP}.block.\1"),
    *((rf"backbone\.features\.1\.{i}\.(.*)", rf"backbone.features.{_TAP + i}.\1") for i in range(1, 4)),
    (r"backbone\.extra\.(.*)", r"backbone.extras.\1"),
    *_TORCHVISION_HEADS,
)


def read_torchvision(file: Path, class_names: list[str]) -> Checkpoint:
    """Read torchvision's ssd300_vgg16 or ssdlite320_mobilenet_v3_large; its layers tell which one."""
    state = read_state(file)
    if "backbone.scale_weight" in state:
        source, rules = "torchvision ssd300_vgg16", TORCHVISION_SSD300
        bias = "head.classification_head.module_list.0.bias"
        logits = _logits(state, file, "torchvision's SSD300", 4, bias)
        config = resolve("ssd300-vgg16", "torchvision-ssd")
    else:
        source, rules = "torchvision ssdlite320_mobilenet_v3_large", TORCHVISION_SSDLITE
        bias = "head.classification_head.module_list.0.1.bias"
        logits = _logits(state, file, "a torchvision SSD300 or SSDLite320", 6, bias)
        # Fine-tuned from ImageNet, torchvision keeps the backbone's last stage whole
        last = state.get("backbone.features.1.3.0.weight")
        full = {"model.backbone": "mobilenetv3-full"} if last is not None and len(last) == _FULL_TAIL else {}
        config = resolve("ssdlite320-mobilenetv3", "torchvision-ssdlite", full)
    classes = name_classes(file, logits - 1, class_names, (coco_names(gaps=True),))
    return finish(file, config, classes, rename(state, rules), f"{source}, {file.name}")


_VGG: Rules = (
    (r"vgg\.31\.(.*)", r"backbone.fc6.\1"),
    (r"vgg\.33\.(.*)", r"backbone.fc7.\1"),
    (r"vgg\.(.*)", r"backbone.features.\1"),
    # Two convolutions per map, numbered through; ours count the map, and the ReLU between the two
    *((rf"extras\.{i}\.(.*)", rf"backbone.extras.{i // 2}.{i % 2 * 2}.\1") for i in range(10)),
)
"""Layers of the backbone, which lufficc's SSD numbers as ssd.pytorch does."""
_SSD_PYTORCH: Rules = (
    (r"L2Norm\.weight", "backbone.norm.scale"),
    (r"conf\.(.*)", r"heads.classification.\1"),
    (r"loc\.(.*)", r"heads.localization.\1"),
    *_VGG,
)
_MOST = 201
"""Logits of ssd.pytorch's config for COCO; those from the 82nd on mean nothing. Older versions said 81."""


def read_ssd_pytorch(file: Path, class_names: list[str]) -> Checkpoint:
    """Read SSD300 of amdegroot's ssd.pytorch. As there, every number of classes but VOC's gets the anchors of COCO.

    The network sees RGB: the original subtracts Caffe's means in BGR order and swaps the channels afterwards.
    """
    state = read_state(file)
    what = "SSD300 of ssd.pytorch (other backbones, and the backbone alone, are not read)"
    logits = _logits(state, file, what, 4, "vgg.33.weight", "L2Norm.weight", "conf.0.bias")
    coco = coco_names()
    spare = [f"unused {index}" for index in range(len(coco) + 1, _MOST)]
    classes = name_classes(file, logits - 1, class_names, (VOC, coco, coco + spare))
    sizes = {} if logits == VOC_LOGITS else {"anchors.sizes": COCO300_SIZES}
    config = resolve("ssd300-vgg16", changes={**CLIPPED, "post.pre_nms_topk": 200, **sizes})
    return finish(file, config, classes, rename(state, _SSD_PYTORCH), f"ssd.pytorch, {file.name}")


_LUFFICC: Rules = (
    (r"backbone\.l2_norm\.weight", "backbone.norm.scale"),
    (r"box_head\.predictor\.cls_headers\.(.*)", r"heads.classification.\1"),
    (r"box_head\.predictor\.reg_headers\.(.*)", r"heads.localization.\1"),
    *((rf"backbone\.{theirs}", ours) for theirs, ours in _VGG),
)
_EDGES_512_VOC = (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.65)
"""The last is 537.6 in the paper's release."""
_EDGES_512_COCO = (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)


def read_lufficc(file: Path, class_names: list[str]) -> Checkpoint:
    """Read SSD300 or SSD512 of lufficc's SSD: the larger one has more extra layers, and COCO's 81 logits tell it."""
    state = read_state(file)
    what = "SSD300 or SSD512 over VGG16 of lufficc's SSD (of its backbones only vgg is read)"
    bias = "box_head.predictor.cls_headers.0.bias"
    logits = _logits(state, file, what, 4, "backbone.vgg.33.weight", bias)
    classes = name_classes(file, logits - 1, class_names, (VOC, coco_names()))
    coco, changes = logits == COCO_LOGITS, {**CLIPPED, "post.max_detections": 100}
    if "backbone.extras.9.weight" in state:
        preset = "ssd512-vgg16"
        changes["anchors.sizes"] = tuple(pairwise(_EDGES_512_COCO if coco else _EDGES_512_VOC))
    else:
        preset = "ssd300-vgg16"
        changes |= {"anchors.sizes": COCO300_SIZES} if coco else {}
    config = resolve(preset, changes=changes)
    return finish(file, config, classes, rename(state, _LUFFICC), f"lufficc's SSD, {file.name}")


_PYTORCH_SSD_HEADS: Rules = (
    (r"classification_headers\.(.*)", r"heads.classification.\1"),
    (r"regression_headers\.(.*)", r"heads.localization.\1"),
)
_QFGAOHAO: Rules = (
    (r"base_net\.(.*)", r"backbone.layers.\1"),
    (r"extras\.(.*)", r"backbone.extras.\1"),
    *_PYTORCH_SSD_HEADS,
)
_QFGAOHAO_SETTINGS: dict[str, Any] = {
    "model.backbone": "mobilenetv1",
    "model.mean": (127.0, 127.0, 127.0),
    "model.std": (128.0, 128.0, 128.0),
    "model.heads": "conv3x3",
    "model.score": "softmax",
    "loss.classification": "cross_entropy",
    "anchors.style": "caffe",
    "anchors.sizes": tuple(pairwise((60, 105, 150, 195, 240, 285, 330))),
    "anchors.ratios": ((2, 3),) * 6,
    "anchors.design_size": 300,
    "anchors.steps": (16, 32, 64, 100, 150, 300),
    **CLIPPED,
    "post.nms_threshold": 0.45,
    "post.pre_nms_topk": 200,
    "post.max_detections": 200,
}
_RELATIVES = {
    "source_layer_add_ons.0.scale": "vgg16-ssd",
    "base_net.1.conv.0.weight": "mb2-ssd-lite",
    "base_net.3.squeeze.weight": "sq-ssd-lite",
    "base_net.7.ConvLinear.conv.weight": "Linzaer's RFB face detector (import it as linzaer)",
    # The last one, since most of the others have it as well
    "classification_headers.0.0.weight": "mb1-ssd-lite or a relative",
}
"""Tensors that tell the networks of pytorch-ssd that are not read."""


def read_qfgaohao(file: Path, class_names: list[str]) -> Checkpoint:
    """Read mb1-ssd of pytorch-ssd at 300x300. dusty-nv's fork can train at other sizes; the weights do not tell."""
    state = read_state(file)
    for tensor, name in _RELATIVES.items():
        if tensor in state:
            raise WeightsError(
                f"{file} holds {tensor}, so it is {name}; of pytorch-ssd only mb1-ssd is read, "
                "which has base_net.13.3.weight and classification_headers.0.bias"
            )
    what, needed = (
        "mb1-ssd of pytorch-ssd (qfgaohao, dusty-nv)",
        ("base_net.13.3.weight", "classification_headers.0.bias"),
    )
    classes = name_classes(file, _logits(state, file, what, 6, *needed) - 1, class_names, (VOC,))
    config = resolve("ssd300-mobilenetv1", changes=_QFGAOHAO_SETTINGS)
    return finish(file, config, classes, rename(state, _QFGAOHAO), f"pytorch-ssd mb1-ssd, {file.name}")


_LINZAER: Rules = (
    (r"base_net\.7\.ConvLinear\.conv\.(.*)", r"backbone.layers.7.join.0.\1"),
    (r"base_net\.7\.ConvLinear\.bn\.(.*)", r"backbone.layers.7.join.1.\1"),
    (r"base_net\.7\.(.*)\.conv\.(.*)", r"backbone.layers.7.\1.0.\2"),
    (r"base_net\.7\.(.*)\.bn\.(.*)", r"backbone.layers.7.\1.1.\2"),
    (r"base_net\.(.*)", r"backbone.layers.\1"),
    (r"extras\.0\.(.*)", r"backbone.extra.\1"),
    *_PYTORCH_SSD_HEADS,
)


def read_linzaer(file: Path, class_names: list[str]) -> Checkpoint:
    """Read Linzaer's RFB-320 face detector; class 0 of its two logits is the background, as ours is."""
    state = read_state(file)
    what = "an RFB face detector (the slim one has other layers)"
    needed = ("base_net.7.ConvLinear.conv.weight", "classification_headers.0.2.bias")
    classes = name_classes(file, _logits(state, file, what, 3, *needed) - 1, class_names, (["face"],))
    config = resolve("rfb320-face")
    return finish(file, config, classes, rename(state, _LINZAER), f"Linzaer's face detector, {file.name}", "MIT")
