"""Nothing leaves the machine: every command with connections refused and counted, and a home folder that stays empty.

Another process runs each command, for packages that report behave otherwise under pytest.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multibox.exporting.graph import without_folders

WATCH = """
import os, sys

def watch(event, arguments):
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        return
    address = arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else arguments[1]
    host = address[0] if isinstance(address, tuple) else address
    if host in (None, "", "localhost", "127.0.0.1", "::1") or (event == "socket.connect" and isinstance(address, str)):
        return  # this machine, or a file
    with open(os.environ["WATCH_LOG"], "a") as file:
        file.write(f"{event} {address}\\n")
    raise OSError("no network in this test")

sys.addaudithook(watch)
"""
FONTS = (".cache/matplotlib", ".config/matplotlib")
"""Matplotlib's list of the fonts that are installed."""


class Machine:
    """A home folder of its own, and a log of every connection that was tried."""

    def __init__(self, folder):
        self.home, self.work = folder / "home", folder / "work"
        self.log = folder / "log.txt"
        site = folder / "site"
        for each in (self.home, self.work, site):
            each.mkdir()
        (site / "sitecustomize.py").write_text(WATCH)
        source = Path(__file__).parents[1] / "src"
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TEMP") if name in os.environ}
        self.environment = {
            **kept,
            "HOME": str(self.home),
            "USERPROFILE": str(self.home),
            "PYTHONPATH": os.pathsep.join((str(site), str(source))),
            "WATCH_LOG": str(self.log),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )

    def multibox(self, *arguments):
        done = self.run("-m", "multibox", *arguments)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def attempts(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def new_files(self):
        files = (path.relative_to(self.home).as_posix() for path in self.home.rglob("*") if path.is_file())
        return [name for name in files if not name.startswith(FONTS)]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_watch_sees_a_connection(machine):
    done = machine.run("-c", "import urllib.request; urllib.request.urlopen('http://example.com')")
    assert done.returncode != 0
    assert machine.attempts()
    script = "import socket; s = socket.socket(); s.connect(('192.0.2.1', 9))"
    machine.run("-c", script)
    assert len(machine.attempts()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import multibox", "import openvino_telemetry"])
def test_the_telemetry_package_sends_nothing(machine, first):
    script = f"""
{first}
import multibox
from nncf.telemetry import tracked_function
from nncf.telemetry.wrapper import telemetry
telemetry.start_session("a")
telemetry.send_event("a", "b", "c", force_send=True)
telemetry.end_session("a")
"""
    done = machine.run("-c", script)
    assert done.returncode == 0, done.stderr
    assert machine.attempts() == []
    if first == "import multibox":
        assert machine.new_files() == []


@pytest.mark.slow
def test_no_command_reports_to_anyone(machine):
    run = machine.multibox
    run("data", "make", "sprites", "data", "--images", "24", "--size", "64", "--classes", "2")
    run("data", "show", "data")
    run("data", "convert", "data", "yolo", "--to", "yolo")
    run("doctor" if "doctor" in run("--help") else "list", "data" if "doctor" in run("--help") else "presets")
    settings = ("--set", "model.input_size=[64,64]", "--set", "train.workers=0")
    run("train", "data", "--preset", "tinyssd", "--epochs", "2", "--out", "run", *settings)
    run("eval", "run", "data", "--split", "val", "--json", "metrics.json", "--plot", "curves.png")
    images = sorted(machine.work.rglob("*.png"))[:1] + sorted(machine.work.rglob("*.jpg"))[:1]
    run("predict", "run", images[0], "--out", "found")
    run("export", "run", "--out", "model.onnx")
    run("export", "run", "--to", "openvino", "--out", "half.xml", "--fp16")
    # A network of two epochs may not survive 8 bits; that is for other tests
    done = machine.run(
        "-m", "multibox", "export", "run", "--to", "openvino", "--int8", "--calibrate", "data", "--out", "int8.xml"
    )
    assert done.returncode in (0, 1), done.stderr
    run("eval", "model.onnx", "data", "--split", "val")
    run("bench", "model.onnx")
    run("plot", "curves", "run")
    run("list", "backbones")
    assert machine.attempts() == []
    assert machine.new_files() == []
    for path in (machine.work / "model.onnx", machine.work / "half.xml", machine.work / "half.bin"):
        assert str(machine.work).encode() not in path.read_bytes(), path
    if shutil.which("unshare") and os.geteuid() == 0:
        command = ["unshare", "-n", sys.executable, "-m", "multibox", "predict", "model.onnx", str(images[0])]
        again = subprocess.run([*command, "--json", "out.json"], cwd=machine.work, env=machine.environment, check=False)
        assert again.returncode == 0
        assert json.loads((machine.work / "out.json").read_text())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("trained on /home/ann/photos/cells (train)", "trained on cells (train)"),
        (r"trained on C:\Users\ann\cells (train)", "trained on cells (train)"),
        ("trained on ../secret/cells (train)", "trained on cells (train)"),
        ("multibox 0.1.0, recipe d2l, 1/2 of all", "multibox 0.1.0, recipe d2l, 1/2 of all"),
        ("https://example.org/a/b, MIT", "https://example.org/a/b, MIT"),
    ],
)
def test_sources_lose_their_folders(text, clean):
    assert without_folders(text) == clean
