"""`torchrun -m multibox train`: a rank that is killed, and what is refused."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.training.distributed import check_shares
from multibox.training.norms import CommonNorm, with_common_norms
from multibox.training.ranks import Ranks

EPOCHS = 8
SETTINGS = ["model.input_size=[64,64]", "train.batch_size=4", "train.threads=1", "train.precision=float32"]


TWO = ("--nproc-per-node", "2")


def start(data, out, log, launch=TWO, length=("--epochs", str(EPOCHS))):
    """Start processes that train one run, as torchrun does, restarted up to three times."""
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "3", *launch]
    command += ["-m", "multibox", "train", str(data), "--out", str(out), "--preset", "tinyssd", "--weights", "none"]
    command += [*length, "--device", "cpu", *(f"--set={one}" for one in SETTINGS)]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def wait_for_step(out, step, seconds=120.0):
    """Wait until the run has done so many steps; return how many it has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            done = json.loads((out / "status.json").read_bytes())["step"]
        except (OSError, ValueError):
            done = 0
        if done >= step:
            return done
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {seconds} s")


def children(torchrun):
    """Return the ids of the processes that a launcher started."""
    return [int(one) for one in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()]


def process_of_rank(torchrun, rank):
    """Return the process id of a rank."""
    return next(one for one in children(torchrun) if f"\0RANK={rank}\0" in Path(f"/proc/{one}/environ").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in Linux's /proc")
def test_a_run_whose_ranks_are_killed_ends_as_one_that_nobody_disturbed(squares, tmp_path):
    whole = start(squares, tmp_path / "whole", tmp_path / "whole.log")
    assert whole.wait(300) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    dice = random.Random(16)
    killed = start(squares, tmp_path / "killed", tmp_path / "killed.log")
    try:
        for rank in (1, 0):
            wait_for_step(tmp_path / "killed", dice.randint(3, 8) + 8 * (rank == 0))
            os.kill(process_of_rank(killed, rank), signal.SIGKILL)
            time.sleep(1)
        assert killed.wait(300) == 0, (tmp_path / "killed.log").read_text()[-3000:]
    finally:
        killed.kill()
        killed.wait()
    for name in ("metrics.csv", "last.safetensors", "best.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    events = [json.loads(line) for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if event["kind"] == "epoch"] == list(range(1, EPOCHS + 1))
    assert json.loads((tmp_path / "killed/status.json").read_bytes())["state"] == "finished"


@pytest.mark.slow
def test_a_timed_run_of_two_processes_that_is_ended_goes_on_to_its_end(squares, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    ended = start(squares, run, log, length=("--minutes", "0.5"))
    step = wait_for_step(run, 6)
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(60) != 0
    assert f"go on with: multibox train --resume {run}, by torchrun with 2 processes again" in log.read_text()
    state = json.loads((run / "status.json").read_bytes())
    assert state["state"] == "stopped" and state["step"] >= step
    assert start(squares, run, log, length=("--minutes", "0.5")).wait(120) == 0, log.read_text()[-3000:]
    state = json.loads((run / "status.json").read_bytes())
    assert state["state"] == "finished" and state["step"] > step


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in Linux's /proc")
def test_a_run_on_two_nodes_goes_on_with_one_when_the_other_is_lost(squares, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-id", "lost", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", f"localhost:{port}", "--rdzv-conf", "last_call_timeout=5,keep_alive_interval=1"]
    epochs = ("--epochs", "40")
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    first = start(squares, tmp_path / "run", logs[0], launch, epochs)
    # The first one keeps the place where the nodes meet
    time.sleep(3)
    second = start(squares, tmp_path / "run", logs[1], launch, epochs)
    try:
        wait_for_step(tmp_path / "run", 10)
        (worker,) = children(second)
        assert "\0WORLD_SIZE=2\0" in Path(f"/proc/{worker}/environ").read_text()
        for process in (second.pid, worker):
            os.kill(process, signal.SIGKILL)
        assert first.wait(300) == 0, logs[0].read_text()[-3000:]
    finally:
        for node in (first, second):
            node.kill()
            node.wait()
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if event["kind"] == "epoch"] == list(range(1, 41))
    assert json.loads((tmp_path / "run/status.json").read_bytes())["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--set=train.lr=1e30", "--set=train.warmup=0", "--set=train.clip_norm=none"],
            "learning rate 1e+30 is too",
        ),
        (["--seeds", "2"], "--seeds and --ablate train in one process"),
    ],
    ids=["nan", "seeds"],
)
def test_what_ends_all_processes_is_told_once(squares, tmp_path, options, words):
    launch = [*TWO, "--max-restarts", "0"]
    process = start(squares, tmp_path / "run", tmp_path / "log", launch, ["--epochs", "2", *options])
    assert process.wait(120) == 1
    log = (tmp_path / "log").read_text()
    assert log.count(words) == log.count("multibox: ") == 1, log


def test_common_batch_norms_share_weights_and_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    common = with_common_norms(model)
    assert isinstance(common[1], CommonNorm) and not isinstance(model[1], CommonNorm)
    assert common[0].weight is model[0].weight and common[1].weight is model[1].weight
    with torch.no_grad():
        common[1].running_mean += 1
    assert model[1].running_mean.tolist() == [1] * 4


def test_what_processes_cannot_share_is_refused():
    config = Config(preset="tinyssd").updated({"train.batch_size": 4})
    check_shares(config, 100, Ranks(0, 4))
    with pytest.raises(ConfigError, match="4 images per batch leave some of 5 processes without an image"):
        check_shares(config, 100, Ranks(0, 5))
