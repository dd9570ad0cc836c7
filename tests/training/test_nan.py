"""A step that is not finite has a name: each cause through a run of its own, the replay, batches left out."""

import json
import math
import re

import pytest
import torch

from multibox.errors import DataError, MultiboxError, WeightsError
from multibox.training import nan_watch
from multibox.training.nan_causes import Evidence, growth
from multibox.training.nan_watch import FOR_STEPS, MEAN, Divergence
from multibox.training.replay import replay
from multibox.training.run import RunOptions, prepare

QUICK = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def begin(data, out, *, on_nan=None, epochs=2, **changes):
    changes = {**QUICK, "anchors.fit": "none", "train.optimizer": "sgd", **changes}
    return prepare(data, RunOptions(preset="tinyssd", epochs=epochs, out=out, on_nan=on_nan, changes=changes))


def on_step(trainer, number, change):
    """Change something right before a step: its batch, or the network."""
    whole = trainer.stepper.step

    def step(batch):
        if trainer.pace.step + 1 == number:
            batch = change(batch) or batch
        return whole(batch)

    trainer.stepper.step = step


def fails(trainer):
    with pytest.raises(MultiboxError) as caught:
        trainer.fit()
    return str(caught.value)


def infinite_box(batch):
    batch.gt_xyxy[1, 0] = torch.tensor([0.1, 0.1, math.inf, 0.5])


def test_a_box_is_named_with_its_image_and_the_replay_says_the_same(squares, tmp_path):
    trainer = begin(squares, tmp_path / "run", **{"matching.matcher": "simota"})
    on_step(trainer, 2, infinite_box)
    said = fails(trainer)
    report = json.loads((tmp_path / "run/nan-2/report.json").read_bytes())
    name = report["images"][0][1]
    assert f"the loss became inf at step 2: {name}, label 1: the box 0.1 0.1 inf 0.5 is not finite" in said
    assert f"multibox train --replay {tmp_path}/run/nan-2" in said
    assert (report["cause"]["kind"], report["measured"]["loss"], len(report["measured"]["levels"])) == ("box", None, 5)
    drawn = sorted(path.name for path in (tmp_path / "run/nan-2/images").iterdir())
    assert [re.sub(r"^\d+-", "", path) for path in drawn] == report["images"][0]
    # Without the data and without the run
    (tmp_path / "run/nan-2").rename(tmp_path / "elsewhere")
    squares.rename(tmp_path / "gone")
    (tmp_path / "run").rename(tmp_path / "gone too")
    again = replay(tmp_path / "elsewhere")
    assert again.equal
    assert again.again.cause == again.recorded.cause


@pytest.mark.slow
@pytest.mark.parametrize(
    "box",
    [(30, 10, 30, 60), (60, 10, 30, 60), (-1, -1, 40, 40), (0, 0, 9e9, 9e9), (30, 10, 30.0001, 60)],
    ids=["no width (field.md 3.1)", "turned round", "VOC minus 1 (3.3)", "not of this image (3.2)", "tiny"],
)
def test_boxes_that_broke_other_programs_do_not_break_a_step(box, squares, tmp_path):
    for path in (squares / "Annotations").iterdir():
        x1, y1, x2, y2 = box
        corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        more = f"<object><name>red</name><bndbox>{corners}</bndbox></object></annotation>"
        path.write_text(path.read_text().replace("</annotation>", more))
    try:
        trainer = begin(squares, tmp_path / "run", epochs=1)
    except DataError as error:
        assert re.search(r"\d+\.xml", str(error))
        return
    trainer.fit()
    assert math.isfinite(trainer.records.rows[-1]["total_loss"])


def test_a_class_index_out_of_range_is_named_before_the_step(squares, tmp_path):
    trainer = begin(squares, tmp_path / "run")
    look = trainer.nans.look_at_labels

    def shifted(batch):
        batch.gt_labels[2, 0] = 2
        look(batch)

    trainer.nans.look_at_labels = shifted
    said = fails(trainer)
    assert "label 1: the class index 2, expected 0 to 1" in said
    assert replay(tmp_path / "run/nan-1").again.cause.kind == "class index"


@pytest.mark.slow
def test_a_learning_rate_is_named_by_what_the_weights_of_before_would_do(squares, tmp_path):
    trainer = begin(squares, tmp_path / "run", **{"train.lr": 1e30, "train.clip_norm": "none", "train.warmup": 0.0})
    said = fails(trainer)
    assert "the learning rate 1e+30 is too high" in said
    assert re.search(r"with the weights of step 0 the loss of this batch is \d", said)
    assert "in another run, such as --set train.lr=0.001" in said
    again = replay(tmp_path / "run/nan-2")
    assert again.equal
    assert again.again.cause.kind == "learning rate"


@pytest.mark.slow
def test_a_damaged_weight_is_named(squares, tmp_path):
    trainer = begin(squares, tmp_path / "run")

    def damage(batch):
        with torch.no_grad():
            trainer.stepper.model.heads.localization[1].weight[0, 0, 0, 0] = math.nan

    on_step(trainer, 2, damage)
    assert "1 values of heads.localization.1.weight are not finite" in fails(trainer)


@pytest.mark.slow
def test_weights_that_a_growing_loss_damaged_are_laid_to_the_learning_rate(squares, tmp_path):
    trainer = begin(squares, tmp_path / "run")

    def damage(batch):
        trainer.stepper.guard.history.extend((step, 10.0**step, 1.0) for step in range(5))
        with torch.no_grad():
            trainer.stepper.model.heads.localization[1].weight[0, 0, 0, 0] = math.nan

    on_step(trainer, 2, damage)
    said = fails(trainer)
    assert re.search(r"too high, the loss grew from \S+ to 1e\+04, .*1 values of heads.localization.1.weight are", said)


@pytest.mark.slow
def test_an_overflow_of_float16_is_named(squares, tmp_path):
    trainer = begin(squares, tmp_path / "run", **{"train.precision": "float16"})

    def enlarge(batch):
        # The next layer, a batch norm, makes it small again
        with torch.no_grad():
            trainer.stepper.model.backbone.stages[0][0].conv1.weight.mul_(1e6)

    on_step(trainer, 2, enlarge)
    said = fails(trainer)
    assert "float16 overflows, first in the output of backbone.stages.0.0.conv1; in float32 the same step is" in said
    assert "--set train.precision=float32" in said


@pytest.mark.slow
def test_batches_are_left_out_a_few_times_and_a_resumed_run_knows_how_many(squares, tmp_path):
    changes = {"matching.matcher": "simota", "train.nan_skips": 1, "train.save_minutes": 1e-6}
    trainer = begin(squares, tmp_path / "run", on_nan="skip", epochs=1, **changes)
    on_step(trainer, 2, infinite_box)
    trainer.fit()
    assert trainer.pace.step == 3
    assert (tmp_path / "run/nan-2/report.md").exists()
    assert trainer.stepper.means.sums == {}
    resumed = prepare(None, RunOptions(resume=tmp_path / "run", epochs=2))
    assert resumed.nans.skipped == 1
    assert resumed.stepper.guard.number == 3
    on_step(resumed, 5, infinite_box)
    assert "at step 5: " in fails(resumed)


@pytest.mark.slow
def test_an_epoch_may_consist_of_a_batch_that_is_left_out(squares, tmp_path):
    changes = {"matching.matcher": "simota", "train.batch_size": 12, "train.log_every": 1}
    trainer = begin(squares, tmp_path / "run", on_nan="skip", epochs=3, **changes)
    said = []
    trainer.reporter.write = said.append
    on_step(trainer, 2, infinite_box)
    trainer.fit()
    assert ["total_loss" in row for row in trainer.records.rows] == [True, False, True]
    assert any("no step of it counted" in line for line in said)


def test_no_state_with_weights_that_are_not_finite_replaces_a_good_one(squares, tmp_path):
    trainer = begin(squares, tmp_path / "run")
    trainer._save_state()
    state = (tmp_path / "run/state/state.safetensors").read_bytes()
    with torch.no_grad():
        trainer.stepper.model.heads.localization[0].bias[0] = math.inf
    for save in (trainer.save, trainer._save_state):
        with pytest.raises(MultiboxError, match=r"values of heads\.localization\.0\.bias are not finite"):
            save()
    assert (tmp_path / "run/state/state.safetensors").read_bytes() == state
    assert not (tmp_path / "run/last.safetensors").exists()


@pytest.mark.slow
def test_a_full_disk_hides_no_cause(squares, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nan_watch, "write_report", full)
    trainer = begin(squares, tmp_path / "run", **{"matching.matcher": "simota"})
    on_step(trainer, 1, infinite_box)
    said = fails(trainer)
    assert "is not finite" in said
    assert "could not be written for a replay (No space left on device)" in said


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no step to repeat"):
        replay(tmp_path)
    (tmp_path / "report.json").write_text('{"format": 99}')
    with pytest.raises(WeightsError, match="newer multibox"):
        replay(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(WeightsError, match="changed or damaged"):
        replay(tmp_path)


def test_a_loss_that_grows_from_the_first_steps_diverges_and_a_lighter_first_batch_is_no_measure():
    divergence = Divergence()
    assert [step for step in range(200) if divergence.add(12.0 if step < 3 else 3.0**step if step < 8 else 5000.0)]
    divergence = Divergence()
    assert not any(divergence.add(0.0 if step == 0 else 12.0) for step in range(200))


def test_gradients_that_overflow_in_every_step_are_told(squares, tmp_path):
    changes = {"train.precision": "float16", "loss.classification_weight": 1e6}
    trainer = begin(squares, tmp_path / "run", epochs=4, **changes)
    trainer.fit()
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    said = [event["text"] for event in events if event["kind"] == "note" and "steps in a row" in event["text"]]
    assert len(said) == 1
    assert "overflowed float16, so none changed the weights (step 10)" in said[0]


def test_a_diverging_loss_is_told_once():
    divergence = Divergence()
    assert not any(divergence.add(2.0) for _ in range(MEAN))
    told = [divergence.add(20.1) for _ in range(300)]
    assert [place for place, now in enumerate(told) if now] == [FOR_STEPS - 1]
    # One better loss in between starts the count again
    divergence = Divergence()
    assert not any(divergence.add(20.1 if step % 90 else 2.0) for step in range(300))


def test_a_loss_has_grown_if_the_last_one_is_ten_times_the_lowest_mean():
    def history(*losses):
        return Evidence(history=tuple((step, loss, 1.0) for step, loss in enumerate(losses)))

    assert growth(history(3.0)) is None
    assert growth(history(12.0, 8e17, 6e22)) == (12.0, 6e22)
    assert growth(history(3.0, 2.0, 19.0)) is None
    assert growth(history(3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 40.0)) == (3.0, 40.0)
