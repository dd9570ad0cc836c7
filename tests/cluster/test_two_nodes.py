"""A real Ray cluster of two nodes on this machine: actors, a node and the command itself are killed on the way."""

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from multibox.data.sprites import render
from multibox.inference.load import load
from multibox.inference.streaming import open_copies, predict_stream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'multibox[ray]'"),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds Ray's processes in /proc"),
]

IMAGES = 5000
PATIENCE = 400
"""Seconds to wait for what takes a few when nothing else runs."""
ENVIRONMENT = {
    # All on 127.0.0.1, and actors that do not step back behind other tests
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "token",
}


class Nodes:
    """The cluster that `two_nodes.py` runs."""

    def __init__(self, environment):
        command = [sys.executable, str(Path(__file__).with_name("two_nodes.py"))]
        self.environment = environment
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address, self.raylets = self._answer().values()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError("the cluster did not start")

    def add(self):
        self.process.stdin.write("node\n")
        self.process.stdin.flush()
        self.raylets.append(self._answer()["raylet"])

    def workers(self):
        """Return the process ids of actors that do blocks."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
                above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if above in self.raylets and b"BlockWorker" in title:
                found.append(int(folder.name))
        return found

    def predict(self, folder, out):
        command = [sys.executable, "-m", "multibox", "predict", "face", str(folder), "--out", str(out)]
        return subprocess.Popen(
            [*command, "--ray", self.address],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE)


@pytest.fixture
def nodes():
    source = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    cluster = Nodes({**os.environ, **ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": path})
    yield cluster
    cluster.end()


@pytest.fixture
def photos(tmp_path):
    """5,000 small JPEG files, of which 200 differ; one is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(200):
        image = Image.fromarray(render(index, classes=3, objects=(1, 4), size=64 + index)[0])
        image.save(folder / f"{index:04}.jpg", quality=85)
    for index in range(200, IMAGES):
        (folder / f"{index:04}.jpg").write_bytes((folder / f"{index % 200:04}.jpg").read_bytes())
    (folder / "1234.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    return folder


def parts(out):
    """Return the times at which the parts in a folder were written."""
    return {part.name: part.stat().st_mtime_ns for part in out.glob("part-*.parquet")}


def wait_for(ready, process, what):
    until = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, f"ended while waiting for {what}:\n{process.stdout.read()}"
        assert time.monotonic() < until, f"no {what} in {PATIENCE} s"
        time.sleep(0.05)


def test_no_row_is_lost_or_twice_when_an_actor_a_node_and_the_command_die(nodes, photos, tmp_path):
    out = tmp_path / "found.parquet"
    first = nodes.predict(photos, out)
    wait_for(lambda: len(parts(out)) >= 2 and len(nodes.workers()) == 2, first, "two actors at work")
    os.kill(nodes.workers()[0], signal.SIGKILL)
    wait_for(lambda: len(parts(out)) >= 6, first, "parts after the death of an actor")
    os.kill(nodes.raylets[1], signal.SIGKILL)
    wait_for(lambda: len(parts(out)) >= 10, first, "parts after the death of a node")
    first.kill()
    first.wait()
    first.stdout.close()
    # Its actors end soon after it; one may still write the part that it was at
    until = time.monotonic() + PATIENCE
    while nodes.workers() and time.monotonic() < until:
        time.sleep(0.1)
    before = parts(out)
    assert 10 <= len(before) < 20 and not (out / "_SUCCESS").exists()

    nodes.add()
    second = nodes.predict(photos, out)
    told, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1, told
    assert f"done before ({len(before)} of 20 parts)" in told
    assert "1 image of 5,000 could not be read" in told and "Traceback" not in told and "(raylet)" not in told, told
    assert (out / "_SUCCESS").exists() and len(parts(out)) == 20
    assert {name: when for name, when in parts(out).items() if name in before} == before
    assert not list(out.glob(".*"))

    rows = pq.read_table(out).to_pylist()
    paths = sorted(photos.iterdir())
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    copies = open_copies(lambda threads: load("face", threads=threads))
    for row, seen in zip(rows, predict_stream(copies, paths), strict=True):
        if seen.image is None:
            assert row["error"] == str(seen.found) and row["file"].endswith("1234.jpg")
            continue
        assert (row["width"], row["height"], row["error"]) == (seen.image.width, seen.image.height, None)
        assert [each["label"] for each in row["detections"]] == seen.found.labels.tolist()
        assert [each["score"] for each in row["detections"]] == pytest.approx(seen.found.scores.tolist(), abs=1e-6)
        boxes = [edge for each in row["detections"] for edge in each["box"]]
        assert boxes == pytest.approx(seen.found.boxes.ravel().tolist(), abs=1e-3)
