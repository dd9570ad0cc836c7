"""What every preset must do; a new entry of the table is tested by being there."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from multibox.data.formats import open_dataset
from multibox.evaluation.voc_metrics import mean, precision_recall
from multibox.inference.detector import Detector, find_all, open_checkpoint
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model
from multibox.presets import PRESETS, RECIPES, fitting, resolve
from multibox.training.run import RunOptions, prepare
from multibox.training.trainer import Trainer

SIZES = {"ssd300-vgg16": 64, "ssd512-vgg16": 64}
"""Pixels; 128 where nothing is said, so that batch norms of the coarsest maps see more than eight numbers."""
MOST, EVERY = 150, 10
"""Steps that a preset has, and steps between two looks at what it has learnt."""
OVERFIT = {
    "train.batch_size": 8,
    "train.workers": 0,
    "train.augmentation": "none",
    "train.schedule": "constant",
    "train.ema": 0.8,
}


class Learnt(Exception):
    """Every object is found."""


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [None, (270, 480), (64, 96)])
def test_every_anchor_has_its_output(preset, size):
    config = resolve(preset, changes={"anchors.fit": "none"})
    size = size or config.model.input_size
    with torch.device("meta"):  # shapes are all that is asked for
        outputs = build_model(config, 3).eval()(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert outputs.logits.shape[:2] == outputs.offsets.shape[:2]
    assert outputs.logits.shape[1] == len(make_anchors(config.anchors, outputs.feature_shapes, size))


def score(detector, training):
    curves = precision_recall(find_all(detector, training), training, detector.names)
    return mean(curve.ap12 for curve in curves.values()) or 0.0


def stop_when_learnt(trainer, parts):
    # At an IoU of 0.5 anchors that have learnt classes alone find much: the loss has to have fallen, too
    if trainer.pace.step % EVERY == 0 and parts.total < 1:
        seen = Detector(copy.deepcopy(trainer.stepper.weights()), trainer.config, trainer.training.class_names)
        if score(seen, trainer.training) >= 0.99:
            trainer.save()
            raise Learnt


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_it_overfits_eight_images_and_survives_a_file(preset, tmp_path, draw_squares):
    size = SIZES.get(preset, 128)
    data = draw_squares(tmp_path / "data", 11, size=size)  # 8 for training
    changes = {**OVERFIT, "model.input_size": [size, size]}
    options = RunOptions(preset=preset, epochs=MOST, out=tmp_path / "run", val_split="none", changes=changes)
    trainer = prepare(data, options)
    assert len(trainer.training) == 8
    for module in trainer.stepper.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # statistics that keep up halve the steps
    trainer.reporter.step, trainer.saved = stop_when_learnt, math.inf
    with pytest.raises(Learnt):
        trainer.fit()
    detector = open_checkpoint(tmp_path / "run" / "last.safetensors")
    assert score(detector, trainer.training) >= 0.99
    found = find_all(detector, trainer.training)
    again = find_all(open_checkpoint(tmp_path / "run"), open_dataset(data, "train", class_names=detector.names))
    assert all(a == b for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=() if r.startswith(("d2l", "nvidia")) else pytest.mark.slow) for r in RECIPES]
)
def test_every_recipe_takes_a_step_on_every_preset_it_fits(recipe, squares, tmp_path, monkeypatch):
    # Half a gigabyte a run of VGG's
    monkeypatch.setattr(Trainer, "save", lambda self: None)
    monkeypatch.setattr(Trainer, "_save_state", lambda self: None)
    changes = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0}
    for preset in fitting(recipe):
        options = RunOptions(
            preset=preset, recipe=recipe, epochs=1, out=tmp_path / preset, val_split="none", changes=changes
        )
        trainer = prepare(squares, options)
        before = {name: value.clone() for name, value in trainer.stepper.model.state_dict().items()}
        trainer.fit()
        after = trainer.stepper.model.state_dict()
        moved = [not torch.equal(before[name], after[name]) for name in before]
        assert np.mean(moved) > 0.9
        assert all(torch.isfinite(value).all() for value in after.values())
