import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from multibox.builtin import FOLDER
from multibox.cli.monitor import listen
from multibox.cli.serve import check_token
from multibox.errors import ConfigError, MultiboxError
from multibox.inference.load import load
from multibox.serving import server as life
from multibox.serving.app import make_app
from multibox.serving.hosted import Room, check_sources, open_models
from multibox.serving.server import make_server

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which signals are handled")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def jpeg(seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


class Running:
    """A server in a thread."""

    def __init__(self, models=("face",), **options):
        self.clients = []
        self.models = open_models(list(models), Room(cores=1))
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        app = make_app(self.models, port=self.port, ready=lambda: self.models.ready)
        self.server = make_server(self.models, app, **options)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        for model in self.models.values():
            model.wait_ready()

    def connect(self):
        self.clients.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30))
        return self.clients[-1]

    def end(self):
        for client in self.clients:
            client.close()
        self.server.end()
        self.thread.join()
        for model in self.models.values():
            model.close()


@pytest.fixture
def running():
    one = Running()
    yield one
    one.end()


def ask(connection, body=None, headers=()):
    connection.request(
        "POST", "/predict?threshold=0.1", body or jpeg(), {"content-type": "image/jpeg", **dict(headers)}
    )
    response = connection.getresponse()
    return response, json.loads(response.read())


def test_a_request_has_an_id_its_own_or_a_new_one(running):
    connection = running.connect()
    assert ask(connection, headers={"x-request-id": "mine-1"})[0].headers["x-request-id"] == "mine-1"
    first, second = (ask(connection, headers={"x-request-id": "no id\x01"[:5]})[0] for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", first.headers["x-request-id"])
    assert "connection" not in first.headers


def test_an_ending_server_answers_idle_connections_and_new_ones_and_closes_each(running, monkeypatch):
    monkeypatch.setattr(life, "QUIET", 0.3)
    idle, ready = running.connect(), running.connect()
    ask(idle)
    ready.request("GET", "/v2/health/ready")
    assert ready.getresponse().read() is not None
    running.server.end()
    response, answer = ask(idle)
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert answer["width"] == 320
    response, _ = ask(running.connect())
    assert (response.status, response.headers["connection"]) == (200, "close")
    other = running.connect()
    other.request("GET", "/v2/health/ready")
    assert other.getresponse().status == 503
    running.thread.join(10)
    assert not running.thread.is_alive()


def test_a_request_that_came_before_the_end_is_answered_however_long_it_takes(running, monkeypatch):
    monkeypatch.setattr(life, "QUIET", 0.05)
    monkeypatch.setattr(life, "DRAIN", 0.2)
    detector = running.models["face"].detector
    lane, gate = detector.detect, threading.Event()

    def slow(*arguments, **options):
        gate.wait(10)
        return lane(*arguments, **options)

    detector.detect = slow
    results = []
    thread = threading.Thread(target=lambda: results.append(ask(running.connect())))
    thread.start()
    while not running.server.server_state.tasks:
        time.sleep(0.01)
    running.server.end()
    time.sleep(0.6)
    assert running.thread.is_alive()
    gate.set()
    thread.join(10)
    running.thread.join(10)
    assert results[0][0].status == 200
    assert not running.thread.is_alive()


def test_connections_that_nobody_took_are_taken_at_the_end():
    import socket

    with listen("127.0.0.1", 0) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        accepted = life._accept_all([listener])
        assert len(accepted) == 3
        for each in (*clients, *accepted):
            each.close()


def test_a_token_is_required_where_others_reach_the_server():
    check_token("127.0.0.1", None)
    check_token("0.0.0.0", "s3cret-s3cret")
    with pytest.raises(ConfigError, match="MULTIBOX_TOKEN"):
        check_token("0.0.0.0", None)
    with pytest.raises(ConfigError, match="8 to 200"):
        check_token("127.0.0.1", "short")


def wait_until_sighup_is_handled(process):
    """Return as soon as a process, which has just begun, has a handler of SIGHUP."""
    until = time.monotonic() + 60
    while True:
        status = Path(f"/proc/{process}/status").read_text()
        caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1]
        if int(caught, 16) >> signal.SIGHUP - 1 & 1:
            return
        assert time.monotonic() < until
        time.sleep(0.001)


class Served:
    """`multibox serve` as a process."""

    def __init__(self, *arguments, env=None, early=None, before=(), **options):
        command = [sys.executable, "-m", "multibox", "serve", *map(str, arguments), "--port", "0", "--log", "json"]
        self.process = subprocess.Popen(
            [*before, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            **options,
        )
        if early is not None:
            wait_until_sighup_is_handled(self.process.pid)
            self.process.send_signal(early)
        self.line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+)/", self.line)[1]) if ":" in self.line else 0
        self.log, self.clients = [], []
        self._reader = threading.Thread(target=lambda: self.log.extend(self._lines()), daemon=True)
        self._reader.start()

    def _lines(self):
        for line in self.process.stderr:
            yield json.loads(line) if line.startswith("{") else {"event": "text", "message": line}

    def events(self, name):
        return [entry for entry in list(self.log) if entry["event"] == name]

    def wait_for(self, name, count=1):
        until = time.monotonic() + 60
        while len(self.events(name)) < count:
            assert time.monotonic() < until, (name, self.log)
            time.sleep(0.02)

    def connect(self):
        self.clients.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60))
        return self.clients[-1]

    def end(self, number=signal.SIGTERM):
        for client in self.clients:
            client.close()
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@posix
def test_a_server_says_where_it_is_answers_as_predict_does_and_ends_with_0():
    served = Served("coco", env={"MULTIBOX_TOKEN": "s3cret-s3cret"})
    assert re.match(r"coco at http://127\.0\.0\.1:\d+/; Ctrl-C ends", served.line)
    headers = {"authorization": "Bearer s3cret-s3cret"}
    response, answer = ask(served.connect(), headers=headers)
    expected = load("coco").predict(jpeg(), 0.1)
    assert response.status == 200
    np.testing.assert_allclose([each["score"] for each in answer["detections"]], expected.scores, atol=1e-3)
    assert ask(served.connect())[0].status == 401
    assert served.end(signal.SIGINT) == 0
    assert [entry["status"] for entry in served.events("request")] == [200, 401]
    assert served.events("request")[0]["model"] == "coco"
    assert "s3cret" not in json.dumps(served.log) + served.line


@posix
@pytest.mark.slow
def test_sighup_reads_the_model_again_and_a_broken_file_keeps_it(tmp_path):
    for name in ("face.onnx", "face.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    served = Served(tmp_path / "face.onnx")
    served.wait_for("ready")
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("reloaded")
    (tmp_path / "face.onnx").write_bytes(b"broken")
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("reload_failed")
    assert ask(served.connect())[0].status == 200
    assert served.end() == 0
    assert served.events("reloaded")[0]["version"].endswith("-2")
    assert "face.onnx" in served.events("reload_failed")[0]["message"]


@linux
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sighup_during_the_start_ends_nothing(workers):
    served = Served("face", "--workers", workers, early=signal.SIGHUP)
    served.wait_for("ready", workers)
    if workers == 1:
        served.wait_for("reloaded")
    assert ask(served.connect())[0].status == 200
    assert served.end() == 0
    assert len(served.events("reloaded")) == int(workers == 1)
    assert not served.events("worker_died")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_nohup_started_outlives_its_terminal(workers):
    import fcntl  # POSIX only, unlike the rest of this file
    import pty
    import termios

    terminal, inside = pty.openpty()

    def take_terminal():
        fcntl.ioctl(inside, termios.TIOCSCTTY, 0)

    own = {"stdin": inside, "start_new_session": True, "preexec_fn": take_terminal}
    served = Served("face", "--workers", workers, before=["nohup"], **own)
    served.wait_for("hangups_ignored")
    served.wait_for("ready", workers)
    os.close(inside)
    os.close(terminal)  # the system sends SIGHUP
    served.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert ask(served.connect())[0].status == 200
    assert served.end() == 0
    assert not served.events("reloaded")
    assert len(served.events("hangups_ignored")) == 1


@linux
def test_a_sigterm_during_the_start_ends_without_a_traceback():
    served = Served("face", early=signal.SIGTERM)
    assert served.end() in (0, -signal.SIGTERM)
    assert served.log == []


@posix
@pytest.mark.slow
def test_workers_are_replaced_when_they_die_and_read_models_one_after_another():
    served = Served("face", "--workers", 2)
    served.wait_for("ready", 2)
    assert {entry["worker"] for entry in served.events("ready")} == {1, 2}
    for _ in range(8):
        assert ask(served.connect())[0].status == 200
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("reloaded", 2)
    children = subprocess.run(
        ["ps", "--ppid", str(served.process.pid), "-o", "pid="], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    served.wait_for("ready", 3)
    assert ask(served.connect())[0].status == 200
    assert served.end() == 0
    assert [entry["code"] for entry in served.events("worker_died")] == [-9]


@posix
@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed():
    served = Served("face", "--workers", 2)
    served.wait_for("ready", 2)
    served.end(signal.SIGKILL)
    until = time.monotonic() + 30
    while True:
        try:
            served.connect().connect()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        ("cats=", "'cats=' names no model; give cats=MODEL, such as coco or cats.onnx"),
        ("", "'' names no model; give one, such as coco"),
        ("=coco", "'=coco': the name before = is empty; give cats=coco"),
        ("coco", "two models are called coco"),
        ("nothing.onnx", "nothing.onnx does not exist"),
    ],
)
def test_models_are_checked_before_any_is_opened(argument, what):
    check_sources(["coco", "other=coco"])
    with pytest.raises(MultiboxError) as caught:
        check_sources(["coco", argument])
    assert what in str(caught.value)


@pytest.mark.slow
@posix
def test_a_model_that_is_not_there_is_told_before_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as taken:
        command = [sys.executable, "-m", "multibox", "serve", "nothing.onnx", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("multibox: nothing.onnx does not exist")


@pytest.mark.slow
@posix
def test_a_model_that_is_not_there_is_one_sentence():
    for more in ([], ["--workers", "2"]):
        served = Served("nothing.onnx", *more)
        assert served.process.wait(60) == 2
        served._reader.join(10)
        assert "nothing.onnx does not exist" in served.log[-1]["message"]
        assert len([entry for entry in served.log if "does not exist" in entry["message"]]) == 1
        served.process.stdout.close()
        served.process.stderr.close()


@pytest.mark.slow
def test_the_server_of_an_exported_model_does_not_import_torch():
    code = (
        "import sys; from multibox.serving.hosted import open_models; import multibox.serving.server, "
        "multibox.serving.workers, multibox.serving.app, multibox.serving.logs; "
        "models = open_models(['face']); models['face'].wait_ready(); models['face'].close(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
