"""Who may ask the server: programs and its own page, with the token where there is one."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")
pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from http_help import ask, picture, receive, send, serving
finally:
    sys.path.remove(str(HERE))

TOKEN = "correct-horse-battery"
IMAGE = {"body": picture(), "content_type": "image/png"}


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


@pytest.fixture(scope="module")
def closed():
    """The port of a server that wants a token."""
    with serving(token=TOKEN) as port:
        yield port


def test_programs_need_nothing_on_this_machine(port):
    assert ask(port, **IMAGE).status == 200
    assert ask(port, **IMAGE, user_agent="curl/8").status == 200
    for path in ("/metrics", "/openapi.json", "/v2/models/pets", "/"):
        assert ask(port, path).status == 200


def test_the_own_page_may_ask(port):
    for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        host = origin.removeprefix("http://")
        assert ask(port, **IMAGE, Origin=origin, Host=host, Sec_Fetch_Site="same-origin").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "whatever"},
    ],
)
def test_other_sites_may_not(port, headers):
    for more in (IMAGE, {"path": "/metrics"}, {"path": "/v2/models/pets"}, {"method": "OPTIONS"}):
        answer = ask(port, **more, **headers)
        assert answer.status == 403
        assert answer.error
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_anybody_may_link_to_the_page(port):
    answer = ask(port, "/", Sec_Fetch_Site="cross-site")
    assert answer.status == 200
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert ask(port, "/", Sec_Fetch_Site="cross-site", Origin="http://evil.example").status == 403


def test_a_name_of_others_that_points_here_is_refused(port):
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "192.168.1.2",
        "",
        "[",
        "a@127.0.0.1",
    ):
        answer = ask(port, **IMAGE, Host=host)
        assert (answer.status, answer.error) == (421, "The Host header names no address of this server.")
    for host in ("127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:80", "127.9.9.9"):
        assert ask(port, **IMAGE, Host=host).status == 200


def test_further_names_can_be_allowed():
    with serving(allowed_hosts=["Detect.Example"]) as port:
        assert ask(port, **IMAGE, Host="detect.example").status == 200
        assert ask(port, **IMAGE, Host="detect.example", Origin="https://detect.example").status == 200
        assert ask(port, **IMAGE, Host="other.example").status == 421
    with serving(allowed_hosts=["*"]) as port:
        assert ask(port, **IMAGE, Host="other.example").status == 200
        assert ask(port, **IMAGE, Host="other.example", Origin="http://evil.example").status == 403


def test_a_program_of_old_names_no_host(port):
    with send(port, b"GET /v2/health/live HTTP/1.0\r\n\r\n") as wire:
        assert receive(wire).status == 200


def test_a_token_is_asked_for(closed):
    wrong = [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}]
    wrong += [{"Authorization": "Bearer "}, {"Authorization": "Bearer \xe9"}, {"Cookie": f"multibox={TOKEN}"}]
    for headers in wrong:
        for more in (IMAGE, {"path": "/metrics"}, {"path": "/openapi.json"}, {"path": "/"}, {"path": "/nothing"}):
            answer = ask(closed, **more, **headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.error
    assert ask(closed, f"/predict?token={TOKEN}", **IMAGE).status == 401
    for scheme in ("Bearer", "bearer"):
        assert ask(closed, **IMAGE, Authorization=f"{scheme} {TOKEN}").status == 200


def test_a_wrong_token_is_told_apart_from_none(closed):
    given = "with the token that MULTIBOX_TOKEN or --token gave to `multibox serve`."
    page, header = f"open it as /?token=TOKEN, {given}", f"send the header `Authorization: Bearer TOKEN`, {given}"
    wrong = {"Authorization": "Bearer wrong"}
    for path, headers, what in (
        ("/", {}, f"This page needs a token: {page}"),
        ("/?token=", {}, f"This page needs a token: {page}"),
        ("/?token=wrong", {}, f"The token is wrong: {page}"),
        ("/", wrong, f"The token is wrong: {page}"),
        ("/metrics", {}, f"A token is needed: {header}"),
        ("/metrics?token=wrong", {}, f"A token is needed: {header}"),
        ("/metrics", {"Authorization": "Basic wrong"}, f"A token is needed: {header}"),
        ("/metrics", wrong, f"The token is wrong: {header}"),
    ):
        assert ask(closed, path, **headers).error == what


def test_health_needs_no_token(closed):
    assert ask(closed, "/v2/health/live").status == 200
    assert ask(closed, "/v2/health/ready").status == 200
    assert ask(closed, "/v2/health/ready", Origin="http://evil.example").status == 403
    assert ask(closed, "/v2").status == 401


def test_the_page_takes_the_token_once_and_then_a_cookie(closed):
    assert ask(closed, "/?token=wrong").status == 401
    answer = ask(closed, f"/?token={TOKEN}")
    assert answer.status == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly; SameSite=Strict; Path=/" in cookie
    value = cookie.partition(";")[0]
    own = {"Cookie": value, "Origin": f"http://127.0.0.1:{closed}"}
    assert ask(closed, **IMAGE, **own).status == 200
    assert ask(closed, **IMAGE, Cookie=value + "x").status == 401
    assert ask(closed, **IMAGE, Cookie=value, Origin="http://evil.example").status == 403


def test_a_refused_upload_is_not_read(closed):
    with send(closed, b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60000000\r\n\r\n") as wire:
        answer = receive(wire)
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
