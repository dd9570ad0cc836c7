"""Clients of other servers, unchanged, against `multibox serve`: tritonclient, and KServe's in a venv of its own."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

import multibox

PHOTO = Path(__file__).resolve().parents[2] / "docs/images/detections.jpg"
THRESHOLD = 0.2
"""At which the COCO model finds many boxes, right or wrong, in a drawn image."""
KSERVE = "kserve==0.21.0"


@contextmanager
def serving(*arguments):
    """Run `multibox serve ARGUMENTS` and give its host and port."""
    command = [sys.executable, "-m", "multibox", "serve", *arguments, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        found = re.search(r"http://(127\.0\.0\.1:\d+)", line)
        assert found, line
        wait_ready(found[1])
        yield found[1]
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()


@pytest.fixture(scope="module")
def address():
    with serving("coco", "small=face") as address:
        yield address


def wait_ready(address):
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://{address}/v2/health/ready") as answer:
                assert json.load(answer)["ready"]
                return
        except urllib.error.HTTPError as error:
            with error:
                assert error.code == 503
            time.sleep(0.1)
    pytest.fail("the server is not ready after 30 s")


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("tritonclient.http", reason="tritonclient is not installed (extra dev)")


@pytest.fixture(scope="module")
def pixels():
    return np.asarray(Image.open(PHOTO).convert("RGB").resize((320, 240)))


@pytest.fixture(scope="module")
def wanted(pixels):
    """What `predict` finds."""
    found = multibox.load("coco").predict(pixels, THRESHOLD)
    assert len(found) > 50
    return found


def agree(boxes, scores, labels, wanted):
    """Hold tensors of one image against `predict`."""
    assert np.shape(boxes) == (len(wanted), 4)
    np.testing.assert_allclose(boxes, wanted.boxes, rtol=0, atol=0.1)
    np.testing.assert_allclose(scores, wanted.scores, rtol=0, atol=0.001)
    np.testing.assert_array_equal(labels, wanted.labels)


def tensor(triton, name, array, kind, binary=True):
    given = triton.InferInput(name, list(array.shape), kind)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def threshold(triton, value=THRESHOLD):
    return tensor(triton, "score_threshold", np.array(value, np.float32), "FP32")


def test_tritonclient_sees_the_models(triton, address):
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("coco")
        assert client.is_model_ready("small", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "multibox"
        metadata = client.get_model_metadata("coco")
        assert [each["name"] for each in metadata["outputs"]] == ["boxes", "scores", "labels", "counts", "names"]
        assert metadata["parameters"]["names"][0] == "person"
        assert [each["name"] for each in client.get_model_repository_index()] == ["coco", "small"]
        for refused in (client.load_model, client.unload_model, client.get_inference_statistics):
            with pytest.raises(triton.InferenceServerException, match=r"multibox serve|whoever runs the server"):
                refused("coco")


@pytest.mark.slow
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_finds_what_predict_finds(triton, address, pixels, wanted, binary, compression):
    images = tensor(triton, "images", pixels[None], "UINT8", binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "scores", "boxes", "names")]
    options = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
    with triton.InferenceServerClient(address) as client:
        found = client.infer("coco", [images, threshold(triton)], outputs=outputs, request_id="a-1", **options)
        assert [each["name"] for each in found.get_response()["outputs"]] == ["labels", "scores", "boxes", "names"]
        assert found.get_response()["id"] == "a-1"
        agree(*(found.as_numpy(name)[0] for name in ("boxes", "scores", "labels")), wanted)
        names = [name.decode() if binary else name for name in found.as_numpy("names")[0]]
        assert names == [wanted.names[label] for label in wanted.labels]


@pytest.mark.slow
def test_tritonclient_sends_files_of_any_size(triton, address, pixels, wanted, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "same.png")
    Image.fromarray(pixels[:100, :150]).save(tmp_path / "part.png")
    files = np.array([(tmp_path / name).read_bytes() for name in ("part.png", "same.png")], object)
    with triton.InferenceServerClient(address) as client:
        found = client.infer("coco", [tensor(triton, "image", files, "BYTES"), threshold(triton)])
    part = multibox.load("coco").predict(pixels[:100, :150], THRESHOLD)
    counts = found.as_numpy("counts")
    assert counts.tolist() == [len(part), len(wanted)]
    for row, each in enumerate((part, wanted)):
        columns = (found.as_numpy(name)[row][: counts[row]] for name in ("boxes", "scores", "labels"))
        agree(*columns, each)
    assert (found.as_numpy("labels")[0, counts[0] :] == -1).all()


@pytest.mark.slow
def test_tritonclient_asks_with_parameters(triton, address, pixels, wanted):
    images = tensor(triton, "images", pixels[None], "UINT8")
    with triton.InferenceServerClient(address) as client:
        found = client.infer(
            "coco", [images], parameters={"score_threshold": THRESHOLD, "max_detections": 7, "nms_threshold": 0.3}
        )
    assert found.as_numpy("scores").shape == (1, 7)
    apart = multibox.load("coco").detect([pixels], np.full(len(wanted.names), THRESHOLD, np.float32), nms=0.3, most=7)
    agree(*(found.as_numpy(name)[0] for name in ("boxes", "scores", "labels")), apart[0])


def test_tritonclient_asks_at_once(triton, address, pixels, wanted):
    images = tensor(triton, "images", pixels[None], "UINT8")
    with triton.InferenceServerClient(address, concurrency=4) as client:
        waiting = [client.async_infer("coco", [images, threshold(triton)]) for _ in range(6)]
        for each in waiting:
            found = each.get_result()
            agree(*(found.as_numpy(name)[0] for name in ("boxes", "scores", "labels")), wanted)


def test_tritonclient_learns_what_is_wrong(triton, address, pixels):
    halves = tensor(triton, "images", (pixels[None] / 255).astype(np.float32), "FP32")
    with (
        triton.InferenceServerClient(address) as client,
        pytest.raises(triton.InferenceServerException, match="images has datatype FP32, expected UINT8") as caught,
    ):
        client.infer("coco", [halves])
    assert caught.value.status() == "400"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_tritonclient_in_asyncio(address, pixels, wanted):
    aio = pytest.importorskip("tritonclient.http.aio", reason="tritonclient's aio client is not installed (extra dev)")

    async def ask():
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("coco", "1")
            assert (await client.get_model_metadata("coco"))["versions"] == ["1"]
            images = tensor(aio, "images", pixels[None], "UINT8")
            asked = [client.infer("coco", [images, threshold(aio)]) for _ in range(3)]
            return await asyncio.gather(*asked)

    for found in asyncio.run(ask()):
        agree(*(found.as_numpy(name)[0] for name in ("boxes", "scores", "labels")), wanted)


@pytest.fixture(scope="session")
def kserve_python():
    """A Python that has KServe's client, in a venv made once: in MULTIBOX_KSERVE_VENV, or a temporary folder."""
    fcntl = pytest.importorskip("fcntl", reason="needs locks of files, which this system does not have")
    folder = Path(os.environ.get("MULTIBOX_KSERVE_VENV") or Path(tempfile.gettempdir()) / "multibox-kserve-venv")
    python = folder / "bin/python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        # Several test processes may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / KSERVE).exists():
            try:
                subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=120)
                install = [python, "-m", "pip", "install", "--quiet", "--no-compile", KSERVE, "pillow"]
                subprocess.run(install, check=True, capture_output=True, timeout=900)
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"pip cannot install {KSERVE} here: {getattr(error, 'stderr', error)!r}")
            (folder / KSERVE).touch()
    return python


KSERVE_CLIENT = """
import asyncio, base64, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from PIL import Image

url, photo, threshold = sys.argv[1], sys.argv[2], float(sys.argv[3])
pixels = np.asarray(Image.open(photo).convert("RGB").resize((320, 240)))[None]

async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=60))
    health = [await client.is_server_live(url), await client.is_server_ready(url)]
    health.append(await client.is_model_ready(url, "coco"))
    found = {"health": health, "unknown": await client.is_model_ready(url, "other")}
    for binary in (True, False):
        images = InferInput("images", list(pixels.shape), "UINT8")
        images.set_data_from_numpy(pixels, binary_data=binary)
        lowest = InferInput("score_threshold", [1], "FP32")
        lowest.set_data_from_numpy(np.array([threshold], np.float32), binary_data=binary)
        outputs = [RequestedOutput(name, {"binary_data": binary}) for name in ("boxes", "scores", "labels", "names")]
        for wanted in (outputs, None):
            parameters = None if wanted else {"binary_data_output": binary}
            request = InferRequest("coco", [images, lowest], "7", request_outputs=wanted, parameters=parameters)
            answer = await client.infer(url, request, model_name="coco")
            assert answer.id == "7" and answer.model_name == "coco"
            name = f"{'binary' if binary else 'json'}{'' if wanted else '-all'}"
            found[name] = {one.name: one.as_numpy().tolist() for one in answer.outputs if one.name != "names"}
            if wanted:
                found[name]["names"] = [str(text) for text in answer.get_output_by_name("names").data]
    files = InferInput("image", [1], "BYTES")
    with open(photo, "rb") as file:
        files.set_data_from_numpy(np.array([file.read()], object))
    answer = await client.infer(url, InferRequest("coco", [files]), model_name="coco")
    found["file"] = {one.name: one.as_numpy().tolist() for one in answer.outputs}
    wrong = InferInput("images", [1], "FP32", data=[1.0])
    try:
        await client.infer(url, InferRequest("coco", [wrong]), model_name="coco")
    except Exception as error:
        found["wrong"] = str(error)
    await client.close()
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.mark.slow
def test_tritonclient_brings_a_token(triton, pixels):
    images = tensor(triton, "images", pixels[None], "UINT8")
    with serving("face", "--token", "secret-of-nobody") as address, triton.InferenceServerClient(address) as client:
        assert client.is_server_ready()
        for headers in (None, {"Authorization": "Bearer secret-of-anybody"}):
            with pytest.raises(triton.InferenceServerException) as caught:
                client.infer("face", [images], headers=headers)
            assert caught.value.status() == "401"
        found = client.infer("face", [images], headers={"Authorization": "Bearer secret-of-nobody"})
        assert found.as_numpy("counts").shape == (1,)


PAGE = Path(__file__).resolve().parents[2] / "docs/open-inference.md"


def shown_block(word, address, photo):
    """Return the Python block of the page that has a word, for this server and image."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if word in block]
    return block.replace("localhost:8000", address).replace('"photo.jpg"', repr(str(photo)))


@pytest.mark.slow
def test_the_page_shows_tritonclient_as_it_works(triton, address, capsys):
    names = {}
    exec(shown_block("tritonclient", address, PHOTO), names)
    names["client"].close()
    found = names["found"]
    agree(
        *(found.as_numpy(name)[0] for name in ("boxes", "scores", "labels")), multibox.load("coco").predict(PHOTO, 0.3)
    )
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_page_shows_kserve_as_it_works(kserve_python, address):
    command = [kserve_python, "-c", shown_block("kserve", address, PHOTO)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    own = multibox.load("coco").predict(PHOTO)
    assert done.stdout.startswith(str([own.names[label] for label in own.labels]))


@pytest.mark.slow
def test_kserve_client_finds_what_predict_finds(kserve_python, address, wanted):
    command = [kserve_python, "-c", KSERVE_CLIENT, f"http://{address}", PHOTO, str(THRESHOLD)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["health"] == [True, True, True]
    assert not found["unknown"]
    for kind in ("binary", "json", "binary-all", "json-all"):
        agree(*(found[kind][name][0] for name in ("boxes", "scores", "labels")), wanted)
    for kind in ("binary", "json"):
        assert found[kind]["names"] == [wanted.names[label] for label in wanted.labels]
    assert "images has datatype FP32, expected UINT8" in found["wrong"]
    own = multibox.load("coco").predict(PHOTO)
    agree(*(found["file"][name][0] for name in ("boxes", "scores", "labels")), own)
