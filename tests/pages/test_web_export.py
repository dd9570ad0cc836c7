"""`multibox export --to web` in headless Chromium, behind a plain file server: equal to onnxruntime in Python."""

import base64
import functools
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

import multibox
from multibox.inference.engines import limits
from multibox.inference.load import ExportedDetector, detections_of
from multibox.structures import Detections

pytestmark = pytest.mark.slow
PIXELS, SCORE = 0.5, 0.01
"""Differences allowed between the browser and Python."""
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
READY = ".engine[data-state=ready]"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""Headers with which browsers allow threads."""


@pytest.fixture(scope="session")
def runtime(tmp_path_factory) -> Path:
    """The folder of onnxruntime-web as npm installs it, once for all processes of a test run."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed (Debian's packages nodejs and npm)")
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "onnxruntime-web"
    if not shared.exists():
        place = tmp_path_factory.mktemp("npm")
        command = ["npm", "install", "--prefix", place, "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run([*command, "onnxruntime-web"], capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm cannot install onnxruntime-web: {done.stderr.strip()[-200:]}")
        try:
            place.rename(shared)
        except OSError:  # another process was quicker
            shutil.rmtree(place)
    return shared / "node_modules" / "onnxruntime-web" / "dist"


@pytest.fixture(scope="module")
def export(runtime, call, tmp_path_factory):
    """Return a function that exports a model and returns the folder."""

    def run(model: object) -> Path:
        folder = tmp_path_factory.mktemp("web") / "page"
        assert call("export", model, "--to", "web", "--runtime", runtime, "--out", folder) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def coco(export) -> Path:
    return export("coco")


@contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Generator[str]:
    """Yield the address of a folder behind Python's own file server."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def in_python(folder: Path) -> ExportedDetector:
    """Open the folder's model in onnxruntime, though OpenVINO may be installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multibox.inference.engines.find_spec", lambda name: None)
        detector = multibox.load(folder / "model.onnx", threads=1)
    assert isinstance(detector, ExportedDetector) and detector.engine.name == "onnxruntime"
    return detector


def draw(width: int, height: int, seed: int) -> Image.Image:
    """Draw something with edges, surfaces and texture, on which a detector has opinions."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(60, 200, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w, h = (int(rng.integers(side // 12, side // 3)) for side in (width, height))
        shape = (pen.ellipse, pen.rectangle)[int(rng.integers(2))]
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()), outline=(20, 20, 20), width=3)
    return image.filter(ImageFilter.GaussianBlur(1))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Image files of the kinds that decoders may read differently."""
    folder = tmp_path_factory.mktemp("images")
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(640, 480, 0).save(folder / "plain.png")
    draw(640, 427, 1).save(folder / "turned.jpg", exif=turned, quality=90)  # 4:2:0, so colours are interpolated
    draw(4000, 3000, 2).save(folder / "large.jpg", quality=90)
    clear = draw(500, 300, 3)
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "transparent.png")
    draw(300, 700, 4).convert("L").save(folder / "grey.jpg", progressive=True)
    return sorted(folder.iterdir())


def detect(page: Any, image: Path) -> dict[str, Any]:
    """Return what the back end finds: candidates before suppression, and those that the model keeps."""
    data = base64.b64encode(image.read_bytes()).decode()
    code = """async (data) => {
      const blob = new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))]);
      return await multibox.onnx.detect(blob);
    }"""
    return page.evaluate(code, data)


def as_detections(rows: list[dict[str, Any]], names: tuple[str, ...]) -> Detections:
    boxes = np.array([row["box"] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row["score"] for row in rows], np.float32)
    return Detections(boxes, scores, np.array([row["label"] for row in rows], np.int64), names)


def shown(page: Any, image: Path, names: tuple[str, ...]) -> Detections:
    """Give an image to the page as a user would, and return the boxes that it draws."""
    page.set_input_files("#files", image)
    page.wait_for_selector(f".strip [title='{image.name}'][aria-current=true]")
    page.wait_for_selector(".stage .frame:not(.busy)")
    rows = page.evaluate(
        """() => [...document.querySelectorAll(".boxes .box:not([hidden])")].map((node) => ({
          text: node.getAttribute("aria-label"),
          place: ["left", "top", "width", "height"].map((side) => parseFloat(node.style[side]) / 100) }))"""
    )
    with Image.open(image) as opened:
        width, height = opened.size
        if opened.getexif().get(0x0112) == 6:
            width, height = height, width
    found = []
    for row in rows:
        name, score = row["text"].rsplit(" ", 1)
        x, y, w, h = row["place"]
        box = [x * width, y * height, (x + w) * width, (y + h) * height]
        found.append({"label": names.index(name), "score": float(score), "box": box})
    return as_detections(found, names)


def check_equal(found: Detections, wanted: Detections, lowest: float = 0.0) -> None:
    """Check that each list holds the boxes of the other; below `lowest` and at it the lists may be cut differently."""
    for one, other in ((found, wanted), (wanted, found)):
        for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True):
            if score <= lowest + SCORE:
                continue
            near = (other.labels == label) & (np.abs(other.scores - score) <= SCORE)
            assert (np.abs(other.boxes[near] - box).max(1, initial=0) <= PIXELS).any(), (box, score, label)


def candidates_in_python(detector: ExportedDetector, image: Path) -> Detections:
    pixels = detector.prepare(image)
    return detections_of(detector.engine.run({"images": pixels[None], **limits(0.05, 1.0, 2000)}), detector.names)[0]


def test_the_boxes_are_those_of_python(coco, images, open_page):
    detector = in_python(coco)
    assert len(images) == 5
    with served(coco) as address, open_page(address, timeout=60) as page:
        page.wait_for_selector(READY)
        for image in images:
            wanted = candidates_in_python(detector, image)
            found = detect(page, image)
            candidates = as_detections(found["candidates"], detector.names)
            size = (found["height"], found["width"])
            assert size == detector.prepare(image).shape[:2], image.name
            assert len(candidates) == len(wanted) > 100
            check_equal(candidates, wanted, float(wanted.scores.min()) if len(wanted) == 2000 else 0.05)
            check_equal(shown(page, image, detector.names), detector.predict(image))
        # With the sliders at their lowest there are boxes in earnest
        page.evaluate(
            """() => { const input = document.querySelector(".slider input"); input.value = 0.3;
                       input.dispatchEvent(new Event("input")); }"""
        )
        drawn = [shown(page, image, detector.names) for image in images]
        for image, boxes in zip(images, drawn, strict=True):
            check_equal(boxes, detector.predict(image, threshold=0.3), 0.3)
        assert sum(map(len, drawn)) > 5


def test_the_boxes_are_those_of_python_on_photographs(coco, shared, open_page):
    detector = in_python(coco)
    photos = sorted((shared / "data" / "photos").glob("*.jpg"))
    found = 0
    with served(coco) as address, open_page(address, timeout=60) as page:
        page.wait_for_selector(READY)
        for image in photos:
            boxes = shown(page, image, detector.names)
            check_equal(boxes, detector.predict(image))
            found += len(boxes)
    assert found > 20


def test_a_detector_trained_here_finds_its_objects(export, draw_squares, tmp_path, open_page, overflow):
    data = draw_squares(tmp_path / "squares", 32)
    changes = {"model.input_size": [64, 64], "train.batch_size": 8, "train.workers": 0, "train.validate_every": 40}
    run = tmp_path / "cells"
    multibox.train(data, preset="tinyssd", epochs=40, out=run, changes=changes, device="cpu")
    folder = export(run)
    detector = in_python(folder)
    total = 0
    with served(folder) as address, open_page(address, width=390, timeout=60) as page:
        page.wait_for_selector(READY)
        assert page.title() == "cells"
        for image in sorted((data / "JPEGImages").glob("*.png"))[-5:]:
            boxes = shown(page, image, detector.names)
            check_equal(boxes, detector.predict(image))
            total += len(boxes)
        assert overflow(page) == 0
    assert total >= 5


def test_the_camera_is_looked_at_live_at_any_path(coco, open_page):
    with served(coco.parent) as address, open_page(f"{address}page/", flags=CAMERA, timeout=60) as page:
        page.wait_for_selector(READY)
        page.get_by_role("button", name="Use the camera").click()
        page.wait_for_selector(".rate:text-matches('frames/s')")
        assert page.evaluate("document.querySelector('.stage video').videoWidth") > 0
        # At a low score the pattern gives boxes
        page.evaluate(
            """() => { const input = document.querySelector(".slider input"); input.value = 0.05;
                       input.dispatchEvent(new Event("input")); }"""
        )
        page.wait_for_selector(".boxes .box:not([hidden])")


def test_on_an_isolated_page_it_computes_in_threads(coco, images, open_page):
    detector = in_python(coco)
    with served(coco, ISOLATED) as address, open_page(address, timeout=60) as page:
        page.wait_for_selector(READY)
        assert re.search(r"[2-4] threads", page.inner_text(".engine"))
        image = next(each for each in images if each.name == "plain.png")
        check_equal(shown(page, image, detector.names), detector.predict(image))


def test_nothing_can_be_asked_from_another_host(coco, open_page):
    # `open_page` fails when the page or its worker asks elsewhere; the rules of the page forbid that it tries
    with (
        served(coco) as address,
        served(coco) as other,
        open_page(address, timeout=60, expected=["Content Security Policy"]) as page,
    ):
        page.wait_for_selector(READY)
        assert page.evaluate("(other) => fetch(other).then(() => 'came', () => 'refused')", other) == "refused"


@pytest.mark.parametrize(
    ("language", "words"), [("en", ["opened as a file", "python -m http.server"]), ("zh-CN", ["python -m http.server"])]
)
def test_a_page_opened_as_a_file_says_how_to_serve_it(coco, open_page, language, words):
    with open_page(coco / "index.html", locale=language) as page:
        text = page.wait_for_selector(".engine[data-state=failed]").inner_text()
    assert all(each in text for each in words)


def test_a_browser_without_webassembly_is_told(coco, open_page):
    def prepare(page: Any) -> None:
        page.add_init_script("delete globalThis.WebAssembly")

    with served(coco) as address, open_page(address, prepare=prepare) as page:
        assert "WebAssembly is missing" in page.wait_for_selector(".engine[data-state=failed]").inner_text()


def test_a_file_that_is_missing_is_named(coco, images, tmp_path, open_page):
    folder = tmp_path / "page"
    shutil.copytree(coco, folder)
    for name in ("ort.wasm.min.js", "model.onnx"):
        (folder / name).rename(tmp_path / name)
        with served(folder) as address, open_page(address, expected=["404"]) as page:
            text = page.wait_for_selector(".engine[data-state=failed]").inner_text()
            assert name in text and "could not be loaded" in text
            # It is there again, and so the next image is answered
            (tmp_path / name).rename(folder / name)
            assert len(detect(page, images[0])["candidates"]) > 0


STUB = """
globalThis.ort = { env: { wasm: {} }, Tensor: class {}, InferenceSession: { create: async () => ({
  run: async () => { throw new RangeError("Array buffer allocation failed"); } }) } };
"""


def test_where_memory_is_short_the_page_says_so_and_starts_again(coco, images, tmp_path, open_page):
    folder = tmp_path / "page"
    shutil.copytree(coco, folder)
    (folder / "ort.wasm.min.js").write_text(STUB)
    with served(folder) as address, open_page(address) as page:
        page.wait_for_selector(READY)
        page.set_input_files("#files", images[0])
        assert "ran out of memory" in page.wait_for_selector(".notice:not([hidden])").inner_text()
        shutil.copy(coco / "ort.wasm.min.js", folder)
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector(".crops .crop, .strip li")
