import time

import pytest
import torch

from multibox.training import threads
from multibox.training.threads import Load, ThreadPlan, read_load


class Machine:
    """Two or more cores, a clock, and other programs that want some of the cores."""

    def __init__(self, monkeypatch, cores=2):
        self.now, self.own, self.waited, self.busy = 1000.0, 0.0, 0.0, 0.0
        self.cores, self.neighbours, self.threads = cores, 0, cores
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)

    def look(self):
        return Load(self.now, self.own, self.waited, self.busy)

    def set(self, count):
        self.threads = count

    def seconds(self):
        work = 0.6 + 0.4 * self.cores / self.threads
        free = self.cores - self.neighbours
        # Threads that have to share a core hold all the others up
        return work * (6 if self.threads > max(1, free) else 1)

    def step(self, plan, work=1.0):
        plan.before_step()
        took = self.seconds() * work
        crowded = self.threads > max(1, self.cores - self.neighbours)
        self.now += took
        self.own += took * self.threads * (0.7 if crowded else 1)
        self.waited += took * self.threads * (0.3 if crowded else 0)
        self.busy += took * min(self.cores, self.threads + self.neighbours)
        plan.after_step(took, work)
        return took


@pytest.mark.parametrize(("cores", "neighbours"), [(2, 1), (8, 1), (8, 3)])
def test_threads_follow_a_neighbour_that_comes_and_goes(monkeypatch, cores, neighbours):
    machine = Machine(monkeypatch, cores)
    plan = ThreadPlan(cores, set_threads=machine.set, look=machine.look)
    for _ in range(30):
        machine.step(plan, work=2.0)
    assert plan.changes == []
    machine.neighbours = neighbours
    times = [machine.step(plan) for _ in range(100)]
    assert machine.threads == cores - neighbours
    assert sum(1 for took in times if took > 2) <= 8
    machine.neighbours = 0
    for _ in range(20):
        machine.step(plan)
    assert machine.threads == cores


def test_a_trial_that_is_slower_is_taken_back_and_repeated_ever_more_rarely(monkeypatch):
    machine = Machine(monkeypatch)
    monkeypatch.setattr(machine, "seconds", lambda: 1.0 if machine.threads == 2 else 1.3)
    plan = ThreadPlan(2, set_threads=machine.set, look=machine.look)
    machine.neighbours = 1
    for _ in range(400):
        machine.step(plan)
    assert plan.threads == 2
    assert 4 <= len(plan.changes) <= 12


def test_a_number_that_was_asked_for_stays_whatever_the_load(monkeypatch):
    machine = Machine(monkeypatch)
    machine.neighbours = 1
    plan = ThreadPlan(2, fixed=True, set_threads=machine.set, look=machine.look)
    for _ in range(50):
        machine.step(plan)
    assert plan.changes == [] and machine.threads == 2


def test_without_counters_nothing_changes_and_one_thread_stays_one():
    said = []
    plan = ThreadPlan(4, set_threads=said.append, look=lambda: Load(time.monotonic(), 0, None, None))
    one = ThreadPlan(1, set_threads=said.append, look=read_load)
    for _ in range(20):
        for each in (plan, one):
            each.before_step()
            each.after_step(1.0)
    assert said == [4, 1]


def test_it_gives_the_number_back_and_keeps_to_the_cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    with ThreadPlan() as plan:
        assert plan.limit == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_looking_is_quick_and_counters_grow():
    first = read_load()
    started = time.perf_counter()
    for _ in range(20):
        last = read_load()
    assert (time.perf_counter() - started) / 20 < 0.05
    assert last.time > first.time
    if first.busy is not None:
        assert last.busy >= first.busy
        assert last.waited >= first.waited
