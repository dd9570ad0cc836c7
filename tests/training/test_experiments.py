"""Several seeds and grids of choices: what is repeated, resumed, recorded and refused."""

import csv
import dataclasses
import json
import math
import signal
import statistics

import pytest

from multibox.api import open_for
from multibox.config import Config
from multibox.errors import ConfigError, DataError, MultiboxError
from multibox.evaluation.report import evaluate
from multibox.experiments import seeds
from multibox.experiments.ablation import AXES, CellRuns, ablate, ablation_markdown, make_grid, parse_axes, ranked
from multibox.experiments.seeds import Run, repeat, spread, student_t
from multibox.inference.detector import find_all, open_checkpoint
from multibox.models.checkpoint import load_config
from multibox.presets import resolve
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=changes.pop("epochs", 1), out=out, changes={**SMALL, **changes})


def fit(data, options):
    trainer = prepare(data, options)
    trainer.fit()
    return trainer


class Recorder:
    """Trains, and remembers what it was asked to train; the run of that number is stopped after its first step."""

    def __init__(self, stop=None):
        self.asked, self.stop = [], stop

    def __call__(self, data, options):
        self.asked.append(options)
        trainer = prepare(data, options)
        if self.stop is not None and len(self.asked) == self.stop:
            trainer.reporter.step = interrupt
        trainer.fit()
        return trainer


def interrupt(trainer, parts):
    signal.raise_signal(signal.SIGINT)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_student_t_is_the_tables():
    known = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 9: 2.262157, 30: 2.042272, 1000: 1.962339}
    assert {n: student_t(n) for n in known} == pytest.approx(known, abs=2e-6)


def test_spread_by_hand():
    one = spread([0.2, None, 0.4, 0.6])
    assert one is not None
    assert (one.runs, one.mean, one.deviation) == (3, pytest.approx(0.4), pytest.approx(0.2))
    half = 4.302653 * 0.2 / math.sqrt(3)
    assert (one.low, one.high) == (pytest.approx(0.4 - half, abs=1e-6), pytest.approx(0.4 + half, abs=1e-6))
    assert spread([None, 0.5]) == seeds.Spread(1, 0.5, None, None, None)
    assert spread([None]) is None


@pytest.mark.slow
def test_seeds_are_trained_scored_and_not_repeated(squares, tmp_path):
    out, lines, recorder = tmp_path / "runs", [], Recorder()
    runs = repeat(squares, options(out), 2, train=recorder, reporter=Reporter(lines.append))
    assert [Config.from_toml((out / f"seed-{k}" / "config.toml").read_text()).train.seed for k in (0, 1)] == [0, 1]
    assert lines == [f"run 1 of 2: {out / 'seed-0'}", f"run 2 of 2: {out / 'seed-1'}"]
    detector = open_checkpoint(out / "seed-1" / "last.safetensors")
    dataset = open_for(detector, squares, split="val")
    figures = evaluate(find_all(detector, dataset), dataset, detector.names)
    assert runs[1].metrics == {
        **{k: figures["coco"][k] for k in ("AP", "AP50", "AP75")},
        "mAP": figures["voc12"]["mAP"],
    }
    table = {row["run"]: row for row in rows(out / "seeds.csv")}
    assert list(table) == ["seed-0", "seed-1", "mean", "deviation", "low", "high"]
    values = [run.metrics["mAP"] for run in runs]
    assert float(table["mean"]["mAP"]) == pytest.approx(statistics.mean(values), rel=1e-5)
    assert float(table["deviation"]["mAP"]) == pytest.approx(statistics.stdev(values), rel=1e-5, abs=1e-12)
    again = Recorder()
    assert repeat(squares, options(out), 3, train=again, reporter=Reporter(lines.append))[:2] == runs
    assert [asked.out for asked in again.asked] == [out / "seed-2"]
    with pytest.raises(ConfigError, match="made with epochs = 1, now it is 2"):
        repeat(squares, options(out, epochs=2), 3, train=fit, reporter=Reporter(lines.append))
    asked = json.loads((out / seeds.ASKED).read_text())
    (out / seeds.ASKED).write_text(json.dumps({**asked, "later": 1}))
    with pytest.raises(ConfigError, match="made with later = 1, now it is null"):
        repeat(squares, options(out), 3, train=fit, reporter=Reporter(lines.append))


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(squares, tmp_path):
    whole = repeat(squares, options(tmp_path / "whole"), 1, train=fit, reporter=Reporter())
    with pytest.raises(KeyboardInterrupt):
        repeat(squares, options(tmp_path / "parts"), 1, train=Recorder(stop=1), reporter=Reporter())
    # Of a run that was stopped before it saved anything, only this is left
    (tmp_path / "parts" / "seed-1").mkdir()
    (tmp_path / "parts" / "seed-1" / "config.toml").write_text("")
    again = Recorder()
    parts = repeat(squares, options(tmp_path / "parts"), 2, train=again, reporter=Reporter())
    assert [(one.resume or one.out).name for one in again.asked] == ["seed-0", "seed-1"]
    assert [one.resume is not None for one in again.asked] == [True, False]
    assert parts[:1] == whole


def test_mistakes_leave_nothing(squares, tmp_path):
    base = options(tmp_path / "runs")
    for changed, words in (
        ({"out": None}, "need --out"),
        ({"resume": True}, "leave --resume away"),
        ({"val_split": "none"}, "another --val-split"),
        ({"changes": {"train.seed": 3}}, "leave --set train.seed away"),
        ({"preset": "tinysd"}, "did you mean 'tinyssd'"),
        # Found when the run's folder is there
        ({"changes": {**SMALL, "train.freeze": "bakbone.*"}}, "fits no parameter"),
    ):
        with pytest.raises(ConfigError, match=words):
            repeat(squares, dataclasses.replace(base, **changed), 2, train=fit, reporter=Reporter())
    with pytest.raises(DataError):
        repeat(tmp_path / "nowhere", base, 2, train=fit, reporter=Reporter())
    assert not (tmp_path / "runs").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        repeat(squares, options(tmp_path / "full"), 2, train=fit, reporter=Reporter())


def test_axes_hold_combinations_that_fit():
    assert list(AXES["loss"]) == ["cross_entropy", "ohem", "focal", "sigmoid_focal", "quality_focal", "varifocal"]
    assert len(AXES["localization"]) == 6
    assert list(AXES["matcher"]) == ["bipartite", "dual_max", "atss", "simota", "task_aligned"]
    assert len({cell.name for cell in make_grid(parse_axes(",".join(AXES)))}) == 6 * 6 * 5
    assert all(resolve("tinyssd", changes=s).loss.localization == name for name, s in AXES["localization"].items())
    for preset in ("tinyssd", "ssd300-mobilenetv1"):
        for cell in make_grid(parse_axes("loss,matcher")):
            config = resolve(preset, changes=cell.settings)
            assert (config.loss.negative_ratio != "all") == (cell.values["loss"] == "cross_entropy")
            assert (config.loss.hard_examples != "none") == (cell.values["loss"] == "ohem")
            assert config.matching.matcher == cell.values["matcher"]


def test_an_unknown_axis_names_its_neighbours():
    assert parse_axes("matcher, loss=focal/ohem") == {"matcher": tuple(AXES["matcher"]), "loss": ("focal", "ohem")}
    with pytest.raises(ConfigError, match=r"'mathcer', did you mean 'matcher'\?; known: loss, localization, matcher"):
        parse_axes("loss,mathcer")
    with pytest.raises(ConfigError, match=r"loss has no 'focl', did you mean 'focal'\?; known: cross_entropy, ohem"):
        parse_axes("loss=ohem/focl")
    for text in ("loss,loss", "loss=focal/focal"):
        with pytest.raises(ConfigError, match="axis and value once"):
            parse_axes(text)
    with pytest.raises(ConfigError, match="name an axis"):
        parse_axes(" ,")


FEW = parse_axes("loss=cross_entropy/sigmoid_focal,matcher=bipartite/atss")


@pytest.mark.slow
def test_a_grid_is_trained_and_a_failed_run_is_a_row(squares, tmp_path):
    def train(data, options):
        if options.out.parts[-2:] == ("sigmoid_focal-bipartite", "seed-0"):
            options = dataclasses.replace(
                options,
                changes={**options.changes, "train.lr": 1e30, "train.optimizer": "sgd", "train.clip_norm": "none"},
            )
        return fit(data, options)

    found = ablate(squares, options(tmp_path / "grid"), FEW, 1, train=train, reporter=Reporter())
    assert [one.cell.name for one in found] == [
        "cross_entropy-bipartite", "cross_entropy-atss", "sigmoid_focal-bipartite", "sigmoid_focal-atss",
    ]  # fmt: skip
    config = load_config(tmp_path / "grid" / "sigmoid_focal-atss" / "seed-0" / "last.safetensors")
    assert (config.loss.classification, config.model.score, config.loss.negative_ratio, config.matching.matcher) == (
        "sigmoid_focal", "sigmoid", "all", "atss",
    )  # fmt: skip
    table = rows(tmp_path / "grid" / "ablation.csv")
    assert len(table) == 4
    assert [bool(row["AP"]) for row in table] == [True, True, False, True]
    assert "loss became" in table[2]["problem"]
    text = (tmp_path / "grid" / "ablation.md").read_text()
    assert "1 failed: the loss became" in text
    again = Recorder()
    assert ablate(squares, options(tmp_path / "grid"), FEW, 1, train=again, reporter=Reporter()) == found
    assert not again.asked


def test_a_mistake_stops_the_grid_before_it_starts(squares, tmp_path):
    with pytest.raises(ConfigError, match=r"sets loss.negative_ratio itself; leave --set loss.negative_ratio away"):
        ablate(
            squares,
            options(tmp_path / "g", **{"loss.negative_ratio": 2.0}),
            parse_axes("loss"),
            1,
            train=fit,
            reporter=Reporter(),
        )
    with pytest.raises(ConfigError, match="needs --out"):
        ablate(squares, RunOptions(), parse_axes("loss"), 1, train=fit, reporter=Reporter())
    with pytest.raises(ConfigError, match="was made for tinyssd"):
        wrong = RunOptions(preset="multibox-s", recipe="d2l", out=tmp_path / "g")
        ablate(squares, wrong, parse_axes("loss"), 1, train=fit, reporter=Reporter())
    assert not (tmp_path / "g").exists()


def test_only_a_run_that_went_wrong_is_a_result(squares, tmp_path):
    def refuse(data, options):
        raise DataError("no image")

    def fail(data, options):
        raise MultiboxError("the loss became nan; lower the learning rate")

    with pytest.raises(DataError):
        repeat(squares, options(tmp_path / "a"), 1, train=refuse, reporter=Reporter())
    (run,) = repeat(squares, options(tmp_path / "b"), 1, train=fail, reporter=Reporter())
    assert run == Run(0, {}, "the loss became nan; lower the learning rate")
    assert repeat(squares, options(tmp_path / "b"), 1, train=refuse, reporter=Reporter()) == [run]


def test_the_table_is_sorted_and_its_best_is_bold():
    cells = make_grid(parse_axes("loss"))
    results = {"cross_entropy": [0.2, 0.4], "focal": [0.5, 0.7], "ohem": [None]}

    def run(seed, value):
        return Run(seed, {}, "nan; x") if value is None else Run(seed, dict.fromkeys(seeds.METRICS, value))

    runs = {name: [run(*pair) for pair in enumerate(values)] for name, values in results.items()}
    found = [CellRuns(cell, runs[cell.name]) for cell in cells if cell.name in runs]
    assert [one.cell.name for one in ranked(found)] == ["focal", "cross_entropy", "ohem"]
    lines = ablation_markdown(found, ("loss",)).splitlines()
    assert lines[0] == "| loss | AP | AP50 | AP75 | mAP | runs |"
    # 12.706 * 0.141421 / sqrt(2)
    assert lines[2].startswith("| focal | **0.600 (-0.671 to 1.871)** |")
    assert lines[3].startswith("| cross_entropy | 0.300 (-0.971 to 1.571) |")
    assert lines[4] == "| ohem | - | - | - | - | 1, 1 failed: nan |"
