import csv
import dataclasses
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from multibox import create
from multibox.config import Config, TrainConfig
from multibox.errors import ConfigError, DataError, ImageError, MultiboxError, WeightsError
from multibox.inference.detector import load
from multibox.models.backbones.layers import L2Norm
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.presets import resolve
from multibox.structures import Sample, pack
from multibox.training.adapting import drop_difficult
from multibox.training.optimizer import learning_rate, make_optimizer
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare
from multibox.training.splits import held_out, match_classes

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


OTHER = "<object><name>red</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=changes.pop("epochs", 3), out=out, changes={**SMALL, **changes})


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
    assert load(tmp_path / "run").names == ("blue", "red")


def test_resumed_equals_uninterrupted(squares, tmp_path):
    whole = prepare(squares, options(tmp_path / "whole"))
    whole.fit()
    second = prepare(squares, options(tmp_path / "parts"))

    def interrupt(trainer, parts):
        if trainer.pace.step == stop:
            signal.raise_signal(signal.SIGINT)

    for stop in (1, 4):
        second.reporter.step = interrupt
        with pytest.raises(KeyboardInterrupt):
            second.fit()
        assert second.pace.step == stop
        second = prepare(squares, RunOptions(resume=tmp_path / "parts"))
        assert second.pace.step == stop
    stop = second.pace.total
    second.reporter.step = interrupt
    assert not second.interrupted
    second.fit()  # nothing is left to stop, but a loop over runs must hear of it
    assert second.interrupted
    for one, other in (
        (whole.stepper.model, second.stepper.model),
        (whole.stepper.weights(), second.stepper.weights()),
    ):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    kept = ("total_loss", "learning_rate", "val_map50", "class_error")
    for a, b in zip(whole.records.rows, second.records.rows, strict=True):
        assert [a.get(k) for k in kept] == [b.get(k) for k in kept]


def test_resuming_with_other_data_is_refused(squares, tmp_path):
    prepare(squares, options(tmp_path / "run", epochs=1)).fit()
    names = squares / "ImageSets" / "Main" / "train.txt"
    names.write_text("\n".join(names.read_text().split()[:-1]))
    with pytest.raises(ConfigError, match=r"changed since .* was started"):
        prepare(squares, RunOptions(resume=tmp_path / "run"))


def test_a_resumed_run_leaves_out_the_difficult_objects_that_it_left_out_before(squares, tmp_path):
    for path in (squares / "Annotations").iterdir():
        text = path.read_text().replace("<object>", "<object><difficult>1</difficult>")
        path.write_text(text.replace("</annotation>", OTHER + "</annotation>"))
    first = prepare(squares, options(tmp_path / "run", **{"train.difficult": "drop"}))
    assert first.training.crowd.sum() == 12
    first.save()
    resumed = prepare(squares, RunOptions(resume=tmp_path / "run"))
    np.testing.assert_array_equal(resumed.training.crowd, first.training.crowd)


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
    kept, start = (load(path).model.state_dict() for path in (tmp_path / "ruin" / "best.safetensors", weights))
    assert all(torch.equal(kept[name], start[name]) for name in start)
    assert f"before the first step: mAP@0.5 {score:.3f}" in " ".join(told)
    assert "a lower rate may improve on them, such as --set train.lr=3e-5" in told[-1]


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


def test_mistakes_are_refused_before_anything_is_written(squares, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        prepare(squares, options(tmp_path / "full"))
    with pytest.raises(ConfigError, match="no run to resume"):
        prepare(squares, RunOptions(resume=tmp_path / "full"))
    with pytest.raises(ConfigError, match="train needs DATA"):
        prepare(None, options(tmp_path / "run"))
    for key, value, words in (
        ("train.schedule", "steps", r"train.factors=\[\]: expected one more than train.boundaries=\[\]"),
        ("train.lr", -1, "train.lr=-1: expected a number above 0"),
        ("model.input_size", [0, 64], r"model.input_size=\[0, 64\]: expected 2 whole numbers from 16"),
        ("model.input_size", [32, 32], r"model.input_size=\[32, 32\] does not fit tinyssd .* give another one"),
        ("model.variances", [0, 0, 1, 1], r"model.variances=\[0, 0, 1, 1\]: expected 4 numbers above 0"),
        ("train.ema", 2, "train.ema=2: expected a number above 0 and below 1, or none"),
        ("train.freeze", "*", "leaves nothing to learn"),
        ("train.batch_size", -4, "train.batch_size=-4: expected a whole number from 1 to 65536, or auto"),
        ("train.freeze", "bakbone.*", "fits no parameter"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare(squares, options(tmp_path / "run", **{key: value}))
    for epochs in (0, -3):
        with pytest.raises(ConfigError, match=f"train.epochs={epochs}: expected a whole number of at least 1, or none"):
            prepare(squares, options(tmp_path / "run", epochs=epochs))
    single = dataclasses.replace(options(tmp_path / "run", **{"train.batch_size": 1}), preset="ssdlite320-mobilenetv3")
    with pytest.raises(ConfigError, match=r"train.batch_size=1: a batch norm over a map of one cell"):
        prepare(squares, single)
    with pytest.raises(ConfigError, match=r"train.lr=1000+\.\.\.: expected a number"):
        prepare(squares, options(tmp_path / "run", **{"train.lr": 10**400}))
    with pytest.raises(ConfigError, match=r"device gpu cannot be used here \(.*give cpu, cuda or auto"):
        prepare(squares, dataclasses.replace(options(tmp_path / "run"), device="gpu"))
    (tmp_path / "file").write_text("mine")
    for weights, words in (
        ("squares", "holds neither best"),
        ("file", "Error: no PyTorch file\\)"),
    ):
        with pytest.raises(WeightsError, match=words):
            prepare(squares, dataclasses.replace(options(tmp_path / "run"), weights=tmp_path / weights))
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"(is a file|cannot be made) \(.*give another --out"):
            prepare(squares, options(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "squares"]
    prepare(squares, options(tmp_path / "run"))
    with pytest.raises(WeightsError, match="nothing to resume"):
        prepare(squares, RunOptions(resume=tmp_path / "run"))


def test_a_resumed_run_keeps_its_settings(squares, tmp_path):
    prepare(squares, options(tmp_path / "run"))

    def resume(**asked):
        prepare(squares, RunOptions(resume=tmp_path / "run", **asked))

    for asked, words in (
        ({"preset": "multibox-s"}, "run was started with preset=tinyssd, got multibox-s; .* leave --preset away"),
        ({"recipe": "d2l"}, "with recipe=default, got d2l; .* leave --recipe away"),
        ({"val_split": "none"}, "with data.val_split=auto, got none; .* leave --val-split away"),
        ({"out": tmp_path / "other"}, "leave --out away"),
        ({"epochs": 4, "minutes": 2}, "exclude each other"),
        (
            {"changes": {"model.input_size": "[96,96]"}},
            r"=\[64, 64\], got \[96,96\]; .* leave --set model.input_size away",
        ),
        ({"changes": {"train.lrr": 1}}, "did you mean train.lr"),
        ({"weights": "x.safetensors"}, "leave --weights away"),
    ):
        with pytest.raises(ConfigError, match=words):
            resume(**asked)
    with pytest.raises(WeightsError, match="nothing to resume"):
        resume(preset="tinyssd", recipe="default", epochs=3, changes=SMALL | {"train.lr": "auto", "anchors.fit": 4})


def test_a_broken_state_is_named(squares, tmp_path):
    prepare(squares, options(tmp_path / "run", epochs=1)).fit()
    config, state = tmp_path / "run" / "config.toml", tmp_path / "run" / "state" / "state.safetensors"
    text, whole = config.read_text(), state.read_bytes()
    resume = RunOptions(resume=tmp_path / "run")
    for broken in (whole[: len(whole) // 2], b"", (tmp_path / "run" / "last.safetensors").read_bytes()):
        state.write_bytes(broken)
        with pytest.raises(WeightsError, match=r"no state of a run that can be read .* start another run"):
            prepare(squares, resume)
    state.write_bytes(whole)
    config.write_text(text.replace('heads = "conv3x3"', 'heads = "conv1x1"'))
    with pytest.raises(WeightsError, match=r"of another network than .*config.toml says"):
        prepare(squares, resume)
    config.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config.toml is not text"):
        prepare(squares, resume)


@pytest.mark.parametrize("step", [1, 4, 5, 13])
def test_a_loss_that_is_not_a_number_is_noticed_within_ten_steps_and_named(squares, tmp_path, step):
    trainer = prepare(squares, options(tmp_path / "run", epochs=20, **{"train.batch_size": 2}))
    whole, steps, images = trainer.stepper.step, [], []

    def poisoned(batch):
        steps.append(batch.names)
        parts = whole(batch)
        if len(steps) == step:
            images.extend(batch.names)
            with torch.no_grad():
                next(trainer.stepper.model.parameters()).fill_(math.nan)
            parts = dataclasses.replace(parts, total=parts.total * math.nan)
        return parts

    trainer.stepper.step = poisoned
    with pytest.raises(MultiboxError, match=r"the loss became nan at step .*--set train.lr=.*data show") as error:
        trainer.fit()
    assert f"at step {step} (its images: {', '.join(images)})" in str(error.value)
    assert len(steps) < step + 10
    saved = load_file(tmp_path / "run" / "state" / "state.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in saved.items() if name.startswith("model."))


def test_a_broken_loss_is_never_saved_by_ctrl_c(squares, tmp_path):
    trainer = prepare(squares, options(tmp_path / "run", epochs=20))
    whole = trainer.stepper.step

    def poisoned(batch):
        signal.raise_signal(signal.SIGINT)
        parts = whole(batch)
        return dataclasses.replace(parts, total=parts.total * math.inf)

    trainer.stepper.step = poisoned
    with pytest.raises(MultiboxError, match="the loss became inf at step 1 "):
        trainer.fit()
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_without_a_validation_split_a_stable_tenth_is_held_out(squares, tmp_path):
    (squares / "ImageSets" / "Main" / "val.txt").unlink()
    trainer = prepare(squares, options(tmp_path / "run"))
    assert trainer.validation is not None
    assert len(trainer.training) == 11
    assert len(trainer.validation.dataset) == 1
    names = [f"{i}.png" for i in range(100)]
    kept = {names[i] for i in held_out(names)}
    assert len(kept) == 10
    backwards = names[::-1]
    assert {backwards[i] for i in held_out(backwards)} == kept


def test_an_unreadable_image_stops_before_the_run_or_is_skipped(squares, tmp_path):
    image = squares / "JPEGImages" / "003.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"003\.png.*--on-bad skip"):
        prepare(squares, options(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    told = []
    trainer = prepare(
        squares, RunOptions(preset="tinyssd", out=tmp_path / "run", on_bad="skip", changes=SMALL), Reporter(told.append)
    )
    assert len(trainer.training) == 11
    assert any("1 images" in line and "003.png" in line for line in told)


def test_a_split_without_objects_is_refused(squares, tmp_path):
    for path in (squares / "Annotations").iterdir():
        if path.stem < "012":
            path.write_text("<annotation><filename>" + path.stem + ".png</filename></annotation>")
    with pytest.raises(DataError, match="nothing to learn"):
        prepare(squares, options(tmp_path / "run"))


def test_a_held_out_image_with_the_only_object_is_refused(draw_squares, tmp_path):
    data = draw_squares(tmp_path / "data", 2)
    (data / "ImageSets" / "Main" / "val.txt").unlink()
    (data / "ImageSets" / "Main" / "train.txt").write_text("000\n001\n")
    (held,) = prepare(data, options(tmp_path / "run")).validation.dataset.image_names
    for path in (data / "Annotations").iterdir():
        if path.stem not in held:
            path.write_text("<annotation><filename>" + path.stem + ".png</filename></annotation>")
    with pytest.raises(DataError, match="nothing to learn"):
        prepare(data, options(tmp_path / "other"))


def labelled_images(images, names):
    samples = [
        Sample(f"{i}.jpg", Path(f"{i}.jpg"), np.tile([0.0, 0, 1, 1], (len(labels), 1)), np.array(labels, int),
               np.zeros(len(labels), bool), np.zeros(len(labels), bool))
        for i, labels in enumerate(images)
    ]  # fmt: skip
    return pack(samples, root=Path(), format="voc", split="train", class_names=names)


def test_classes_without_training_objects_do_not_join_the_model():
    training = labelled_images([[0, 2], [0]], ("a", "b", "c", "declared"))
    validation = labelled_images([[1, 0], [2, 3], [3]], ("c", "b", "a", "new"))
    training, validation, (note,) = match_classes(training, validation)
    assert training.class_names == validation.class_names == ("a", "c")
    assert training.labels.tolist() == [0, 1, 0]
    assert [sample.labels.tolist() for sample in validation] == [[1], [0], []]
    assert note == (
        "3 classes have no object in training (train) and are left out: b (1 in validation), declared, "
        "new (2 in validation)"
    )


def test_equal_classes_stay_as_they_are():
    training, validation = labelled_images([[0], [1], [2]], "abc"), labelled_images([[0]], "abc")
    assert match_classes(training, validation) == (training, validation, [])
    assert match_classes(training, None) == (training, None, [])


def test_val_split_none_trains_without_validation(squares, tmp_path):
    trainer = prepare(
        squares, RunOptions(preset="tinyssd", epochs=1, out=tmp_path / "run", val_split="none", changes=SMALL)
    )
    trainer.fit()
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert load(tmp_path / "run").names == ("blue", "red")


def test_learning_rate_warms_up_and_follows_the_cosine():
    config = TrainConfig(lr=1.0, schedule="cosine", warmup=0.1, final_lr=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert rates[99] == pytest.approx(0.1, abs=0.01)
    assert {learning_rate(step, 100, TrainConfig(lr=0.2)) for step in range(100)} == {0.2}


@pytest.mark.parametrize(("norms", "biases"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_decay_reaches_norms_and_biases_only_where_asked(norms, biases):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), L2Norm(4))
    config = TrainConfig(weight_decay=0.05, norm_decay=norms, bias_decay=biases, bias_lr=2.0)
    groups = {p: g for g in make_optimizer(model, config).param_groups for p in g["params"]}
    assert groups[model[0].weight]["weight_decay"] == 0.05
    assert groups[model[1].weight]["weight_decay"] == 0.05 * norms
    assert groups[model[1].bias]["weight_decay"] == 0.05 * norms
    assert groups[model[2].scale]["weight_decay"] == 0.05 * norms
    assert groups[model[0].bias]["weight_decay"] == 0.05 * biases
    assert groups[model[0].bias]["scale"] == 2.0


def test_steps_end_where_the_lineages_end_them():
    hikapok = resolve("ssd300-vgg16", "hikapok").train
    rates = {step: learning_rate(step, 120_000, hikapok) for step in (0, 500, 501, 80_000, 80_001, 100_000, 100_001)}
    # Facts 17.12: TensorFlow's boundaries belong to the old rate
    expected = {0: 1e-4, 500: 1e-4, 501: 1e-3, 80_000: 1e-3, 80_001: 1e-4, 100_000: 1e-4, 100_001: 1e-5}
    assert rates == pytest.approx(expected)
    caffe = resolve("ssd300-vgg16", "caffe").train
    found = [learning_rate(step, 120_000, caffe) for step in (0, 79_999, 80_000, 99_999, 100_000)]
    assert found == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    # A run of 100 epochs with 12 steps each has its boundaries in the same places
    short = resolve("ssd300-vgg16", "caffe", {"train.epochs": 100}).train
    assert [learning_rate(step, 1200, short) for step in (799, 800, 999, 1000)] == pytest.approx(
        [1e-3, 1e-4, 1e-4, 1e-5]
    )


def labelled(name, difficult):
    count = len(difficult)
    flags = np.array(difficult, bool)
    return Sample(name, Path(name), np.zeros((count, 4)), np.zeros(count, int), flags, np.zeros(count, bool))


def test_difficult_objects_are_dropped_but_for_a_lonely_first():
    samples = [labelled("some", [False, True, False]), labelled("all", [True, True]), labelled("empty", [])]
    dataset = pack(samples, root=Path(), format="voc", split="train", class_names=["a"])
    assert drop_difficult(dataset).crowd.tolist() == [False, True, False, False, True]


@pytest.mark.slow
def test_the_total_of_hikapok_starts_higher_by_the_scale(squares, tmp_path):
    changes = {**SMALL, "train.batch_size": 2, "train.augmentation": "none", "train.freeze": "backbone.[!n]*,heads.*"}
    run = RunOptions(preset="ssd300-vgg16", recipe="hikapok", epochs=1, out=tmp_path / "run", changes=changes)
    trainer = prepare(squares, run)
    seen = []

    def see(trainer, parts):
        seen.append(parts)
        raise StopIteration

    trainer.reporter.step = see
    with pytest.raises(StopIteration):
        trainer.fit()
    # Only the scale learns here, so only it is counted: 5e-4 * 0.1 * 0.5 * 512 * 400
    assert seen[0].l2.item() == pytest.approx(5.12, abs=1e-4)
    assert seen[0].total.item() == pytest.approx(
        (seen[0].classification + seen[0].localization).item() + 5.12, rel=1e-5
    )


def test_a_floor_holds():
    config = TrainConfig(lr=1.0, schedule="steps", boundaries=(0.5,), factors=(1.0, 1e-9), minimum_lr=1e-6, steps=4)
    assert [learning_rate(step, 4, config) for step in range(4)] == [1.0, 1.0, 1e-6, 1e-6]
