"""Every line of every recipe, written down a second time from the originals.

Not from `recipes.py`: of Caffe, HiKapok, d2l and post B from the project's page of facts (its sections stand behind the
values), of torchvision and NVIDIA from their code and training scripts. A line that is removed or changed, and one that
is added without being written down here, fails. What the lines do is in `test_recipe_behaviour.py`.
"""

from typing import Any

import pytest

from multibox.presets import RECIPES, fitting, resolve

VGG_STEPS: dict[str, Any] = {
    "model.init": "xavier",  # 1.1: Glorot's rule, biases 0
    "loss.localization": "smooth_l1",  # 5.2
    "loss.negative_ratio": 3.0,  # 6
    "train.steps": 120_000,  # 9
    "train.batch_size": 32,
    "train.lr": 1e-3,
    "train.momentum": 0.9,
    "train.schedule": "steps",
}
D2L: dict[str, Any] = {
    "model.mean": (0.0, 0.0, 0.0),  # 1.4: raw pixels
    "model.std": (1.0, 1.0, 1.0),
    "anchors.fit": "none",  # 2.3: the preset's sizes
    "matching.matcher": "bipartite",  # 3.3
    "matching.threshold": 0.5,
    "matching.inclusive": False,  # 3.3.2: strictly above
    "loss.normalizer": "anchors",  # 5.2
    "train.epochs": 20,  # 9
    "train.lr": 0.2,
    "train.momentum": 0.0,
    "train.weight_decay": 5e-4,
    "train.schedule": "constant",
    "train.augmentation": "d2l",  # 8.3
    "train.report": "d2l",  # 13
    "post.nms_threshold": 0.5,  # 11
    "post.nms_inclusive": True,  # 11: IoU >= threshold goes
    "post.pre_nms_topk": 5444,  # 11: nms_topk -1; 1.4: all anchors of TinySSD
    "post.max_detections": 5444,
    "post.clip": "before_nms",  # 4: clip is the decoder's
    "post.multi_label": False,  # 11: the best class of an anchor only
}
TORCHVISION: dict[str, Any] = {
    "matching.matcher": "dual_max",  # _utils.SSDMatcher
    "loss.localization": "smooth_l1",  # ssd.SSD.compute_loss
    "loss.normalizer": "positives",
    "loss.negative_ratio": 3.0,  # positive_fraction 0.25
    "loss.negative_overlap": "any",  # every unmatched anchor
    "train.momentum": 0.9,  # references/detection/train.py
    "train.warmup_steps": 1000,  # references/detection/engine.py: min(1000, steps of the first epoch - 1)
    "post.clip": "before_nms",  # ssd.SSD.postprocess_detections
}
COCO_SIZES = ((21, 45), (45, 99), (99, 153), (153, 207), (207, 261), (261, 315))

EXPECTED: dict[str, dict[str, Any]] = {
    "caffe": {
        **VGG_STEPS,
        "loss.normalizer": "positives",  # 5.4: VALID
        "train.weight_decay": 5e-4,  # 7
        "train.bias_decay": 0.0,  # 7
        "train.bias_lr": 2.0,  # 7
        "train.boundaries": (80_000 / 120_000, 100_000 / 120_000),  # 9: from the very step
        "train.factors": (1.0, 0.1, 0.01),
        "train.augmentation": "caffe",  # 8
    },
    "hikapok": {
        **VGG_STEPS,
        "model.backbone": "vgg16-300-same",  # 1.1: asymmetric padding
        "model.mean": (123.68, 116.78, 103.94),  # 8.6
        "anchors.style": "hikapok",  # 2.2
        "anchors.sizes": (
            (0.1414, 0.1),
            (0.2739, 0.2),
            (0.4541, 0.375),
            (0.6315, 0.55),
            (0.8078, 0.725),
            (0.9836, 0.9),
        ),
        "anchors.ratios": (
            (1, 2, 0.5),
            (1, 2, 3, 0.5, 0.3333),
            (1, 2, 3, 0.5, 0.3333),
            (1, 2, 3, 0.5, 0.3333),
            (1, 2, 0.5),
            (1, 2, 0.5),
        ),
        "matching.matcher": "dual_max",  # 3.2
        "loss.normalizer": "selected",  # 5.3
        "loss.negative_overlap": "any",  # 6: class target 0
        "loss.l2_penalty": 5e-4,  # 5.7
        "train.weight_decay": 0.0,  # 7
        "train.boundaries": (
            501 / 120_000,  # 9, 17.12: a boundary belongs to the old rate
            80_001 / 120_000,
            100_001 / 120_000,
        ),
        "train.factors": (0.1, 1.0, 0.1, 0.01),
        "train.minimum_lr": 1e-6,  # 9
        "train.augmentation": "hikapok",  # 8
        "train.difficult": "drop",  # 3.2
        "train.seed": 20180503,  # 9
        "post.clip": "before_nms",  # 11
        "post.min_size": 0.03,
        "post.max_per_class": 200,
        "post.max_detections": 4000,  # 11: no cap over VOC's 20 classes
    },
    "d2l": {
        **D2L,
        "loss.classification": "cross_entropy",  # 5.3
        "loss.localization": "l1",
        "train.batch_size": 32,  # 9
    },
    "d2l-focal": {
        **D2L,
        "loss.classification": "focal",  # 5.5
        "loss.alpha": 0.25,
        "loss.gamma": 2.0,
        "loss.localization": "smooth_l1",  # 5.2
        "loss.sigma": 1.0,
        "train.batch_size": 8,  # 9
    },
    "torchvision-ssd": {
        **TORCHVISION,
        "model.init": "xavier",  # ssd._xavier_init of its own layers
        "model.mean": (0.48235 * 255, 0.45882 * 255, 0.40784 * 255),
        "anchors.sizes": COCO_SIZES,  # scales .07, .15, .33, .51, .69, .87, 1.05
        "anchors.clip_shapes": True,  # DefaultBoxGenerator(clip=True)
        "train.epochs": 120,  # references/detection/README.md
        "train.batch_size": 32,  # 8 x 4
        "train.lr": 2e-3,
        "train.weight_decay": 5e-4,
        "train.schedule": "steps",
        "train.boundaries": (80 / 120, 110 / 120),
        "train.factors": (1.0, 0.1, 0.01),
        "train.warmup": 1 / 120,  # within the first epoch
        "train.augmentation": "torchvision-ssd",  # references/detection/presets.py
    },
    "torchvision-ssdlite": {
        **TORCHVISION,
        "train.epochs": 660,
        "train.batch_size": 192,  # 8 x 24
        "train.lr": 0.15,
        "train.weight_decay": 4e-5,
        "train.schedule": "cosine",
        "train.warmup": 1 / 660,
        "train.augmentation": "torchvision-ssdlite",
    },
    "nvidia": {
        "model.init": "xavier",  # model.py, _init_weights
        "anchors.clip_shapes": True,  # utils.py, DefaultBoxes: centres and sizes cut to 0 to 1
        "anchors.clip_centers": True,
        "matching.matcher": "dual_max",  # utils.py, Encoder.encode
        "matching.inclusive": False,  # its criterion is strict
        "loss.localization": "smooth_l1",  # model.py, Loss
        "loss.normalizer": "images",
        "loss.negative_ratio": 3.0,
        "loss.negative_overlap": "any",
        "train.epochs": 65,  # main.py
        "train.batch_size": 32,
        "train.lr": 2.6e-3,
        "train.momentum": 0.9,
        "train.weight_decay": 5e-4,
        "train.bias_decay": 0.0,  # train.py, tencent_trick
        "train.norm_decay": 0.0,
        "train.schedule": "steps",
        "train.boundaries": (43 / 65, 54 / 65),
        "train.factors": (1.0, 0.1, 0.01),
        "train.warmup": 1 / 65,
        "train.warmup_steps": 300,  # examples/*.sh: --warmup 300
        "train.augmentation": "nvidia",  # utils.py, SSDTransformer
        "post.nms_threshold": 0.5,  # evaluate.py
        "post.nms_inclusive": True,  # utils.py, decode_single: IoU < criteria stays
        "post.pre_nms_topk": 200,
        "post.score_threshold": 0.05,
    },
    # Ours: docs/decisions.md
    "default": {
        "model.prior": 0.01,
        "loss.localization": "smooth_l1",
        "loss.normalizer": "positives",
        "loss.negative_ratio": 3.0,
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
}
"""What each recipe says itself."""

SGD = {"train.optimizer": "sgd", "train.ema": "none", "train.clip_norm": "none", "model.prior": "none"}
SOFTMAX = {"model.score": "softmax", "loss.classification": "cross_entropy", "loss.sigma": 1.0}
CAFFE_POST = {"post.score_threshold": 0.01, "post.nms_threshold": 0.45, "post.nms_inclusive": False}
PER_CLASS = {"post.multi_label": True, "post.max_per_class": "none", "post.min_size": 0.0}
HALF = {"matching.threshold": 0.5, "matching.low": 0.5, "matching.inclusive": True}
INHERITED: dict[str, dict[str, Any]] = {
    "caffe": {
        **SGD,
        **SOFTMAX,
        **CAFFE_POST,
        **PER_CLASS,
        **HALF,  # 3.1
        "model.mean": (123.0, 117.0, 104.0),  # 8.6
        "matching.matcher": "bipartite",  # 3.1
        "loss.negative_overlap": 0.5,  # 6
        "loss.l2_penalty": 0.0,
        "train.norm_decay": 1.0,  # 7: the scale of conv4_3 decays
        "train.difficult": "keep",  # 3.1, on VOC
        "post.pre_nms_topk": 400,  # 11
        "post.max_detections": 200,
        "post.clip": "after_nms",
    },
    "hikapok": {
        **SGD,
        **SOFTMAX,
        **CAFFE_POST,
        **HALF,  # 3.2
        "train.bias_decay": 1.0,  # 5.7: biases in full
        "train.bias_lr": 1.0,  # 7
        "post.multi_label": True,
        "post.pre_nms_topk": 400,  # 11: keep_topk
    },
    "d2l": {
        **SGD,
        "model.init": "xavier",  # 1.4
        "loss.negative_ratio": "all",  # 6: none
        "train.bias_decay": 1.0,  # 5.6: everything decays
        "train.norm_decay": 1.0,
        "train.bias_lr": 1.0,
        "post.score_threshold": 0.01,
    },
    "torchvision-ssd": {
        **SGD,
        **SOFTMAX,
        **CAFFE_POST,
        **PER_CLASS,
        **HALF,
        "model.std": (1.0, 1.0, 1.0),
        "train.bias_decay": 1.0,
        "train.norm_decay": 1.0,
        "train.bias_lr": 1.0,
        "post.pre_nms_topk": 400,
        "post.max_detections": 200,
    },
    "torchvision-ssdlite": {
        **SGD,
        **SOFTMAX,
        **PER_CLASS,
        **HALF,
        "model.mean": (127.5, 127.5, 127.5),
        "model.std": (127.5, 127.5, 127.5),
        "anchors.clip_shapes": True,
        "train.bias_decay": 1.0,
        "train.final_lr": 0.0,
        "post.score_threshold": 0.001,
        "post.nms_threshold": 0.55,
        "post.pre_nms_topk": 300,
        "post.max_detections": 300,
    },
    "nvidia": {
        **SGD,
        **SOFTMAX,
        **PER_CLASS,
        "anchors.sizes": COCO_SIZES,
        "matching.threshold": 0.5,
        "matching.low": 0.5,
        "model.mean": (123.675, 116.28, 103.53),
        "model.std": (58.395, 57.12, 57.375),
        "train.bias_lr": 1.0,
        "post.max_detections": 200,
    },
    "default": {**HALF, "matching.matcher": "bipartite", "loss.negative_overlap": 0.5},
}
INHERITED["d2l-focal"] = INHERITED["d2l"]
"""What comes from the presets or the config's defaults and must not change under a recipe either."""


def value_of(config, setting):
    section, name = setting.split(".")
    return getattr(getattr(config, section), name)


def lines(table):
    return [(recipe, setting) for recipe, settings in table.items() for setting in settings]


def fitting_plainly(recipe, setting):
    """Return the presets that a recipe was made for, without those that it tunes otherwise."""
    return [name for name in fitting(recipe) if setting not in RECIPES[recipe].tuning.get(name, {})]


def test_a_tuning_goes_above_its_recipe_and_below_set():
    assert [name for name, recipe in RECIPES.items() if recipe.tuning] == ["default"]
    for name, settings in RECIPES["default"].tuning.items():
        for setting, wanted in settings.items():
            assert value_of(resolve(name), setting) == wanted
    assert resolve("multibox-coco", changes={"train.steps": 7}).train.steps == 7


@pytest.mark.parametrize(("recipe", "setting"), lines(EXPECTED))
def test_a_recipe_says_what_its_original_does(recipe, setting):
    wanted = EXPECTED[recipe][setting]
    assert RECIPES[recipe].settings[setting] == wanted
    assert all(value_of(resolve(preset, recipe), setting) == wanted for preset in fitting_plainly(recipe, setting))


@pytest.mark.parametrize(("recipe", "setting"), lines(INHERITED))
def test_what_a_recipe_takes_over_is_right_too(recipe, setting):
    assert setting not in RECIPES[recipe].settings
    wanted = INHERITED[recipe][setting]
    assert all(value_of(resolve(preset, recipe), setting) == wanted for preset in fitting_plainly(recipe, setting))


def test_no_line_is_without_its_second_writing():
    assert {name: set(recipe.settings) for name, recipe in RECIPES.items()} == {k: set(v) for k, v in EXPECTED.items()}
