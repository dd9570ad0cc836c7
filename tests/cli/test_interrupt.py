"""Ctrl-C, as a person would press it: the whole process group gets SIGINT; and an output that nobody reads any more."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from multibox.cli import evaluate, main

SETTINGS = ("model.input_size=[64,64]", "train.batch_size=4", "train.workers=1", "train.precision=float32")


def test_ctrl_c_ends_every_verb_with_one_line(monkeypatch, capfd):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "own_files", interrupted)
    monkeypatch.setattr(sys, "argv", ["multibox", "eval", "coco", "data"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 130
    assert capfd.readouterr().err == "multibox: stopped before the end; no half-written file is left\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to a process group is a Unix matter")
def test_ctrl_c_leaves_a_resumable_run(squares, tmp_path):
    out = tmp_path / "run"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "multibox", "train", str(squares), "--out", str(out), "--preset", "tinyssd"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--epochs", "2000", *settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in background jobs
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "metrics.csv").is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopped after step" in err
    assert f"go on with: multibox train --resume {out}\n" in err
    assert "Traceback" not in err
    assert (out / "state" / "state.safetensors").is_file()
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_verdict_and_loses_no_file(tmp_path, draw_squares):
    data = draw_squares(tmp_path / "squares", 8)
    found = tmp_path / "findings.json"
    command = [sys.executable, "-m", "multibox", "doctor", str(data), "--json", str(found)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (141, "")
    assert isinstance(json.loads(found.read_text(encoding="utf-8")), list)
