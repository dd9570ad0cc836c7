"""The same requests to Triton and to us: the statuses that a real Triton answered stand in the table.

They were recorded on 2026-11-29 with tritonserver 2.51.0 (nvidia-pytriton 0.7.0) on what `multibox export coco --to
triton` wrote, so the model's inputs and outputs were the same.
"""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("starlette.testclient", reason="what its test client needs is not installed (extra dev)")

from starlette.testclient import TestClient

from multibox.serving.app import make_app
from multibox.serving.batching import Looked
from multibox.structures import Detections

DATA = {"name": "images", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": list(range(12))}
BYTES = {"name": "images", "shape": [1, 2, 2, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 12}}
NESTED = np.arange(12).reshape(1, 2, 2, 3).tolist()
OURS = {500: 400}
"""Triton says 500 of some mistakes of clients."""


class Fake:
    name, ready = "coco", True
    detector = SimpleNamespace(names=("cat",), thresholds=())

    async def look(self, image, threshold=None, **options):
        assert np.asarray(image).ravel().tolist() in (list(range(12)), [0] * 12)
        return Looked(2, 2, Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), ("cat",)))


@pytest.fixture
def client():
    with TestClient(make_app({"coco": Fake()}), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2", 200),
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/coco", 200),
        ("/v2/models/coco/ready", 200),
        ("/v2/models/coco/versions/1", 200),
        ("/v2/models/coco/versions/2", 404),
        ("/v2/models/other", 404),
        ("/v2/models/coco/infer", 405),
        ("/v2/nothing", 404),
    ],
)
def test_get(client, path, status):
    assert client.get(path).status_code == status


def whole(**request):
    return json.dumps(request).encode()


HEAD = whole(inputs=[BYTES])
LENGTH = {"Inference-Header-Content-Length": str(len(HEAD))}


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, whole(id="7", inputs=[DATA]), {}),
        (500, whole(id=7, inputs=[DATA]), {}),
        (200, whole(inputs=[{**DATA, "data": NESTED}]), {}),
        (500, whole(inputs=[{**DATA, "data": [1] * 11}]), {}),
        (400, whole(inputs=[{**DATA, "datatype": "FP32"}]), {}),
        (400, whole(inputs=[{**DATA, "name": "other"}]), {}),
        (400, whole(inputs=[DATA, DATA]), {}),
        (400, whole(inputs=[]), {}),
        (500, b"{", {}),
        (400, b"", {}),
        (200, whole(inputs=[DATA], outputs=[{"name": "counts"}]), {}),
        (200, whole(inputs=[DATA], outputs=[]), {}),
        (400, whole(inputs=[DATA], outputs=[{"name": "other"}]), {}),
        (200, whole(inputs=[DATA], outputs=[{"name": "counts", "parameters": {"binary_data": True}}]), {}),
        (200, whole(inputs=[DATA], parameters={"binary_data_output": True}), {}),
        (500, whole(inputs=[DATA], parameters={"binary_data_output": "x"}), {}),
        (400, whole(inputs=[DATA], parameters={"mine": {"a": 1}}), {}),
        (200, HEAD + bytes(12), LENGTH),
        (400, HEAD + bytes(11), LENGTH),
        (400, HEAD + bytes(13), LENGTH),
        (400, HEAD + bytes(12), {}),
        (400, HEAD + bytes(12), {"Inference-Header-Content-Length": "9999"}),
        (400, HEAD + bytes(12), {"Inference-Header-Content-Length": "-1"}),
        (200, gzip.compress(HEAD + bytes(12)), {**LENGTH, "Content-Encoding": "gzip"}),
    ],
)
def test_infer(client, status, body, headers):
    answer = client.post("/v2/models/coco/infer", content=body, headers=headers)
    assert answer.status_code == OURS.get(status, status)
    assert status == 200 or list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("parameters", "kind", "outputs"),
    [
        (
            {},
            "application/json",
            [
                {"name": "boxes", "datatype": "FP32", "shape": [1, 0, 4], "data": []},
                {"name": "scores", "datatype": "FP32", "shape": [1, 0], "data": []},
                {"name": "labels", "datatype": "INT64", "shape": [1, 0], "data": []},
            ],
        ),
        (
            {"binary_data_output": True},
            "application/octet-stream",
            [
                {"name": "boxes", "datatype": "FP32", "shape": [1, 0, 4], "parameters": {"binary_data_size": 0}},
                {"name": "scores", "datatype": "FP32", "shape": [1, 0], "parameters": {"binary_data_size": 0}},
                {"name": "labels", "datatype": "INT64", "shape": [1, 0], "parameters": {"binary_data_size": 0}},
            ],
        ),
    ],
)
def test_the_form_of_answers(client, parameters, kind, outputs):
    answer = client.post("/v2/models/coco/infer", json={"id": "7", "inputs": [DATA], "parameters": parameters})
    assert answer.headers["content-type"] == kind
    length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
    found = json.loads(answer.content[:length])
    assert found["outputs"][:3] == outputs
    assert {**found, "outputs": []} == {"id": "7", "model_name": "coco", "model_version": "1", "outputs": []}
