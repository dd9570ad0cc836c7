"""A run folder alone describes its run: it is begun, stopped, moved, prolonged and begun again."""

import dataclasses
import shutil
import signal
import time
from pathlib import Path

import pytest

from multibox.config import Config
from multibox.errors import ConfigError, MultiboxError, WeightsError
from multibox.models.checkpoint import load_checkpoint
from multibox.training import run as runs
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare, resolve_options

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def options(out, **changes):
    given = {name: changes.pop(name) for name in ("minutes", "epochs", "val_split") if name in changes}
    return RunOptions(preset="tinyssd", out=out, changes={**SMALL, **changes}, **(given or {"epochs": 2}))


def stop_at(step):
    def watch(trainer, parts):
        if trainer.pace.step == step:
            signal.raise_signal(signal.SIGINT)

    return watch


def stopped(data, options, step):
    trainer = prepare(data, options)
    trainer.reporter.step = stop_at(step)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    return trainer


@pytest.mark.slow
def test_the_folder_alone_resumes_the_run_from_anywhere(squares, tmp_path, monkeypatch):
    first = stopped(squares, options(tmp_path / "run"), 2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = prepare(None, RunOptions(resume=tmp_path / "run"))
    assert second.validation.dataset.image_names == first.validation.dataset.image_names
    assert second.training.image_names == first.training.image_names
    assert second.pace.total == first.pace.total == 6
    second.fit()
    assert second.pace.step == 6


@pytest.mark.slow
@pytest.mark.parametrize(("split", "validated"), [("none", None), ("val", 4), ("train", 1), (None, 4)])
def test_a_resumed_run_validates_on_the_same_images(squares, tmp_path, split, validated):
    first = stopped(squares, options(tmp_path / "run", epochs=2, val_split=split), 1)
    second = prepare(None, RunOptions(resume=tmp_path / "run"))
    names = [None if t.validation is None else t.validation.dataset.image_names for t in (first, second)]
    assert names[0] == names[1]
    assert validated == (None if names[0] is None else len(names[0]))


@pytest.mark.slow
def test_moved_data_is_found_again_and_changed_data_refused(squares, tmp_path):
    stopped(squares, options(tmp_path / "run"), 1)
    moved = squares.rename(tmp_path / "moved")
    with pytest.raises(MultiboxError, match="squares does not exist"):
        prepare(None, RunOptions(resume=tmp_path / "run"))
    prepare(moved, RunOptions(resume=tmp_path / "run")).hold.close()
    assert Config.from_toml((tmp_path / "run" / "config.toml").read_text()).data.path == (str(moved),)
    label = moved / "Annotations" / "000.xml"
    label.write_text(label.read_text().replace("</ymax>", ".5</ymax>"))
    with pytest.raises(ConfigError, match=r"changed since .* was started"):
        prepare(None, RunOptions(resume=tmp_path / "run"))


@pytest.mark.slow
def test_resuming_with_other_data_is_refused(squares, tmp_path):
    prepare(squares, options(tmp_path / "run", epochs=1)).fit()
    names = squares / "ImageSets" / "Main" / "train.txt"
    names.write_text("\n".join(names.read_text().split()[:-1]))
    with pytest.raises(ConfigError, match=r"changed since .* was started"):
        prepare(squares, RunOptions(resume=tmp_path / "run"))


@pytest.mark.slow
def test_a_finished_run_is_prolonged(squares, tmp_path):
    prepare(squares, options(tmp_path / "run", epochs=1)).fit()
    longer = prepare(None, RunOptions(resume=tmp_path / "run", epochs=2))
    assert (longer.pace.step, longer.pace.total) == (3, 6)
    longer.fit()
    timed = prepare(None, RunOptions(resume=tmp_path / "run", minutes=0.2))
    assert Config.from_toml((tmp_path / "run" / "config.toml").read_text()).train.minutes == 0.2
    timed.fit()
    assert timed.pace.step > 6
    assert timed.records.rows[-1]["step"] == timed.pace.step


@pytest.mark.slow
def test_a_run_of_some_minutes_ends_in_time_and_where_the_learning_rate_should(squares, tmp_path):
    began = time.monotonic()
    trainer = prepare(squares, options(tmp_path / "run", minutes=0.15))
    rates = []
    trainer.reporter.step = lambda trainer, parts: rates.append(trainer.stepper.optimizer.param_groups[0]["lr"])
    trainer.fit()
    assert 0.7 * 9 < time.monotonic() - began < 1.3 * 9
    assert rates[-1] < 0.1 * max(rates)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").config.train.minutes == 0.15


@pytest.mark.slow
def test_steps_are_exact(squares, tmp_path):
    trainer = prepare(squares, RunOptions(preset="tinyssd", out=tmp_path / "r", changes=SMALL | {"train.steps": 7}))
    trainer.fit()
    assert trainer.pace.step == 7
    assert [row["step"] for row in trainer.records.rows] == [3, 6, 7]


@pytest.mark.slow
def test_a_run_that_failed_before_it_saved_weights_is_begun_again_or_resumed(squares, tmp_path):
    bad = options(tmp_path / "run", **{"train.lr": 1e30, "train.optimizer": "sgd", "train.clip_norm": "none"})
    with pytest.raises(MultiboxError, match="loss became"):
        prepare(squares, bad).fit()
    resumed = prepare(None, RunOptions(resume=tmp_path / "run"))
    assert resumed.pace.step == 0
    resumed.hold.close()
    again = prepare(squares, options(tmp_path / "run"))
    again.fit()
    assert (tmp_path / "run" / "best.safetensors").is_file()
    with pytest.raises(ConfigError, match=r"holds a run; go on with it by --resume"):
        prepare(squares, options(tmp_path / "run"))


@pytest.mark.slow
def test_checkpoints_carry_no_paths_and_no_command_line(squares, tmp_path):
    prepare(squares, options(tmp_path / "run", epochs=1)).fit()
    for name in ("best", "last"):
        data = (tmp_path / "run" / f"{name}.safetensors").read_bytes()
        header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode()
        assert str(tmp_path) not in header
        assert "pytest" not in header
        assert "squares" in header  # the name of the data remains


def test_every_layer_is_told(squares, tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nlr = 0.01\nseed = 3\n")
    asked = RunOptions(preset="tinyssd", config=tmp_path / "mine.toml", changes={"train.seed": "4"}, minutes=2)
    config, origins = resolve_options(squares, asked)
    assert (config.train.lr, config.train.seed, config.train.minutes, config.train.steps) == (0.01, 4, 2, "none")
    assert origins["train.lr"] == str(tmp_path / "mine.toml")
    assert (origins["train.seed"], origins["train.minutes"]) == ("--set", "command line")
    with pytest.raises(ConfigError, match=r"train.steps.*train.minutes|train.minutes.*train.steps"):
        resolve_options(squares, RunOptions(preset="tinyssd", changes={"train.steps": "4"}, minutes=2))
    assert origins["anchors.sizes"] == "preset tinyssd"
    assert origins["train.optimizer"] == "recipe default"
    assert origins["model.width"] == "default"
    tuned = resolve_options(squares, RunOptions())[1]
    assert tuned["loss.classification"] == "tuning of multibox-fine"


@pytest.mark.slow
def test_an_old_run_folder_goes_on(squares, tmp_path):
    """Format 2: zeros for words, no [data], another state."""
    trainer = stopped(squares, options(tmp_path / "run"), 2)
    rewrite_as_format_2(trainer.folder)
    with pytest.raises(ConfigError, match="does not say which data"):
        prepare(None, RunOptions(resume=tmp_path / "run"))
    resumed = prepare(squares, RunOptions(resume=tmp_path / "run"))
    assert (resumed.pace.step, resumed.pace.total) == (2, 6)
    resumed.fit()


def rewrite_as_format_2(folder):
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    config = (folder / "config.toml").read_text().partition("[data]")[0]
    for name, word, old in (
        ("patience", '"none"', "0"), ("validate_every", '"auto"', "0"), ("workers", "0", "0"), ("steps", '"none"', "0"),
        ("negative_ratio", '"all"', "0.0"), ("max_per_class", '"none"', "0"), ("hard_examples", '"none"', "0"),
        ("warmup_steps", '"none"', "0"),
    ):  # fmt: skip
        config = config.replace(f"{name} = {word}\n", f"{name} = {old}\n")
    gone = ("minutes", "threads", "weights")
    config = "\n".join(line for line in config.splitlines() if line.partition(" = ")[0] not in gone)
    (folder / "config.toml").write_text(config)
    path = folder / "state" / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old = {"images": 12, "names": ["blue", "red"], "step": notes["pace"]["step"], "best": notes["best"]}
    old |= {"seconds": notes["seconds"], "rows": notes["rows"], "averaged": notes["averaged"]}
    save_file(tensors, path, {"notes": json.dumps(old)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (ConfigError, "train needs DATA", {"data": None}),
        (ConfigError, "not empty", {"out": "full"}),
        (ConfigError, "no run to resume", {"resume": Path("full")}),
        (ConfigError, r"is a file \(.*give another --out", {"out": "file"}),
        (ConfigError, r"cannot be made \(.*give another --out", {"out": "file/run"}),
        (ConfigError, r"device gpu cannot be used here \(.*give cpu, cuda or auto", {"device": "gpu"}),
        (ConfigError, r"\[32, 32\] does not fit tinyssd .* give another one", {"model.input_size": [32, 32]}),
        (ConfigError, r"scales=\[0.5, 1\] makes images of 32 x 32, which do not fit .* give scales nearer to 1",
         {"train.scales": [0.5, 1]}),
        (ConfigError, "leaves nothing to learn", {"train.freeze": "*"}),
        (ConfigError, "fits no parameter", {"train.freeze": "bakbone.*"}),
        (ConfigError, r"train.augmentation.*did you mean 'default'", {"train.augmentation": "defalt"}),
        (ConfigError, r"train.lr=1000+\.\.\.: expected a number", {"train.lr": 10**400}),
        (ConfigError, "train.batch_size=1: a batch norm over a map of one cell",
         {"train.batch_size": 1, "preset": "ssdlite320-mobilenetv3"}),
        (WeightsError, "holds neither best", {"weights": "squares"}),
        (WeightsError, r"Error: no PyTorch file\)", {"weights": "file"}),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_before_anything_is_written(squares, tmp_path, monkeypatch, error, words, changes):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    given = {name: changes[name] for name in ("preset", "weights", "device", "resume") if name in changes}
    settings = {key: value for key, value in changes.items() if "." in key}
    asked = dataclasses.replace(options(Path(changes.get("out", "run")), **settings), **given)
    with pytest.raises(error, match=words):
        prepare(changes.get("data", squares), asked)
    assert sorted(tmp_path.rglob("*")) == before
    prepare(squares, options(tmp_path / "run")).hold.close()


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
    resume(preset="tinyssd", recipe="default", epochs=3, changes=SMALL | {"train.lr": "auto", "anchors.fit": 4})
    resume(changes={"train.nan_skips": 50, "train.save_minutes": 9, "train.workers": 1})
    said = Config.from_toml((tmp_path / "run/config.toml").read_text(), "config").train
    assert (said.nan_skips, said.save_minutes, said.workers, said.epochs) == (50, 9, 1, 2)


@pytest.mark.slow
def test_a_run_killed_before_its_first_state_begins_anew_with_what_it_was_asked_for(squares, tmp_path, monkeypatch):
    whole = tmp_path / "whole"

    def leaves_behind(name):
        """Keep what a kill would leave at the place where a function of the module `run` is called."""
        function = getattr(runs, name)

        def call(*given, **named):
            shutil.copytree(whole, tmp_path / name)
            return function(*given, **named)

        monkeypatch.setattr(runs, name, call)

    # Before the data is read, and after every setting is found
    leaves_behind("_open_splits")
    leaves_behind("_set_out")
    changes = {"anchors.fit": 4, "train.lr": "auto", "train.batch_size": "auto"}
    prepare(squares, options(whole, epochs=1, **changes)).fit()
    monkeypatch.undo()
    for name in ("_open_splits", "_set_out"):
        run, lines = tmp_path / name, []
        prepare(None, RunOptions(resume=run), Reporter(lines.append)).fit()
        assert any("begins anew" in line for line in lines)
        for file in ("last.safetensors", "metrics.csv", "config.toml"):
            assert (run / file).read_bytes() == (whole / file).read_bytes(), (name, file)


def test_a_run_without_a_state_or_what_it_was_asked_for_is_refused(squares, tmp_path):
    prepare(squares, options(tmp_path / "run")).hold.close()
    shutil.rmtree(tmp_path / "run" / "state")
    with pytest.raises(WeightsError, match="nothing to resume"):
        prepare(None, RunOptions(resume=tmp_path / "run"))


def test_the_folder_of_a_run_killed_at_its_start_is_used_again(squares, tmp_path):
    state = tmp_path / "run" / "state"
    state.mkdir(parents=True)
    (state / ".asked.toml.0123456789ab.part").write_text("")
    prepare(squares, options(tmp_path / "run")).hold.close()
    shutil.rmtree(tmp_path / "run")
    state.mkdir(parents=True)
    (state / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        prepare(squares, options(tmp_path / "run"))
    assert (state / "mine.txt").read_text() == "mine"


def test_a_broken_state_is_named(squares, tmp_path):
    prepare(squares, options(tmp_path / "run", epochs=1)).fit()
    config, state = tmp_path / "run" / "config.toml", tmp_path / "run" / "state" / "state.safetensors"
    text, whole = config.read_text(), state.read_bytes()
    resume = RunOptions(resume=tmp_path / "run")
    middle = len(whole) // 2
    state.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(WeightsError, match=r"was damaged after it was saved: its checksum is wrong; start another run"):
        prepare(squares, resume)
    for broken in (whole[:middle], b"", (tmp_path / "run" / "last.safetensors").read_bytes()):
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
