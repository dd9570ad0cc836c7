"""The monitor without a browser: what it reads, whom it lets in, and how its stream behaves."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from multibox.cli.monitor import listen, make_server, monitor_beside
from multibox.errors import ConfigError
from multibox.pages.monitor_hub import Hub, Viewer, parse_position
from multibox.pages.run_folders import RunFolder, ask_to_stop, compare_settings, find_runs, read_state, sample_bytes
from multibox.pages.run_history import MOST_POINTS, History

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from fake_runs import HOSTILE, FakeRun, old_run
finally:
    sys.path.remove(str(HERE))


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    """Look several times a second."""
    monkeypatch.setattr("multibox.pages.monitor.BEAT", 0.1)
    monkeypatch.setattr("multibox.pages.monitor.SLICE", 0.05)
    monkeypatch.setattr("multibox.pages.monitor_hub.EVERY", 0.05)
    monkeypatch.setattr("multibox.pages.monitor_hub.SCAN_EVERY", 0.1)


@contextmanager
def served(runs: Path, token: str | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve the runs in a thread and yield the port."""
    with listen(host, 0) as listener:
        server = make_server(runs, host, listener, token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            began = time.monotonic()
            thread.join(5)
            assert time.monotonic() - began < 1.5
            assert not thread.is_alive()


def ask(port: int, path: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    answer = connection.getresponse()
    try:
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


class Stream:
    """A page that listens to events."""

    def __init__(self, port: int, show: str = "", **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.connection.request(
            "GET", f"/events?show={show}", headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200
        assert self.answer.getheader("content-type", "").startswith("text/event-stream")

    def event(self) -> tuple[str, dict]:
        """Return the next event's id and data."""
        key = ""
        while True:
            line = self.answer.readline().decode()
            assert line, "the stream ended"
            if line.startswith("id: "):
                key = line[4:].strip()
            if line.startswith("data: "):
                return key, json.loads(line[6:])

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def make_runs(root: Path) -> FakeRun:
    run = FakeRun(root / "cells")
    run.go(120)
    return run


def history_of(run: FakeRun) -> History:
    history = History(run.folder)
    history.read()
    return history


def test_runs_are_found_at_every_level(tmp_path):
    FakeRun(tmp_path / "a")
    FakeRun(tmp_path / "ablation" / "focal-max" / "seed-0")
    FakeRun(tmp_path / "seeds" / "seed-1")
    old_run(tmp_path / "old")
    (tmp_path / ".multibox-cache").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.toml").write_text("")
    assert [run.name for run in find_runs(tmp_path)] == ["a", "ablation/focal-max/seed-0", "old", "seeds/seed-1"]
    assert [run.name for run in find_runs(tmp_path / "a")] == ["a"]
    assert find_runs(tmp_path / "absent") == []
    assert len({run.id for run in find_runs(tmp_path)}) == 4


def test_the_curves_are_read_on_from_where_they_were_left(tmp_path):
    run = make_runs(tmp_path)
    history = history_of(run)
    assert history.steps.since(0)["step"] == list(range(2, 121, 2))
    assert [one["step"] for one in history.validations] == [50, 100]
    assert history.validations[0]["per_class"][2][0] == HOSTILE
    first, cursor = history.news("")
    assert first is not None
    assert first["anew"]
    assert history.news(cursor) == (None, cursor)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "time": 1e9, "st')
    history.read()
    assert history.news(cursor)[0] is None
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(
            'ep": 122, "loss": NaN}\nnonsense\n[1]\n{"kind": "later", "step": 4}\n{"kind": "step", "step": "x"}\n\n'
        )
    history.read()
    news, _ = history.news(cursor)
    assert news is not None
    assert not news["anew"]
    assert news["steps"]["step"] == [122]
    assert news["steps"]["loss"] == [None]
    assert news["validations"] == []


def test_notes_keep_their_lines(tmp_path):
    run = make_runs(tmp_path)
    run.write(kind="note", time=1e9, step=1, text="one\ntwo" + "x" * 5000)
    run.write(kind="note", time=1e9, step=1, text=["no text"])
    lines = history_of(run).notes[-1]["lines"]
    assert lines[0] == "one"
    assert len(lines[1]) == 1000


def test_a_resumed_run_replaces_what_followed_its_last_save(tmp_path):
    run = make_runs(tmp_path)
    history = history_of(run)
    _, cursor = history.news("")
    run.step = 40
    run.go(20)
    history.read()
    news, _ = history.news(cursor)
    assert news is not None
    assert news["anew"]
    assert news["steps"]["step"] == list(range(2, 61, 2))
    assert [one["step"] for one in news["validations"]] == [50]


def test_a_folder_made_anew_starts_anew(tmp_path):
    run = make_runs(tmp_path)
    history = history_of(run)
    (run.folder / "metrics.jsonl").unlink()
    run.write(kind="step", step=1, loss=9.0)
    history.read()
    assert history.steps.since(0)["loss"] == [9.0]


def test_long_curves_are_thinned_and_keep_their_means(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            file.write(json.dumps({"kind": "step", "step": step, "time": float(step), "loss": step % 2}) + "\n")
    history = History(folder)
    history.read()
    rows = history.steps.since(0)
    assert MOST_POINTS / 2 <= len(rows["step"]) < MOST_POINTS
    assert set(rows["loss"]) == {0.5}
    assert rows["step"] == sorted(rows["step"])
    assert rows["step"][-1] > 19_900


def test_an_old_run_shows_its_table(tmp_path):
    folder = old_run(tmp_path / "old")
    hub = Hub(tmp_path)
    (state,) = hub.all_states()
    assert (state["state"], state["step"], state["best"]) == ("unknown", 50, 0.5)
    history = History(folder)
    history.read()
    rows = history.epochs.since(0)
    assert rows["loss"] == [5.0, 2.5, 1.6667, 1.25, 1.0]
    assert rows["seconds"] == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert [one["val_map50"] for one in history.validations] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_state_is_what_the_file_says_and_what_is_left_of_the_process(tmp_path):
    run = make_runs(tmp_path)
    (found,) = find_runs(tmp_path)
    assert read_state(found)["state"] == "training"
    now = time.time()
    # The process is alive, so a long silence alone is no sign
    assert read_state(found, now + 300)["state"] == "training"
    assert read_state(found, now + 700)["state"] == "lost"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    run.status("training", pid=gone.pid)
    assert read_state(found, now + 5)["state"] == "training"
    assert read_state(found, now + 30)["state"] == "lost"
    run.status("training", pid=gone.pid, host="another")
    assert read_state(found, now + 30)["state"] == "training"
    assert read_state(found, now + 90)["state"] == "lost"
    run.status("finished", pid=gone.pid)
    assert read_state(found, now + 1e6)["state"] == "finished"


BROKEN = ("", "{", "[]", "null", "1", '{"state": []}', '{"step": "1", "hardware": 3, "pid": {}}', "[" * 50_000)


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_status_file_breaks_nothing(tmp_path, text):
    run = make_runs(tmp_path)
    (run.folder / "status.json").write_text(text)
    (state,) = Hub(tmp_path).all_states()
    assert state["state"] == "unknown"


def test_a_newer_status_file_is_said_to_be_one(tmp_path):
    make_runs(tmp_path).status("training", format=2)
    (state,) = Hub(tmp_path).all_states()
    assert state["state"] == "newer"
    assert "update" in state["error"]


def test_values_of_the_wrong_type_are_left_out(tmp_path):
    run = make_runs(tmp_path)
    run.status("training", step="5", best=float("nan"), loss=True, host=["x"], pid="7", steps=1e300, error="a\nb" * 999)
    (found,) = find_runs(tmp_path)
    state = read_state(found)
    assert [state[name] for name in ("step", "best", "loss", "host", "steps")] == [None] * 5
    assert "\n" not in state["error"]
    assert len(state["error"]) <= 300


def test_a_viewer_gets_what_it_has_not_seen(tmp_path):
    run = make_runs(tmp_path)
    hub = Hub(tmp_path)
    (key,) = hub.runs or {state["id"]: 0 for state in hub.all_states()}
    viewer = Viewer({key: ""})
    news, more = hub.news(viewer)
    assert news is not None
    assert not more
    assert [state["name"] for state in news["runs"]] == ["cells"]
    assert news["histories"][key]["anew"]
    hub.looked = float("-inf")
    assert hub.news(viewer) == (None, False)
    run.go(10)
    hub.looked = float("-inf")
    news, _ = hub.news(viewer)
    assert news is not None
    assert news["histories"][key]["steps"]["step"] == [122, 124, 126, 128, 130]
    # Another connection goes on from there
    again = Viewer(parse_position(viewer.position))
    news, _ = hub.news(again)
    assert news is not None
    assert news["histories"] == {}
    assert news["runs"] != []


@pytest.mark.parametrize("line", ["x", "::::", "a:1.2.3.4.5~b:", "~" * 9999, "a:" + "9" * 5000, "é:x.1.2.3.-4"])
def test_a_strange_position_is_a_new_page(tmp_path, line):
    make_runs(tmp_path)
    news, _ = Hub(tmp_path).news(Viewer(parse_position(line)))
    assert news is not None


def test_only_sample_images_of_the_run_are_served(tmp_path):
    run = make_runs(tmp_path)
    (found,) = find_runs(tmp_path)
    assert (sample_bytes(found, "step-000050.jpg") or b"").startswith(b"\xff\xd8")
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8secret")
    images = run.folder / "images"
    (images / "step-000001.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "step-000002.jpg").write_text("<html>")
    (images / "curves.jpg").write_bytes(b"\xff\xd8")
    links = ["step-000001.jpg", "step-000002.jpg"]
    for name in (*links, "curves.jpg", "../config.toml", "step-000050.jpg/", "step-9.jpg", ""):
        assert sample_bytes(found, name) is None
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    assert sample_bytes(found, "step-000050.jpg") is None


def test_a_stop_is_a_file_and_follows_no_link(tmp_path):
    run = make_runs(tmp_path)
    (found,) = find_runs(tmp_path)
    assert ask_to_stop(found)
    assert (run.folder / "stop").read_bytes() == b""
    assert not ask_to_stop(found)
    assert read_state(found)["stopping"]
    (run.folder / "stop").unlink()
    (run.folder / "stop").symlink_to(tmp_path / "victim")
    assert not ask_to_stop(found)
    assert not (tmp_path / "victim").exists()


def test_differing_settings_are_listed(tmp_path):
    FakeRun(tmp_path / "a")
    FakeRun(tmp_path / "longer")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "status.json").write_text("{}")
    (tmp_path / "broken" / "config.toml").write_text("= nonsense")
    runs = find_runs(tmp_path)
    one, _, other = runs
    answer = compare_settings([one, other])
    assert answer["same"] == 3
    (row,) = answer["rows"]
    assert row["key"] == "train.lr"
    assert len(compare_settings(runs)["rows"]) == 4
    assert compare_settings([])["rows"] == []


def test_the_page_and_its_headers(tmp_path):
    FakeRun(tmp_path / HOSTILE.replace("/", "-")).go(4)
    with served(tmp_path) as port:
        status, headers, body = ask(port, "/")
        assert status == 200
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
        assert b"<img src=x" not in body
        outside = "name=step-000001.jpg"
        for path in ("/nothing", "/image", f"/image?run=x&{outside}", f"/image?run=../..&{outside}", "/..%2f..%2fetc"):
            status, headers, _ = ask(port, path)
            assert status == 404
            assert headers["x-content-type-options"] == "nosniff"


def test_images_and_settings_over_http(tmp_path):
    make_runs(tmp_path)
    (run,) = find_runs(tmp_path)
    with served(tmp_path) as port:
        status, headers, body = ask(port, f"/image?run={run.id}&name=step-000050.jpg")
        assert (status, headers["content-type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")
        assert ask(port, f"/image?run={run.id}&name=..%2fconfig.toml")[0] == 404
        assert ask(port, f"/image?run={run.id}&name=step-000050.jpg", Sec_Fetch_Site="same-site")[0] == 403
        assert ask(port, "/", Sec_Fetch_Site="cross-site")[0] == 200
        assert json.loads(ask(port, f"/settings?run={run.id}&run={run.id}&run=x")[2])["runs"] == [run.id]


def test_a_host_name_of_others_is_refused(tmp_path):
    others = "127.0.0.1.evil.example", "evil.example", "192.168.1.2", "", "[", "localhost@evil.example"
    with served(tmp_path) as port:
        for host in ("127.0.0.1", "localhost:9999", "[::1]:80", "LOCALHOST", "127.1.2.3"):
            assert ask(port, "/", Host=host)[0] == 200
        for host in others:
            assert ask(port, "/", Host=host)[0] == 421


def post(port: int, run: str, **headers: str) -> int:
    headers = {"Content_Type": "application/json", "X_Multibox": "1", **headers}
    return ask(port, "/stop", "POST", json.dumps({"run": run}), **{k: v for k, v in headers.items() if v})[0]


def test_only_the_page_itself_stops_a_run(tmp_path):
    run = make_runs(tmp_path)
    (found,) = find_runs(tmp_path)
    with served(tmp_path) as port:
        own = f"http://127.0.0.1:{port}"
        assert post(port, found.id, Origin="http://evil.example") == 403
        assert post(port, found.id, Origin="null") == 403
        assert post(port, found.id, Origin="http://[") == 403
        assert post(port, found.id, Origin=f"http://127.0.0.1:{port + 1}") == 403
        assert post(port, found.id, Origin=own, X_Multibox="") == 403
        assert post(port, found.id, Origin=own, Sec_Fetch_Site="cross-site") == 403
        assert post(port, found.id, Origin=own, Content_Type="text/plain") == 404
        assert ask(port, "/stop?run=x", Origin=own)[0] == 405
        assert (
            ask(port, "/stop", "POST", "{" * 9000, Content_Type="application/json", X_Multibox="1", Origin=own)[0]
            == 404
        )
        assert post(port, "../cells", Origin=own) == 404
        assert not (run.folder / "stop").exists()
        assert post(port, found.id, Origin=own, Sec_Fetch_Site="same-origin") == 200
        assert (run.folder / "stop").exists()
        run.status("finished")
        assert post(port, found.id, Origin=own) == 409


def test_a_token_opens_the_page_once_and_then_a_cookie(tmp_path):
    run = make_runs(tmp_path)
    (found,) = find_runs(tmp_path)
    token = "correct-horse-battery"
    with served(tmp_path, token) as port:
        status, _, text = ask(port, "/")
        assert status == 401
        assert b"needs the token that `multibox monitor` printed" in text
        assert ask(port, "/?token=wrong-horse-battery")[0] == 401
        assert ask(port, "/?token=%C3%A9%F0%9F")[0] == 401
        assert ask(port, f"/events?token={token}")[0] == 401
        assert ask(port, "/", Authorization=f"Bearer {token}x")[0] == 401
        assert ask(port, "/", Authorization=f"Bearer {token}")[0] == 200
        assert post(port, found.id) == 401
        status, headers, _ = ask(port, f"/?token={token}")
        assert status == 200
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        value = cookie.partition(";")[0]
        assert ask(port, "/", Cookie=value)[0] == 200
        assert ask(port, "/", Cookie=value + "x")[0] == 401
        assert post(port, found.id, Cookie=value, Origin=f"http://127.0.0.1:{port}") == 200
        assert (run.folder / "stop").exists()


def test_the_stream_sends_what_is_new_and_goes_on(tmp_path):
    run = make_runs(tmp_path)
    (found,) = find_runs(tmp_path)
    with served(tmp_path) as port:
        stream = Stream(port, f"{found.id}:")
        position, news = stream.event()
        assert news["histories"][found.id]["anew"]
        assert len(news["histories"][found.id]["steps"]["step"]) == 60
        run.go(4)
        position, news = stream.event()
        assert news["histories"][found.id]["steps"]["step"] == [122, 124]
        stream.close()
        run.go(2)
        again = Stream(port, "x:", Last_Event_ID=position)
        _, news = again.event()
        assert news["histories"][found.id]["steps"]["step"] == [126]
        FakeRun(tmp_path / "second")
        while all(state["name"] != "second" for state in news["runs"]):
            _, news = again.event()
        # The server ends within a second although this stream is open
    assert again.answer.read().endswith(b"event: bye\ndata: {}\n\n")
    again.close()


def test_a_page_that_goes_away_leaves_nothing(tmp_path):
    make_runs(tmp_path)
    with served(tmp_path) as port:
        for _ in range(3):
            streams = [Stream(port) for _ in range(12)]
            for stream in streams:
                stream.event()
                stream.close()
            time.sleep(0.2)
        # 36 in all, of 32 at once
        stream = Stream(port)
        assert stream.event()[1]["runs"]
        stream.close()


def test_ports_are_chosen_or_refused(tmp_path):
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        ports = [one.getsockname()[1] for one in (first, second)]
        assert 8010 <= ports[0] < ports[1]
        with pytest.raises(ConfigError, match=r"cannot listen.*give another --port"):
            listen("127.0.0.1", ports[0])
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1.*give another --host"):
        listen("192.0.2.1", None)
    with pytest.raises(ConfigError, match="no-such-host"):
        listen("no-such-host.invalid", None)


def run_monitor(*arguments: str, **more) -> subprocess.Popen:
    command = [sys.executable, "-m", "multibox", "monitor", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_prints_its_address_and_ends_on_ctrl_c(tmp_path):
    import signal

    make_runs(tmp_path)
    with run_monitor(str(tmp_path), "--no-open") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        stream = Stream(port)
        stream.event()
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
        assert time.monotonic() - began < 1.2
        assert process.stderr is not None
        assert process.stderr.read() == ""
        stream.close()


@pytest.mark.slow
def test_beyond_this_machine_a_token_is_made(tmp_path):
    with run_monitor(str(tmp_path / "none"), "--no-open", "--host", "0.0.0.0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            address = next(word for word in line.split() if word.startswith("http://"))
            port = int(address.split(":")[2].partition("/")[0])
            token = address.partition("?token=")[2]
            assert len(token) >= 24
            assert ask(port, "/")[0] == 401
            assert ask(port, f"/?token={token}")[0] == 200
            assert ask(port, "/", Authorization=f"Bearer {token}", Host="10.1.2.3:80")[0] == 200
            assert ask(port, "/", Authorization=f"Bearer {token}", Host="evil.example")[0] == 421
            assert ask(port, "/", Authorization=f"Bearer {token}", Host=socket.gethostname())[0] == 200
        finally:
            process.terminate()


@pytest.mark.slow
def test_states_as_json_and_mistakes(tmp_path):
    make_runs(tmp_path)
    with run_monitor(str(tmp_path), "--json", "-") as process:
        states = json.loads(process.communicate()[0])
        assert [state["name"] for state in states] == ["cells"]
    absent, file = str(tmp_path / "none"), str(tmp_path / "cells" / "status.json")
    for arguments in (["--json", "-", absent], ["--token", "short"], [file]):
        with run_monitor("--no-open", *arguments) as process:
            _, error = process.communicate()
            assert process.returncode == 2
            assert error.count("\n") == 1


@pytest.mark.slow
def test_a_monitor_beside_a_run_ends_with_it(tmp_path, capsys):
    make_runs(tmp_path)
    with monitor_beside(tmp_path):
        port = int(capsys.readouterr().err.partition("127.0.0.1:")[2].partition("/")[0])
        for _ in range(100):
            try:
                stream = Stream(port)
                break
            except OSError:
                time.sleep(0.1)
        stream.event()
    began = time.monotonic()
    rest = stream.answer.read()
    stream.close()
    assert rest.endswith(b"event: bye\ndata: {}\n\n")
    assert time.monotonic() - began < 5


def test_a_run_goes_on_where_no_page_can_be_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with monitor_beside(tmp_path):
        pass
    error = capsys.readouterr().err
    assert "pip install 'multibox[serve]'" in error
    assert error.count("\n") == 1
    with monitor_beside(None):
        pass
    assert capsys.readouterr().err == ""


def test_three_hundred_runs_are_listed_at_once(tmp_path):
    first = FakeRun(tmp_path / "run-0")
    status = (first.folder / "status.json").read_text()
    for number in range(1, 300):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        (folder / "status.json").write_text(status.replace('"starting"', '"finished"'))
    with served(tmp_path) as port:
        began = time.monotonic()
        _, _, body = ask(port, "/")
        assert time.monotonic() - began < 1
        assert body.count(b'"name":"run-') == 300
        assert len(body) < 500_000


def test_names_that_are_no_text_can_be_shown(tmp_path):
    name = os.fsdecode(b"bad-\xff\x01-name")
    try:
        FakeRun(tmp_path / name).go(2)
    except OSError:
        pytest.skip("the file system knows no such names")
    (found,) = find_runs(tmp_path)
    assert isinstance(found, RunFolder)
    json.dumps(found.name).encode()
    with served(tmp_path) as port:
        assert ask(port, "/")[0] == 200
