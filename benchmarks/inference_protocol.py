"""Time per request of `multibox serve`: POST /predict with a JPEG beside the Open Inference Protocol with tritonclient.

One client asks for one image of 640x480 at a time, so that times are latencies. That all ways find the same boxes as
`predict` is asserted before a time is printed. Turns alternate; medians are printed, with the bytes of a request.

    python benchmarks/inference_protocol.py [--model coco] [--rounds 100]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPConnection
from io import BytesIO
from typing import Any

import numpy as np
import tritonclient.http as triton
from PIL import Image

import multibox
from multibox.data.sprites import render

THRESHOLD = 0.2
"""Lowest score asked for: low enough for many boxes."""
Found = tuple[list[list[float]], list[float]]
"""Boxes and scores."""


def make_jpeg() -> bytes:
    """Return an image of 640x480 as JPEG: sprites under noise."""
    rng = np.random.default_rng(0)
    scene = Image.fromarray(render(0, classes=3, objects=(2, 6), size=480)[0]).resize((640, 480))
    noisy = np.asarray(scene, np.int16) + rng.integers(-12, 13, (480, 640, 3))
    file = BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def start(model: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server and return it with its host and port, once it is ready."""
    command = [sys.executable, "-m", "multibox", "serve", f"it={model}", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    found = re.search(r"http://([\d.]+:\d+)", server.stdout.readline())
    assert found is not None
    while True:
        try:
            urllib.request.urlopen(f"http://{found[1]}/v2/health/ready").close()
            return server, found[1]
        except urllib.error.HTTPError as error:
            error.close()
            time.sleep(0.1)


def ways(address: str, jpeg: bytes) -> dict[str, tuple[int, Callable[[], Found]]]:
    """Return ways to ask, each with the bytes of its request."""
    pixels = np.asarray(Image.open(BytesIO(jpeg)))[None]
    plain = HTTPConnection(address)
    client = triton.InferenceServerClient(address)

    def predict() -> Found:
        plain.request("POST", f"/predict?threshold={THRESHOLD}", jpeg, {"content-type": "image/jpeg"})
        rows = json.loads(plain.getresponse().read())["detections"]
        return [row["box"] for row in rows], [row["score"] for row in rows]

    def ask(name: str, shape: list[int], kind: str, array: Any, binary: bool) -> Found:
        given = triton.InferInput(name, shape, kind).set_data_from_numpy(array, binary_data=binary)
        found = client.infer("it", [given], parameters={"score_threshold": THRESHOLD})
        return found.as_numpy("boxes")[0].tolist(), found.as_numpy("scores")[0].tolist()

    shape, files = list(pixels.shape), np.array([jpeg], object)
    as_json = len(json.dumps(pixels.ravel().tolist()))
    return {
        "POST /predict, JPEG": (len(jpeg), predict),
        "tritonclient, JPEG as BYTES": (len(jpeg), lambda: ask("image", [1], "BYTES", files, True)),
        "tritonclient, pixels as bytes": (pixels.size, lambda: ask("images", shape, "UINT8", pixels, True)),
        "tritonclient, pixels as JSON": (as_json, lambda: ask("images", shape, "UINT8", pixels, False)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="coco")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    jpeg = make_jpeg()
    wanted = multibox.load(options.model).predict(jpeg, THRESHOLD)
    server, address = start(options.model)
    try:
        asking = ways(address, jpeg)
        for name, (_, ask) in asking.items():
            boxes, scores = ask()
            same = len(scores) == len(wanted) and np.allclose(scores, wanted.scores, rtol=0, atol=0.001)
            if not same or not np.allclose(np.reshape(boxes, (-1, 4)), wanted.boxes, rtol=0, atol=0.1):
                print(f"{name} finds other boxes than predict")
                return 1
        times: dict[str, list[float]] = {name: [] for name in asking}
        for _ in range(options.rounds):
            for name, (_, ask) in asking.items():
                began = time.perf_counter()
                ask()
                times[name].append(time.perf_counter() - began)
    finally:
        server.terminate()
        server.wait()
    print(f"{len(wanted)} boxes, the same in all ways; {options.rounds} rounds, median time per request")
    first = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:32} {median * 1e3:7.1f} ms  {median / first:5.2f} x  {asking[name][0] / 1e3:7.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
