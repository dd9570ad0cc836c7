"""The length of a run: fixed, or planned by the clock."""

import itertools

import pytest

from multibox.training.pacing import Pace


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(pace: Pace, clock: Clock, seconds, validation=0.0, every=0.1):
    """Train to the end with steps of `seconds(step)`; return the positions before each step."""
    positions, due = [], every
    while not pace.finished:
        positions.append(pace.position)
        took = seconds(pace.step)
        clock.now += took
        pace.advance(took)
        if validation and (pace.position >= due or pace.finished):
            clock.now += validation
            pace.validation = validation
            due = pace.position + 1 / pace.validations
    return positions


def test_a_fixed_run_stands_at_its_share_of_the_steps():
    clock = Clock()
    pace = Pace(steps=10, clock=clock)
    positions = run(pace, clock, lambda step: 1.0)
    assert positions == pytest.approx([step / 10 for step in range(10)])
    assert pace.total == 10
    assert pace.schedule() == (10, 10)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(lambda step: 1.0, id="even"),
        pytest.param(lambda step: 8.0 if step < 2 else 1.0, id="slow start"),
        pytest.param(lambda step: 1.0 if step < 150 else 2.0, id="neighbour half-way"),
        pytest.param(lambda step: 2.0 if step < 75 else 1.0, id="neighbour leaves"),
        pytest.param(lambda step: 1.0 + 0.5 * (step % 2), id="uneven"),
        pytest.param(lambda step: 5.0 if 100 <= step < 110 else 1.0, id="a stall"),
    ],
)
@pytest.mark.parametrize("validation", [0.0, 3.0])
def test_a_timed_run_ends_in_time_and_at_the_end_of_its_schedule(seconds, validation):
    clock = Clock()
    pace = Pace(seconds=300, clock=clock)
    positions = run(pace, clock, seconds, validation)
    assert 0.9 * 300 <= clock.now <= 300
    assert all(a <= b for a, b in itertools.pairwise(positions))
    assert positions[-1] > 0.98
    assert max(b - a for a, b in itertools.pairwise(positions)) < 0.05


@pytest.mark.parametrize("first", [(21.0, 5.5), (20.0, 18.0, 2.0)])
def test_a_start_of_a_third_of_the_time_uses_up_neither_the_schedule_nor_the_run(first):
    # Met on a busy machine: the run ended after 4 steps, or learned at the rate of the schedule's end all the time
    clock = Clock()
    pace = Pace(seconds=150, clock=clock)
    clock.now, pace.batches = 34.0, 2.0
    positions = run(pace, clock, lambda step: first[step] if step < len(first) else 1.8)
    assert 0.9 * 150 <= clock.now <= 150
    assert positions[len(first)] < 0.6
    assert positions[-1] > 0.9
    rest = positions[len(first) :]
    assert max(b - a for a, b in itertools.pairwise(rest)) < 0.2


def test_validations_take_no_more_than_their_share():
    clock = Clock()
    pace = Pace(seconds=300, clock=clock)
    pace.validation = 30.0
    assert pace.validations == 1
    pace.validation = 1.0
    assert pace.validations == 20


def test_a_resumed_run_has_the_rest_of_its_time():
    clock = Clock()
    first = Pace(seconds=100, clock=clock)
    while clock.now < 40:
        clock.now += 1
        first.advance(1.0)
    state = first.state()
    clock.now += 1000  # the machine was off
    second = Pace(seconds=100, clock=clock)
    second.restore(state)
    began = clock.now
    assert second.position == pytest.approx(first.position)
    run(second, clock, lambda step: 1.0)
    assert 50 <= clock.now - began <= 60


def test_a_finished_run_can_be_prolonged():
    clock = Clock()
    pace = Pace(seconds=100, clock=clock)
    run(pace, clock, lambda step: 1.0)
    longer = Pace(seconds=200, clock=clock)
    longer.restore(pace.state())
    assert not longer.finished
    assert longer.position == pytest.approx(0.5, abs=0.03)
    more = Pace(steps=pace.step + 20, clock=clock)
    more.restore(pace.state())
    assert more.remaining == 20


def test_no_time_at_all_takes_one_step():
    clock = Clock()
    pace = Pace(seconds=1, clock=clock, started=-100.0)
    assert not pace.finished
    pace.advance(0.5)
    assert pace.finished
