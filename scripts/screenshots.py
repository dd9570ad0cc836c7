"""Draw the screenshots of the pages in docs/images: inspector, report, monitor, serve. Needs Chromium and Playwright.

Example: python scripts/screenshots.py

The images are synthetic (`multibox data make sprites`). The runs are short and some labels are damaged on purpose, so
that each section has something to show.
"""

import io
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from multibox.cli.monitor import HOST, listen, make_server
from multibox.files import write_bytes_whole
from multibox.serving.app import make_app
from multibox.serving.hosted import open_models

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
DESKTOP, PHONE = (1200, 850), (390, 780)
COLOURS = 96
"""Of a screenshot's palette, which makes it a third as large."""
ARGUMENTS = ["--no-sandbox", "--headless", "--disable-background-networking", "--disable-gpu"]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data, runs = Path(scratch) / "sprites", Path(scratch) / "runs"
        multibox("data", "make", "sprites", data, "--images", 300, "--classes", 3, "--objects", "1-5")
        train = ("train", data, "--preset", "tinyssd", "--epochs", 10, "--set", "train.validate_every=2", "--out")
        multibox(*train, runs / "first")
        multibox(*train, runs / "slower", "--set", "train.lr=0.0003")
        damage(data)
        report, inspection = Path(scratch) / "report", Path(scratch) / "inspection"
        multibox("report", runs / "first", data, "--split", "val", "--out", report)
        multibox("inspect", runs / "first", data, "--split", "val", "--worst", 6, "--explain", "--out", inspection)
        page = (report / "index.html").as_uri()
        shoot(page, "report.png", lambda page: None)
        shoot(page, "report-errors.png", at("errors"))
        shoot(page, "report-suspects.png", at("suspects"))
        shoot(page, "report-phone.png", at("confusion"), PHONE, dark=True)
        shoot((inspection / "index.html").as_uri(), "inspector.png", choose_missed)
        with served(runs) as address:
            shoot(address, "monitor.png", tick_all, (DESKTOP[0], 1900))
        large = Path(scratch) / "large"
        many = ("--images", 6, "--classes", 3, "--objects", "5-9", "--size", 768, "--seed", 5)
        multibox("data", "make", "sprites", large, *many)
        with tried(runs / "first") as address:
            image = large / "JPEGImages" / "00004.png"
            shoot(address, "live.png", partial(give, image=image), (DESKTOP[0], 1180))
            shoot(address, "live-phone.png", partial(give, image=image), PHONE, dark=True)


def multibox(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "multibox", *map(str, arguments)], check=True)


def damage(data: Path) -> None:
    """Delete, move or rename an object in twelve validation images, so that there are label suspects."""
    names = (data / "ImageSets" / "Main" / "val.txt").read_text(encoding="utf-8").split()
    for place, name in enumerate(random.Random(0).sample(names, 12)):
        path = data / "Annotations" / f"{name}.xml"
        text = path.read_text(encoding="utf-8")
        found = re.search(r"\s*<object>.*?</object>", text, re.DOTALL)
        if found is None:
            continue
        label = found[0]
        damaged = (
            "",
            re.sub(r"(min|max)>(\d+)", lambda number: f"{number[1]}>{int(number[2]) + 18}", label),
            re.sub(r"<name>\w+</name>", "<name>bibi</name>", label),
        )[place % 3]
        path.write_text(text.replace(label, damaged, 1), encoding="utf-8")


def at(section: str) -> Callable[[Any], None]:
    """Return what scrolls a page to a section."""
    return lambda page: page.evaluate(f"document.getElementById('{section}').scrollIntoView()")


def choose_missed(page: Any) -> None:
    """Ask the page why an object is missed."""
    page.get_by_role("link", name="Why is this object missed?").click()
    page.wait_for_timeout(500)
    at("image")(page)


@contextmanager
def served(runs: Path) -> Generator[str]:
    """Serve the monitor of the runs while the block lasts; yield its address."""
    with listen(HOST, 0) as listener, running(make_server(runs, HOST, listener, None), listener) as address:
        yield address


@contextmanager
def tried(model: Path) -> Generator[str]:
    """Serve a model as `multibox serve creatures=MODEL` does while the block lasts; yield the page's address."""
    models = open_models([f"creatures={model}"])
    server = uvicorn.Server(uvicorn.Config(make_app(models), log_level="critical", lifespan="off"))
    with listen(HOST, 0) as listener, running(server, listener) as address:
        yield address
    models["creatures"].close()


@contextmanager
def running(server: uvicorn.Server, listener: socket.socket) -> Generator[str]:
    """Run a server in a thread while the block lasts; yield its address."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://{HOST}:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def give(page: Any, image: Path) -> None:
    """Let the page look at an image."""
    page.set_input_files("#files", image)
    page.locator(".crop").first.wait_for()


def tick_all(page: Any) -> None:
    """Show all runs of the monitor over each other."""
    page.locator(".runs tbody tr").first.wait_for()
    boxes = page.locator(".runs tbody input")
    for place in range(boxes.count()):
        boxes.nth(place).check()
    page.locator(".charts svg").first.wait_for()
    page.get_by_role("slider", name="Smoothing").fill("0.8")
    page.wait_for_timeout(4000)
    page.evaluate("scrollTo(0, 0)")


def shoot(
    address: str, name: str, act: Callable[[Any], object], size: tuple[int, int] = DESKTOP, dark: bool = False
) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        colours = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=colours)
        page.goto(address)
        act(page)
        page.wait_for_timeout(1000)
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    file = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    write_bytes_whole(OUT / name, file.getvalue())
    print(f"{OUT / name}: {len(file.getvalue()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
