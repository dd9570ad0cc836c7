import threading
import urllib.request

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from multibox.cli.monitor import listen
from multibox.serving.hosted import open_models
from multibox.serving.server import make_server


@pytest.fixture(scope="module")
def address():
    models = open_models(["face"])
    listener = listen("127.0.0.1", 0)
    server = make_server(models, listener)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    models["face"].close()


def test_bytes_that_are_no_image_are_422(address):
    request = urllib.request.Request(f"{address}/predict", data=b"no image", headers={"content-type": "image/jpeg"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as answer:
        assert answer.code == 422
