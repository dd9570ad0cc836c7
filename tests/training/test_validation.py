"""The thresholds that validation finds, and the files that carry them."""

import numpy as np
import pytest

from multibox.config import Config
from multibox.evaluation.report import best_threshold
from multibox.evaluation.voc_metrics import precision_recall
from multibox.inference.detector import find_all, open_checkpoint
from multibox.models.checkpoint import load_checkpoint, load_config
from multibox.training.run import RunOptions, prepare

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0}


def run(squares, out, **more):
    changes = {**SMALL, "train.lr": 0.004, "train.ema": 0.9, **more.pop("changes", {})}
    return prepare(
        squares, RunOptions(preset="tinyssd", epochs=more.pop("epochs", 12), out=out, changes=changes, **more)
    )


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_run_writes_the_thresholds_of_its_weights(squares, tmp_path, precision):
    trainer = run(squares, tmp_path / "run", changes={"train.validate_every": 6, "train.precision": precision})
    trainer.fit()
    for name in ("best", "last"):
        detector = open_checkpoint(tmp_path / "run" / f"{name}.safetensors")
        dataset = trainer.validation.dataset
        curves = precision_recall(find_all(detector, dataset, 200), dataset, dataset.class_names)
        best = [best_threshold(curve) for curve in curves.values()]
        # Found in float32, as predicted, whatever training computes in; in other batches the last digits may differ
        expected = [0.3 if one is None else one["threshold"] for one in best]
        np.testing.assert_allclose(detector.config.post.thresholds, expected, atol=1e-5)
    assert any(value != 0.3 for value in load_config(tmp_path / "run" / "last.safetensors").post.thresholds)
    assert Config.from_toml((tmp_path / "run" / "config.toml").read_text()) == trainer.config
    assert trainer.config.post.thresholds == ()


@pytest.mark.slow
def test_weights_that_were_not_validated_have_none(squares, tmp_path):
    trainer = run(squares, tmp_path / "run", epochs=2, changes={"train.validate_every": 1})

    def save(trainer, parts):
        if trainer.pace.step == 4:  # one step into the second epoch
            trainer.save()
            last = load_checkpoint(tmp_path / "run" / "last.safetensors")
            assert last.config.post.thresholds == ()
            assert last.metrics == {}

    trainer.reporter.step = save
    trainer.fit()
    assert len(load_config(tmp_path / "run" / "best.safetensors").post.thresholds) == 2
    resumed = prepare(None, RunOptions(resume=tmp_path / "run", epochs=3))
    assert resumed.config == trainer.config.updated({"train.epochs": 3})
    run(squares, tmp_path / "none", epochs=1, val_split="none").fit()
    assert load_config(tmp_path / "none" / "last.safetensors").post.thresholds == ()
