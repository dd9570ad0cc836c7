"""The Open Inference Protocol, byte by byte; the models are made up, so that every number is known."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")
pytest.importorskip("starlette.testclient", reason="what its test client needs is not installed (extra dev)")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from multibox.errors import ImageError
from multibox.serving.batching import Busy, Looked
from multibox.serving.open_inference import inference_routes
from multibox.structures import Detections
from multibox.thresholds import lowest_scores

NAMES = ("cat", "dog")


class Fake:
    """A model that finds as many dogs as the first value of the pixels says, or the length of the file."""

    def __init__(self):
        self.name, self.asked = "pets", []
        self.detector = SimpleNamespace(names=NAMES, thresholds=(0.25, 0.5))

    async def look(self, image, threshold=None, *, raw=False):
        lowest_scores(threshold, (), NAMES)
        self.asked.append((image, threshold))
        if isinstance(image, bytes) and image == b"bad":
            raise ImageError("the image given as bytes is no image")
        if isinstance(image, bytes) and image == b"busy":
            raise Busy(3)
        count = len(image) if isinstance(image, bytes) else int(image[0, 0, 0])
        boxes = np.array([[row, 2, 3, 4.5] for row in range(count)], np.float32).reshape(-1, 4)
        scores = np.array([0.5 / (row + 1) for row in range(count)], np.float32)
        return Looked(7, 5, Detections(boxes, scores, np.ones(count, np.int64), NAMES))


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def client(fake):
    app = Starlette(routes=inference_routes({"pets": fake}))
    with TestClient(app) as client:
        yield client


def infer(client, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post("/v2/models/pets/infer", content=content, headers=headers)
    return answer.status_code, answer


def pixels(first, count=1):
    """Return an input of images of 1 x 2 pixels, as JSON."""
    data = [first, 0, 0, 0, 0, 0] * count
    return {"name": "images", "shape": [count, 1, 2, 3], "datatype": "UINT8", "data": data}


def test_pixels_in_json_give_tensors_in_json(client, fake):
    status, answer = infer(client, {"id": "42", "inputs": [pixels(2)]})
    assert status == 200
    assert answer.json() == {
        "id": "42",
        "model_name": "pets",
        "model_version": "1",
        "outputs": [
            {"name": "boxes", "shape": [1, 2, 4], "datatype": "FP32", "data": [0, 2, 3, 4.5, 1, 2, 3, 4.5]},
            {"name": "scores", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.25]},
            {"name": "labels", "shape": [1, 2], "datatype": "INT64", "data": [1, 1]},
            {"name": "counts", "shape": [1], "datatype": "INT64", "data": [2]},
        ],
    }
    assert fake.asked[0][0].shape == (1, 2, 3)


def test_files_as_bytes_give_tensors_as_bytes(client, fake):
    head = {
        "inputs": [
            {"name": "score_threshold", "shape": [], "datatype": "FP32", "parameters": {"binary_data_size": 4}},
            {"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
        ],
        "outputs": [
            {"name": "counts", "parameters": {"binary_data": True}},
            {"name": "names", "parameters": {"binary_data": True}},
            {"name": "labels"},
            {"name": "scores", "parameters": {"binary_data": True}},
        ],
    }
    text = json.dumps(head).encode()
    body = text + struct.pack("<f", 0.25) + b"\x01\0\0\0a" + b"\x02\0\0\0bc"
    status, answer = infer(client, body, **{"Inference-Header-Content-Length": str(len(text))})
    assert status == 200
    assert fake.asked == [(b"a", 0.25), (b"bc", 0.25)]
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"] == [
        {"name": "counts", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}},
        {"name": "names", "shape": [2, 2], "datatype": "BYTES", "parameters": {"binary_data_size": 25}},
        {"name": "labels", "shape": [2, 2], "datatype": "INT64", "data": [1, -1, 1, 1]},
        {"name": "scores", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
    ]
    assert answer.content[length:] == (
        struct.pack("<qq", 1, 2)
        + b"\x03\0\0\0dog\0\0\0\0\x03\0\0\0dog\x03\0\0\0dog"
        + struct.pack("<ffff", 0.5, 0, 0.5, 0.25)
    )
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["content-type"] == "application/octet-stream"
