"""TinySSD of Dive into Deep Learning and of post B."""

from multibox.presets.preset import IMAGENET_MEAN, IMAGENET_STD, Preset

TINYSSD = Preset(
    "Dive into Deep Learning (MXNet), post B",
    {
        "model.backbone": "tinyssd",
        "model.input_size": (256, 256),
        "model.mean": IMAGENET_MEAN,
        "model.std": IMAGENET_STD,
        "anchors.style": "mxnet",
        "anchors.sizes": ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)),
        "anchors.ratios": ((1.0, 2.0, 0.5),) * 5,
        "anchors.fit": 4,
        "train.lr": 2e-3,
    },
)
