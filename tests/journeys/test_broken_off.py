"""Runs that fail, are stopped or killed, and go on: the same images, the same number of steps, nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multibox.training.run import RunOptions, prepare

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
SECONDS = 120


def steps_done(run: Path) -> list[int]:
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    return [int(line.split(",")[column]) for line in lines[1:]]


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    assert condition()


DIVERGES = ("train.lr=1e30", "train.optimizer=sgd", "train.clip_norm=none", "train.warmup=0")


@pytest.mark.slow
def test_a_run_that_diverges_says_so_and_is_begun_again(call, squares, tmp_path, train_options):
    command = ["train", squares, "--out", tmp_path / "run", "--epochs", "2", *train_options]
    code, _, err = call(*command, *(word for setting in DIVERGES for word in ("--set", setting)))
    assert code == 2
    assert re.search(
        r"the loss became (nan|inf) at step \d+: the learning rate .*--set train.lr=.*--replay .*nan-\d+ ", err
    ), err
    assert "Traceback" not in err
    # Resumed, it fails in the same way; begun again with other settings, it does not
    code, _, again = call("train", "--resume", tmp_path / "run")
    assert code == 2
    assert "the loss became" in again
    code, _, err = call(*command)
    assert code == 0, err
    assert steps_done(tmp_path / "run") == [3, 6]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB: room for a first state of TinySSD, not for all that a run writes."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_when_there_is_room(
    multibox, squares, small_disk, train_options
):
    run = small_disk / "run"
    # A neighbour's file fills the disk
    (small_disk / "ballast").write_bytes(bytes(1 << 20))
    code, _, err = multibox("train", squares, "--out", run, "--epochs", "3", *train_options)
    assert code == 2
    assert "No space left" in err
    assert f"multibox train --resume {run}" in err
    assert "Traceback" not in err, err
    assert not list(run.rglob("*.part"))
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    code, _, err = multibox("train", "--resume", run)
    assert code == 0, err
    assert steps_done(run)[-1] == 9


VALIDATING = """
NAME = "multibox.training.validation"
def patch(module):
    import pathlib, time
    whole = module.Validation.score
    def score(self, model, *rest):
        pathlib.Path("moment").touch()
        time.sleep(1)
        return whole(self, model, *rest)
    module.Validation.score = score
"""
SAVING = """
NAME = "multibox.training.folder"
def patch(module):
    import pathlib, time
    whole = module.write_bytes_whole
    def slow(path, data, **how):
        from multibox.files import whole_file
        with whole_file(path, **how) as file:
            file.write(data[: len(data) // 2])
            file.flush()
            pathlib.Path("moment").touch()
            time.sleep(1)
            file.write(data[len(data) // 2 :])
    module.write_bytes_whole = slow
"""
MOMENTS = {
    "in the first epoch": ("", "--epochs", "2000"),
    "in validation": (VALIDATING, "--epochs", "6"),
    "while saving": (SAVING, "--epochs", "6"),
}
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@unix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"), [*((moment, signal.SIGINT) for moment in MOMENTS), ("in validation", signal.SIGTERM)]
)
def test_ctrl_c_leaves_a_run_that_goes_on(launch, multibox, squares, tmp_path, patched, train_options, moment, number):
    code, *length = MOMENTS[moment]
    run = tmp_path / "run"
    settings = [*train_options, "--set", "train.validate_every=2"]
    process = launch("train", squares, "--out", run, *length, *settings, cwd=tmp_path, env=patched(code))
    if code:
        wait_for((tmp_path / "moment").exists, process)
    else:
        wait_for((run / "state" / "state.safetensors").exists, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_CODES[number], err
    assert "Traceback" not in err
    assert err.endswith(f"go on with: multibox train --resume {run}\n")
    assert not list(run.rglob("*.part"))
    if code:
        code, _, err = multibox("train", "--resume", run, cwd=tmp_path)
        assert code == 0, err
        assert steps_done(run)[-1] == 18


STARTING = {
    "while PyTorch is imported": """
NAME = "multibox.training.run"
def patch(module):
    import pathlib, time
    pathlib.Path("moment").touch()
    time.sleep(60)
""",
    "while data is read": """
NAME = "multibox.data.checking"
def patch(module):
    def slow(*_, **__):
        import pathlib, time
        pathlib.Path("moment").touch()
        time.sleep(60)
    module.open_checked = slow
""",
}


@unix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"), [*((moment, signal.SIGINT) for moment in STARTING), ("while data is read", signal.SIGTERM)]
)
def test_ctrl_c_while_it_starts_leaves_nothing(launch, squares, tmp_path, patched, train_options, moment, number):
    environment = patched(STARTING[moment])
    process = launch("train", squares, "--out", "run", *train_options, cwd=tmp_path, env=environment)
    wait_for((tmp_path / "moment").exists, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_CODES[number], err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_scratch_files_of_a_killed_run_go_when_it_starts_anew(squares, tmp_path):
    """Killed in its first save, it has neither weights nor state."""
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "config.toml").write_text('preset = "tinyssd"\n')
    for name in (".lock", "state/.state.safetensors.0123456789ab.part", ".last.safetensors.0123456789ab.part"):
        (run / name).write_bytes(b"")
    small = {"model.input_size": [64, 64], "train.workers": 0, "train.batch_size": 4}
    prepare(squares, RunOptions(preset="tinyssd", out=run, epochs=1, changes=small)).fit()
    assert not list(run.rglob("*.part"))
    assert (run / "best.safetensors").is_file()
