"""multibox-coco: the pyramid of multibox-s over the trunk of TensorFlow's COCO SSD, to be started from its weights."""

from multibox.presets.multibox_s import MULTIBOX_S
from multibox.presets.preset import Preset

MULTIBOX_COCO = Preset(
    "our own: MobileNetV1 trunk of the COCO SSD (TF Lite), feature pyramid",
    {
        **MULTIBOX_S.settings,
        "model.backbone": "mobilenetv1-pyramid",
        # What the published file has, and how it takes its pictures
        "model.width": 0.75,
        "model.mean": (127.5, 127.5, 127.5),
        "model.std": (127.5, 127.5, 127.5),
        "train.weights": "coco",
    },
)
