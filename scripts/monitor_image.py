"""Photograph docs/images/monitor.png, the page of `multibox monitor` over two runs, in headless Chromium.

    multibox data make sprites DATA --images 80 --classes 3 --objects 1-4 --size 192
    multibox train DATA --preset tinyssd --minutes 4 --set train.batch_size=8 --out RUNS/fresh-tinyssd
    multibox train DATA --preset multibox-coco --minutes 8 --set train.batch_size=8 --out RUNS/from-coco &
    python scripts/monitor_image.py RUNS

The runs below RUNS, at most three, are ticked. Needs Playwright (extra `dev`) and Debian's package `chromium`.
"""

import io
import shutil
import sys
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from multibox.cli.monitor import HOST, listen, make_server
from multibox.files import whole_file

OUT = Path(__file__).resolve().parent.parent / "docs/images/monitor.png"
WIDTH, MOST, SHOWN = 1280, 3, 4
"""Of the window in pixels; runs; charts."""
COLOURS = 128
"""Of the PNG; the page has few, and it stays small."""


def main() -> None:
    runs = Path(sys.argv[1])
    with listen(HOST, 0) as listener:
        server = make_server(runs, HOST, listener, None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            image = photograph(f"http://{HOST}:{listener.getsockname()[1]}/")
        finally:
            server.should_exit = True
            thread.join()
    with whole_file(OUT) as file:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    print(f"wrote {OUT}")


def photograph(address: str) -> Image.Image:
    """Return the page with the first runs ticked, down to the first charts."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(address)
        page.locator(".runs tbody tr").first.wait_for()
        boxes = page.locator(".runs tbody input")
        for place in range(min(MOST, boxes.count())):
            boxes.nth(place).check()
        page.locator(".charts svg").first.wait_for()
        page.get_by_role("slider", name="Smoothing").fill("0.8")
        # Until the curves of all runs and the sample are there
        page.wait_for_timeout(4000)
        page.evaluate("scrollTo(0, 0)")
        end = page.locator(".charts > div").nth(SHOWN - 1).bounding_box()
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end["y"] + end["height"] + 20}
        image = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
        browser.close()
    return image


if __name__ == "__main__":
    main()
