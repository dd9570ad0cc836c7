"""Pages in headless Chromium: open one, fail on any console error, and measure what a user would notice."""

import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP = 1280
"""Width in CSS pixels."""
ARGS = ["--no-sandbox", "--headless", "--disable-background-networking", "--disable-gpu"]


@pytest.fixture(scope="session", name="open_page")
def _open_page() -> Any:
    """Return `open_page`; tests that use it skip without Chromium."""
    return open_page


@pytest.fixture(scope="session", name="overflow")
def _overflow() -> Any:
    """Return `overflow`."""
    return overflow


@contextmanager
def open_page(
    address: Path | str,
    *,
    width: int = DESKTOP,
    dark: bool = False,
    timeout: float = 20,
    flags: Iterable[str] = (),
    prepare: Callable[[Any], object] = lambda page: None,
    expected: Iterable[str] = (),
    **context: Any,
) -> Generator[Any]:
    """Yield a Playwright page of a file or URL; fail at the end if its console showed an error or it asked elsewhere.

    Skips the test, with the reason, where Playwright or Chromium is absent.

    Args:
        address: Of the page.
        width: Of the window.
        dark: Whether the system's colours are dark.
        timeout: Seconds for which Playwright waits for an element.
        flags: Of Chromium, such as those of a fake camera.
        prepare: Called with the page before it goes to the address.
        expected: Parts of errors that the console may show.
        context: Of Playwright's browser context, such as `locale`.
    """
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian's package chromium)")
    url = address if isinstance(address, str) else address.resolve().as_uri()
    errors: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGS, *flags])
        try:
            scheme = "dark" if dark else "light"
            options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, **context}
            page = browser.new_context(**options).new_page()
            page.set_default_timeout(1000 * timeout)
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on(
                "request", lambda request: None if _own(request.url, url) else errors.append(f"asked {request.url}")
            )
            prepare(page)
            page.goto(url)
            yield page
        finally:
            browser.close()
    assert [error for error in errors if not any(part in error for part in expected)] == []


def _own(asked: str, url: str) -> bool:
    """Return whether a request stays in the page, its folder or its server."""
    if asked.startswith(("data:", "blob:")):
        return True
    home = url.rpartition("/")[0] if url.startswith("file:") else "/".join(url.split("/")[:3])
    return asked.startswith(home)


def overflow(page: Any) -> int:
    """Return by how many pixels the page is wider than its window; 0 where nothing has to be scrolled sideways."""
    return page.evaluate("Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth)")
