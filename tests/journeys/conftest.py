"""A user's whole paths: commands and scripts in processes of their own, on small made-up data."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multibox.cli.main import main

QUICK = ("model.input_size=[64,64]", "train.batch_size=4", "train.workers=0", "train.precision=float32")
"""Settings with which a step of TinySSD takes some hundredths of a second."""
TRAIN = ("--preset", "tinyssd", *(word for setting in QUICK for word in ("--set", setting)))
PATCH_ON_IMPORT = """
import importlib.abc, importlib.util, sys
class Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            patch(module)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Patch())
"""
"""Runs `patch(module)` as soon as the module called NAME is imported, in every Python process."""
PATIENCE = 300
"""Seconds after which a command counts as hanging, on a machine that does much else."""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def heed_ctrl_c() -> None:
    """Undo what a shell does to tests that it runs in the background: their children would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*arguments, cwd=None, env=None, script=False):
    """Start `multibox ARGUMENTS`, or a script, in a session of its own and return the process."""
    command = [sys.executable, *([] if script else ["-m", "multibox"]), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=env or environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", errors="replace", start_new_session=True,
        preexec_fn=heed_ctrl_c if os.name == "posix" else None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def train_options():
    """Options with which `multibox train` takes seconds."""
    return TRAIN


@pytest.fixture
def launch():
    """Start commands or scripts; none outlives its test."""
    processes = []

    def one(*arguments, **options):
        processes.append(start(*arguments, **options))
        return processes[-1]

    yield one
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def multibox(launch):
    """Run `multibox ARGUMENTS` in a process of its own; return exit code, standard output and standard error."""

    def run(*arguments, **options):
        process = launch(*arguments, **options)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    return run


@pytest.fixture
def call(capsys, monkeypatch):
    """Run `multibox ARGUMENTS` in this process, which saves the start-up; return the same as `multibox`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["multibox", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def patched(tmp_path):
    """Return an environment in which processes change a module: code with its NAME and a function `patch(module)`."""

    def make(code: str, **more: str) -> dict[str, str]:
        folder = tmp_path / "patches"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code + PATCH_ON_IMPORT if code else "", encoding="utf-8")
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
        return environment(PYTHONPATH=path, **more)

    return make


@pytest.fixture(scope="session")
def start_patched(tmp_path_factory):
    """Start `multibox ARGUMENTS` with a patch as `patched` describes it, and with more environment variables."""
    folders: dict[str, Path] = {}

    def one(code: str, *arguments, **more: str):
        if code not in folders:
            folders[code] = tmp_path_factory.mktemp("patches")
            (folders[code] / "sitecustomize.py").write_text(code + PATCH_ON_IMPORT, encoding="utf-8")
        path = os.pathsep.join(filter(None, (str(folders[code]), os.environ.get("PYTHONPATH", ""))))
        return start(*arguments, env=environment(PYTHONPATH=path, **more))

    return one


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]
