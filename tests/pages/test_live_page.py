"""The page of `multibox serve` in a browser: images in, boxes out, and all that follows without the server."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from multibox.pages.live_page import live_page, live_script, page_for

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from live_stub import MOST, NAMES, NMS, THRESHOLDS, Stub, photo, serve, wait_until
finally:
    sys.path.remove(str(HERE))

SETTINGS: dict[str, Any] = {"title": "stub", "names": NAMES, "thresholds": THRESHOLDS, "nms": NMS, "most": MOST}


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def address(stub) -> Iterator[str]:
    with serve(stub) as found:
        yield found


def choose(page: Any, content: bytes | None = None, name: str = "photo.png", kind: str = "image/png") -> None:
    """Choose a file and wait for its boxes."""
    page.set_input_files("#files", {"name": name, "mimeType": kind, "buffer": content or photo()})
    wait_until(page, "document.querySelector('.found').textContent !== '' && document.querySelector('.wait').hidden")


def shown(page: Any) -> list[str]:
    """Return name and score of each box, best first."""
    script = (
        "[...document.querySelectorAll('.box')].filter(e => !e.hidden).map(e => [+e.dataset.place, e.ariaLabel])"
        ".sort((a, b) => a[0] - b[0]).map(e => e[1])"
    )
    return page.evaluate(script)


def test_a_page_holds_its_scripts_or_names_them() -> None:
    inside = live_page(**SETTINGS)
    assert "multibox.live" in inside
    assert "</script><img" not in inside
    beside = live_page(
        **SETTINGS, backend="server", source="app.js", rules="default-src 'self'", extra={"web": {"score": 0.05}}
    )
    assert '<script src="app.js"></script>' in beside
    assert "content=\"default-src 'self'\"" in beside
    assert '"web":{"score":0.05}' in beside
    assert "multibox.live =" not in beside
    assert "multibox.live =" in live_script("server")


def test_the_page_of_a_model_has_its_thresholds() -> None:
    import multibox

    page = page_for("face", multibox.load("face", threads=1))
    assert '"names":["face"],"thresholds":[0.7],"nms":0.3' in page


@pytest.mark.slow
def test_a_chosen_image_gets_boxes(address, stub, open_page, overflow) -> None:
    with open_page(address) as page:
        choose(page)
        assert shown(page) == ["cat 0.90", "dog 0.80", "cat 0.55"]
        assert page.locator(".found").inner_text() == "3 objects found"
        assert overflow(page) == 0
    assert [(one["threshold"], one["raw"]) for one in stub.asked] == [("0.05", "1")]
