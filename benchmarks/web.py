"""A web export in headless Chromium beside onnxruntime in Python, on a camera's frame and on an image file.

Chromium's boxes are compared with Python's before anything is timed; exit code 1 if they differ. The page is opened
twice: as any static server sends it, on one thread, and with the two headers that allow threads.

    npm install onnxruntime-web
    python benchmarks/web.py [coco] [--runtime node_modules/onnxruntime-web/dist] [--rounds 20]

Needs Playwright and Chromium.
"""

import argparse
import base64
import functools
import http.server
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import print_table

PIXELS, SCORE = 0.5, 0.01
"""Differences allowed."""
HEADERS = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
ARGS = ["--no-sandbox", "--headless", "--disable-background-networking", "--disable-gpu"]
PREPARE = """async (data) => {
  globalThis.blob = new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))]);
  const bitmap = await createImageBitmap(blob);
  globalThis.canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return await multibox.onnx.detect(blob);
}"""
TIME = """async ([name, rounds]) => {
  const times = [];
  for (let round = 0; round <= rounds; round += 1) {
    const began = performance.now();
    await multibox.onnx.detect(globalThis[name]);
    times.push(performance.now() - began);
  }
  return times.slice(1);
}"""


def serve(folder: Path, headers: dict[str, str]) -> http.server.ThreadingHTTPServer:
    """Serve a folder on a free port, with headers."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def differs(found: list[dict[str, Any]], wanted: Any) -> str:
    """Say how the browser's detections differ from Python's; empty if they do not."""
    if len(found) != len(wanted):
        return f"{len(found)} boxes, expected {len(wanted)}"
    for box, score, label in zip(wanted.boxes, wanted.scores, wanted.labels, strict=True):
        alike = [each for each in found if each["label"] == label and abs(each["score"] - score) <= SCORE]
        if not any(np.abs(np.array(each["box"]) - box).max() <= PIXELS for each in alike):
            return f"nothing like {wanted.names[label]} {score:.3f} at {box.round(1).tolist()}"
    return ""


def in_browser(
    folder: Path, headers: dict[str, str], image: bytes, wanted: Any, rounds: int
) -> tuple[str, list[float]]:
    """Return what the page says of itself and the seconds to ready, then milliseconds per frame and per file."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    server = serve(folder, headers)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=chromium, args=ARGS).new_page()
        began = time.perf_counter()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector(".engine[data-state=ready]", timeout=120_000)
        ready = time.perf_counter() - began
        found = page.evaluate(PREPARE, base64.b64encode(image).decode())
        if problem := differs(found["kept"], wanted):
            raise SystemExit(f"Chromium's boxes differ from Python's: {problem}")
        times = [statistics.median(page.evaluate(TIME, [name, rounds])) for name in ("canvas", "blob")]
        said = page.inner_text(".engine")
        page.context.browser.close()
    server.shutdown()
    return said.partition(", ")[2].partition(")")[0], [ready, *times]


def in_python(detector: Any, image: bytes, rounds: int) -> list[float]:
    """Return milliseconds per decoded frame, and per file with its decoding."""
    pixels = detector.prepare(image)
    median = []
    for source in (pixels, image):
        times = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            detector.predict(source)
            times.append(1000 * (time.perf_counter() - began))
        median.append(statistics.median(times[1:]))
    return median


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="coco")
    parser.add_argument("--runtime", default="node_modules/onnxruntime-web/dist")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    import multibox
    from multibox.benchmarking.clock import describe
    from multibox.benchmarking.workload import as_jpeg, synthetic_images
    from multibox.cli.main import main as run
    from multibox.inference import engines
    from multibox.inference.load import detections_of
    from multibox.structures import Size

    image, rows = as_jpeg(synthetic_images(1, Size(480, 640))[0]), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "page"
        sys.argv = [
            "multibox",
            "export",
            options.model,
            "--to",
            "web",
            "--runtime",
            options.runtime,
            "--out",
            str(folder),
        ]
        try:
            run()
        except SystemExit as end:
            if end.code:
                raise
        size = sum(each.stat().st_size for each in folder.iterdir()) / 1e6
        engines.find_spec = lambda name: None  # type: ignore[assignment] # onnxruntime, though OpenVINO may be installed
        detectors = {threads: multibox.load(folder / "model.onnx", threads=threads) for threads in (1, 2)}
        post = detectors[1].about["post"]
        limits = engines.limits(0.05, post["nms_threshold"], 2000)
        outputs = detectors[1].engine.run({"images": detectors[1].prepare(image)[None], **limits})
        wanted = detections_of(outputs, detectors[1].names)[0]
        for headers in ({}, HEADERS):
            said, times = in_browser(folder, headers, image, wanted, options.rounds)
            rows.append([f"Chromium, {said}", f"{times[0]:.1f}", *(f"{each:.1f}" for each in times[1:])])
        for threads, detector in detectors.items():
            times = in_python(detector, image, options.rounds)
            rows.append([f"Python, {threads} threads", "", *(f"{each:.1f}" for each in times)])
    print(describe())
    print(f"{options.model}: folder of {size:.1f} MB; {len(wanted)} boxes equal to {PIXELS} pixels and {SCORE}; "
          f"medians of {options.rounds}, image 640x480")  # fmt: skip
    print_table(["", "ready, s", "frame, ms", "file, ms"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
