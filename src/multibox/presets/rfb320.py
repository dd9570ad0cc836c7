"""Linzaer's ultra-light face detector, one class, 320x240."""

from multibox.presets.preset import Preset

_PIXELS = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))

RFB320_FACE = Preset(
    "Linzaer Ultra-Light-Fast-Generic-Face-Detector-1MB, RFB-320",
    {
        "model.backbone": "rfb320",
        "model.input_size": (240, 320),
        "model.mean": (127.0, 127.0, 127.0),
        "model.std": (128.0, 128.0, 128.0),
        "model.heads": "rfb",
        "model.init": "torch",
        "anchors.style": "pairs",
        "anchors.sizes": tuple(tuple(side / 240 for side in level) for level in _PIXELS),
        "anchors.ratios": tuple((1.0,) * len(level) for level in _PIXELS),
        "anchors.clip_shapes": True,
        "post.nms_threshold": 0.3,
        "train.lr": 2e-3,
    },
)
