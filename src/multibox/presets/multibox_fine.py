"""multibox-fine: the COCO SSD with one finer map, to be started from its weights; the default preset."""

from typing import Any

from multibox.presets.mobilenetv1 import SSD300_MOBILENETV1
from multibox.presets.preset import Preset

_COCO: dict[str, Any] = SSD300_MOBILENETV1.settings

MULTIBOX_FINE = Preset(
    "our own: the COCO SSD (TF Lite) with a finer map for small objects",
    {
        **_COCO,
        "model.backbone": "mobilenetv1-fine",
        # What the published file has
        "model.width": 0.75,
        # The last entry is the finer map's, in shares of the shorter side
        "anchors.sizes": (*_COCO["anchors.sizes"], (0.05, 0.075, 0.06, 0.06)),
        "anchors.ratios": (*_COCO["anchors.ratios"], (1.0, 1.0, 2.0, 0.5)),
        "train.weights": "coco",
        # Wider than the COCO SSD's 300: small objects gain more than the steps cost
        "model.input_size": (320, 320),
        "train.lr": 1.5e-3,
        "train.known_lr": 5e-5,
        "train.largest_input": 448,
    },
)
