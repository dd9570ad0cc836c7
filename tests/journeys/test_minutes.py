"""`--minutes` is a promise about the whole command: start, validations and saving included."""

import csv
import time

import pytest

TOLERANCE = 0.3
"""Of the time given; a quiet machine keeps a tenth, and tests share theirs."""
START = 25.0
"""Seconds: what the interpreter and its imports may take before the command's clock starts, on a busy machine."""


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_timed_run_ends_in_time_and_is_prolonged(multibox, squares, tmp_path, train_options):
    run = tmp_path / "run"
    begun = ["train", squares, "--out", run, *train_options]
    for minutes, command in ((0.3, begun), (0.6, ["train", "--resume", run])):
        began = time.monotonic()
        code, out, err = multibox(*command, "--minutes", minutes)
        took = time.monotonic() - began
        assert code == 0, err
        # Resumed, what the run took before counts: 0.6 minutes in all are 0.3 more
        assert 18 * (1 - TOLERANCE) < took < 18 * (1 + TOLERANCE) + START, took
        assert f"{minutes:g} minutes" in out
    rates = [float(row["learning_rate"]) for row in rows(run) if row["learning_rate"]]
    assert rates[-1] < 0.1 * max(rates)
    steps = [int(row["step"]) for row in rows(run)]
    assert steps == sorted(steps) and len(steps) == len(set(steps))
