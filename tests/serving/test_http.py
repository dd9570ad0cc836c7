"""The addresses of the server, with models that are made up."""

import base64
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")
pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from http_help import Fake, ask, found, picture, serving
finally:
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def port():
    with serving(Fake("pets"), Fake("other")) as port:
        yield port


def test_an_image_as_body(port):
    answer = ask(port, body=picture(40, 30), content_type="image/png")
    assert (answer.status, answer.value) == (200, found(40, 30))
    assert answer.headers["cache-control"] == "no-store"


def test_an_image_as_json(port):
    text = base64.b64encode(picture(40, 30)).decode()
    answer = ask(port, body=json.dumps({"image": text}), content_type="application/json")
    assert (answer.status, answer.value) == (200, found(40, 30))
