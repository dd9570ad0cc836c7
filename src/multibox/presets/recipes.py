"""Recipes: how a preset is trained. A recipe's settings go above the preset's and below `--set`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Settings that belong together, and the presets they were made for."""

    fits: tuple[str, ...]
    """Presets; none stands for all."""
    settings: dict[str, Any]


_D2L: dict[str, Any] = {
    "model.mean": (0.0, 0.0, 0.0),
    "model.std": (1.0, 1.0, 1.0),
    "anchors.fit": 0,
    "matching.matcher": "bipartite",
    "matching.threshold": 0.5,
    "matching.inclusive": False,
    "loss.normalizer": "anchors",
    "train.epochs": 20,
    "train.batch_size": 32,
    "train.lr": 0.2,
    "train.momentum": 0.0,
    "train.weight_decay": 5e-4,
    "train.decay_norms_and_biases": True,
    "train.schedule": "constant",
    "train.augmentation": "d2l",
    "train.report": "d2l",
    "post.nms_threshold": 0.5,
    "post.multi_label": False,
}

RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        (),
        {
            "model.prior": 0.01,
            "loss.localization": "smooth_l1",
            "loss.normalizer": "positives",
            "loss.negative_ratio": 3.0,
            "train.epochs": 0,
            "train.steps": 700,
            "train.batch_size": 32,
            "train.optimizer": "adamw",
            "train.weight_decay": 0.05,
            "train.decay_norms_and_biases": False,
            "train.schedule": "cosine",
            "train.warmup": 0.05,
            "train.final_lr": 0.01,
            "train.clip_norm": 10.0,
            "train.ema": 0.998,
            "train.augmentation": "default",
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
