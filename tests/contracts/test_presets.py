"""What every preset must do; a new entry of the table is tested by being there."""

import numpy as np
import pytest
import torch

from multibox.api import find_all
from multibox.data.formats import open_dataset
from multibox.evaluation.voc import quick_map
from multibox.inference.detector import load
from multibox.models.anchors import make_anchors
from multibox.models.build import build_model
from multibox.presets import PRESETS, RECIPES, fitting, resolve
from multibox.training.run import RunOptions, prepare

SIZES = {"ssd300-vgg16": 64, "ssd512-vgg16": 64}
"""Pixels; 128 where nothing is said, so that batch norms of the coarsest maps see more than eight numbers."""
EPOCHS = {"ssd300-vgg16": 60, "ssd512-vgg16": 110, "tinyssd": 60, "ssd300-resnet50": 60}
"""Of one step each; 100 where nothing is said."""
OVERFIT = {
    "train.batch_size": 8,
    "train.workers": 0,
    "train.augmentation": "none",
    "train.ema": 0.9,
    "train.validate_every": 1000,
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [None, (270, 480), (64, 96)])
def test_every_anchor_has_its_output(preset, size):
    config = resolve(preset, changes={"anchors.fit": 0})
    size = size or config.model.input_size
    outputs = build_model(config, 3).eval()(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert outputs.logits.shape[:2] == outputs.offsets.shape[:2]
    assert outputs.logits.shape[1] == len(make_anchors(config.anchors, outputs.feature_shapes, size))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_it_overfits_eight_pictures_and_survives_a_file(preset, tmp_path, draw_squares):
    size = SIZES.get(preset, 128)
    data = draw_squares(tmp_path / "data", 11, size=size)  # 8 for training
    changes = {**OVERFIT, "model.input_size": [size, size]}
    options = RunOptions(
        preset=preset, epochs=EPOCHS.get(preset, 100), out=tmp_path / "run", val_split="none", changes=changes
    )
    trainer = prepare(data, options)
    assert len(trainer.training) == 8
    trainer.fit()
    detector = load(tmp_path / "run" / "last.safetensors")
    found = find_all(detector, trainer.training)
    score = quick_map(found, trainer.training, trainer.names)
    assert score is not None
    assert score >= 0.99
    again = find_all(load(tmp_path / "run"), open_dataset(data, "train", class_names=detector.names))
    assert all(a == b for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_a_step_on_every_preset_it_fits(recipe, squares, tmp_path):
    for preset in fitting(recipe):
        changes = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0}
        options = RunOptions(preset=preset, recipe=recipe, epochs=1, out=tmp_path / preset, changes=changes)
        trainer = prepare(squares, options)
        before = {name: value.clone() for name, value in trainer.stepper.model.state_dict().items()}
        trainer.fit()
        after = trainer.stepper.model.state_dict()
        moved = [not torch.equal(before[name], after[name]) for name in before]
        assert np.mean(moved) > 0.9
        assert all(torch.isfinite(value).all() for value in after.values())
