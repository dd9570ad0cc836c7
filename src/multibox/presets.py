"""Presets (networks with their anchors) and recipes (how to train them), as data over the config's defaults.

Precedence: preset < recipe < `--set`. The field defaults of `Config` are TinySSD with post B's training.
"""

from typing import Any

from multibox.config import Config
from multibox.errors import ConfigError, did_you_mean

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

TINYSSD_SIZES = ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961))

PRESETS: dict[str, dict[str, Any]] = {
    "tinyssd": {
        "model.backbone": "tinyssd",
        "model.input_size": (256, 256),
        "anchors.style": "mxnet",
        "anchors.sizes": TINYSSD_SIZES,
        "anchors.ratios": ((1.0, 2.0, 0.5),) * 5,
    },
}

_D2L: dict[str, Any] = {
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
}

RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "model.mean": IMAGENET_MEAN,
        "model.std": IMAGENET_STD,
        "model.prior": 0.01,
        "anchors.fit": 4,
        "loss.classification": "cross_entropy",
        "loss.localization": "smooth_l1",
        "loss.normalizer": "positives",
        "loss.negative_ratio": 3.0,
        "train.epochs": 0,
        "train.steps": 700,
        "train.batch_size": 32,
        "train.optimizer": "adamw",
        "train.lr": 2e-3,
        "train.weight_decay": 0.05,
        "train.decay_norms_and_biases": False,
        "train.schedule": "cosine",
        "train.warmup": 0.05,
        "train.final_lr": 0.01,
        "train.clip_norm": 10.0,
        "train.ema": 0.998,
        "train.augmentation": "default",
    },
    "d2l": {**_D2L, "loss.classification": "cross_entropy", "loss.localization": "l1"},
    "d2l-focal": {
        **_D2L,
        "loss.classification": "focal",
        "loss.alpha": 0.25,
        "loss.gamma": 2.0,
        "loss.localization": "smooth_l1",
        "loss.sigma": 1.0,
        "train.batch_size": 8,
    },
}

FITS: dict[str, tuple[str, ...]] = {"default": ("tinyssd",), "d2l": ("tinyssd",), "d2l-focal": ("tinyssd",)}
"""Presets that each recipe was made for; others are refused."""


def resolve(preset: str, recipe: str = "default", changes: dict[str, Any] | None = None) -> Config:
    """Return the config of a preset trained by a recipe, with `changes` (dotted keys) on top.

    Raises:
        ConfigError: an unknown preset, recipe or key, or a recipe that does not fit the preset.
    """
    _check("preset", preset, PRESETS)
    _check("recipe", recipe, RECIPES)
    if preset not in FITS[recipe]:
        raise ConfigError(f"recipe {recipe!r} was made for {', '.join(FITS[recipe])}, not for preset {preset!r}")
    base = Config().updated({"preset": preset, "recipe": recipe})
    return base.updated(PRESETS[preset]).updated(RECIPES[recipe]).updated(changes or {})


def _check(kind: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
