"""Presets: networks with their anchors, preprocessing and post-processing, as settings over the config's defaults."""

import itertools
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """A network; a recipe, `--config` and `--set` go above its settings."""

    origin: str
    """Where its parts come from, in a line."""
    settings: Settings
    """By dotted key. `train.lr` is the peak learning rate of the default recipe."""


COCO300_SIZES = ((21, 45), (45, 99), (99, 153), (153, 207), (207, 261), (261, 315))
"""Caffe's anchors for COCO at 300 pixels, (min, max) of each map; torchvision, NVIDIA and others took them over."""

_IMAGENET: Settings = {"model.mean": (123.675, 116.28, 103.53), "model.std": (58.395, 57.12, 57.375)}
_MINUS_1_TO_1: Settings = {"model.mean": (127.5,) * 3, "model.std": (127.5,) * 3}

_CAFFE300: Settings = {
    "anchors.style": "caffe",
    "anchors.ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    "anchors.design_size": 300,
    "anchors.steps": (8, 16, 32, 64, 100, 300),
}
_VGG: Settings = {
    # Caffe's means of blue, green and red, here in RGB order; its pixels are not divided
    "model.mean": (123.0, 117.0, 104.0),
    "model.std": (1.0, 1.0, 1.0),
    # Caffe fills what its trained VGG16 lacks by Glorot's rule; from scratch, thirteen layers need He's
    "model.init": "kaiming",
    "anchors.style": "caffe",
    "train.lr": 3e-4,
}
_EDGES_512 = (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6)

# Scales 0.2 to 0.95 over six maps, and 1 after the last
_SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
_SCALE_PAIRS = [(scale, (scale * following) ** 0.5) for scale, following in itertools.pairwise(_SCALES)]
_MOBILENETV1: Settings = {
    "model.backbone": "mobilenetv1-tf",
    "model.input_size": (300, 300),
    **_MINUS_1_TO_1,
    "model.heads": "conv1x1",
    "model.score": "sigmoid",
    "model.init": "torch",
    "anchors.style": "pairs",
    # The finest map has three anchors only ("reduced boxes in the lowest layer")
    "anchors.sizes": ((0.1, 0.2, 0.2), *((scale,) * 5 + (extra,) for scale, extra in _SCALE_PAIRS[1:])),
    "anchors.ratios": ((1.0, 2.0, 0.5), *((1.0, 2.0, 0.5, 3.0, 0.3333, 1.0),) * 5),
    "loss.classification": "sigmoid_cross_entropy",
    "post.nms_threshold": 0.6,
    "post.max_detections": 100,
    "train.lr": 2e-3,
    "train.known_lr": 5e-5,
}

# Scales 0.2 to 0.95 of 320 pixels, and 1 after the last
_EDGES_320 = (64.0, 112.0, 160.0, 208.0, 256.0, 304.0, 320.0)
_SSDLITE: Settings = {
    "model.input_size": (320, 320),
    **_MINUS_1_TO_1,
    "model.heads": "ssdlite",
    "model.init": "torch",
    "anchors.style": "caffe",
    "anchors.sizes": tuple(itertools.pairwise(_EDGES_320)),
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

_FACES = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
"""Sides of the anchors of each map, in pixels of 240."""

_SIZES = (0.075, 0.15, 0.3, 0.6)
"""Of the shorter side, one per map; fitted to the training boxes before training."""
_MULTIBOX_S: Settings = {
    "model.backbone": "regnetx400-pyramid",
    "model.input_size": (320, 320),
    **_IMAGENET,
    "model.heads": "ssdlite",
    "model.init": "torch",
    "anchors.style": "pairs",
    "anchors.sizes": tuple((size, size * 2**0.5, size, size) for size in _SIZES),
    "anchors.ratios": ((1.0, 1.0, 2.0, 0.5),) * len(_SIZES),
    "anchors.fit": 4,
    "train.lr": 2e-3,
}

PRESETS: dict[str, Preset] = {
    "tinyssd": Preset(
        "Dive into Deep Learning (MXNet)",
        {
            "model.backbone": "tinyssd",
            "model.input_size": (256, 256),
            **_IMAGENET,
            "anchors.style": "mxnet",
            "anchors.sizes": ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)),
            "anchors.ratios": ((1.0, 2.0, 0.5),) * 5,
            "anchors.fit": 4,
            "train.lr": 2e-3,
        },
    ),
    "multibox-s": Preset("our own: RegNetX-400MF with a feature pyramid", _MULTIBOX_S),
    "multibox-coco": Preset(
        "our own: MobileNetV1 of the COCO SSD (TF Lite) with a feature pyramid",
        {
            **_MULTIBOX_S,
            "model.backbone": "mobilenetv1-pyramid",
            # What the published file has, and how it takes its images
            "model.width": 0.75,
            **_MINUS_1_TO_1,
            "train.weights": "coco",
        },
    ),
    "multibox-fine": Preset(
        "our own: the COCO SSD (TF Lite) with a finer map for small objects",
        {
            **_MOBILENETV1,
            "model.backbone": "mobilenetv1-fine",
            # What the published file has
            "model.width": 0.75,
            # The last entry is the finer map's, in shares of the shorter side
            "anchors.sizes": (*_MOBILENETV1["anchors.sizes"], (0.05, 0.075, 0.06, 0.06)),
            "anchors.ratios": (*_MOBILENETV1["anchors.ratios"], (1.0, 1.0, 2.0, 0.5)),
            "train.weights": "coco",
            # Wider than the COCO SSD's 300: small objects gain more than the steps cost
            "model.input_size": (320, 320),
            "train.lr": 1.5e-3,
            "train.largest_input": 448,
        },
    ),
    "ssd300-vgg16": Preset(
        "SSD paper, Caffe release (VOC)",
        {
            **_VGG,
            "model.backbone": "vgg16-300",
            "model.input_size": (300, 300),
            **_CAFFE300,
            "anchors.sizes": ((30, 60), (60, 111), (111, 162), (162, 213), (213, 264), (264, 315)),
        },
    ),
    "ssd512-vgg16": Preset(
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
    ),
    "ssd300-resnet50": Preset(
        "NVIDIA DeepLearningExamples, MLPerf; COCO anchors",
        {
            "model.backbone": "resnet50-300",
            "model.input_size": (300, 300),
            **_IMAGENET,
            "model.init": "torch",
            **_CAFFE300,
            "anchors.sizes": COCO300_SIZES,
            "train.lr": 1e-3,
        },
    ),
    "ssd300-mobilenetv1": Preset("TensorFlow object detection API, TF Lite", _MOBILENETV1),
    "ssdlite320-mobilenetv2": Preset(
        "MobileNetV2 paper's SSDLite, built as torchvision builds its V3",
        {**_SSDLITE, "model.backbone": "mobilenetv2"},
    ),
    "ssdlite320-mobilenetv3": Preset(
        "torchvision ssdlite320_mobilenet_v3_large (reduced tail)",
        {**_SSDLITE, "model.backbone": "mobilenetv3"},
    ),
    "rfb320-face": Preset(
        "Linzaer Ultra-Light-Fast-Generic-Face-Detector-1MB, RFB-320",
        {
            "model.backbone": "rfb320",
            "model.input_size": (240, 320),
            "model.mean": (127.0, 127.0, 127.0),
            "model.std": (128.0, 128.0, 128.0),
            "model.heads": "rfb",
            "model.init": "torch",
            "anchors.style": "pairs",
            "anchors.sizes": tuple(tuple(side / 240 for side in level) for level in _FACES),
            "anchors.ratios": tuple((1.0,) * len(level) for level in _FACES),
            "anchors.clip_shapes": True,
            "post.nms_threshold": 0.3,
            "train.lr": 2e-3,
        },
    ),
}
