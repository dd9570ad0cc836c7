"""The addresses of the server, with models that are made up."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")
pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")

from multibox.inference.results import ImageResult, write_results
from multibox.serving.answers import as_answer, json_answer
from multibox.serving.batching import Busy, Looked
from multibox.structures import Detections

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


def test_multipart_gives_a_list(port):
    head = '--b\r\nContent-Disposition: form-data; name="image"; filename="{}.png"\r\nContent-Type: image/png\r\n\r\n'
    body = b"".join(head.format(width).encode() + picture(width, 9) + b"\r\n" for width in (12, 11, 13)) + b"--b--\r\n"
    answer = ask(port, body=body, content_type="multipart/form-data; boundary=b")
    assert (answer.status, answer.value) == (200, [found(width, 9) for width in (12, 11, 13)])


@pytest.mark.parametrize("kind", ["image/jpeg", "IMAGE/PNG; q=1", "image/x-rare", "application/octet-stream"])
def test_the_bytes_tell_the_kind_of_image(port, kind):
    assert ask(port, body=picture(kind="WEBP"), content_type=kind).status == 200


@pytest.mark.parametrize(
    ("threshold", "labels"), [("0", [0, 1]), ("0.5", [0]), ("1", []), ("4e-1", [0, 1]), (".9", [])]
)
def test_a_threshold_is_the_lowest_score(port, threshold, labels):
    value = ask(port, f"/predict?threshold={threshold}", body=picture(), content_type="image/png").value
    assert [one["label"] for one in value["detections"]] == labels
    assert "candidates" not in value


@pytest.mark.parametrize("raw", ["1", "true"])
def test_raw_adds_boxes_before_suppression(port, raw):
    value = ask(port, f"/predict?raw={raw}&threshold=0.9", body=picture(40, 30), content_type="image/png").value
    assert value["detections"] == []
    assert [one["box"] for one in value["candidates"]] == [[0, 0, 40, 30], [0, 0, 20, 15]]


def test_a_model_is_chosen_by_its_name(port):
    assert ask(port, "/predict?model=other", body=picture(), content_type="image/png").status == 200
    answer = ask(port, "/predict?model=othre", body=picture(), content_type="image/png")
    assert (answer.status, answer.error) == (404, "there is no model 'othre', did you mean 'other'?")
    answer = ask(port, "/predict?model=zebra", body=picture(), content_type="image/png")
    assert answer.error == "there is no model 'zebra'; the models are: pets, other"
    text = ask(port, "/metrics").body.decode()
    assert 'multibox_images_total{model="other"} 1.0' in text


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/predict?treshold=1", b"{}", "parameter 'treshold' is unknown, did you mean 'threshold'?"),
        ("/predict?x=1", b"{}", "parameter 'x' is unknown; expected threshold, raw, model"),
        ("/predict", b'{"url": "http://x"}', "'url': an image is never fetched by URL; send its bytes"),
        ("/predict", b'{"image_uri": 1}', "'image_uri': an image is never fetched by URL"),
        ("/predict", b'{"image": "", "size": 1}', "field 'size' is unknown; expected {"),
        ("/predict", b"{}", "field 'image' is missing; expected {"),
        ("/predict", b"[]", "the body is JSON, but no object; expected {"),
        ("/predict", b'{"image": 1}', "image is no text; expected {"),
        ("/predict", b"nope", "the body is not valid JSON (byte "),
        ("/predict", b"", 'the body is not valid JSON; expected {"image": "BASE64"}'),
    ],
)
def test_a_wrong_request_says_what_is_expected(port, path, body, what):
    answer = ask(port, path, body=body, content_type="application/json")
    assert answer.status == 400
    assert answer.error.startswith(what)


def test_another_method_is_told_the_right_one(port):
    assert ask(port, "/predict").error == "this address does not answer this method; use POST"
    assert ask(port, "/", method="POST").error == "this address does not answer this method; use GET"


def test_digits_equal_those_of_predict(tmp_path):
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 4000, (200, 4)).astype(np.float32)
    scores = np.sort(random.uniform(0, 1, 200).astype(np.float32))[::-1].copy()
    detections = Detections(boxes, scores, random.integers(0, 2, 200), ("cat", "dog"))
    row = ImageResult("x.jpg", 640, 480, detections)
    write_results([row], json_file=tmp_path / "found.json")
    (expected,) = json.loads((tmp_path / "found.json").read_text())
    expected.pop("file")
    assert json.loads(json_answer(as_answer(Looked(640, 480, detections))).body) == expected


def test_a_failure_of_ours_tells_nothing(caplog):
    class Broken(Fake):
        async def look(self, image, threshold=None, **options):
            raise RuntimeError("secret in /srv/models/x.onnx")

    with serving(Broken()) as port:
        answer = ask(port, body=picture(), content_type="image/png")
        assert (answer.status, answer.error) == (500, "the server failed on this request; its log says why")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert ask(port, "/v2/health/live").status == 200
    assert "secret in" in caplog.text


def test_a_full_queue_is_503_and_says_when_to_ask_again():
    class Full(Fake):
        async def look(self, image, threshold=None, **options):
            raise Busy(7)

    with serving(Full()) as port:
        answer = ask(port, body=picture(), content_type="image/png")
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert answer.error == "the server is busy; try again in 7 s"
        assert "multibox_busy_total 1.0" in ask(port, "/metrics").body.decode()


def test_a_request_that_was_begun_waits_for_room():
    class Narrow(Fake):
        """Takes two images at a time."""

        async def look(self, image, threshold=None, **options):
            if self.waiting >= 2:
                raise Busy(1)
            return await super().look(image, threshold, **options)

    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + picture() + b"\r\n"
    with serving(Narrow(seconds=0.02)) as port:
        answer = ask(port, body=part * 10 + b"--b--\r\n", content_type="multipart/form-data; boundary=b")
        assert (answer.status, answer.value) == (200, [found(40, 30)] * 10)


def test_counts_have_few_names():
    with serving() as port:
        for number in range(20):
            ask(port, f"/{number}", method=f"M{number}")
            ask(port, f"/v2/models/m{number}")
            ask(port, f"/predict?model=m{number}", body=picture(), content_type="image/png")
        lines = ask(port, "/metrics").body.decode().splitlines()
    requests = [line for line in lines if line.startswith("multibox_requests_total")]
    assert 'multibox_requests_total{method="other",path="other",status="404"} 20.0' in requests
    assert len(requests) == 3
    assert 'multibox_model_info{model="pets",version="abc-1"} 1.0' in lines


@pytest.mark.slow
def test_what_is_counted_over_several_processes(tmp_path):
    code = (
        "import os, sys; from multibox.serving.counters import Counters; from multibox.serving.front import Exchange;"
        "counters = Counters({});"
        "counters.add(Exchange('GET', '/', '/', 200, 0.01, 5, 7, '', 0, ''));"
        "print(counters.exposition()[0].decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    texts = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    for count, text in enumerate(texts, 1):
        assert f'multibox_requests_total{{method="GET",path="/",status="200"}} {count}.0' in text
        assert f"multibox_received_bytes_total {5 * count}.0" in text
