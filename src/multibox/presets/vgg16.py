"""The paper's networks: SSD300 and SSD512 over VGG16, with the anchors of the released Caffe code for VOC."""

import itertools
from typing import Any

from multibox.presets.preset import Preset

_VGG: dict[str, Any] = {
    # Caffe's means of blue, green and red, here in RGB order; its pixels are not divided
    "model.mean": (123.0, 117.0, 104.0),
    "model.std": (1.0, 1.0, 1.0),
    # Caffe fills what its trained VGG16 lacks by Glorot's rule; from scratch, thirteen layers need He's
    "model.init": "kaiming",
    "anchors.style": "caffe",
    "train.lr": 3e-4,
}

SSD300_VGG16 = Preset(
    "SSD paper, Caffe release (VOC)",
    {
        **_VGG,
        "model.backbone": "vgg16-300",
        "model.input_size": (300, 300),
        "anchors.sizes": ((30, 60), (60, 111), (111, 162), (162, 213), (213, 264), (264, 315)),
        "anchors.ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        "anchors.design_size": 300,
        "anchors.steps": (8, 16, 32, 64, 100, 300),
    },
)

_EDGES_512 = (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6)

SSD512_VGG16 = Preset(
    "SSD paper, Caffe release (VOC)",
    {
        **_VGG,
        "model.backbone": "vgg16-512",
        "model.input_size": (512, 512),
        "anchors.sizes": tuple(itertools.pairwise(_EDGES_512)),
        "anchors.ratios": ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        "anchors.design_size": 512,
        "anchors.steps": (8, 16, 32, 64, 128, 256, 512),
    },
)
