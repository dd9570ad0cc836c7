import io
import json
import logging
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from multibox.serving import logs
from multibox.serving.logs import end_logging, note, notes_of_request, start_logging, tell_exchange

LOG = logging.getLogger("multibox.serving")


def written(kind, speak, worker=None):
    """Return the lines that `speak` leaves in the log."""
    stream = io.StringIO()
    handler = start_logging(kind, worker, stream)
    try:
        speak()
    finally:
        end_logging(handler)
    return stream.getvalue().splitlines()


def exchange(path="/predict"):
    return SimpleNamespace(
        method="POST", path=path, status=200, seconds=0.0123, received=7, images=1, client="127.0.0.1", model="coco"
    )


def test_a_request_is_one_json_object_with_what_became_known_of_it():
    def speak():
        token = notes_of_request.set({"id": "abc"})
        note(queued_ms=1.0)
        note(queued_ms=3.0)
        note(queued_ms=2.0)
        tell_exchange(exchange())
        notes_of_request.reset(token)

    (line,) = written("json", speak)
    entry = json.loads(line)
    assert (entry["id"], entry["queued_ms"], entry["ms"], entry["model"]) == ("abc", 3.0, 12.3, "coco")
    assert (entry["event"], entry["level"], entry["status"]) == ("request", "info", 200)


def test_a_path_cannot_forge_a_line():
    for kind in ("text", "json"):
        assert len(written(kind, lambda: tell_exchange(exchange("/a\n12:00:00 forged")))) == 1


def test_an_exception_and_the_worker_are_told():
    def speak():
        try:
            raise ValueError("what")
        except ValueError:
            LOG.exception("it failed")

    (line,) = written("json", speak, worker=2)
    entry = json.loads(line)
    assert (entry["worker"], entry["level"]) == (2, "error")
    assert "ValueError: what" in entry["exception"]
    assert "[2] error: it failed" in written("text", speak, worker=2)[0]


def test_a_reader_that_is_too_slow_never_stops_the_server(monkeypatch):
    class Stuck(io.StringIO):
        gate = threading.Event()

        def write(self, text):
            self.gate.wait(10)
            return super().write(text)

    monkeypatch.setattr(logs, "MOST_LINES", 5)
    stream = Stuck()
    handler = start_logging("text", None, stream)
    for number in range(100):
        LOG.info("line %d", number)
    stream.gate.set()
    end_logging(handler)
    assert "lines dropped" in stream.getvalue()
    assert "line 0" in stream.getvalue()
