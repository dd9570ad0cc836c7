"""How a run is asked to end, when it does, and that nothing half done is kept."""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multibox.errors import WeightsError
from multibox.files import whole_file
from multibox.training.folder import STATE
from multibox.training.pacing import Pace, going_on
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare
from multibox.training.stopping import EndNow, Interrupt, Terminated, exit_code, terminable

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}
SIGNALS = {signal.SIGINT: (KeyboardInterrupt, 130), signal.SIGTERM: (Terminated, 143)}
if hasattr(signal, "SIGHUP"):
    SIGNALS[signal.SIGHUP] = (Terminated, 129)


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=2, out=out, changes={**SMALL, **changes})


@pytest.fixture(scope="module")
def squares(tmp_path_factory, draw_squares):
    return draw_squares(tmp_path_factory.mktemp("data") / "squares", 16)


@pytest.fixture(scope="module")
def whole(squares, tmp_path_factory):
    """A run that nobody disturbed."""
    trainer = prepare(squares, options(tmp_path_factory.mktemp("whole") / "run", **{"train.validate_every": 1}))
    trainer.fit()
    return trainer


def raising(function, number):
    """Return a function that sends a signal to this process before it calls another."""

    def call(*arguments, **named):
        signal.raise_signal(number)
        return function(*arguments, **named)

    return call


def same_end(trainer, whole):
    for name in ("last.safetensors", "best.safetensors", "metrics.csv"):
        assert (trainer.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_validation_is_heard_at_once_and_nothing_of_it_is_kept(squares, tmp_path, whole, number):
    trainer = prepare(squares, options(tmp_path / "run", **{"train.validate_every": 1}))
    # In its first batch
    trainer.validation.images.batch = raising(trainer.validation.images.batch, number)
    kind, code = SIGNALS[number]
    with pytest.raises(kind) as stopped:
        trainer.fit()
    assert exit_code(stopped.value) == code
    assert trainer.pace.step == 3 and not trainer.records.rows and not (trainer.folder / "best.safetensors").exists()
    assert not list((trainer.folder / "images").glob("*"))
    again = prepare(None, RunOptions(resume=trainer.folder))
    assert again.owes_row and not again.finished
    again.fit()
    same_end(again, whole)


@pytest.mark.slow
def test_a_run_ended_in_its_last_validation_goes_on_with_it(squares, tmp_path, whole):
    trainer = prepare(squares, options(tmp_path / "run", **{"train.validate_every": 1}))
    score = trainer.validation.score
    trainer.validation.score = lambda *rest: (
        raising(score, signal.SIGINT)(*rest) if trainer.records.rows else score(*rest)
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.pace.step == 6 and len(trainer.records.rows) == 1
    again = prepare(None, RunOptions(resume=trainer.folder))
    again.fit()
    same_end(again, whole)


@pytest.mark.slow
def test_a_signal_in_the_start_or_while_it_waits_for_images_is_heard_at_once(squares, tmp_path, whole, monkeypatch):
    """Images may come from a slow disk, and the statistics of a large data set take minutes."""
    options_here = options(tmp_path / "run", **{"train.validate_every": 1})
    trainer = prepare(squares, options_here)
    statistics = sys.modules["multibox.training.trainer"].image_statistics
    monkeypatch.setattr("multibox.training.trainer.image_statistics", raising(pytest.fail, signal.SIGTERM))
    with pytest.raises(Terminated):
        trainer.fit()
    monkeypatch.setattr("multibox.training.trainer.image_statistics", statistics)
    trainer = prepare(None, RunOptions(resume=tmp_path / "run"))
    monkeypatch.setattr("multibox.training.trainer.load_training", lambda *_: endless())
    with pytest.raises(Terminated):
        trainer.fit()
    monkeypatch.undo()
    again = prepare(None, RunOptions(resume=tmp_path / "run"))
    assert again.pace.step == 0
    again.fit()
    same_end(again, whole)


def endless():
    """Wait for images that never come."""
    signal.raise_signal(signal.SIGTERM)
    while True:
        time.sleep(0.1)
    yield


@pytest.mark.slow
def test_a_signal_while_it_saves_waits_until_the_files_are_whole(squares, tmp_path, whole, monkeypatch):
    trainer = prepare(squares, options(tmp_path / "run", **{"train.validate_every": 1}))
    save = sys.modules["multibox.training.trainer"].save_checkpoint
    monkeypatch.setattr("multibox.training.trainer.save_checkpoint", raising(save, signal.SIGTERM))
    with pytest.raises(Terminated):
        trainer.fit()
    assert len(trainer.records.rows) == 1 and (tmp_path / "run" / "best.safetensors").exists()
    monkeypatch.undo()
    again = prepare(None, RunOptions(resume=tmp_path / "run"))
    again.fit()
    same_end(again, whole)


@pytest.mark.slow
def test_the_clock_saves_in_the_middle_of_an_epoch(squares, tmp_path, whole, monkeypatch):
    monkeypatch.setattr("multibox.training.trainer.SAVING_SHARE", 1e9)
    often = options(tmp_path / "run", **{"train.validate_every": 1, "train.save_minutes": 1e-9})
    trainer = prepare(squares, often)
    trainer.reporter.step = lambda trainer, parts: trainer.pace.step == 3 and pytest.fail("killed")
    with pytest.raises(pytest.fail.Exception):
        trainer.fit()
    trainer.hold.close()
    again = prepare(None, RunOptions(resume=tmp_path / "run"))
    assert again.pace.step == 2 and (tmp_path / "run" / "last.safetensors").exists()
    assert time.monotonic() - again.saved < 60, "the clock starts anew"
    again.fit()
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    for name, tensor in whole.stepper.weights().state_dict().items():
        assert torch.equal(tensor, again.stepper.weights().state_dict()[name]), name


def test_saving_by_the_clock_takes_a_small_share_of_the_time(squares, tmp_path):
    trainer = prepare(squares, options(tmp_path / "run", **{"train.save_minutes": 1}))
    now = time.monotonic()
    for saved, saving, due in ((50, 0, False), (70, 0, True), (70, 4, False), (90, 4, True)):
        trainer.saved, trainer.pace.saving = now - saved, saving
        assert trainer.state_due() is due
    trainer.hold.close()


@pytest.mark.slow
def test_a_full_disk_leaves_the_state_before(squares, tmp_path, whole, monkeypatch):
    trainer = prepare(squares, options(tmp_path / "run", **{"train.validate_every": 1}))

    def full(path, data, **how):
        with whole_file(path, **how) as file:
            if trainer.pace.step < 6:
                file.write(data)
                return
            file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("multibox.training.folder.write_bytes_whole", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    assert trainer.saved_at == (3, 1)
    monkeypatch.undo()
    again = prepare(None, RunOptions(resume=tmp_path / "run"))
    assert again.pace.step == 3
    again.fit()
    same_end(again, whole)


def test_a_state_of_another_version_is_refused_before_anything_else(squares, tmp_path, whole, monkeypatch):
    monkeypatch.setattr("multibox.training.folder.STATE_VERSION", 7)
    trainer = prepare(squares, options(tmp_path / "run"))
    trainer._save_state()
    trainer.hold.close()
    monkeypatch.undo()
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("[train]", "[train]\nof_a_later_version = 1"))
    words = r"state.safetensors has version 7, this multibox reads version 1; .* or start another run from its weights"
    with pytest.raises(WeightsError, match=words):
        prepare(None, RunOptions(resume=tmp_path / "run"))
    assert load_file(tmp_path / "run" / STATE)


def test_a_second_ctrl_c_is_heard_everywhere_and_a_second_sigterm_is_not(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt(tmp_path) as interrupt:
        interrupt.check()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(EndNow):
            interrupt.check()
        with pytest.raises(EndNow), interrupt.heard_at_once():
            pytest.fail("what came before is heard first")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert isinstance(interrupt.reason(), Terminated)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_resumed_run_says_whether_it_is_exact(squares, tmp_path):
    told = []
    trainer = prepare(squares, options(tmp_path / "run"), Reporter(told.append))
    config, pace = trainer.config, Pace(steps=6)
    trainer.hold.close()
    pace.step = 2
    exact = config.updated({"train.threads": 1, "train.compile": "off"})
    assert going_on(pace, exact, "cpu", torch.__version__) == (
        "goes on after step 2 of 6 as if it had never stopped, bit for bit"
    )
    for changed, device, version, reason in (
        (exact, "cuda", torch.__version__, "cuda sums in no fixed order"),
        (exact.updated({"train.threads": "auto"}), "cpu", torch.__version__, "follows the load of the machine"),
        (exact.updated({"train.compile": "auto"}), "cpu", torch.__version__, "train.compile=auto may compile"),
        (exact, "cpu", "2.0.0", "PyTorch was 2.0.0 before"),
    ):
        sentence = going_on(pace, changed, device, version)
        assert "may differ in the last digits" in sentence and reason in sentence
    assert "will differ from that of a run that never stopped: it trained in 2 processes before, now in 1" in going_on(
        pace, exact, "cpu", torch.__version__, 1, 2
    )
    assert "a run by minutes follows the clock" in going_on(Pace(seconds=60), exact, "cpu", torch.__version__)


@pytest.mark.slow
def test_a_state_is_on_the_disk_before_it_has_its_name(squares, tmp_path, monkeypatch):
    """Of every file that a run is resumed from: first its bytes, then its name, then the folder that holds the name."""
    order = []
    sync = os.fsync

    def syncing(file):
        order.append(("sync", str(Path(f"/proc/self/fd/{file}").readlink())))
        sync(file)

    monkeypatch.setattr(os, "fsync", syncing)
    whole_replace = type(tmp_path).replace

    def renaming(path, target):
        order.append(("name", str(path), str(target)))
        return whole_replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", renaming)
    folder = tmp_path / "new" / "run"
    prepare(squares, options(folder)).fit()
    for name in (
        STATE,
        "last.safetensors",
        "best.safetensors",
        "metrics.csv",
        "config.toml",
        "ledger/objects.safetensors",
    ):
        places = [place for place, entry in enumerate(order) if entry[0] == "name" and entry[2] == str(folder / name)]
        assert places, name
        for place in places:
            part = order[place][1]
            assert ("sync", part) in order[:place], name
            assert order[place + 1] == ("sync", str((folder / name).parent)), name
    assert ("sync", str(folder)) in order[: order.index(("sync", str(folder / "state"))) + 2], "a new folder's own name"
    synced = [entry[1] for entry in order if entry[0] == "sync"]
    assert not [path for path in synced if "status.json" in path or ".jpg" in path], "small files wait for no disk"


def test_what_a_killed_process_was_writing_goes(squares, tmp_path):
    """In the run folder at once, in the cache that runs share when it is an hour old; what is the user's stays."""
    part = ".index.0123456789ab.part"
    cache = tmp_path / ".multibox-cache"
    trainer = prepare(squares, options(tmp_path / "run"))
    trainer._save_state()
    trainer.hold.close()
    old, young, foreign, folder = cache / part, cache / f".new{part}", cache / ".mine.part", tmp_path / "run" / part
    for path in (old, young, foreign):
        path.write_bytes(b"half")
    folder.mkdir()
    (folder / "half").write_bytes(b"half")
    os.utime(old, (1, 1))
    os.utime(foreign, (1, 1))
    prepare(None, RunOptions(resume=tmp_path / "run")).hold.close()
    assert [path.exists() for path in (old, young, foreign, folder)] == [False, True, True, False]
