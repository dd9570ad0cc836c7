"""Recipes: how a preset is trained.

A recipe's settings go above the preset's, its tuning for a preset above both, and `--config` and `--set` above all.
"""

from dataclasses import dataclass, field
from typing import Any

from multibox.presets.networks import COCO300_SIZES


@dataclass(frozen=True)
class Recipe:
    """Settings that belong together, and the presets they were made for."""

    fits: tuple[str, ...]
    """Presets; an empty tuple stands for all."""
    settings: dict[str, Any]
    tuning: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Settings that differ for a preset, by its name."""


_D2L: dict[str, Any] = {
    "model.mean": (0.0, 0.0, 0.0),
    "model.std": (1.0, 1.0, 1.0),
    "anchors.fit": "none",
    "matching.matcher": "bipartite",
    "matching.threshold": 0.5,
    "matching.inclusive": False,
    "loss.normalizer": "anchors",
    "train.epochs": 20,
    "train.batch_size": 32,
    "train.lr": 0.2,
    "train.momentum": 0.0,
    "train.weight_decay": 5e-4,
    "train.schedule": "constant",
    "train.augmentation": "d2l",
    "train.report": "d2l",
    "post.nms_threshold": 0.5,
    "post.nms_inclusive": True,
    # MXNet's nms_topk = -1: all 5444 anchors may enter suppression, and come out
    "post.pre_nms_topk": 5444,
    "post.max_detections": 5444,
    "post.clip": "before_nms",
    "post.multi_label": False,
}

_FROM_COCO: dict[str, Any] = {
    "model.score": "sigmoid",
    "matching.matcher": "task_aligned",
    "loss.classification": "varifocal",
    "loss.localization": "giou",
    "loss.localization_weight": 2.0,
    "loss.negative_ratio": "all",
    "train.steps": 600,
    "train.batch_size": 16,
}

_VGG = ("ssd300-vgg16", "ssd512-vgg16")

_PAPERS_LOSS: dict[str, Any] = {
    "loss.localization": "smooth_l1",
    "loss.normalizer": "positives",
    "loss.negative_ratio": 3.0,
}
_STEPS: dict[str, Any] = {
    **_PAPERS_LOSS,
    "model.init": "xavier",
    "train.steps": 120_000,
    "train.batch_size": 32,
    "train.lr": 1e-3,
    "train.momentum": 0.9,
    "train.schedule": "steps",
}

_CAFFE: dict[str, Any] = {
    **_STEPS,
    "train.weight_decay": 5e-4,
    "train.bias_decay": 0.0,
    "train.bias_lr": 2.0,
    "train.boundaries": (80_000 / 120_000, 100_000 / 120_000),
    "train.factors": (1.0, 0.1, 0.01),
    "train.augmentation": "caffe",
}

# HiKapok's, of each map
_SCALES = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9)
_EXTRA_SCALES = (0.1414, 0.2739, 0.4541, 0.6315, 0.8078, 0.9836)

_TORCHVISION: dict[str, Any] = {
    # Each object claims its best anchor, the other anchors the object they overlap most
    "matching.matcher": "dual_max",
    **_PAPERS_LOSS,
    "loss.negative_overlap": "any",
    "train.batch_size": 32,
    "train.momentum": 0.9,
    # 1000 steps, and never beyond the first epoch (warmup, a share of all steps, says so for each recipe)
    "train.warmup_steps": 1000,
    "post.clip": "before_nms",
}

RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        (),
        {
            "model.prior": 0.01,
            **_PAPERS_LOSS,
            # An image without objects teaches what is background
            "loss.minimum_negatives": 3,
            "train.steps": 700,
            "train.batch_size": 32,
            "train.optimizer": "adamw",
            "train.weight_decay": 0.05,
            "train.bias_decay": 0.0,
            "train.norm_decay": 0.0,
            "train.schedule": "cosine",
            "train.warmup": 0.05,
            "train.final_lr": 0.01,
            "train.clip_norm": 10.0,
            "train.ema": 0.998,
            "train.augmentation": "default",
        },
        # Found on validation data: docs/decisions.md
        tuning={"multibox-coco": _FROM_COCO, "multibox-fine": _FROM_COCO},
    ),
    "caffe": Recipe(_VGG, _CAFFE),
    "hikapok": Recipe(
        ("ssd300-vgg16",),
        {
            **_STEPS,
            "model.backbone": "vgg16-300-same",
            "model.mean": (123.68, 116.78, 103.94),
            "anchors.style": "hikapok",
            "anchors.sizes": tuple(zip(_EXTRA_SCALES, _SCALES, strict=True)),
            "anchors.ratios": ((1, 2, 0.5), *((1, 2, 3, 0.5, 0.3333),) * 3, (1, 2, 0.5), (1, 2, 0.5)),
            "matching.matcher": "dual_max",
            "loss.normalizer": "selected",
            # Every unmatched anchor is a candidate
            "loss.negative_overlap": "any",
            # The decay is a term of the loss, and the optimiser's is off
            "loss.l2_penalty": 5e-4,
            "train.weight_decay": 0.0,
            "train.boundaries": (501 / 120_000, 80_001 / 120_000, 100_001 / 120_000),
            "train.factors": (0.1, 1.0, 0.1, 0.01),
            "train.minimum_lr": 1e-6,
            "train.augmentation": "hikapok",
            "train.difficult": "drop",
            "train.seed": 20180503,
            "post.clip": "before_nms",
            "post.min_size": 0.03,
            "post.max_per_class": 200,
            # No limit over all classes: of VOC's 20, 200 each
            "post.max_detections": 4000,
        },
    ),
    "torchvision-ssd": Recipe(
        ("ssd300-vgg16",),
        {
            **_TORCHVISION,
            "model.init": "xavier",
            "model.mean": (0.48235 * 255, 0.45882 * 255, 0.40784 * 255),
            "anchors.sizes": COCO300_SIZES,
            "anchors.clip_shapes": True,
            "train.epochs": 120,
            "train.lr": 2e-3,
            "train.weight_decay": 5e-4,
            "train.schedule": "steps",
            "train.boundaries": (80 / 120, 110 / 120),
            "train.factors": (1.0, 0.1, 0.01),
            "train.warmup": 1 / 120,
            "train.augmentation": "torchvision-ssd",
        },
    ),
    "torchvision-ssdlite": Recipe(
        ("ssdlite320-mobilenetv3", "ssdlite320-mobilenetv2"),
        {
            **_TORCHVISION,
            "train.epochs": 660,
            "train.batch_size": 192,
            "train.lr": 0.15,
            "train.weight_decay": 4e-5,
            "train.schedule": "cosine",
            "train.warmup": 1 / 660,
            "train.augmentation": "torchvision-ssdlite",
        },
    ),
    "nvidia": Recipe(
        ("ssd300-resnet50",),
        {
            # Its own layers only; the backbone comes with ImageNet's weights
            "model.init": "xavier",
            "anchors.clip_shapes": True,
            "anchors.clip_centers": True,
            "matching.matcher": "dual_max",
            # Overlaps of exactly a half are not enough
            "matching.inclusive": False,
            "loss.localization": "smooth_l1",
            "loss.normalizer": "images",
            "loss.negative_ratio": 3.0,
            "loss.negative_overlap": "any",
            "train.epochs": 65,
            "train.batch_size": 32,
            "train.lr": 2.6e-3,
            "train.momentum": 0.9,
            "train.weight_decay": 5e-4,
            "train.bias_decay": 0.0,
            "train.norm_decay": 0.0,
            "train.schedule": "steps",
            "train.boundaries": (43 / 65, 54 / 65),
            "train.factors": (1.0, 0.1, 0.01),
            # 300 steps; a run whose epochs are shorter warms up for one epoch
            "train.warmup": 1 / 65,
            "train.warmup_steps": 300,
            "train.augmentation": "nvidia",
            "post.nms_threshold": 0.5,
            "post.nms_inclusive": True,
            "post.pre_nms_topk": 200,
            "post.score_threshold": 0.05,
        },
    ),
    "d2l": Recipe(("tinyssd",), {**_D2L, "loss.classification": "cross_entropy", "loss.localization": "l1"}),
    "d2l-focal": Recipe(
        ("tinyssd",),
        {
            **_D2L,
            "loss.classification": "focal",
            "loss.alpha": 0.25,
            "loss.gamma": 2.0,
            "loss.localization": "smooth_l1",
            "loss.sigma": 1.0,
            "train.batch_size": 8,
        },
    ),
}
