"""The camera of the page of `multibox serve`, by Chromium's fake device, and what it says when things go wrong."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from starlette.responses import JSONResponse, PlainTextResponse

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from live_stub import Stub, photo, serve, wait_until
finally:
    sys.path.remove(str(HERE))

pytestmark = pytest.mark.slow
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
"""Flags of Chromium: a camera that shows a moving pattern, and that any page may use."""
DEVICE = ["--use-fake-device-for-media-stream"]
REFUSED = ["Failed to load resource"]
"""What Chromium's console says of every status above 399."""
WATCH = """
    window.opened = [];
    const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        const stream = await open(wanted);
        window.opened.push(...stream.getTracks());
        return stream;
    };
"""
"""Script that remembers every track that the page opens."""
ONLY_PHOTO = {"name": "a.png", "mimeType": "image/png", "buffer": photo()}


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def address(stub) -> Iterator[str]:
    with serve(stub.app) as found:
        yield found


def start_camera(page: Any) -> None:
    page.get_by_role("button", name="Use the camera").click()
    wait_until(page, "document.querySelectorAll('.box').length > 0")


def hide(page: Any, hidden: bool) -> None:
    """Let the page believe that its tab is hidden."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_the_camera_is_followed_frame_by_frame(address, stub, open_page) -> None:
    stub.delay = 0.05
    with open_page(address, flags=CAMERA, prepare=lambda page: page.add_init_script(WATCH)) as page:
        start_camera(page)
        wait_until(page, "/^[\\d.]+ frames.s, \\d+ ms each$/.test(document.querySelector('.rate').textContent)")
        assert page.locator(".found").inner_text() == "3 objects found"
        assert page.evaluate("document.querySelector('video').videoWidth") > 300
        before = len(stub.asked)
        page.wait_for_timeout(500)
        assert len(stub.asked) > before + 1
        # The next frame waits for the answer to the one before
        assert stub.most_at_once == 1
        # Frames are small JPEGs
        assert {one["headers"]["content-type"] for one in stub.asked} == {"image/jpeg"}
        assert max(one["bytes"] for one in stub.asked) < 100_000
        # The sliders act on the picture
        page.get_by_role("slider", name="Lowest score").fill("0.85")
        wait_until(page, "[...document.querySelectorAll('.box')].filter(e => !e.hidden).length === 1")
        hide(page, True)
        page.wait_for_timeout(300)
        before = len(stub.asked)
        page.wait_for_timeout(300)
        assert len(stub.asked) == before
        assert page.locator(".rate").inner_text() == "Paused while this page is hidden."
        hide(page, False)
        page.wait_for_timeout(400)
        assert len(stub.asked) > before
        page.get_by_role("button", name="Stop the camera").click()
        assert page.evaluate("opened.map(track => track.readyState)") == ["ended"]
        assert page.locator("video").count() == 0
        assert page.locator(".empty").is_visible()
        assert page.locator(".strip button").count() == 0


def test_a_frozen_frame_is_an_image_like_any_other(address, stub, open_page) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with open_page(
        address, flags=CAMERA, prepare=lambda page: page.add_init_script(WATCH), permissions=permissions
    ) as page:
        start_camera(page)
        page.get_by_role("button", name="Freeze").click()
        page.locator(".strip button").wait_for()
        assert page.evaluate("opened.map(track => track.readyState)") == ["ended"]
        assert page.locator(".crop").count() == 3
        assert page.evaluate("document.activeElement.textContent") == "Use the camera"
        page.get_by_role("button", name="Copy JSON").click()
        page.get_by_text("Copied", exact=True).wait_for()
        copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
        assert copied["file"].startswith("camera-20")
        assert max(copied["width"], copied["height"]) <= 640
        # The camera starts again; a file or an image of the session stops it
        start_camera(page)
        page.locator(".strip button").click()
        assert page.evaluate("opened.map(track => track.readyState)") == ["ended", "ended"]
        start_camera(page)
        page.set_input_files("#files", ONLY_PHOTO)
        page.locator(".strip button", has_text="a.png").wait_for()
        assert page.evaluate("opened.map(track => track.readyState)") == ["ended"] * 3


def test_without_https_a_photo_is_offered_and_the_reason_given(address, open_page) -> None:
    gone = "Object.defineProperty(navigator, 'mediaDevices', {value: undefined})"
    with open_page(address, prepare=lambda page: page.add_init_script(gone)) as page:
        assert page.get_by_role("button", name="Use the camera").is_hidden()
        assert page.get_by_text("Browsers offer the live camera only on HTTPS").is_visible()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a photo").click()
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files(ONLY_PHOTO)
        page.locator(".found", has_text="3 objects found").wait_for()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("NotAllowedError", "does not let this page use the camera"),
        ("NotFoundError", "No camera was found"),
        ("NotReadableError", "another program may be using it"),
        ("TypeError", "The camera cannot be used: because"),
    ],
)
def test_a_camera_that_cannot_be_used_is_explained(address, open_page, error, told) -> None:
    refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('because', '{error}'); }}"
    with open_page(address, flags=DEVICE, prepare=lambda page: page.add_init_script(refuse)) as page:
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_text(told).wait_for()
        assert page.get_by_role("button", name="Use the camera").is_visible()
        assert page.locator(".empty").is_visible()


def test_a_camera_may_be_given_up_while_it_starts(address, open_page) -> None:
    slow = "navigator.mediaDevices.getUserMedia = () => new Promise(() => {});"
    with open_page(address, flags=DEVICE, prepare=lambda page: page.add_init_script(slow)) as page:
        page.set_input_files("#files", ONLY_PHOTO)
        page.locator(".found", has_text="3 objects found").wait_for()
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_text("Starting the camera").wait_for()
        page.get_by_role("button", name="Stop the camera").click()
        assert page.get_by_role("button", name="Use the camera").is_visible()
        # What was looked at before is back
        assert page.locator(".crop").count() == 3


def test_a_camera_that_is_unplugged_is_told(address, open_page) -> None:
    with open_page(address, flags=CAMERA, prepare=lambda page: page.add_init_script(WATCH)) as page:
        start_camera(page)
        page.evaluate("opened[0].dispatchEvent(new Event('ended'))")
        page.get_by_text("The camera was disconnected.").wait_for()
        assert page.get_by_role("button", name="Use the camera").is_visible()


def test_a_busy_server_is_asked_again(address, stub, open_page) -> None:
    stub.refusals = [JSONResponse({"error": "busy"}, 503, {"retry-after": "1"}) for _ in range(2)]
    with open_page(address, expected=REFUSED) as page:
        page.set_input_files("#files", ONLY_PHOTO)
        page.get_by_text("The server is busy. Trying again in 1 s").wait_for()
        page.locator(".found", has_text="3 objects found").wait_for()
        assert page.locator(".notice").first.is_hidden()
    assert len(stub.asked) == 3


def test_the_servers_mistakes_are_told_in_its_words(address, stub, open_page) -> None:
    stub.refusals = [
        JSONResponse({"error": "the image has 90 megapixels; at most 50 are taken"}, 413),
        PlainTextResponse("Bad gateway", 502),
    ]
    with open_page(address, expected=REFUSED) as page:
        page.set_input_files("#files", ONLY_PHOTO)
        page.get_by_text("the image has 90 megapixels; at most 50 are taken").wait_for()
        assert page.locator(".notice[role=alert]").is_visible()
        assert page.locator(".empty").is_visible()
        page.get_by_role("button", name="Try again").click()
        page.get_by_text("Bad gateway").wait_for()
        page.get_by_role("button", name="Try again").click()
        page.locator(".found", has_text="3 objects found").wait_for()
        assert page.locator(".notice").first.is_hidden()
        page.route("**/predict*", lambda route: route.abort())
        page.set_input_files("#files", ONLY_PHOTO)
        page.get_by_text("The server does not answer").wait_for()
        # What was seen before is still there
        page.locator(".strip button").click()
        assert page.locator(".crop").count() == 3


def test_a_token_is_asked_for_and_sent(address, stub, open_page) -> None:
    stub.refusals = [JSONResponse({"error": "a token is needed"}, 401) for _ in range(2)]
    with open_page(address, expected=REFUSED) as page:
        page.set_input_files("#files", ONLY_PHOTO)
        for token in ("wrong", " s3cret-token "):
            page.get_by_label("This server needs its token").fill(token)
            page.keyboard.press("Enter")
            page.wait_for_timeout(300)
        page.locator(".found", has_text="3 objects found").wait_for()
        assert page.get_by_label("This server needs its token").is_hidden()
    assert [one["headers"].get("authorization") for one in stub.asked] == [None, "Bearer wrong", "Bearer s3cret-token"]


def test_an_image_that_only_the_server_can_read_still_gets_boxes(address, open_page) -> None:
    with open_page(address) as page:
        tiff = {"name": "scan.tif", "mimeType": "image/tiff", "buffer": photo(format="TIFF")}
        page.set_input_files("#files", tiff)
        page.get_by_text("This browser cannot show this kind of file").wait_for()
        assert page.locator(".box").count() == 3
        frame = page.locator(".frame").bounding_box()
        assert frame["width"] / frame["height"] == pytest.approx(320 / 240, abs=0.01)
        page.locator(".crop").first.click()
        assert page.get_by_role("button", name="Save crop").count() == 0
        assert page.get_by_role("button", name="Save image with boxes").is_hidden()
