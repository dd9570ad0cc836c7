import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc and sends signals"),
]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_and_sigterm_under_load_lose_nothing_and_every_answer_equals_predict(workers):
    """The script asserts that no response is missing, that each equals predict, and that the server ends with 0."""
    options = ["--clients", "50", "--seconds", "8", "--hup", "2", "--term", "--no-engine", "--workers", workers]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'reloaded': " in done.stdout
    assert "'draining': " in done.stdout
    counts = done.stdout.splitlines()[0]
    assert "'200': " in counts
    assert set(counts.partition("{")[2].split("'")[1::2]) <= {"200", "refused"}, counts
