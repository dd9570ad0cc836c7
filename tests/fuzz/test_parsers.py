"""Every parser refuses damaged files by a sentence: in seconds, in bounded memory, and without writing anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from multibox.data.formats import FORMATS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from fuzz_samples import SAMPLES
finally:
    sys.path.remove(str(HERE))


@pytest.fixture
def seconds(pytestconfig):
    """Time for each target: 60 seconds in `make fuzz`, else 5."""
    return 60 if pytestconfig.getoption("--hypothesis-profile") == "fuzz" else 5


def test_every_format_has_a_target():
    assert FORMATS.keys() - {"parquet"} <= SAMPLES.keys()


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("target", SAMPLES)
def test_damaged_files_are_refused_by_a_sentence(target, seconds):
    command = [sys.executable, "-X", "faulthandler", str(HERE / "fuzzing.py"), target, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 240)
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-8000:]}"
