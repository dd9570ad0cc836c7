"""Malformed, oversized, slow, aborted and hostile requests: each gets its status, and those beside it are answered."""

import base64
import io
import json
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")
pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")

from multibox.serving import connections
from multibox.serving.front import Limits

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from http_help import Fake, Wire, ask, found, is_closed, picture, receive, send, serving
finally:
    sys.path.remove(str(HERE))

LIMIT = 300_000
"""Bytes of a body that this server takes."""
HEAD, BODY = 0.6, 1.0
"""Seconds in which a head and a body have to arrive."""
CRLF = b"\r\n"


@pytest.fixture(scope="module")
def port():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "HEAD_SECONDS", HEAD)
        patch.setattr("multibox.serving.front.LINGER", 0.3)
        with serving(limits=Limits(body=LIMIT, in_flight=3_000_000, receive=BODY, answer=5)) as port:
            yield port


@pytest.fixture(autouse=True)
def _beside(port) -> Iterator[None]:
    """Ask for a good image again and again; every response has to be right, and at least one has to come."""
    stop, wrong, count = threading.Event(), [], 0

    def good() -> None:
        nonlocal count
        while True:
            answer = ask(port, body=picture(24, 18), content_type="image/png")
            if (answer.status, answer.value) != (200, found(24, 18)):
                wrong.append((answer.status, answer.body))
            count += 1
            if stop.wait(0.01):
                return

    thread = threading.Thread(target=good)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        assert wrong == []
        assert count > 0


def head(length: int | str | None, *headers: str, kind: str = "image/png", target="/predict", method="POST") -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if kind:
        lines.append(f"Content-Type: {kind}")
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def tiff_header(width: int, height: int) -> bytes:
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 100))
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + rows + bytes(200)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.jpg", picture(kind="JPEG"))
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/etc/passwd) run\nshowpage\n"
NO_IMAGES = {
    "text": b"no image",
    "html": b"<!doctype html><html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
    "zip": zipped(),
    "eps": EPS,
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "null-bytes": bytes(1000),
    "truncated-jpeg": picture(64, 64, "JPEG")[:-200],
    "truncated-png": picture(64, 64)[:60],
    "damaged-png": picture(64, 64).replace(b"IDAT", b"IDAX"),
    "only-a-header": png_header(100, 100),
    "many-chunks": png_header(10, 10) + chunk(b"abCd", b"") * 20_000,
    "many-segments": b"\xff\xd8" + b"\xff\xe5\x00\x02" * 50_000,
    "no-pixels": png_header(0, 10),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_422(port, kind):
    answer = ask(port, body=NO_IMAGES[kind], content_type="image/png")
    assert answer.status == 422
    assert answer.error.startswith("the image ")
    for secret in ("Traceback", "/work", ".py", "site-packages"):
        assert secret not in answer.error


TOO_LARGE = {
    "png": png_header(60_000, 60_000) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
    "png-beyond-pillow": png_header(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", b""),
    "tiff": tiff_header(50_000, 50_000),
    "jpeg": picture(8000, 7000, "JPEG", quality=1)[:LIMIT],
    "one-row": png_header(60_000_000, 1) + chunk(b"IDAT", b""),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_too_many_pixels_are_413_without_decoding(port, kind):
    began = time.process_time()
    answer = ask(port, body=TOO_LARGE[kind], content_type="image/png")
    assert answer.status == 413
    assert "make it smaller" in answer.error
    assert time.process_time() - began < 1


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(40, 30, "JPEG", exif=exif)


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("P", (40, 30), number) for number in range(5)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


UNUSUAL = {
    "turned": (turned(), 30, 40),
    "cmyk": (picture(40, 30, "JPEG", "CMYK"), 40, 30),
    "animated": (animated(), 40, 30),
    "16-bit": (picture(40, 30, "PNG", "I;16"), 40, 30),
    "transparent": (picture(40, 30, "PNG", "RGBA"), 40, 30),
    "1x1": (picture(1, 1), 1, 1),
    "1x20000": (picture(1, 20_000), 1, 20_000),
    "tiff": (picture(40, 30, "TIFF"), 40, 30),
    "with-rubbish-behind-it": (picture(40, 30) + b"GET /metrics HTTP/1.1\r\n\r\n", 40, 30),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_images_are_read(port, kind):
    data, width, height = UNUSUAL[kind]
    answer = ask(port, body=data, content_type="image/png")
    assert (answer.status, answer.value) == (200, found(width, height))


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


GOOD_JSON = {
    "plain": {"image": in_base64(picture())},
    "data-url": {"image": f"data:image/png;base64,{in_base64(picture())}"},
    "lines": {"image": "\r\n".join(base64.encodebytes(picture()).decode().splitlines())},
}
BAD_JSON = {
    "empty": b"",
    "nothing": b"{}",
    "list": b"[]",
    "text": b'"image"',
    "number": b'{"image": 1}',
    "null": b'{"image": null}',
    "half": b'{"image": "iVBOR',
    "deep": b"[" * 200_000,
    "deep-inside": b'{"x":' * 40_000 + b"1" + b"}" * 40_000,
    "unknown-field": b'{"image": "aGFsbG8=", "threshhold": 1}',
    "no-base64": b'{"image": "%%%%"}',
    "half-base64": b'{"image": "aGFsb"}',
    "no-text": b'{"image": "aGFs\x00bG8="}',
    "no-utf-8": b'{"image": "\xff\xfe"}',
    "nan": b"NaN",
    "empty-image": b'{"image": ""}',
    "http": b'{"image": "http://169.254.169.254/latest/meta-data/"}',
    "https": b'{"image": "https://example.com/x.png"}',
    "file": b'{"image": "file:///etc/passwd"}',
    "path": b'{"image": "/etc/passwd"}',
    "data-without-base64": b'{"image": "data:text/html,<script>"}',
}


@pytest.mark.parametrize("kind", GOOD_JSON)
def test_forms_of_base64(port, kind):
    answer = ask(port, body=json.dumps(GOOD_JSON[kind]), content_type="application/json; charset=utf-8")
    assert (answer.status, answer.value) == (200, found(40, 30))


@pytest.mark.parametrize("kind", BAD_JSON)
def test_malformed_json_is_400(port, kind):
    answer = ask(port, body=BAD_JSON[kind], content_type="application/json")
    assert answer.status == 400
    assert len(answer.error) < 600
    if kind in ("http", "https", "file"):
        assert "never fetched by URL; send its bytes" in answer.error


def part(data: bytes, *headers: str, name="image", file: str | None = "x.png") -> bytes:
    known = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file is not None else "")
    return b"--b\r\n" + "\r\n".join([known, *headers, "", ""]).encode() + data + CRLF


END = b"--b--\r\n"
FORM = "multipart/form-data; boundary=b"
BAD_FORMS = {
    "no-boundary": (400, "multipart/form-data", part(picture()) + END),
    "empty-boundary": (400, "multipart/form-data; boundary=", part(picture()) + END),
    "long-boundary": (400, "multipart/form-data; boundary=" + "b" * 10_000, part(picture()) + END),
    "another-boundary": (400, "multipart/form-data; boundary=c", part(picture()) + END),
    "empty": (400, FORM, b""),
    "no-part": (400, FORM, END),
    "no-end": (400, FORM, part(picture())),
    "no-multipart": (400, FORM, b"hello" * 100),
    "10000-parts": (413, FORM, part(b"x") * 3500 + END),
    "10000-fields": (400, FORM, part(b"x", file=None) * 3500 + END),
    "10000-headers": (400, FORM, part(picture(), *(f"X-{number}: 1" for number in range(10_000))) + END),
    "huge-header": (400, FORM, part(picture(), "X: " + "x" * 100_000) + END),
    "field": (400, FORM, part(b"0.3", name="threshold", file=None) + END),
    "empty-file": (422, FORM, part(b"") + END),
    "bad-second": (422, FORM, part(picture()) + part(b"no image", file="../../etc/passwd") + part(picture()) + END),
    "no-header": (400, FORM, b"--b\r\n\r\n" + picture() + CRLF + END),
    "nested": (422, FORM, part(part(picture()), "Content-Type: multipart/mixed; boundary=b2") + END),
}


@pytest.mark.parametrize("kind", BAD_FORMS)
def test_malformed_multipart(port, kind):
    status, content_type, body = BAD_FORMS[kind]
    answer = ask(port, body=body, content_type=content_type)
    assert answer.status == status
    if kind == "bad-second":
        assert answer.error.startswith("image 2 (../../etc/passwd) is no image")
    if kind == "empty-file":
        assert answer.error.startswith("image 1 (x.png) is empty")


@pytest.mark.parametrize("form", [FORM, 'Multipart/Form-Data; Boundary="b"'])
def test_multipart_gives_a_list_in_order(port, form):
    body = b"".join(part(picture(width, 10), "Content-Type: image/png") for width in (30, 10, 20)) + END
    answer = ask(port, body=body, content_type=form)
    assert (answer.status, answer.value) == (200, [found(width, 10) for width in (30, 10, 20)])


QUERIES = (
    *(f"threshold={text}" for text in ("nan", "inf", "-inf", "-0.1", "1.1", "", "0x1", "1e999", "0,3", "%00", "1_0")),
    *(f"threshold={text}" for text in ("%D9%A1", "%EF%BC%91", "%ff%fe", "0.3%0d%0aX:1", "9" * 5000, "0.3%2500")),
    "threshold=0.3&threshold=0.4",
    "raw=2",
    "raw=",
    "raw=1&raw=1",
    "treshold=0.3",
    "%00=1",
    "a" * 10_000,
    "&".join(f"a{number}=1" for number in range(2000)),
)


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_malformed_parameters_are_400(port, query):
    answer = ask(port, f"/predict?{query}", body=picture(), content_type="image/png")
    assert answer.status == 400
    assert len(answer.error) < 300


@pytest.mark.parametrize("name", ["nobody", "../pets", "%00", "", "pets%20", "PETS", "x" * 5000])
def test_unknown_models_are_404(port, name):
    assert ask(port, f"/predict?model={name}", body=picture(), content_type="image/png").status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "FOO"])
def test_other_methods_are_405(port, method):
    answer = ask(port, "/predict", method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert method == "HEAD" or answer.error


PATHS = (
    "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//predict", "/predict/", "/PREDICT",
    "/predict%00", "/predict%2f", "/.git/config", "/" + "a" * 20_000, "/%ff", "/\\..\\x",
    "/v2/models/pets/infer/../../x", "/static/x.js", "*",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_unknown_addresses_are_404(port, path):
    answer = ask(port, path, body=picture(), content_type="image/png")
    assert answer.status == 404
    assert answer.error


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "video/mp4", "image", "\xff"])
def test_other_kinds_of_body_are_415(port, kind):
    with send(port, head(9, kind=kind) + b"no images") as connection:
        answer = receive(connection)
        assert answer.status == 415
        assert "expected an image as body" in answer.error


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "x"])
def test_compressed_bodies_are_415(port, coding):
    body = zlib.compress(picture())
    assert ask(port, body=body, content_type="image/png", content_encoding=coding).status == 415


def test_too_many_bytes_are_413_before_they_are_sent(port):
    with send(port, head(10**12)) as connection:
        answer = receive(connection)
        assert answer.status == 413
        assert "300,000 bytes" in answer.error
        assert answer.headers["connection"] == "close"
        assert is_closed(connection)


def test_too_many_bytes_in_chunks_are_413(port):
    part = b"8000\r\n" + bytes(0x8000) + CRLF
    with send(port, head(None, "Transfer-Encoding: chunked") + part * 12) as connection:
        assert receive(connection).status == 413
        assert is_closed(connection)


def test_who_sends_too_much_still_learns_why(port):
    body = bytes(20 * LIMIT)
    answer = ask(port, body=body, content_type="image/png")
    assert answer.status == 413


def test_a_body_in_chunks_is_read(port):
    data = picture(40, 30)
    parts = b"".join(
        b"%x;name=value\r\n" % len(data[i : i + 7]) + data[i : i + 7] + CRLF for i in range(0, len(data), 7)
    )
    with send(port, head(None, "Transfer-Encoding: chunked") + parts + b"0\r\nTrailer: x\r\n\r\n") as connection:
        assert receive(connection).value == found(40, 30)


GET = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
INVALID = {
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
    "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30), 404),
    "http-0.9": (b"GET /\r\n\r\n", 400),
    "http-9": (b"GET / HTTP/9.9.9\r\nHost: x\r\n\r\n", 400),
    "no-host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two-hosts": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", 400),
    "null-in-head": (b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
    "null-in-header": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \x00\r\n\r\n", 400),
    "no-colon": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nrubbish\r\n\r\n", 400),
    "space-before-colon": (b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", 400),
    "negative-length": (head(-1), 400),
    "no-number": (head("abc"), 400),
    "plus-length": (head("+5") + b"hello", 400),
    "endless-length": (head("9" * 100), 400),
    "two-lengths": (head(5, "Content-Length: 6") + b"hello!", 400),
    "length-and-chunks": (head(5, "Transfer-Encoding: chunked") + b"0\r\n\r\n" + GET, 400),
    "unknown-coding": (head(None, "Transfer-Encoding: gzip"), 501),
    "two-codings": (head(None, "Transfer-Encoding: chunked, gzip"), 501),
    "chunked-twice": (head(None, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501),
    "bad-chunk": (head(None, "Transfer-Encoding: chunked") + b"zz\r\nhello\r\n", 400),
    "endless-chunk": (head(None, "Transfer-Encoding: chunked") + b"f" * 30 + CRLF, 400),
    "huge-header": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000, 431),
    "huge-target": (b"GET /" + b"x" * 200_000, 431),
    "many-headers": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 50_000, 431),
    "rubbish": (bytes(range(1, 256)) * 10, 400),
}


@pytest.mark.parametrize("kind", INVALID)
def test_what_is_no_http_ends_the_connection(port, kind):
    data, status = INVALID[kind]
    with send(port, data) as connection:
        try:
            answer = receive(connection)
        except ConnectionResetError:
            # What it had not read yet made the system cut the response off
            assert len(data) > 100_000
            return
        assert (answer.status, list(answer.value)) == (status, ["error"])
        if kind == "http2":
            assert receive(connection).status == 400
        assert is_closed(connection)


def test_http_1_0_is_answered(port):
    data = picture(40, 30)
    lines = f"POST /predict HTTP/1.0\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n\r\n"
    with send(port, lines.encode() + data) as connection:
        assert receive(connection).value == found(40, 30)
        assert is_closed(connection)


def test_an_upgrade_is_no_way_in(port):
    upgrade = "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw=="
    with send(port, head(None, *upgrade, kind="", method="GET", target="/predict")) as connection:
        assert receive(connection).status == 405
    with send(
        port, head(None, "Upgrade: h2c", "Connection: Upgrade", kind="", method="GET", target="/v2")
    ) as connection:
        assert receive(connection).status == 200


def test_a_client_that_asks_first_is_told_to_go_on(port):
    data = picture(40, 30)
    with send(port, head(len(data), "Expect: 100-continue")) as connection:
        assert connection.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.socket.sendall(data)
        assert receive(connection).value == found(40, 30)
    with send(port, head(10**9, "Expect: 100-continue")) as connection:
        assert receive(connection).status == 413


def test_the_body_of_a_refused_request_is_not_taken_for_the_next_one(port):
    with send(port, head(len(GET) * 2, kind="text/plain") + GET * 2) as connection:
        assert receive(connection).status == 415
        assert is_closed(connection)
    # Here, the connection goes on, because the body was read
    with send(port, head(len(GET)) + GET + GET) as connection:
        assert receive(connection).status == 422
        answer = receive(connection)
        assert answer.status == 200
        assert b"multibox_requests_total" in answer.body


def test_requests_sent_together_are_answered_in_order(port):
    sizes = (31, 32, 33, 34, 35)
    bodies = [picture(size, 10) for size in sizes]
    with send(port, b"".join(head(len(body)) + body for body in bodies)) as connection:
        assert [receive(connection).value for _ in sizes] == [found(size, 10) for size in sizes]


def test_what_follows_a_body_that_is_too_long_is_no_request(port):
    data = picture(40, 30)
    for rubbish in (b"\x00\x01", b"rubbish\r\n\r\n"):
        with send(port, head(len(data)) + data + rubbish) as connection:
            assert receive(connection).status == 200
            assert receive(connection).status == 400
            assert is_closed(connection)
    with send(port, head(len(data)) + data + b"rubb") as connection:
        assert receive(connection).status == 200
        assert is_closed(connection)


def test_a_body_that_does_not_come_is_408(port):
    with send(port, head(1000) + b"half") as connection:
        began = time.monotonic()
        answer = receive(connection)
        assert answer.status == 408
        assert BODY / 2 < time.monotonic() - began < BODY + 2
        assert is_closed(connection)


def test_a_body_that_drips_is_408(port):
    with send(port, head(100_000)) as connection:
        began = time.monotonic()
        connection.socket.setblocking(False)
        data = b""
        while not data and time.monotonic() - began < BODY + 3:
            time.sleep(0.05)
            try:
                connection.socket.send(b"x")
                data = connection.socket.recv(1000)
            except (BlockingIOError, ConnectionError):
                pass
        assert data.startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"", b"POST /predict HT", head(5)[:-2]])
def test_a_head_that_does_not_come_ends_the_connection(port, start):
    with send(port, start) as connection:
        began = time.monotonic()
        assert is_closed(connection)
        assert HEAD / 2 < time.monotonic() - began < HEAD + 2


def test_a_second_head_has_to_come_in_time_too(port):
    with send(port, GET) as connection:
        assert receive(connection).status == 200
        connection.socket.sendall(GET[:10])
        began = time.monotonic()
        assert is_closed(connection)
        assert HEAD / 2 < time.monotonic() - began < HEAD + 2


def test_a_head_that_drips_ends_the_connection(port):
    with send(port, b"GET / HTTP/1.1\r\n") as connection:
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < HEAD + 3:
                connection.socket.sendall(b"X: y\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < HEAD + 2


@contextmanager
def many(port, count: int, data: bytes) -> Iterator[list[Wire]]:
    opened = [send(port, data) for _ in range(count)]
    try:
        yield opened
    finally:
        for each in opened:
            each.close()


def test_many_silent_connections_hurt_nobody(port):
    with many(port, 200, b""):
        for _ in range(5):
            assert ask(port, body=picture(), content_type="image/png").value == found(40, 30)


def test_beyond_the_number_of_connections_the_oldest_that_waits_goes(monkeypatch):
    monkeypatch.setattr(connections.Connection, "most", 20)
    with serving() as own, many(own, 60, head(1000) + b"half") as opened:
        assert ask(own, body=picture(), content_type="image/png").value == found(40, 30)
        assert is_closed(opened[0])


def test_an_upload_that_is_cut_off_leaves_nothing(port):
    # 3 MB of bodies are the most; these would be 5
    for _ in range(5):
        for _ in range(10):
            send(port, head(200_000) + bytes(100_000)).close()
        time.sleep(0.1)
    for _ in range(3):
        assert ask(port, body=picture(), content_type="image/png").value == found(40, 30)


def test_half_closed_and_reset_connections(port):
    connection = send(port, head(1000) + b"half", end=True)
    connection.close()
    connection = send(port, head(1000) + b"half")
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert ask(port, body=picture(), content_type="image/png").value == found(40, 30)


def test_a_client_that_never_reads_is_left_alone(port):
    data = picture(40, 30)
    with send(port, (head(len(data)) + data) * 50):
        for _ in range(3):
            assert ask(port, body=picture(), content_type="image/png").value == found(40, 30)


def test_bodies_together_are_limited():
    with serving(limits=Limits(body=LIMIT, in_flight=500_000, receive=5)) as port:
        held = [send(port, head(200_000) + bytes(190_000)) for _ in range(2)]
        time.sleep(0.3)
        answer = ask(port, body=bytes(200_000), content_type="image/png")
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert ask(port, body=picture(), content_type="image/png").value == found(40, 30)
        for each in held:
            each.close()
        time.sleep(0.2)
        assert ask(port, body=bytes(200_000), content_type="image/png").status == 422


def test_a_client_that_goes_away_leaves_the_queue():
    model = Fake(seconds=2.0)
    with serving(model) as port:
        data = picture()
        connection = send(port, head(len(data)) + data)
        while not model.waiting:
            time.sleep(0.02)
        connection.close()
        began = time.monotonic()
        while model.waiting:
            time.sleep(0.02)
        assert time.monotonic() - began < 1
        assert model.cancelled == 1
        assert 'status="499"' in ask(port, "/metrics").body.decode()


def test_no_result_in_time_is_503():
    with serving(Fake(seconds=5.0), limits=Limits(answer=0.3)) as port:
        answer = ask(port, body=picture(), content_type="image/png")
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert "within 0.3 s" in answer.error
