"""benchmarks/gpu.py as a whole, with small sizes on the CPU: it must not fail for the first time on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_the_script_for_gpus_runs_whole_on_a_cpu():
    environment = os.environ | {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu"], capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert "Matching and loss of 2 images x 8,732 anchors x 10 objects, equal to the CPU's:" in done.stdout
    runs = done.stdout.split("Whole runs:")[1]
    for preset in ("ssd300-vgg16", "ssd300-resnet50", "tinyssd"):
        assert preset in runs
