"""Processes that train together: two of them equal one at the same global batch."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from recorded_runs import train_recorded
finally:
    sys.path.remove(str(HERE))

CASES = {
    "positives": {},
    "selected": {"loss.normalizer": "selected", "train.clip_norm": 0.5},
    "images": {"loss.normalizer": "images", "loss.minimum_negatives": 3},
    "anchors": {"loss.normalizer": "anchors", "train.ema": "none"},
    "parts": {"train.accumulate": 2},
    "thawed": {"train.freeze": "backbone.*", "train.freeze_until": 0.3},
    "adamw": {"train.optimizer": "adamw", "train.lr": 0.0003},
    # Adam divides by the size of a gradient, and mining ranks losses, so differences in the last digit of float32 grow:
    # that nothing else differs is seen in float64
    "adamw float64": {"train.optimizer": "adamw", "train.lr": 0.003},
    "balanced float64": {"train.sampling": "balanced"},
    "norms float64": {"train.sync_batch_norm": True, "train.freeze": "backbone.stages.0.*", "train.freeze_until": 0.3},
    "scales float64": {"train.scales": [1.0, 1.5], "train.augmentation": "strong"},
}
"""Five images per batch: one process has two, the other three."""


def torchrun(processes: int, *arguments) -> subprocess.CompletedProcess:
    """Run a script, or `-m multibox`, in so many processes that train together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def told(run: Path) -> list[dict]:
    """Return what metrics.jsonl says of the steps."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "step"]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_equal_one_at_the_same_global_batch(squares, tmp_path):
    done = torchrun(2, HERE / "recorded_runs.py", squares, tmp_path / "two", json.dumps(CASES))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    for name, changes in CASES.items():
        alone, together = tmp_path / "one" / name, tmp_path / "two" / name
        losses = train_recorded(squares, alone, changes, still="norms" not in name)
        most = 1e-10 if name.endswith("float64") else 1e-5
        for rank in range(2):
            found = json.loads((together / f"losses-{rank}.json").read_text())
            assert found == pytest.approx(losses, rel=most, abs=most), name
        state, other = (load_file(run / "state" / "state.safetensors") for run in (alone, together))
        assert state.keys() == other.keys()
        for key in state:
            if key.startswith(("model.", "average.")):
                torch.testing.assert_close(other[key], state[key], rtol=most, atol=most, msg=f"{name} {key}")
        # What the files say is of the whole batches
        assert (alone / "ledger" / "epochs.bin").stat().st_size == (together / "ledger" / "epochs.bin").stat().st_size
        # When the later ones are told follows the clock
        one, two = told(alone)[0], told(together)[0]
        for value in ("step", "loss", "positives"):
            assert two[value] == pytest.approx(one[value], rel=1e-4), (name, value)
        for one, two in zip(rows(alone), rows(together), strict=True):
            assert one.keys() == two.keys()
            for column in one.keys() - {"seconds"}:
                assert float(two[column] or 0) == pytest.approx(float(one[column] or 0), rel=1e-3, abs=1e-5), (
                    name,
                    column,
                )
