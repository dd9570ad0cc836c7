"""The training loop: what a run leaves, how it stops and goes on, and what it says."""

import csv
import dataclasses
import math
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from multibox import create
from multibox.config import Config
from multibox.errors import ConfigError, MultiboxError
from multibox.inference.detector import open_checkpoint
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.training.optimizer import learning_rate
from multibox.training.pacing import out_of_patience
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=changes.pop("epochs", 3), out=out, changes={**SMALL, **changes})


def stop_at(step):
    def watch(trainer, parts):
        if trainer.pace.step == step:
            signal.raise_signal(signal.SIGINT)

    return watch


@pytest.mark.slow
def test_a_run_leaves_everything_it_promises(squares, tmp_path):
    trainer = prepare(squares, options(tmp_path / "run"))
    trainer.fit()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"best.safetensors", "last.safetensors", "state", "config.toml", "metrics.csv"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.endswith(".part")]
    assert Config.from_toml((tmp_path / "run" / "config.toml").read_text()) == trainer.config
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    wanted = ["cross_entropy_loss", "location_loss", "l2_loss", "total_loss", "cls_accuracy", "learning_rate"]
    for name in [*wanted, "class_error", "box_mae", "positive_class_error", "val_loss", "val_map50"]:
        assert float(rows[-1][name]) >= 0, name
    assert open_checkpoint(tmp_path / "run").names == ("blue", "red")


FROZEN = {"train.freeze": "backbone.*", "train.freeze_until": 0.5}
"""Frozen parts wake at step 3 of 6."""


@pytest.mark.parametrize(
    ("stops", "changes"),
    [
        ((1, 4), {}),
        pytest.param((2, 3, 4), FROZEN, marks=pytest.mark.slow),
        pytest.param((2, 3, 4), {**FROZEN, "train.optimizer": "sgd"}, marks=pytest.mark.slow),
        pytest.param((2, 3, 4), {"train.scales": [1.0, 2.0], "train.sampling": "balanced"}, marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_uninterrupted(squares, tmp_path, stops, changes):
    whole = prepare(squares, options(tmp_path / "whole", epochs=2, **changes))
    whole.fit()
    assert whole.pace.step == 6
    trainer = prepare(squares, options(tmp_path / "parts", epochs=2, **changes))
    for stop in stops:
        trainer.reporter.step = stop_at(stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer = prepare(squares, RunOptions(resume=tmp_path / "parts"))
        assert trainer.pace.step == stop
    trainer.reporter.row = lambda *_: signal.raise_signal(signal.SIGINT)
    trainer.fit()  # nothing is left to stop, but a loop over runs must hear of it
    assert trainer.interrupted and not whole.interrupted
    for one, other in (
        (whole.stepper.model, trainer.stepper.model),
        (whole.stepper.weights(), trainer.stepper.weights()),
    ):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    kept = ("total_loss", "learning_rate", "val_map50", "class_error")
    for a, b in zip(whole.records.rows, trainer.records.rows, strict=True):
        assert [a.get(k) for k in kept] == [b.get(k) for k in kept]


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_not(squares, tmp_path):
    whole = prepare(squares, options(tmp_path / "whole"))
    whole.fit()
    trainer = prepare(squares, options(tmp_path / "run"))
    copy = tmp_path / "copy"

    def kill(trainer, parts):
        if trainer.pace.step == 4:
            # What SIGKILL leaves: the state of the last save
            shutil.copytree(tmp_path / "run", copy)

    trainer.reporter.step = kill
    trainer.fit()
    resumed = prepare(None, RunOptions(resume=copy))
    assert resumed.pace.step < 4
    resumed.fit()
    for a, b in zip(whole.stepper.model.parameters(), resumed.stepper.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_boxes_lost_to_augmentation_are_counted(squares, tmp_path):
    told = []
    asked = options(tmp_path / "run", epochs=2, **{"train.augmentation": "caffe"})
    trainer = prepare(squares, asked, Reporter(told.append))
    trainer.reporter.step = stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = prepare(squares, RunOptions(resume=tmp_path / "run"), Reporter(told.append))
    assert resumed.lost_boxes == trainer.lost_boxes
    resumed.fit()
    whole = prepare(squares, dataclasses.replace(asked, out=tmp_path / "whole"))
    whole.fit()
    assert resumed.lost_boxes == whole.lost_boxes == 1
    assert "1 box was lost to augmentation in 6 steps" in told


def test_it_learns(squares, tmp_path):
    changes = {"train.lr": 0.004, "train.ema": 0.9, "train.validate_every": 12}
    trainer = prepare(squares, options(tmp_path / "run", epochs=12, **changes))
    trainer.fit()
    losses = [row["total_loss"] for row in trainer.records.rows]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_weights_that_know_the_classes_are_kept_unless_training_is_better(squares, tmp_path):
    first = prepare(squares, options(tmp_path / "first", epochs=12, **{"train.lr": 0.004, "train.ema": 0.9}))
    first.fit()
    told = []
    weights = tmp_path / "first" / "last.safetensors"
    ruin = options(
        tmp_path / "ruin", epochs=2, **{"train.lr": 0.5, "train.warmup_steps": "none", "train.validate_every": 1}
    )
    second = prepare(squares, dataclasses.replace(ruin, weights=weights), Reporter(told.append))
    second.fit()
    score = first.records.rows[-1]["val_map50"]
    assert second.records.rows[0] == pytest.approx(
        {"epoch": 0, "step": 0, "val_map50": score, "val_loss": first.records.rows[-1]["val_loss"]}
    )
    assert second.best == score > max(row["val_map50"] for row in second.records.rows[1:])
    kept, start = (
        open_checkpoint(path).model.state_dict() for path in (tmp_path / "ruin" / "best.safetensors", weights)
    )
    assert all(torch.equal(kept[name], start[name]) for name in start)
    assert f"before the first step: mAP@0.5 {score:.3f}" in " ".join(told)
    assert "a lower rate may improve on them, such as --set train.lr=3e-5" in told[-1]


@pytest.mark.slow
def test_fresh_classes_are_not_scored_before_the_first_step(squares, tmp_path):
    detector = create("tinyssd", ["red", "green"])
    other = Checkpoint(detector.model.state_dict(), detector.config, detector.names)
    save_checkpoint(tmp_path / "other.safetensors", other)
    told = []
    asked = dataclasses.replace(options(tmp_path / "run"), weights=tmp_path / "other.safetensors")
    trainer = prepare(squares, asked, Reporter(told.append))
    trainer.fit()
    assert trainer.records.rows[0]["epoch"] == 1
    assert "before the first step" not in " ".join(told)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 5, 13])
def test_weights_that_are_no_numbers_end_the_run_at_the_next_step_and_are_not_saved(squares, tmp_path, step):
    trainer = prepare(squares, options(tmp_path / "run", epochs=20, **{"train.batch_size": 2}))
    whole, steps = trainer.stepper.step, []

    def poisoned(batch):
        steps.append(batch.image_names)
        parts = whole(batch)
        if len(steps) == step:
            with torch.no_grad():
                next(trainer.stepper.model.parameters()).fill_(math.nan)
        return parts

    trainer.stepper.step = poisoned
    with pytest.raises(MultiboxError, match=r"the loss became nan at step .*--set train.lr=.*--replay") as error:
        trainer.fit()
    assert f"at step {step + 1}: the weights were damaged before this step" in str(error.value)
    assert len(steps) == step + 1
    saved = load_file(tmp_path / "run" / "state" / "state.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in saved.items() if name.startswith("model."))


@pytest.mark.slow
def test_a_broken_loss_is_never_saved_by_ctrl_c(squares, tmp_path):
    trainer = prepare(squares, options(tmp_path / "run", epochs=20))
    whole, presses = trainer.stepper.loss_of, [signal.SIGINT]

    def poisoned(*given):
        # Once: the step is made again to find out why
        for press in presses[:]:
            presses.clear()
            signal.raise_signal(press)
        outputs, targets, parts = whole(*given)
        return outputs, targets, dataclasses.replace(parts, total=parts.total * math.inf)

    trainer.stepper.loss_of = poisoned
    with pytest.raises(MultiboxError, match="the loss became inf at step 1:"):
        trainer.fit()
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_frozen_parts_wake_at_their_share_of_the_run(squares, tmp_path):
    changes = {"train.freeze": "backbone.*", "train.freeze_until": 0.5, "train.ema": "none"}
    trainer = prepare(squares, options(tmp_path / "run", epochs=2, **changes))
    seen = []

    def watch(trainer, parts):
        backbone = {n: t.clone() for n, t in trainer.stepper.model.backbone.state_dict().items()}
        seen.append({name: tensor for name, tensor in backbone.items() if tensor.is_floating_point()})

    trainer.reporter.step = watch
    trainer.fit()
    # Steps 0, 1, 2 of 6 leave the backbone and its norms' statistics alone
    assert all(torch.equal(seen[0][name], seen[2][name]) for name in seen[0])
    changed = [name for name in seen[0] if not torch.equal(seen[2][name], seen[3][name])]
    assert any("running_mean" in name for name in changed)
    assert any(name.endswith(".weight") for name in changed)


@pytest.mark.parametrize(
    ("scores", "patience", "ended"),
    [
        ([0.1, 0.2, 0.3], 1, False),
        ([0.3, 0.3], 1, True),  # as good is not better
        ([0.3, 0.2, 0.4, 0.1], 2, False),
        ([0.3, 0.2, 0.25], 2, True),
        ([0.3, None, None], 2, False),  # not measured
        ([0.3, 0.2, 0.1], "none", False),
        ([], 1, False),
    ],
)
def test_patience_counts_validations_without_a_better_score(scores, patience, ended):
    rows = [{"epoch": i, "val_map50": score} for i, score in enumerate(scores)]
    rows.insert(1, {"epoch": 9})
    assert out_of_patience(rows, patience) is ended


@pytest.mark.slow
def test_a_run_out_of_patience_says_so_and_is_finished(squares, tmp_path):
    changes = {"train.patience": 2, "train.validate_every": 1, "train.lr": 1e-12, "train.ema": "none"}
    told = []
    trainer = prepare(squares, options(tmp_path / "run", epochs=9, **changes), Reporter(told.append))
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    score = trainer.validation.score
    trainer.validation.score = lambda model, tick: {**score(model, tick), "val_map50": next(scores)}
    rates = []
    trainer.reporter.row = lambda trainer, row: rates.append(row["learning_rate"])
    trainer.fit()
    assert trainer.pace.step == 4 * 3
    assert "ended after step 12 of 27" in told[-1]
    assert "mAP@0.5 0.500" in told[-1]
    assert "schedule was not shortened" in told[-1]
    assert rates == [learning_rate(step, 27, trainer.config.train) for step in (2, 5, 8, 11)]
    with pytest.raises(ConfigError, match="is finished, nothing is left to train; give more --minutes or --epochs"):
        prepare(None, RunOptions(resume=tmp_path / "run"))


@pytest.mark.slow
def test_a_log_gets_lines_and_the_time_left(squares, tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.training.reporter.LINE_EVERY", 0.0)
    lines = []
    trainer = prepare(squares, options(tmp_path / "run", epochs=2), Reporter(lines.append))
    trainer.fit()
    progress = [line for line in lines if line.startswith("step")]
    assert len(progress) == 6
    assert "step 5 of 6" in progress[4]
    assert "images/s" in progress[4]
    assert progress[4].endswith("left")
    assert any(line.startswith("epoch    2") for line in lines)
