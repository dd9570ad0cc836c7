"""multibox-s: our own light detector, under 10^9 multiply-adds at 320x320, for small data on small machines."""

from multibox.presets.preset import IMAGENET_MEAN, IMAGENET_STD, Preset

_SIZES = (0.075, 0.15, 0.3, 0.6)
"""Of the shorter side, one a map; fitted to the training boxes before training."""

MULTIBOX_S = Preset(
    "our own: RegNetX-400MF trunk, feature pyramid",
    {
        "model.backbone": "regnetx400-pyramid",
        "model.input_size": (320, 320),
        "model.mean": IMAGENET_MEAN,
        "model.std": IMAGENET_STD,
        "model.heads": "ssdlite",
        "model.init": "torch",
        "anchors.style": "pairs",
        "anchors.sizes": tuple((size, size * 2**0.5, size, size) for size in _SIZES),
        "anchors.ratios": ((1.0, 1.0, 2.0, 0.5),) * len(_SIZES),
        "anchors.fit": 4,
        "train.lr": 2e-3,
    },
)
