"""The benchmarks run, small and without peers: what they assert before they print a time holds here, too."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> str:
    """Return what a benchmark prints; its own warnings are errors."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    # One thread: tests run beside each other, and nothing is measured here
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_gpu_on_a_cpu():
    report = run("gpu.py", "--small", "--device", "cpu")
    assert "WRONG" not in report
    assert report.count(" ok\n") >= 30
    assert re.search(r"training +bfloat16 +2 +\d", report)
    assert re.search(r"inference +float32 +2 +\d", report)
    assert "the host waits for the device" in report


def test_our_side_of_the_training_step():
    report = run("train_step.py", "--no-peers", "--batch", "2", "--size", "64", "--rounds", "1")
    assert "DIFFERENT" not in report
    assert re.search(r"ours, d2l \(float32\) +\d", report)
    assert "backward" in report
