"""A cluster that `predict --ray` starts here: Ctrl-C, going on, nothing left behind, nothing reported to anyone."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from multibox.data.sprites import render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'multibox[ray]'"),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc"),
]

PATIENCE = 300
WATCH = """
import os, sys

def watch(event, arguments):
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        return
    address = arguments[0] if event.startswith("socket.get") else arguments[1]
    host = address[0] if isinstance(address, tuple) else address
    if host in (None, "", "localhost", "127.0.0.1", "::1") or (event == "socket.connect" and isinstance(address, str)):
        return
    with open(os.environ["WATCH_LOG"], "a") as file:
        file.write(f"{sys.argv} {event} {address}\\n")
    raise OSError("no network in this test")

sys.addaudithook(watch)
"""
MARK = "MULTIBOX_TEST_MARK"


def marked(mark):
    """Return the processes that have a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes()[:80])
        except OSError:
            continue
    return found


@pytest.fixture
def start(tmp_path):
    """Return a function that starts `multibox predict face photos --ray`, watched, with a home folder of its own."""
    for name in ("home", "site", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(WATCH)
    for index in range(40):
        image = Image.fromarray(render(index, classes=3, objects=(1, 4), size=64 + index)[0])
        image.save(tmp_path / f"photos/{index:04}.jpg", quality=85)
    for index in range(40, 2048):
        (tmp_path / f"photos/{index:04}.jpg").write_bytes((tmp_path / f"photos/{index % 40:04}.jpg").read_bytes())
    source = str(Path(__file__).parents[2] / "src")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), source]),
        "WATCH_LOG": str(tmp_path / "log.txt"),
        "RAY_worker_niceness": "0",
        MARK: tmp_path.name,
    }
    command = [sys.executable, "-m", "multibox", "predict", "face", "photos", "--ray", "--out", "found.parquet"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return lambda: subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)


def test_ctrl_c_and_on_again_with_nothing_left_and_nothing_reported(start, tmp_path):
    out, until = tmp_path / "found.parquet", time.monotonic() + PATIENCE
    scratch = set(Path("/tmp").glob("multibox-ray-*"))
    first = start()
    while not list(out.glob("part-*")):
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    # As a terminal does: to Ray's processes, too
    os.killpg(first.pid, signal.SIGINT)
    told, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 130, told
    assert "stopped: " in told and "of 8; the same command does the others" in told and "Traceback" not in told, told
    done = len(list(out.glob("part-*")))
    assert 1 <= done < 8 and not (out / "_SUCCESS").exists()

    second = start()
    told, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, told
    assert f"done before ({done} of 8 parts)" in told or f"done before ({done + 1} of 8 parts)" in told
    lines = told.splitlines()
    assert len(lines) <= 8 and "2,048 images with" in lines[-1], told
    files = pq.read_table(out, columns=["file"])["file"].to_pylist()
    assert files == [f"photos/{index:04}.jpg" for index in range(2048)]

    while marked(tmp_path.name) and time.monotonic() < until:
        time.sleep(0.2)
    assert marked(tmp_path.name) == []
    assert set(Path("/tmp").glob("multibox-ray-*")) <= scratch
    assert not (tmp_path / "log.txt").exists(), (tmp_path / "log.txt").read_text()
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
