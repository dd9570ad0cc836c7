"""Real runs, each with one part made slow on purpose."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox import limits
from multibox.data import images
from multibox.data.sprites import make_sprites
from multibox.limits import throttled_periods
from multibox.profiling import measuring
from multibox.profiling.machine import MachineUse, MachineWatch, busiest_program
from multibox.profiling.verdict import advise
from multibox.training.run import RunOptions

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.precision": "float32", "train.compile": "off"}
UNKEPT = {"train.workers": 0, "data.cache_gb": 0.0, "train.validate_every": 150}
BURN = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sprites"
    make_sprites(folder, images=24, format="yolo", seed=0)
    return folder


def measure(data, monkeypatch, quiet=True, **changes):
    """Profile a small run; the machine's neighbours, which the tests do not choose, are left out unless asked for."""
    monkeypatch.setattr(measuring, "SECONDS", 2.0)
    options = RunOptions(preset="tinyssd", epochs=200, weights="none", changes={**SMALL, **changes}, device="cpu")
    found = measuring.profile_run(data, options)
    if quiet:
        machine = MachineUse(found.machine.seconds, found.machine.cores, found.machine.own, 0.0, None)
        found = dataclasses.replace(found, machine=machine)
    return found


@pytest.mark.slow
def test_parts_cover_the_step_and_nothing_is_left_behind(data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = measure(data, monkeypatch, **{"train.validate_every": 50})
    assert not list(tmp_path.iterdir())
    parts = found.parts()
    assert found.steps >= 2 and all(seconds >= 0 for seconds in parts.values())
    assert parts["forward"] > 0 and parts["backward"] > 0 and parts["augment"] > 0
    # What has no name of its own is small
    assert parts["other"] < 0.15 * found.step
    covered = found.waiting + sum(found.spans.values()) + parts["other"]
    assert covered == pytest.approx(found.step, rel=0.05)
    assert found.kept == 1 and found.validations > 1 and found.saves > 1 and found.memory > 10**8


@pytest.mark.slow
def test_a_slow_disk(data, monkeypatch):
    read = images._read_bytes

    def slowly(path):
        time.sleep(0.3)
        return read(path)

    monkeypatch.setattr(images, "_read_bytes", slowly)
    sentence = advise(measure(data, monkeypatch, **UNKEPT))
    assert "reading files" in sentence and "--cache-dir" in sentence


@pytest.mark.slow
def test_slow_decoding(tmp_path, monkeypatch):
    folder = tmp_path / "large"
    make_sprites(folder, images=8, format="yolo", seed=0)
    noise = np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), np.uint8)
    for path in sorted(folder.rglob("*.png")):
        Image.fromarray(noise).save(path, compress_level=1)
    sentence = advise(measure(folder, monkeypatch, **UNKEPT))
    assert "decoding" in sentence and "--cache-gb" in sentence


@pytest.mark.slow
def test_a_tiny_batch_and_one_core(data, tmp_path):
    changes = {**SMALL, "train.batch_size": 1, "train.validate_every": 400}
    small = [f"--set={key}={value}" for key, value in changes.items()]
    command = [sys.executable, "-m", "multibox", "profile", str(data), "--preset", "tinyssd", "--epochs", "500"]
    command += ["--weights", "none", "--device", "cpu", "--json"]
    done = subprocess.run(
        [*command, *small], capture_output=True, text=True, cwd=tmp_path, timeout=300,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] == 1 and found["batch_size"] == 1 and found["threads"] == 1
    # On a busy machine the neighbour is named first, and rightly
    words = ("one core", "its 1 image", "other programs", "validations", "preparing images", "saves")
    assert any(word in found["advice"] for word in words), found["advice"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_busy_neighbour(data, monkeypatch):
    with_load = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() or 1)]
    try:
        assert busiest_program()
        found = measure(data, monkeypatch, quiet=False)
    finally:
        for process in with_load:
            process.kill()
            process.wait()
    assert found.machine.others is not None and found.machine.others > 0.35
    assert "other programs keep" in advise(found)


@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_is_read_from_the_control_group(version, tmp_path, monkeypatch):
    groups, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/\n" if version == 2 else "4:cpu:/\n")
    folder = groups if version == 2 else groups / "cpu"
    folder.mkdir(parents=True)
    monkeypatch.setattr(limits, "CGROUPS", groups)
    monkeypatch.setattr(limits, "PROC", proc)
    assert throttled_periods() is None
    (folder / "cpu.stat").write_text("nr_periods 100\nnr_throttled 10\n")
    assert throttled_periods() == (10, 100)
    watch = MachineWatch()
    (folder / "cpu.stat").write_text("nr_periods 200\nnr_throttled 60\n")
    assert watch.use().throttled == pytest.approx(0.5)


@pytest.mark.slow
def test_no_data_is_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "multibox", "profile"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "profile needs DATA" in done.stderr
