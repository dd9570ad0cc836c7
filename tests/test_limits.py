"""Cores and memory that a process may use, in containers too."""

import pytest

from multibox import limits


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Stand for /proc and the control groups of a machine with 8 cores."""

    def make(groups, files):
        files = {**{f"groups/{name}": text for name, text in files.items()}, "proc/self/cgroup": groups}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "groups").mkdir(exist_ok=True)
        monkeypatch.setattr(limits, "CGROUPS", tmp_path / "groups")
        monkeypatch.setattr(limits, "PROC", tmp_path / "proc")
        monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        return tmp_path / "proc"

    return make


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/a/b\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b\n", {}, 8),
        # The first version of control groups
        ("4:cpu,cpuacct:/x\n",
         {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 3),
    ],
)  # fmt: skip
def test_quotas_of_containers_count(machine, groups, files, cores):
    machine(groups, files)
    assert limits.available_cores() == cores


def test_memory_is_the_least_of_machine_and_containers(machine):
    files = {"a/memory.max": "1000000", "a/memory.current": "400000", "memory.max": "max", "memory.current": "1"}
    proc = machine("0::/a\n", {**files, "a/memory.stat": "anon 1\ninactive_file 50000\n"})
    (proc / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 5000 kB\n")
    assert limits.available_memory() == 650000
    (proc / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 500 kB\n")
    assert limits.available_memory() == 512000


def test_this_system_tells_its_memory():
    free = limits.available_memory()
    if free is not None:
        assert 1 << 20 < free < 1 << 50


def test_an_allocator_is_changed_only_where_the_environment_allows_it(monkeypatch):
    monkeypatch.delenv(limits.KEEP_MEMORY, raising=False)
    assert not limits.keep_freed_memory()
