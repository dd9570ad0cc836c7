"""NVIDIA's SSD300 over ResNet50, the reference of MLPerf."""

from multibox.presets.preset import COCO300_SIZES, IMAGENET_MEAN, IMAGENET_STD, Preset

SSD300_RESNET50 = Preset(
    "NVIDIA DeepLearningExamples, MLPerf; COCO anchors",
    {
        "model.backbone": "resnet50-300",
        "model.input_size": (300, 300),
        "model.mean": IMAGENET_MEAN,
        "model.std": IMAGENET_STD,
        "model.init": "torch",
        "anchors.style": "caffe",
        "anchors.sizes": COCO300_SIZES,
        "anchors.ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        "anchors.design_size": 300,
        "anchors.steps": (8, 16, 32, 64, 100, 300),
        "train.lr": 1e-3,
    },
)
