"""SSDLite over MobileNetV2 and MobileNetV3, as torchvision builds the latter."""

import itertools
from typing import Any

from multibox.presets.preset import Preset

_EDGES = (64.0, 112.0, 160.0, 208.0, 256.0, 304.0, 320.0)
"""Scales 0.2 to 0.95 of 320 pixels, and 1 behind the last."""

_SSDLITE: dict[str, Any] = {
    "model.input_size": (320, 320),
    "model.mean": (127.5, 127.5, 127.5),
    "model.std": (127.5, 127.5, 127.5),
    "model.heads": "ssdlite",
    "model.init": "torch",
    "anchors.style": "caffe",
    "anchors.sizes": tuple(itertools.pairwise(_EDGES)),
    "anchors.ratios": ((2, 3),) * 6,
    "anchors.design_size": 320,
    "anchors.clip_shapes": True,
    "post.score_threshold": 0.001,
    "post.nms_threshold": 0.55,
    "post.pre_nms_topk": 300,
    "post.max_detections": 300,
    "post.clip": "before_nms",
    "train.lr": 2e-3,
}

SSDLITE320_MOBILENETV2 = Preset(
    "MobileNetV2 paper's SSDLite, built as torchvision builds its V3",
    {**_SSDLITE, "model.backbone": "mobilenetv2"},
)

SSDLITE320_MOBILENETV3 = Preset(
    "torchvision ssdlite320_mobilenet_v3_large (reduced tail)",
    {**_SSDLITE, "model.backbone": "mobilenetv3"},
)
