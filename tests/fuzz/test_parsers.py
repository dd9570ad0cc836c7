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


EXAMPLES = 60
"""Of each target in `make test-all`, always the same."""


@pytest.fixture
def amount(pytestconfig):
    """What each target gets: in `make fuzz` 60 seconds of new examples, else the same examples in every run."""
    if pytestconfig.getoption("--hypothesis-profile") == "fuzz":
        return ["--seconds", "60"]
    return ["--examples", str(EXAMPLES), "--seed", "1"]


def test_every_format_has_a_target():
    assert FORMATS.keys() - {"parquet"} <= SAMPLES.keys()


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("target", SAMPLES)
def test_damaged_files_are_refused_by_a_sentence(target, amount):
    command = [sys.executable, "-X", "faulthandler", str(HERE / "fuzzing.py"), target, *amount]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-8000:]}"
