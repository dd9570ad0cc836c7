"""SSD over MobileNetV1 as TensorFlow's object detection API made it: the ancestor of most TF Lite detectors."""

import itertools

from multibox.presets.preset import Preset

_SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
"""0.2 to 0.95 over six maps, and 1 behind the last."""

_LEVELS = [(scale, (scale * following) ** 0.5) for scale, following in itertools.pairwise(_SCALES)]

SSD300_MOBILENETV1 = Preset(
    "TensorFlow object detection API, TF Lite",
    {
        "model.backbone": "mobilenetv1-tf",
        "model.input_size": (300, 300),
        "model.mean": (127.5, 127.5, 127.5),
        "model.std": (127.5, 127.5, 127.5),
        "model.heads": "conv1x1",
        "model.score": "sigmoid",
        "model.init": "torch",
        "anchors.style": "pairs",
        # The finest map has three anchors only ("reduced boxes in the lowest layer")
        "anchors.sizes": ((0.1, 0.2, 0.2), *((scale,) * 5 + (extra,) for scale, extra in _LEVELS[1:])),
        "anchors.ratios": ((1.0, 2.0, 0.5), *((1.0, 2.0, 0.5, 3.0, 0.3333, 1.0),) * 5),
        "loss.classification": "sigmoid_cross_entropy",
        "post.nms_threshold": 0.6,
        "post.max_detections": 100,
        "train.lr": 2e-3,
        "train.known_lr": 5e-5,
    },
)
