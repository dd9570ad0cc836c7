"""The Open Inference Protocol, byte by byte; the model is made up, so that every number is known."""

import base64
import gzip
import json
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette.testclient", reason="what its test client needs is not installed (extra dev)")

from starlette.testclient import TestClient

from multibox.errors import ImageError
from multibox.serving.answers import Refused
from multibox.serving.app import make_app
from multibox.serving.batching import Busy, Looked
from multibox.serving.front import Limits
from multibox.serving.inference_bodies import read_request, write_answer
from multibox.serving.looking import check_size
from multibox.serving.open_inference import INPUTS, OUTPUTS
from multibox.structures import Detections

NAMES = ("cat", "dog")
URL = "/v2/models/pets/infer"


class Fake:
    """A model that finds as many dogs as the first value of the pixels says, or the last letter of the file."""

    def __init__(self):
        self.name, self.asked, self.ready = "pets", [], True
        self.detector = SimpleNamespace(names=NAMES, thresholds=(0.25, 0.5))

    async def look(self, image, threshold=None, *, raw=False, nms=None, most=None):
        self.asked.append((image, threshold, nms, most))
        check_size(image)
        if isinstance(image, bytes) and image.endswith(b"bad"):
            raise ImageError("the image given as bytes is damaged")
        if isinstance(image, bytes) and image.endswith(b"busy"):
            raise Busy(3)
        last = image[-1:] if isinstance(image, bytes) else str(image[0, 0, 0])
        count = int(last) if last.isdigit() else 0
        boxes = np.array([[row, 2, 3, 4.5] for row in range(count)], np.float32).reshape(-1, 4)
        scores = np.array([0.5 / (row + 1) for row in range(count)], np.float32)
        return Looked(7, 5, Detections(boxes, scores, np.ones(count, np.int64), NAMES))


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def draining():
    return []


@pytest.fixture
def client(fake, draining, monkeypatch):
    monkeypatch.setattr("multibox.serving.looking.MOST_PIXELS", 1000)
    app = make_app({"pets": fake}, limits=Limits(body=10_000), ready=lambda: not draining)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def png(count, size=(3, 2)):
    """Return an image file whose last letter is a digit: the fake model finds so many dogs."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue() + str(count).encode()


def infer(client, body, **headers):
    return client.post(URL, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)


def sent(client, head, *tensors):
    """Send JSON with the bytes of tensors behind it."""
    text = json.dumps(head).encode()
    return infer(client, text + b"".join(tensors), **{"Inference-Header-Content-Length": str(len(text))})


def pixels(first=1, *shape, **changed):
    """Return an input of images of 1 x 2 pixels, as JSON."""
    shape = shape or (1, 1, 2, 3)
    data = [first, *[0] * (int(np.prod(shape)) - 1)]
    return {"name": "images", "shape": list(shape), "datatype": "UINT8", "data": data, **changed}


def behind(name, shape, datatype, size, **changed):
    """Return an input whose bytes follow."""
    parameters = {"parameters": {"binary_data_size": size}}
    return {"name": name, "shape": shape, "datatype": datatype, **parameters, **changed}


def file(text, **changed):
    """Return an input of one file in base64."""
    return {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text], **changed}


def prefixed(*files):
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


# Right requests


def test_pixels_in_json_give_tensors_in_json(client, fake):
    answer = infer(client, {"id": "42", "inputs": [pixels(2)]})
    assert answer.status_code == 200
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
    assert "inference-header-content-length" not in answer.headers
    assert fake.asked[0][0].shape == (1, 2, 3)
    assert fake.asked[0][1:] == (None, None, None)


def test_files_as_bytes_give_tensors_as_bytes(client, fake):
    one, two = png(1), png(2)
    body = prefixed(one, two)
    head = {
        "inputs": [behind("score_threshold", [], "FP32", 4), behind("image", [2], "BYTES", len(body))],
        "outputs": [
            {"name": "counts", "parameters": {"binary_data": True}},
            {"name": "names", "parameters": {"binary_data": True}},
            {"name": "labels"},
            {"name": "scores", "parameters": {"binary_data": True}},
        ],
    }
    answer = sent(client, head, struct.pack("<f", 0.25), body)
    assert answer.status_code == 200, answer.text
    assert [(image, threshold) for image, threshold, _, _ in fake.asked] == [(one, 0.25), (two, 0.25)]
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


def test_all_outputs_as_bytes_but_one(client):
    outputs = [{"name": "scores"}, {"name": "counts", "parameters": {"binary_data": False}}]
    answer = infer(client, {"inputs": [pixels(1)], "outputs": outputs, "parameters": {"binary_data_output": True}})
    length = int(answer.headers["inference-header-content-length"])
    scores, counts = json.loads(answer.content[:length])["outputs"]
    assert scores["parameters"] == {"binary_data_size": 4}
    assert counts["data"] == [1]
    assert answer.content[length:] == struct.pack("<f", 0.5)


def test_an_image_without_objects_gives_empty_tensors(client):
    boxes, scores, labels, counts = infer(client, {"inputs": [pixels(0)]}).json()["outputs"]
    assert (boxes["shape"], scores["shape"], labels["shape"]) == ([1, 0, 4], [1, 0], [1, 0])
    assert (boxes["data"], scores["data"], labels["data"], counts["data"]) == ([], [], [], [0])


def test_pixels_may_be_nested_or_flat_or_bytes(client, fake):
    array = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    for data in (array.tolist(), array.ravel().tolist()):
        assert infer(client, {"inputs": [pixels(1, 2, 2, 2, 3, data=data)]}).status_code == 200
    assert sent(client, {"inputs": [behind("images", [2, 2, 2, 3], "UINT8", 24)]}, array.tobytes()).status_code == 200
    for start in (0, 2, 4):
        np.testing.assert_array_equal([one[0] for one in fake.asked[start : start + 2]], array)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_files_in_json_are_base64(client, fake, prefix):
    texts = [prefix + base64.b64encode(png(count)).decode() for count in (1, 3)]
    answer = infer(client, {"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": texts}]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][3]["data"] == [1, 3]
    assert [one[0] for one in fake.asked] == [png(1), png(3)]


@pytest.mark.parametrize("shape", [[], [1]])
def test_limits_as_inputs(client, fake, shape):
    limits = [
        {"name": "score_threshold", "shape": shape, "datatype": "FP32", "data": [0.5]},
        {"name": "nms_threshold", "shape": shape, "datatype": "FP32", "data": [1]},
        {"name": "max_detections", "shape": shape, "datatype": "INT64", "data": [7]},
    ]
    assert infer(client, {"inputs": [*limits, pixels()]}).status_code == 200
    assert fake.asked[0][1:] == (0.5, 1.0, 7)


def test_limits_as_parameters_beside_those_of_other_servers(client, fake):
    parameters = {"score_threshold": 0.2, "nms_threshold": 0.3, "max_detections": 9, "priority": 1, "mine": "x"}
    assert infer(client, {"inputs": [pixels()], "parameters": parameters}).status_code == 200
    assert fake.asked[0][1:] == (0.2, 0.3, 9)


def test_a_file_alone_is_a_raw_request(client, fake):
    answer = infer(client, png(2), **{"Inference-Header-Content-Length": "0"})
    assert answer.status_code == 200
    assert answer.json()["outputs"][3]["data"] == [2]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_requests(client, encoding):
    text = json.dumps({"inputs": [behind("images", [1, 1, 2, 3], "UINT8", 6)]}).encode()
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(len(text))}
    assert infer(client, pack(text + bytes(6)), **headers).status_code == 200
    assert infer(client, pack(text + bytes(6))[:-3], **headers).status_code == 400
    bomb = infer(client, pack(text + bytes(20_000)), **headers)
    assert bomb.status_code == 413
    assert "unpacks to more than 10000 bytes" in bomb.json()["error"]


# What the server says of itself


def test_health_and_metadata(client, fake, draining):
    def get(path):
        answer = client.get(path)
        return answer.status_code, answer.json()

    assert get("/v2/health/live") == (200, {"live": True})
    assert get("/v2/health/ready") == (200, {"live": True, "ready": True})
    assert (
        get("/v2/models/pets/ready")
        == get("/v2/models/pets/versions/1/ready")
        == (200, {"name": "pets", "ready": True})
    )
    assert get("/v2")[1]["extensions"] == ["binary_tensor_data", "model_repository", "parameters"]
    assert get("/v2/") == get("/v2")
    status, about = get("/v2/models/pets")
    assert status == 200
    assert about["versions"] == ["1"]
    assert {one["name"]: (one["datatype"], one["shape"]) for one in about["inputs"]} == {
        "images": ("UINT8", [-1, -1, -1, 3]),
        "image": ("BYTES", [-1]),
        "score_threshold": ("FP32", []),
        "nms_threshold": ("FP32", []),
        "max_detections": ("INT64", []),
    }
    assert {one["name"]: (one["datatype"], one["shape"]) for one in about["outputs"]} == {
        "boxes": ("FP32", [-1, -1, 4]),
        "scores": ("FP32", [-1, -1]),
        "labels": ("INT64", [-1, -1]),
        "counts": ("INT64", [-1]),
        "names": ("BYTES", [-1, -1]),
    }
    assert about["parameters"] == {"names": ["cat", "dog"], "thresholds": [0.25, 0.5]}
    index = client.post("/v2/repository/index", json={"ready": True}).json()
    assert index == [{"name": "pets", "version": "1", "state": "READY", "reason": ""}]
    fake.ready = False
    assert get("/v2/models/pets/ready") == (503, {"name": "pets", "ready": False})
    assert get("/v2/health/ready") == (503, {"live": True, "ready": False})
    fake.ready, draining[:] = True, [True]
    assert get("/v2/health/ready") == (503, {"live": True, "ready": False})
    assert get("/v2/health/live") == (200, {"live": True})


@pytest.mark.parametrize(
    ("method", "path", "status", "what"),
    [
        ("GET", "/v2/models/dogs", 404, "no model 'dogs'; the models are: pets"),
        ("GET", "/v2/models/pet", 404, "did you mean 'pets'"),
        ("GET", "/v2/models/pets/versions/2", 404, "no version '2'"),
        ("POST", "/v2/models/dogs/infer", 404, "no model 'dogs'"),
        ("POST", "/v2/models/pets/versions/2/infer", 404, "no version '2'"),
        ("GET", "/v2/models/pets/stats", 501, "GET /metrics"),
        ("GET", "/v2/models/stats", 501, "GET /metrics"),
        ("GET", "/v2/models/pets/config", 501, "GET /v2/models/NAME"),
        ("GET", "/v2/systemsharedmemory/status", 501, "shared memory"),
        ("POST", "/v2/cudasharedmemory/region/a/register", 501, "shared memory"),
        ("GET", "/v2/trace/setting", 501, "traces"),
        ("POST", "/v2/logging", 501, "what it logs"),
        ("POST", "/v2/repository/models/pets/load", 403, "cannot load"),
        ("POST", "/v2/repository/models/pets/unload", 403, "cannot load"),
        ("GET", "/v2/models/pets/infer", 405, "does not answer this method; use POST"),
        ("GET", "/v2/nothing", 404, "nothing at this address"),
    ],
)
def test_what_is_not_answered(client, method, path, status, what):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert what in answer.json()["error"]


# Wrong requests

ONE = {"inputs": [pixels()]}
HUGE = 2**62


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"[]", 'expected {"inputs": [{"name": "images", "shape": [1, height, width, 3]'),
        (b"\xff", "malformed"),
        (b'{"inputs":[{"name":"\xff","shape":[],"datatype":"a"}]}', "UTF-8"),
        (b'{"inputs":' + b"[" * 5000 + b"]" * 4000 + b"}", "the request"),
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "0 inputs"),
        ({"inputs": [pixels()] * 17}, "17 inputs"),
        ({"inputs": [pixels(), pixels()]}, "images is given twice"),
        ({"inputs": [{"name": "images", "datatype": "UINT8"}]}, "missing required field `shape`"),
        ({"inputs": [pixels(name="image_")]}, "did you mean 'image'"),
        ({"inputs": [pixels(name="x" * 9000)]}, "is unknown"),
        ({"inputs": [pixels(datatype="FP32")]}, "FP32, expected UINT8; values from 0 to 1"),
        ({"inputs": [pixels(datatype="FP16")]}, "FP16, expected UINT8; values from 0 to 1"),
        ({"inputs": [pixels(datatype="INT8")]}, "INT8, expected UINT8"),
        ({"inputs": [pixels(1, 1, 3, 1, 2)]}, "shape [1, 3, 1, 2], expected [batch, height, width, 3], each at"),
        ({"inputs": [pixels(1, 1, 2, 3)]}, "shape [1, 2, 3], expected [batch, height, width, 3]"),
        ({"inputs": [pixels(1, 1, 1, 0, 3)]}, "each at least 1"),
        ({"inputs": [pixels(shape=[-1, -1, 2, 3])]}, "each at least 1"),
        ({"inputs": [pixels(shape=[1] * 500)]}, "of 500 dimensions"),
        ({"inputs": [pixels(shape=[1, 1, 2, 3.5])]}, "Expected `int`, got `float`"),
        ({"inputs": [pixels(shape="1x2")]}, "Expected `array`, got `str`"),
        ({"inputs": [pixels(shape=[1, HUGE, HUGE, 3])]}, f"takes {3 * HUGE * HUGE}"),
        ({"inputs": [pixels(shape=[1, 10**30, 1, 3])]}, "Expected `int` <="),
        ({"inputs": [pixels(shape=[1, 1, 1, 3])]}, "has 6 values, its shape [1, 1, 1, 3] takes 3"),
        ({"inputs": [pixels(shape=[1, 1, 3, 3])]}, "has 6 values, its shape [1, 1, 3, 3] takes 9"),
        ({"inputs": [pixels(data=[0, 0, 0, 0, 0, 256])]}, "<= 255"),
        ({"inputs": [pixels(data=[0, 0, 0, 0, 0, -1])]}, ">= 0"),
        ({"inputs": [pixels(data=[0, 0, 0, 0, 0, 0.5])]}, "got `float`"),
        ({"inputs": [pixels(data=[0, 0, 0, 0, 0, "1"])]}, "got `str`"),
        ({"inputs": [pixels(data=[[0, 0, 0], [0, 0, 0]])]}, "neither flat nor nested as its shape [1, 1, 2, 3]"),
        ({"inputs": [pixels(data=[[[[0, 0, 0, 0], [0, 0]]]])]}, "neither flat nor nested"),
        ({"inputs": [pixels(data=None)]}, "neither data nor binary_data_size"),
        ({"inputs": [pixels(data={"a": 1})]}, "has 1 values"),
        ({"inputs": [pixels(data=[])]}, "takes 6"),
        ({"inputs": [pixels(data={c: 0 for c in "abcdef"})]}, "got `object`"),
        ({"inputs": [pixels(data=[[]] * 6)]}, "neither flat nor nested"),
        ({"inputs": [pixels(data=[[]] * 3)]}, "has 3 values"),
        ({"inputs": [pixels(parameters={"binary_data_size": 6})]}, "both data and binary_data_size"),
        ({"inputs": [pixels(parameters={"shared_memory_region": "a"})]}, "shared memory"),
        ({"inputs": [pixels(parameters=[])]}, "got `array`"),
        ({"inputs": [pixels(parameters={"a": {"b": 1}})]}, "got `object`"),
        ({"inputs": [behind("images", [1, 1, 2, 3], "UINT8", 6)]}, "but 0 bytes are left"),
        ({"inputs": [behind("images", [1, 1, 2, 3], "UINT8", -6)]}, "expected a whole number from 0"),
        ({"inputs": [behind("images", [1, 1, 2, 3], "UINT8", True)]}, "expected a whole number from 0"),
        ({"inputs": [behind("images", [1, 1, 2, 3], "UINT8", "6")]}, "expected a whole number from 0"),
        ({"inputs": [behind("images", [1, 1, 2, 3], "UINT8", 10**40)]}, "expected a whole number from 0"),
        ({"inputs": [file("%%%")]}, "no base64"),
        ({"inputs": [file("é")]}, "no base64"),
        ({"inputs": [file("AAAA", shape=[2])]}, "1 strings, its shape takes 2"),
        ({"inputs": [file(1)]}, "got `int`"),
        ({"inputs": [file("", data="AAAA")]}, "got `str`"),
        ({"inputs": [{"name": "max_detections", "shape": [], "datatype": "INT64", "data": [1]}]}, "has no images"),
        ({"inputs": [pixels(), file("AAAA")]}, "images and image"),
        ({**ONE, "outputs": [{"name": "box"}]}, "did you mean 'boxes'"),
        ({**ONE, "outputs": [{"name": "counts"}, {"name": "counts"}]}, "requested twice"),
        ({**ONE, "outputs": [{}]}, "missing required field `name`"),
        ({**ONE, "outputs": [{"name": "counts", "parameters": {"binary_data": 1}}]}, "expected true or false"),
        ({**ONE, "outputs": [{"name": "counts", "parameters": {"classification": 3}}]}, "classification"),
        ({**ONE, "outputs": [{"name": "counts", "parameters": {"shared_memory_region": "a"}}]}, "shared memory"),
        ({**ONE, "parameters": {"binary_data_output": "yes"}}, "expected true or false"),
        ({**ONE, "parameters": {"score_treshold": 0.1}}, "did you mean 'score_threshold'"),
        ({**ONE, "parameters": {"treshold": 0.1}}, "did you mean 'score_threshold'"),
        ({**ONE, "parameters": {"iou_treshold": 0.1}}, "did you mean 'nms_threshold'"),
        ({**ONE, "parameters": {"nms_treshold": 0.1}}, "did you mean 'nms_threshold'"),
        ({"inputs": [pixels(), pixels(name="threshold")]}, "did you mean 'score_threshold'"),
        ({"inputs": [file("AAAA", shape=[1, 1])]}, "expected [batch], each at least 1"),
        ({**ONE, "parameters": {"score_threshold": 1.5}}, "score_threshold is 1.5, expected a number from 0 to 1"),
        ({**ONE, "parameters": {"score_threshold": "0.5"}}, "expected a number from 0 to 1"),
        ({**ONE, "parameters": {"nms_threshold": True}}, "expected a number from 0 to 1"),
        ({**ONE, "parameters": {"max_detections": 0}}, "expected a whole number from 1 to 1000"),
        ({**ONE, "parameters": {"max_detections": 1.5}}, "expected a whole number"),
        ({**ONE, "parameters": {"max_detections": 10**400}}, "expected a whole number"),
        (b'{"inputs":[], "parameters":{"max_detections":1' + b"0" * 5000 + b"}}", "0 inputs"),
        (json.dumps(ONE).encode()[:-1] + b', "parameters":{"max_detections":1' + b"0" * 5000 + b"}}", "out of range"),
        ({**ONE, "id": 42}, "Expected `str | null`"),
    ],
)  # fmt: skip
def test_wrong_requests_are_400(client, fake, body, what):
    answer = infer(client, body)
    assert answer.status_code == 400
    # Versions of msgspec write utf-8 and UTF-8
    assert what.lower() in answer.json()["error"].lower()
    assert fake.asked == []


FILES = prefixed(b"a1", b"b2")


@pytest.mark.parametrize(
    ("given", "tensors", "what"),
    [
        ([behind("images", [1, 1, 2, 3], "UINT8", 5)], bytes(5), "takes 6 bytes, got 5"),
        ([behind("images", [1, 1, 2, 3], "UINT8", 6)], bytes(7), "1 bytes behind the JSON belong to no input"),
        ([behind("images", [1, 1, 2, 3], "UINT8", 6)], bytes(5), "but 5 bytes are left"),
        ([behind("images", [1, HUGE, HUGE, 3], "UINT8", 6)], bytes(6), f"takes {3 * HUGE * HUGE} bytes"),
        ([behind("image", [2], "BYTES", 11)], FILES[:-1], "element 2 of 2 goes beyond the 11 bytes"),
        ([behind("image", [3], "BYTES", 12)], FILES, "element 3 of 3 goes beyond"),
        ([behind("image", [1], "BYTES", 12)], FILES, "6 bytes are left behind its 1 elements"),
        ([behind("image", [1], "BYTES", 4)], b"\xff\xff\xff\xff", "element 1 of 1 goes beyond"),
        ([behind("score_threshold", [], "FP32", 4), pixels()], struct.pack("<f", np.nan), "is nan, expected"),
        ([behind("score_threshold", [], "FP32", 4), pixels()], struct.pack("<f", np.inf), "is inf, expected"),
        ([behind("score_threshold", [2], "FP32", 8), pixels()], bytes(8), "expected [] or [1]"),
        ([behind("score_threshold", [], "FP64", 8), pixels()], bytes(8), "FP64, expected FP32"),
        ([behind("max_detections", [], "INT64", 8), pixels()], struct.pack("<q", -1), "is -1, expected"),
    ],
)
def test_wrong_bytes_are_400(client, fake, given, tensors, what):
    answer = sent(client, {"inputs": given}, tensors)
    assert answer.status_code == 400
    assert what in answer.json()["error"]
    assert fake.asked == []


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "", "99999", "9" * 5000, "+5", "٣", "0x10"])
def test_wrong_lengths_of_the_json_are_400(client, length):
    answer = infer(client, ONE, **{"Inference-Header-Content-Length": length.encode()})
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


def test_a_limit_is_given_once(client):
    limit = {"name": "score_threshold", "shape": [], "datatype": "FP32", "data": [0.5]}
    answer = infer(client, {"inputs": [pixels(), limit], "parameters": {"score_threshold": 0.5}})
    assert "as an input and as a parameter" in answer.json()["error"]


def test_statuses_of_other_mistakes(client):
    many = infer(client, {"inputs": [pixels(1, 65, 1, 1, 3)]})
    assert many.status_code == 413
    assert "65 images" in many.json()["error"]
    large = infer(client, {"inputs": [pixels(1, 1, 1, 1001, 3)]})
    assert large.status_code == 413
    assert "1001 x 1 pixels, at most 1,000" in large.json()["error"]
    crowd = infer(client, b'{"inputs":[' + b"{}," * 1000 + b"{}]}")
    assert crowd.status_code == 413
    assert "more than 1000 JSON objects" in crowd.json()["error"]
    assert infer(client, bytes(10_001)).status_code == 413
    assert infer(client, bytes(9), **{"Content-Encoding": "br"}).status_code == 415
    assert infer(client, bytes(9), **{"Content-Encoding": "gzip"}).status_code == 400


def files(client, *images):
    body = prefixed(*images)
    return sent(client, {"inputs": [behind("image", [len(images)], "BYTES", len(body))]}, body)


def test_one_bad_file_fails_the_request_and_is_named(client):
    answer = files(client, png(1), png("bad"), png(2))
    assert answer.status_code == 422
    assert answer.json()["error"] == "image 2 of 3 is damaged"
    assert files(client, b"no image").status_code == 422
    assert files(client, b"").status_code == 422
    large = files(client, png(1, (1001, 1)))
    assert large.status_code == 413
    busy = files(client, png("busy"))
    assert busy.status_code == 503
    assert busy.headers["retry-after"] == "3"


# Whatever comes


@pytest.mark.slow
@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=5), st.integers(0, 300).map(str)))
def test_any_body_is_read_or_refused(body, length):
    try:
        read_request(body, length, INPUTS)
    except Refused as error:
        assert error.status in (400, 413)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
INPUT = st.fixed_dictionaries(
    {
        "name": st.sampled_from([*INPUTS, "x"]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**40]), max_size=5) | JSON,
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32", "INT64"]),
    },
    optional={"data": JSON, "parameters": JSON | st.fixed_dictionaries({"binary_data_size": JSON})},
)


@given(st.fixed_dictionaries({"inputs": st.lists(INPUT, max_size=3)}, optional={"outputs": JSON, "parameters": JSON}))
def test_any_request_is_read_or_refused(request):
    text = json.dumps(request).encode()
    for header, body in ((None, text), (str(len(text)), text + bytes(12))):
        try:
            read_request(body, header, INPUTS)
        except Refused as error:
            assert error.status in (400, 413)


@given(st.lists(st.sampled_from(list(OUTPUTS)), unique=True), st.data())
def test_what_is_written_can_be_read(names, data):
    arrays = {
        "boxes": np.arange(8, dtype=np.float32).reshape(1, 2, 4),
        "scores": np.array([[0.5, 0.1]], np.float32),
        "labels": np.array([[3, -1]]),
        "counts": np.array([1]),
        "names": np.array([["žluťoučký", ""]], object),
    }
    outputs = [(name, OUTPUTS[name].datatype, arrays[name], data.draw(st.booleans())) for name in names]
    body, headers = write_answer({"id": "1"}, outputs)
    length = int(headers.get("inference-header-content-length", len(body)))
    place = length
    for one, (name, datatype, array, binary) in zip(json.loads(body[:length])["outputs"], outputs, strict=True):
        assert (one["name"], one["datatype"], one["shape"]) == (name, datatype, list(array.shape))
        if not binary:
            read = np.array(one["data"], array.dtype).reshape(array.shape)
        else:
            size = one["parameters"]["binary_data_size"]
            part, place = body[place : place + size], place + size
            if datatype == "BYTES":
                first = int.from_bytes(part[:4], "little")
                texts = [part[4 : 4 + first].decode(), part[8 + first :].decode()]
                read = np.array([texts], object)
            else:
                read = np.frombuffer(part, array.dtype).reshape(array.shape)
        np.testing.assert_array_equal(read, array)
    assert place == len(body)
