"""The protocol's part of `/openapi.json` describes what the server takes and answers."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("starlette.testclient", reason="what its test client needs is not installed (extra dev)")
pytest.importorskip("jsonschema_rs", reason="jsonschema_rs, which schemathesis brings, is not installed (extra dev)")

import jsonschema_rs
from starlette.testclient import TestClient

from multibox.serving.app import make_app
from multibox.serving.batching import Looked
from multibox.structures import Detections

ONE = {"name": "images", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [0, 0, 0]}
LIMIT = {"name": "score_threshold", "shape": [], "datatype": "FP32", "data": 0.5}


class Fake:
    name, ready = "pets", True
    detector = SimpleNamespace(names=("cat", "dog"), thresholds=())

    async def look(self, image, threshold=None, **options):
        boxes = np.array([[0, 0, 1, 1], [0, 0, 2, 2.5]], np.float32)
        return Looked(1, 1, Detections(boxes, np.array([0.9, 0.4], np.float32), np.array([1, 0]), ("cat", "dog")))


@pytest.fixture
def client():
    with TestClient(make_app({"pets": Fake()}), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def content(document, operation):
    """Return the schema of a body or response, with what it refers to."""
    return {**operation["content"]["application/json"]["schema"], "components": document["components"]}


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v2", "get"),
        ("/v2/health/live", "get"),
        ("/v2/health/ready", "get"),
        ("/v2/models/{name}", "get"),
        ("/v2/models/{name}/ready", "get"),
        ("/v2/models/{name}/versions/{version}", "get"),
        ("/v2/models/{name}/versions/{version}/ready", "get"),
        ("/v2/repository/index", "post"),
    ],
)
def test_answers_are_as_described(client, document, path, method):
    answer = client.request(method, path.format(name="pets", version="1"))
    described = document["paths"][path][method]["responses"][str(answer.status_code)]
    assert answer.status_code == 200
    jsonschema_rs.validate(content(document, described), answer.json())


@pytest.mark.parametrize("path", ["/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"])
@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [ONE]},
        {
            "inputs": [ONE, LIMIT],
            "id": "7",
            "parameters": {"binary_data_output": False, "nms_threshold": 1, "mine": "x"},
        },
        {"inputs": [ONE], "outputs": [{"name": "names"}, {"name": "counts", "parameters": {"binary_data": False}}]},
        {"inputs": [ONE], "parameters": None, "outputs": None, "id": None},
    ],
)
def test_right_requests_and_their_answers_are_as_described(client, document, path, body):
    operation = document["paths"][path]["post"]
    jsonschema_rs.validate(content(document, operation["requestBody"]), body)
    answer = client.post(path.format(name="pets", version="1"), json=body)
    assert answer.status_code == 200, answer.text
    jsonschema_rs.validate(content(document, operation["responses"]["200"]), answer.json())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": [ONE], "id": 7},
        {"inputs": [{**ONE, "name": "other"}]},
        {"inputs": [{**ONE, "shape": [1, 1, -1, 3]}]},
        {"inputs": [ONE], "parameters": {"score_threshold": 2}},
        {"inputs": [ONE], "parameters": {"mine": [1]}},
        {"inputs": [ONE], "outputs": [{"name": "other"}]},
        {"inputs": [ONE] * 17},
    ],
)
def test_what_the_description_forbids_is_refused(client, document, body):
    operation = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert not jsonschema_rs.is_valid(content(document, operation["requestBody"]), body)
    answer = client.post("/v2/models/pets/infer", json=body)
    assert answer.status_code == 400
    refusal = document["components"]["responses"]["E400"]
    jsonschema_rs.validate(content(document, refusal), answer.json())


def test_every_address_of_a_model_and_no_other_is_described(document):
    found = {path for path in document["paths"] if path.startswith("/v2")}
    places = ("", "/versions/{version}")
    models = {f"/v2/models/{{name}}{place}{end}" for place in places for end in ("", "/ready", "/infer")}
    assert found == {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index", *models}
