import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw

settings.register_profile("default", max_examples=15, deadline=None, derandomize=True)
settings.register_profile("fuzz", max_examples=2000, deadline=None)
settings.load_profile("default")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep a test process to one thread: `make test` runs several, whose threads would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def heard_signals() -> None:
    """Let the programs that tests start hear SIGINT and SIGHUP, which nohup and a shell's & make them ignore."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden files beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is not part of the repository")
    return SHARED


NAMES = ("red", "blue")
COLOURS = ((220, 60, 40), (40, 90, 220))


def draw_squares(folder: Path, count: int, *, classes: int = 2, size: int = 96, seed: int = 0) -> Path:
    """Write a VOC tree of coloured rectangles on grey noise: the smallest thing a detector can learn."""
    rng = np.random.default_rng(seed)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = Image.fromarray(rng.integers(90, 130, (size, size, 3), np.uint8))
        label = int(rng.integers(classes))
        w, h = rng.integers(size // 4, size // 2, 2)
        x, y = rng.integers(0, size - w), rng.integers(0, size - h)
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=COLOURS[label])
        image.save(folder / "JPEGImages" / f"{index:03}.png")
        (folder / "Annotations" / f"{index:03}.xml").write_text(
            f"<annotation><filename>{index:03}.png</filename><size><width>{size}</width><height>{size}</height></size>"
            f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object></annotation>"
        )
    cut = count * 3 // 4
    names = [f"{index:03}" for index in range(count)]
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(names[:cut]) + "\n")
    (folder / "ImageSets/Main/val.txt").write_text("\n".join(names[cut:]) + "\n")
    return folder


@pytest.fixture(scope="session", name="draw_squares")
def _draw_squares():
    return draw_squares


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Twelve images to train on and four to validate on."""
    return draw_squares(tmp_path / "squares", 16)


@pytest.fixture
def fake_runtime(tmp_path):
    """A folder with the files of onnxruntime-web that the web export copies, as far as Python looks at them."""
    folder = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    (folder / "ort.wasm.min.js").write_text("/*!\n * ONNX Runtime Web v1.99.0\n */\nvar ort = {};\n")
    (folder / "ort-wasm-simd-threaded.mjs").write_text("export default 1;\n")
    (folder / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm\1\0\0\0")
    (folder / "ort.webgpu.min.js").write_text("// 100 MB more\n")
    return folder


def call_multibox(*arguments) -> int:
    """Run `multibox ARGUMENTS` in this process and return its exit code."""
    from multibox.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["multibox", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture(scope="session")
def call():
    return call_multibox


@pytest.fixture
def run(capsys):
    """Run `multibox ARGUMENTS` and return exit code, stdout, stderr."""
    return lambda *arguments: (call_multibox(*arguments), *capsys.readouterr())
