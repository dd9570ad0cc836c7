"""A run folder alone describes its run: it is begun, stopped, moved, prolonged and begun again."""

import re
import shutil
import signal
import time

import pytest
import torch

from multibox import create
from multibox.config import Config
from multibox.errors import ConfigError, MultiboxError
from multibox.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from multibox.presets import RECIPES
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


@pytest.mark.parametrize(("split", "validated"), [("none", None), ("val", 4), ("train", 1), (None, 4)])
def test_a_resumed_run_validates_on_the_same_images(squares, tmp_path, split, validated):
    first = stopped(squares, options(tmp_path / "run", epochs=2, val_split=split), 1)
    second = prepare(None, RunOptions(resume=tmp_path / "run"))
    names = [None if t.validation is None else t.validation.dataset.image_names for t in (first, second)]
    assert names[0] == names[1]
    assert validated == (None if names[0] is None else len(names[0]))


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


def test_minutes_and_epochs_exclude_each_other(squares, tmp_path):
    with pytest.raises(ConfigError, match="--minutes and --epochs exclude each other"):
        prepare(squares, options(tmp_path / "run", minutes=1, epochs=1))


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


def test_a_mistake_leaves_no_folder_that_blocks_the_corrected_command(squares, tmp_path):
    with pytest.raises(ConfigError, match=r"train.augmentation.*did you mean 'default'"):
        prepare(squares, options(tmp_path / "run", **{"train.augmentation": "defalt"}))
    assert not (tmp_path / "run").exists()
    prepare(squares, options(tmp_path / "run")).hold.close()


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(squares, tmp_path, monkeypatch):
    import subprocess
    import sys

    first = prepare(squares, options(tmp_path / "run"))
    code = (
        "import sys; from multibox.training.folder import Hold; from pathlib import Path\n"
        "from multibox.errors import ConfigError\n"
        "try: Hold(Path(sys.argv[1]))\n"
        "except ConfigError as error: print(error)"
    )
    ask = [sys.executable, "-c", code, str(tmp_path / "run")]
    assert "another process trains in" in subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    first.fit()
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == ""
    monkeypatch.chdir(tmp_path)
    folders = [prepare(squares, options(None)).folder.name for _ in range(2)]
    assert folders == ["tinyssd-1", "tinyssd-2"]


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


def shrunken(squares):
    """Make the objects of the data tiny."""
    for path in (squares / "Annotations").iterdir():
        text = re.sub(r"<xmax>\d+", "<xmax>12", re.sub(r"<xmin>\d+", "<xmin>4", path.read_text()))
        path.write_text(re.sub(r"<ymax>\d+", "<ymax>12", re.sub(r"<ymin>\d+", "<ymin>4", text)))


@pytest.mark.parametrize(
    ("tiny", "changes", "size"),
    [
        (True, {}, (128, 128)),  # 8 of 96 pixels are 8 at 96: twice that is 16, at most 128
        (False, {}, (96, 96)),
        (True, {"model.input_size": [64, 64]}, (64, 64)),
        (True, {"train.largest_input": "none"}, (96, 96)),
    ],
)
def test_the_input_grows_where_objects_are_small_at_it(squares, tmp_path, monkeypatch, tiny, changes, size):
    if tiny:
        shrunken(squares)
    small = {"model.input_size": (96, 96), "train.largest_input": 128}
    monkeypatch.setitem(RECIPES["default"].tuning, "tinyssd", small)
    told = []
    asked = RunOptions(preset="tinyssd", out=tmp_path / "run", epochs=1, changes={"train.batch_size": 4, **changes})
    trainer = prepare(squares, asked, Reporter(told.append))
    assert trainer.config.model.input_size == size
    assert any("so it is enlarged to 128x128" in line for line in told) == (size == (128, 128))
    trainer.hold.close()


@pytest.mark.parametrize(
    ("score", "changes", "rate"),
    [(0.8, {}, 5e-5), (0.1, {}, 2e-3), (None, {}, 2e-3), (0.8, {"train.lr": 0.01}, 0.01)],
)
def test_weights_that_find_everything_already_learn_at_a_low_rate(squares, tmp_path, monkeypatch, score, changes, rate):
    known = create("ssd300-mobilenetv1", ["red", "blue"])
    save_checkpoint(tmp_path / "known.safetensors", Checkpoint(known.model.state_dict(), known.config, known.names))
    monkeypatch.setattr("multibox.training.adapting.Validation.score", lambda *_: {"val_loss": 1.0, "val_map50": score})
    told = []
    asked = RunOptions(
        weights=str(tmp_path / "known.safetensors"), out=tmp_path / "run", epochs=1, changes=SMALL | changes
    )
    trainer = prepare(squares, asked, Reporter(told.append))
    assert trainer.known
    assert trainer.config.train.lr == rate
    assert any("learn at a low rate" in line for line in told) == (rate == 5e-5)
    trainer.hold.close()
