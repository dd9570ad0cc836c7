"""What the benchmarks need of others: the machine's name, d2l, and MXNet, which lives in a venv of its own."""

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch

from multibox.benchmarking.clock import describe

MXNET_VENV = Path("/tmp/mxvenv")
D2L_HINT = "d2l is left out, for it is not installed: .venv/bin/pip install --no-deps d2l==1.0.3"
_FOR_NOTEBOOKS = ("pandas", "requests", "IPython", "matplotlib", "matplotlib_inline", "scipy", "scipy.spatial")


def mxnet_hint(venv: Path) -> str:
    """Say how to get MXNet 1.9.1, whose wheel needs NumPy of 2022."""
    return (
        f"MXNet is left out, for {venv} does not hold it: "
        f"python3 -m venv {venv} && {venv}/bin/pip install numpy==1.23.5 mxnet==1.9.1 (Python 3.11 or older)"
    )


def machine() -> str:
    """Return processor, threads, versions and date, as every figure must state them."""
    card = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    return f"{card}{torch.get_num_threads()} threads; {describe()}"


def import_d2l() -> ModuleType | None:
    """Return `d2l.torch`, or None where it is not installed; what it imports for notebooks is faked meanwhile."""
    if importlib.util.find_spec("d2l") is None:
        return None
    importlib.import_module("torchvision")  # before there are fakes: it asks what pandas is
    missing = [name for name in _FOR_NOTEBOOKS if name not in sys.modules and not _is_installed(name)]
    sys.modules |= {name: MagicMock() for name in missing}
    try:
        return importlib.import_module("d2l.torch")
    finally:
        for name in missing:
            del sys.modules[name]


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def mxnet_python(venv: Path = MXNET_VENV) -> Path | None:
    """Return the interpreter of the venv that holds MXNet, or None."""
    python = venv / "bin" / "python"
    return python if python.exists() and list(venv.glob("lib/python*/site-packages/mxnet")) else None


class Worker:
    """A script that another interpreter runs and that answers JSON lines with JSON lines.

    The script reads one request a line from stdin; a line it prints that begins with `{` is the answer. It ends with
    its input, that is, with this process.
    """

    def __init__(self, python: Path, script: Path, *arguments: str) -> None:
        command = [str(python), str(script), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"the worker process ended with {self.process.wait()} instead of answering; see above")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell, the first one to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for first, *others in [header, ["-" * width for width in widths], *rows]:
        print("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]))
