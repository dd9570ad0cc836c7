"""What a run tells other programs: metrics.jsonl, status.json, and the file that asks it to stop."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest

from multibox.training.hardware import Hardware
from multibox.training.run import RunOptions, prepare
from multibox.training.stopping import Interrupt

SMALL = {
    "model.input_size": [64, 64],
    "train.batch_size": 4,
    "train.workers": 0,
    "train.precision": "float32",
    "train.log_every": 1,
}


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """Let status.json follow every step, and the stop file be looked for."""
    monkeypatch.setattr("multibox.training.journal.EVERY", 0.0)
    monkeypatch.setattr("multibox.training.stopping.LOOK_EVERY", 0.0)


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=2, out=out, changes={**SMALL, **changes})


def at_step(number, act):
    def watch(trainer, parts):
        if trainer.pace.step == number:
            act()

    return watch


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder):
    return json.loads((folder / "status.json").read_text())


def of_kind(found, kind):
    return [event for event in found if event["kind"] == kind]


@pytest.mark.slow
def test_a_run_tells_every_event(squares, tmp_path):
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder))
    assert status(folder)["state"] == "starting" and status(folder)["pid"] == os.getpid()
    losses, states = [], []

    def watch(trainer, parts):
        losses.append([x.item() for x in (parts.total, parts.classification, parts.localization)])
        states.append(status(folder)["state"])

    trainer.reporter.step = watch
    trainer.fit()
    found = events(folder)
    steps = of_kind(found, "step")
    assert [(event["step"], event["epoch"]) for event in steps] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    told = [(event["loss"], event["class_loss"], event["box_loss"]) for event in steps]
    for one, other in zip(told, losses, strict=True):
        assert list(one) == pytest.approx(other, rel=1e-4)
    assert {*steps[0]} == {"kind", "time", "step", "epoch", "loss", "class_loss", "box_loss", "lr",
                           "images_per_second", "seconds", "positives", "accuracy"}  # fmt: skip
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, event in zip(rows, of_kind(found, "epoch"), strict=True):
        assert {name: f"{event[name]:.6g}" for name in row} == row
    validation = of_kind(found, "validation")[-1]
    assert validation["best"] == trainer.best and set(validation["per_class"]) == {"red", "blue"}
    assert list(validation["thresholds"].values()) == pytest.approx(trainer.validation.thresholds, rel=1e-5)
    assert [event["samples"] for event in of_kind(found, "validation")] == [
        "images/step-000003.jpg", "images/step-000006.jpg"
    ]  # fmt: skip
    assert any("12 images" in event["text"] for event in of_kind(found, "note"))
    assert states[0] in ("starting", "training") and states[1] == "training"
    end = status(folder)
    assert (end["state"], end["step"], end["steps"], end["seconds_left"]) == ("finished", 6, 6, 0.0)
    assert (end["preset"], end["device"], end["error"], end["best"]) == ("tinyssd", "cpu", None, trainer.best)
    assert end["updated"] >= end["started"] > 0


@pytest.mark.slow
def test_the_stop_file_ends_a_run_as_ctrl_c_does(squares, tmp_path):
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder))
    stop = folder / "stop"
    stop.touch()  # left by a program that asked an earlier process
    trainer.reporter.step = at_step(4, stop.touch)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.pace.step in (4, 5) and not stop.exists()
    end = status(folder)
    assert end["state"] == "stopped" and end["step"] == trainer.pace.step
    assert "stop asked the run to end" in of_kind(events(folder), "note")[-1]["text"]
    again = prepare(None, RunOptions(resume=folder))
    assert again.pace.step == trainer.pace.step
    again.fit()
    assert status(folder)["state"] == "finished"


def test_a_second_ctrl_c_counts_even_after_the_stop_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), Interrupt(tmp_path) as interrupt:
        (tmp_path / "stop").touch()
        assert interrupt.asked and interrupt.found
        signal.raise_signal(signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_resumed_run_tells_each_step_once(squares, tmp_path):
    """Whatever a killed process told after its last save, half a line included, is told anew."""
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder))
    trainer.reporter.step = at_step(2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"step","step":3,"epoch":1}\n\0\0\0\n{"kind":"future","step":1}\n{"kind":"st')
    prepare(None, RunOptions(resume=folder)).fit()
    found = events(folder)
    assert [event["step"] for event in of_kind(found, "step")] == [1, 2, 3, 4, 5, 6]
    assert [event["epoch"] for event in of_kind(found, "epoch")] == [1, 2]
    assert len(of_kind(found, "future")) == 1


@pytest.mark.slow
def test_a_run_that_fails_says_so(squares, tmp_path):
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder, **{"train.lr": 1e30, "train.optimizer": "sgd"}))
    with pytest.raises(Exception, match="the loss became"):
        trainer.fit()
    end = status(folder)
    assert end["state"] == "failed" and end["error"].startswith("the loss became")
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_run_that_was_killed_while_it_started_can_be_begun_again(squares, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps({"format": 1, "state": "starting"}))
    prepare(squares, options(folder)).hold.close()
    assert (folder / "config.toml").exists()


@pytest.mark.slow
def test_a_refused_run_leaves_the_status_of_the_one_before(squares, tmp_path):
    folder = tmp_path / "run"
    prepare(squares, options(folder)).fit()
    with pytest.raises(Exception, match="is finished"):
        prepare(None, RunOptions(resume=folder))
    assert status(folder)["state"] == "finished"


def test_hardware_use_is_measured_where_the_system_tells():
    hardware = Hardware("cpu")
    first = hardware.use()
    sum(number * number for number in range(300_000))
    second = hardware.use()
    assert set(second) == {"cpu_percent", "memory_gb", "gpu_percent", "gpu_memory_gb"}
    assert first["cpu_percent"] is None and second["gpu_percent"] is None
    if Path("/proc/self/stat").exists():
        assert second["memory_gb"] > 0.01 and second["cpu_percent"] >= 0


def tensorboard(folder):
    """Return the values that TensorBoard shows: by tag a list of (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    shown.Reload()
    return {tag: [(each.step, each.value) for each in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


@pytest.mark.slow
def test_metrics_are_told_every_few_steps(squares, tmp_path):
    """The means are those of the steps since the event before; an epoch's first event tells of its own steps only."""
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder, **{"train.log_every": 2}))
    parts = []

    def watch(_, step):
        parts.append([x.item() for x in (step.total, step.positives)])

    trainer.reporter.step = watch
    trainer.fit()
    steps = of_kind(events(folder), "step")
    assert [event["step"] for event in steps] == [1, 2, 4, 6]  # the first step of a process is always told
    of_event = {1: parts[:1], 2: parts[1:2], 4: parts[3:4], 6: parts[4:6]}  # an epoch has three steps
    for event in steps:
        losses, positives = zip(*of_event[event["step"]], strict=True)
        assert event["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert event["positives"] == pytest.approx(sum(positives) / len(positives), rel=1e-4)
        assert 0 <= event["accuracy"] <= 1
    shown = tensorboard(folder)
    for name in ("loss", "class_loss", "box_loss", "lr", "images_per_second", "positives", "accuracy"):
        assert shown[f"steps/{name}"] == [(e["step"], pytest.approx(e[name], rel=1e-5)) for e in steps], name
    assert [step for step, _ in shown["total_loss"]] == [3, 6]


@pytest.mark.slow
def test_slow_steps_are_told_by_the_clock(squares, tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.training.journal.LONGEST", 0.0)
    trainer = prepare(squares, options(tmp_path / "run", **{"train.log_every": 1000}))
    trainer.fit()
    assert [event["step"] for event in of_kind(events(tmp_path / "run"), "step")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_tensorboard_shows_each_step_of_a_resumed_run_once(squares, tmp_path):
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder))
    trainer.fit()
    before = tensorboard(folder)["steps/loss"]
    again = prepare(None, RunOptions(resume=folder, epochs=3))
    again.pace.step = 4  # as if the last save had been after the fourth step
    again.records.rewind(4)
    again.records.take({"kind": "step", "step": 5, "time": 1.0, "loss": 0.25})
    again.records.close()
    again.hold.close()
    assert tensorboard(folder)["steps/loss"] == [*before[:4], (5, 0.25)]
