"""The page of `multibox serve` in a browser: images in, boxes out, and all that follows without the server."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from starlette.responses import JSONResponse

from multibox.pages.live_page import live_page, live_script, live_scripts, page_of
from multibox.pages.page import asset

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from live_stub import (
        MOST,
        NAMES,
        NMS,
        THRESHOLDS,
        Stub,
        candidate,
        overlap,
        photo,
        random_candidates,
        serve,
        suppress,
        wait_until,
    )
finally:
    sys.path.remove(str(HERE))

REFUSED = ["Failed to load resource"]
"""What Chromium's console says of every status above 399."""
PIXEL = """([at, x, y]) => {
    const canvas = document.querySelectorAll('.crop canvas')[at];
    return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];
}"""
"""Colour of a pixel of a crop."""
SETTINGS: dict[str, Any] = {"title": "stub", "names": NAMES, "thresholds": THRESHOLDS, "nms": NMS, "most": MOST}


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def address(stub) -> Iterator[str]:
    with serve(stub.app) as found:
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


def test_the_page_of_a_server_has_the_settings_of_its_model() -> None:
    import multibox

    models = {name: SimpleNamespace(source=name, detector=multibox.load(name, threads=1)) for name in ("face", "coco")}
    page = page_of(models)
    assert '"names":["face"],"thresholds":[0.7],"nms":0.3' in page
    assert '"about":"RFB-320","licence":"MIT"' in page
    assert '"models":["face","coco"]' in page
    assert '"model":"coco"' in page_of(models, "coco")
    assert '"model":"face"' in page_of(models, "no such model")


def test_both_languages_say_the_same_things() -> None:
    """Every word that a script asks for exists in both languages, and none is left over."""
    text = asset("live-words.js")
    tables = [dict(re.findall(r"\b(\w+): (\(|\")", part)) for part in text.split("  zh: {")]
    assert tables[0].keys() == tables[1].keys()
    assert tables[0] == tables[1], "a sentence in one language and a function in the other"
    code = "".join(asset(name) for name in live_scripts("server") if name.endswith(".js") and name != "live-words.js")
    assert [key for key in tables[0] if f'"{key}"' not in code] == []


@pytest.mark.slow
def test_a_chosen_image_gets_boxes(address, stub, open_page, overflow) -> None:
    with open_page(address) as page:
        assert page.locator(".empty h2").inner_text() == "Drop an image here, paste one, or choose a file"
        choose(page)
        assert shown(page) == ["cat 0.90", "dog 0.80", "cat 0.55"]
        assert page.locator(".found").inner_text() == "3 objects found"
        assert overflow(page) == 0
        # The first cat's box, in parts of the image
        place = page.evaluate(
            "['left', 'top', 'width', 'height'].map(side => document.querySelector('.box').style[side])"
        )
        assert [float(each.rstrip("%")) for each in place] == pytest.approx([62.5, 41.667, 31.25, 50], abs=0.01)
    assert [(one["threshold"], one["raw"]) for one in stub.asked] == [("0.05", "1")]


@pytest.mark.slow
def test_dropped_and_pasted_images_count_as_well(address, open_page) -> None:
    give = """([bytes, kind, name, event]) => {
        const transfer = new DataTransfer();
        if (name) transfer.items.add(new File([new Uint8Array(bytes)], name, {type: kind}));
        else transfer.setData("text/plain", "https://example.com/cat.jpg");
        const target = document.querySelector(".work");
        const options = {bubbles: true, cancelable: true};
        if (event === "paste") target.dispatchEvent(new ClipboardEvent("paste", {...options, clipboardData: transfer}));
        else for (const each of ["dragenter", "dragover", "drop"])
            target.dispatchEvent(new DragEvent(each, {...options, dataTransfer: transfer}));
        return document.body.classList.contains("dropping");
    }"""
    image = list(photo(64, 48))
    with open_page(address) as page:
        assert page.evaluate(give, [image, "image/png", "dropped.png", "drop"]) is False
        page.locator(".strip button", has_text="dropped.png").wait_for()
        page.evaluate(give, [image, "image/png", "pasted.png", "paste"])
        page.locator(".strip button", has_text="pasted.png").wait_for()
        # What is no image is refused by name, before the server is asked
        page.evaluate(give, [image, "application/pdf", "paper.pdf", "drop"])
        assert "paper.pdf is not an image" in page.locator(".notice").first.inner_text()
        page.evaluate(give, [image, "video/mp4", "clip.mp4", "drop"])
        assert "multibox predict MODEL clip.mp4" in page.locator(".notice").first.inner_text()
        page.evaluate(give, [[], "", "", "paste"])
        assert "no image in what you pasted" in page.locator(".notice").first.inner_text()
        page.evaluate(give, [[], "", "", "drop"])
        assert "Only image files can be dropped here" in page.locator(".notice").first.inner_text()
        page.locator(".notice").get_by_role("button", name="Close").click()
        assert page.locator(".notice").first.is_hidden()


@pytest.mark.slow
def test_each_refused_file_of_a_choice_is_named_and_its_image_is_shown(address, open_page) -> None:
    def given(name: str, kind: str) -> Any:
        return {"name": name, "mimeType": kind, "buffer": photo()}

    image, log, clip = given("dog.png", "image/png"), given("s1.log", "text/plain"), given("clip.mp4", "video/mp4")
    shown_box = "document.querySelector('.found').textContent !== '' && document.querySelector('.wait').hidden"
    lines = "[...document.querySelectorAll('.notice[role=alert] p')].map(each => each.textContent)"
    with open_page(address) as page:
        page.set_input_files("#files", [image, log, clip])
        wait_until(page, shown_box)
        first, second = page.evaluate(lines)
        assert "s1.log is not an image" in first
        assert "multibox predict MODEL clip.mp4" in second
        assert shown(page)
        page.set_input_files("#files", [log] * 9)
        texts = page.evaluate(lines)
        assert len(texts) == 4
        assert texts[-1] == "6 more files are not images."


@pytest.mark.slow
def test_sliders_act_as_the_server_would_without_asking_it(address, stub, open_page) -> None:
    stub.candidates = random_candidates(300, 320, 240)
    with open_page(address) as page:
        choose(page)
        rows = suppress(stub.candidates, NMS)
        own = [row for row in rows if row["score"] >= THRESHOLDS[row["label"]]][:MOST]
        assert shown(page) == [f"{row['name']} {row['score']:.2f}" for row in own]
        assert page.get_by_role("button", name="Back to the model's own").is_hidden()
        for score, nms in ((0.05, NMS), (0.3, 0.2), (0.3, 0.0), (0.9, 1.0), (0.05, 1.0)):
            page.get_by_role("slider", name="Lowest score").fill(str(score))
            page.get_by_role("slider", name="Overlap allowed").fill(str(nms))
            wanted = [row for row in suppress(stub.candidates, nms) if row["score"] >= score][:MOST]
            assert shown(page) == [f"{row['name']} {row['score']:.2f}" for row in wanted], (score, nms)
            assert page.locator(".found").inner_text() == f"{len(wanted)} objects found"
        page.get_by_role("button", name="Back to the model's own").click()
        assert len(shown(page)) == len(own)
        assert page.get_by_role("slider", name="Lowest score").input_value() == "0.5"
    assert len(stub.asked) == 1


@pytest.mark.slow
def test_at_the_models_overlap_the_servers_own_result_counts(address, stub, open_page) -> None:
    """Suppression compares boxes before they are cut at the border; only the server has those."""
    stub.kept = [stub.candidates[place] for place in (0, 1, 2)]
    with open_page(address) as page:
        choose(page)
        assert shown(page) == ["cat 0.90", "dog 0.80", "cat 0.70"]
        page.get_by_role("slider", name="Overlap allowed").fill("0.51")
        assert shown(page) == ["cat 0.90", "dog 0.80", "cat 0.55"]


@pytest.mark.slow
def test_detections_that_are_not_among_the_candidates_are_shown_too(address, stub, open_page) -> None:
    stub.most_candidates = 2
    with open_page(address) as page:
        choose(page)
        assert shown(page) == ["cat 0.90", "dog 0.80", "cat 0.55"]


@pytest.mark.slow
def test_the_real_server_and_its_page_agree(open_page) -> None:
    """With the server's own rules about tokens, hosts and what the page may load."""
    pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")
    from multibox.serving.app import make_app
    from multibox.serving.hosted import open_models

    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    models = open_models(["coco"])
    try:
        with (
            serve(make_app(models, token="a-long-token")) as address,
            open_page(f"{address}?token=a-long-token") as page,
        ):
            assert (
                page.locator(".about").inner_text()
                == "SSD MobileNetV1 0.75 \u00b7 80 classes \u00b7 licence Apache-2.0"
            )
            assert page.url == address
            choose(page, file.getvalue())
            page.get_by_role("slider", name="Lowest score").fill("0.05")
            headers = {"content-type": "image/png", "authorization": "Bearer a-long-token"}
            request = urllib.request.Request(f"{address}predict?threshold=0.05", file.getvalue(), headers)
            with urllib.request.urlopen(request) as answer:
                wanted = json.load(answer)["detections"]
            assert len(wanted) > 3
            # Equal scores have no order
            assert sorted(shown(page)) == sorted(f"{one['name']} {one['score']:.2f}" for one in wanted)
    finally:
        models["coco"].close()


@pytest.mark.slow
def test_classes_can_be_hidden(address, stub, open_page) -> None:
    with open_page(address) as page:
        choose(page)
        chips = page.locator(".chip")
        assert chips.all_inner_texts() == ["cat\n2", "dog\n1"]
        page.get_by_role("checkbox", name="cat 2").uncheck()
        assert shown(page) == ["dog 0.80"]
        assert page.locator(".found").inner_text() == "1 object found"
        assert "2 hidden by class" in page.locator(".summary").inner_text()
        wait_until(page, "document.querySelector('.strip small').textContent === '1 object'")
        assert page.locator(".crop").count() == 1
        page.get_by_role("button", name="None", exact=True).click()
        assert shown(page) == []
        page.get_by_role("button", name="All", exact=True).click()
        assert len(shown(page)) == 3
        # The choice holds for the next image
        page.get_by_role("checkbox", name="dog 1").uncheck()
        choose(page, name="next.png")
        page.locator(".strip button", has_text="next.png").wait_for()
        assert shown(page) == ["cat 0.90", "cat 0.55"]
    assert len(stub.asked) == 2


@pytest.mark.slow
def test_crops_show_and_save_the_pixels_of_their_boxes(address, open_page, tmp_path) -> None:
    with open_page(address) as page:
        choose(page)
        assert page.locator(".crop").all_inner_texts() == ["cat\n0.90", "dog\n0.80", "cat\n0.55"]
        # Each pixel of the image says where it stands
        assert page.evaluate(PIXEL, [0, 0, 0]) == [20, 30, 99, 255]
        assert page.evaluate(PIXEL, [0, 99, 99]) == [119, 129, 99, 255]
        assert page.evaluate(PIXEL, [1, 5, 0]) == [205, 100, 99, 255]
        page.locator(".crop").nth(1).click()
        card = page.locator(".chosen-card")
        assert "2 of 3 · 100 \u00d7 120 pixels" in card.inner_text()
        assert "Box 200.0, 100.0, 300.0, 220.0" in card.inner_text()
        with page.expect_download() as download:
            card.get_by_role("button", name="Save crop").click()
        assert download.value.suggested_filename == "photo-dog-2.png"
        download.value.save_as(tmp_path / "crop.png")
        saved = Image.open(tmp_path / "crop.png").convert("RGB")
        assert saved.size == (100, 120)
        assert saved.getpixel((7, 9)) == (207, 109, 99)
        # Zooming brings the object to the middle of the frame
        card.get_by_role("button", name="Zoom in").click()
        page.wait_for_timeout(400)
        frame, box = page.locator(".frame").bounding_box(), page.locator(".box[aria-pressed=true]").bounding_box()
        assert box["height"] > 0.55 * frame["height"]
        assert frame["x"] <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
        card.get_by_role("button", name="Only this class").click()
        assert shown(page) == ["dog 0.80"]
        with page.expect_download() as download:
            page.get_by_role("button", name="Save image with boxes").click()
        assert download.value.suggested_filename == "photo-boxes.jpg"
        download.value.save_as(tmp_path / "boxes.jpg")
        drawn = Image.open(tmp_path / "boxes.jpg")
        assert drawn.size == (320, 240)
        # The line of the box has the colour of its class
        assert drawn.getpixel((200, 160)) == pytest.approx((0xFF, 0xB0, 0x20), abs=45)


@pytest.mark.slow
def test_json_is_copied_at_the_sliders_and_without_hidden_classes(address, open_page) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with open_page(address, permissions=permissions) as page:
        choose(page)
        page.get_by_role("checkbox", name="dog 1").uncheck()
        page.get_by_role("slider", name="Lowest score").fill("0.6")
        page.get_by_role("button", name="Copy JSON").click()
        page.get_by_text("Copied", exact=True).wait_for()
        wanted = {
            "file": "photo.png",
            "width": 320,
            "height": 240,
            "detections": [{"label": 0, "name": "cat", "score": 0.9, "box": [20, 30, 120, 130]}],
        }
        assert json.loads(page.evaluate("navigator.clipboard.readText()")) == wanted
        with page.expect_download() as download:
            page.get_by_role("button", name="Save JSON").click()
        assert download.value.suggested_filename == "photo.json"
        assert json.loads(Path(download.value.path()).read_text(encoding="utf-8")) == wanted
        # Pages on plain HTTP have no `navigator.clipboard`; where the older way fails, too, one copies by hand
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.get_by_role("button", name="Copy JSON").click()
        page.get_by_text("Copied", exact=True).wait_for()
        page.evaluate("document.execCommand = () => false")
        page.get_by_role("button", name="Copy JSON").click()
        page.get_by_text("The browser does not allow copying here").wait_for()
        assert json.loads(page.locator(".by-hand").input_value()) == wanted


@pytest.mark.slow
def test_the_session_is_remembered_up_to_a_limit(address, stub, open_page) -> None:
    with open_page(address) as page:
        files = [{"name": f"{number}.png", "mimeType": "image/png", "buffer": photo(40, 30)} for number in range(26)]
        page.set_input_files("#files", files)
        page.locator(".strip button", has_text="25.png").wait_for()
        names = page.locator(".strip .name").all_inner_texts()
        assert names == [f"{number}.png" for number in range(25, 1, -1)]
        assert len(stub.asked) == 26
        assert page.locator(".strip [aria-current=true]").inner_text().startswith("25.png")
        page.get_by_role("slider", name="Lowest score").fill("0.85")
        wait_until(page, "[...document.querySelectorAll('.strip small')].every(e => e.textContent === '1 object')")
        page.locator(".strip button", has_text="7.png").last.click()
        assert page.locator(".strip [aria-current=true]").inner_text().startswith("7.png")
        assert len(shown(page)) == 1
        page.get_by_role("button", name="Clear").click()
        assert page.locator(".strip button").count() == 0
        assert page.locator(".empty").is_visible()
        assert page.evaluate("document.activeElement.textContent") == "Choose images"
    assert len(stub.asked) == 26


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent")


def tab_to(page: Any, wanted: str) -> None:
    """Press Tab until an element of this name has the focus, which must be visible."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused(page).startswith(wanted):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", wanted
            return
    raise AssertionError(f"{wanted} cannot be reached with Tab")


@pytest.mark.slow
def test_everything_can_be_done_by_keyboard(address, open_page) -> None:
    with open_page(address) as page:
        page.keyboard.press("Tab")
        assert focused(page) == "Skip to content"
        tab_to(page, "Choose images")
        with page.expect_file_chooser() as chooser:
            page.wait_for_timeout(500)  # Playwright intercepts choosers a moment later
            page.keyboard.press("Enter")
        chooser.value.set_files({"name": "photo.png", "mimeType": "image/png", "buffer": photo()})
        wait_until(page, "document.querySelector('.found').textContent === '3 objects found'")
        assert page.locator("p[role=status]").first.inner_text() == "3 objects found"
        page.locator(".skip").focus()
        # One stop for all boxes; arrow keys go through them, best first
        tab_to(page, "cat 0.90")
        page.keyboard.press("ArrowRight")
        assert focused(page) == "dog 0.80"
        assert page.locator(".chosen-card h2").inner_text().split() == ["dog", "0.800"]
        page.keyboard.press("End")
        assert focused(page) == "cat 0.55"
        page.keyboard.press("ArrowRight")
        assert focused(page) == "cat 0.90"
        page.keyboard.press("Enter")
        assert page.locator(".frame.zoomed").count() == 1
        page.keyboard.press("Escape")
        assert page.locator(".frame.zoomed").count() == 0
        page.keyboard.press("Escape")
        assert page.locator(".chosen-card").is_hidden()
        assert focused(page) == "cat 0.90"


@pytest.mark.slow
def test_sliders_and_filters_work_by_keyboard(address, open_page) -> None:
    with open_page(address) as page:
        choose(page)
        tab_to(page, "Lowest score")
        page.keyboard.press("End")
        assert page.locator(".found").inner_text() == "No object found"
        page.keyboard.press("Home")
        assert page.locator(".found").inner_text() == "5 objects found"
        for name in ("Overlap allowed", "Back to the model's own"):
            tab_to(page, name)
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.evaluate("document.activeElement.type") == "checkbox"
        assert page.locator(".found").inner_text() != "5 objects found"
        page.keyboard.press("Space")
        for name in ("Copy JSON", "Save JSON", "cat 0.90", "photo.png", "Clear"):
            tab_to(page, name)


@pytest.mark.slow
def test_the_page_speaks_chinese(address, open_page) -> None:
    with open_page(address, locale="zh-CN") as page:
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.get_by_role("button", name="选择图片").is_visible()
        choose(page)
        assert page.locator(".found").inner_text() == "找到 3 个物体"
        assert shown(page)[0] == "cat 0.90"
        page.get_by_role("combobox", name="语言").select_option("en")
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.locator(".found").inner_text() == "3 objects found"
        assert page.locator(".strip small").inner_text() == "3 objects"
        # The choice outlives the page
        page.reload()
        assert page.get_by_role("button", name="Choose images").is_visible()
        page.get_by_role("combobox", name="Language").select_option("zh")
        visible = page.locator("#live").inner_text() + page.locator("header").inner_text()
        left_over = set(re.findall(r"[A-Za-z]{3,}", visible)) - {
            "stub",
            "English",
            "cat",
            "dog",
            "img",
            "src",
            "onerror",
            "alert",
        }
        assert left_over == set()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone(address, stub, open_page, overflow, tmp_path, dark) -> None:
    stub.options = {
        "title": "a_model_with_a_very_long_name_" * 3,
        "about": "SSD MobileNetV1 0.75",
        "licence": "Apache-2.0",
    }
    with open_page(address, width=390, dark=dark, has_touch=True, is_mobile=True) as page:
        assert overflow(page) == 0
        assert page.get_by_role("button", name="Take a photo").is_visible()
        assert page.locator("#photo").get_attribute("capture") == "environment"
        assert page.locator("#photo").get_attribute("accept") == "image/*"
        choose(page)
        page.locator(".crop").first.click()
        for fold in page.locator("details").all():
            fold.evaluate("node => { node.open = true; }")
        assert overflow(page) == 0
        page.locator(".box").last.tap()
        page.screenshot(path=tmp_path / "phone.png", full_page=True)


@pytest.mark.slow
def test_a_photo_stands_upright_with_its_boxes(address, stub, open_page) -> None:
    """A phone stores photos lying down and says in EXIF how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    stub.candidates = [candidate(0, 0.9, 0, 0, 40, 20)]
    with open_page(address) as page:
        choose(page, photo(320, 240, format="JPEG", quality=95, exif=exif), "photo.jpg", "image/jpeg")
        assert page.evaluate(
            "[document.querySelector('.frame img').naturalWidth, document.querySelector('.frame img').naturalHeight]"
        ) == [240, 320]
        frame = page.locator(".frame").bounding_box()
        assert frame["width"] / frame["height"] == pytest.approx(0.75, abs=0.01)
        assert page.evaluate(
            "[document.querySelector('.crop canvas').width, document.querySelector('.crop canvas').height]"
        ) == [40, 20]
        # The upper left corner was the lower left one: x stays small, y is near 239
        red, green, *_ = page.evaluate(PIXEL, [0, 1, 1])
        assert red < 12
        assert green > 225


@pytest.mark.slow
def test_markup_in_names_stays_text(address, stub, open_page) -> None:
    stub.candidates = [candidate(2, 0.9, 20, 30, 120, 130)]
    stub.options = {"title": "<script>alert(1)</script>", "about": "</script><script>alert(2)</script>"}
    with open_page(address, expected=REFUSED) as page:
        choose(page, name='"><img src=x onerror=alert(3)>.png')
        assert shown(page) == [f"{NAMES[2]} 0.90"]
        page.locator(".crop").click()
        stub.refusals = [JSONResponse({"error": "<img src=x onerror=alert(4)>"}, 422)]
        page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": photo()})
        page.get_by_text("<img src=x onerror=alert(4)>").wait_for()
        assert page.evaluate("document.querySelectorAll('img[src=x], #live script').length") == 0


@pytest.mark.slow
def test_many_boxes_are_moved_not_made_anew(address, stub, open_page) -> None:
    stub.candidates = random_candidates(300, 320, 240)
    stub.options = {"most": 300}
    with open_page(address) as page:
        choose(page)
        page.get_by_role("slider", name="Overlap allowed").fill("1")
        page.get_by_role("slider", name="Lowest score").fill("0.05")
        assert len(shown(page)) == 300
        assert page.locator(".crop").count() == 48
        page.evaluate("document.querySelectorAll('.box, .crop').forEach(node => { node.mark = true; })")
        for score in ("0.9", "0.5", "0.05"):
            page.get_by_role("slider", name="Lowest score").fill(score)
        assert page.evaluate("[...document.querySelectorAll('.box, .crop')].every(node => node.mark)")
        page.get_by_role("button", name="Show all 300").click()
        assert page.locator(".crop").count() == 300
        # Only labels that cover no other one are shown
        tags = page.evaluate(
            "[...document.querySelectorAll('.box:not(.quiet) .tag')].map(e => e.getBoundingClientRect())"
            ".map(r => [r.left, r.top, r.right, r.bottom])"
        )
        assert 3 < len(tags) < 150
        cover = [(a, b) for i, a in enumerate(tags) for b in tags[:i] if overlap(a, b) > 0.05]
        assert cover == []


@pytest.mark.slow
def test_what_programs_need_stands_on_the_page(address, stub, open_page, tmp_path) -> None:
    stub.options = {
        "secured": True,
        "extra": {"model": "two"},
        "links": {"models": ["one", "two"], "openapi": "openapi.json"},
    }
    with open_page(address) as page:
        assert page.get_by_role("combobox", name="Model").input_value() == "two"
        page.get_by_text("Use it from a program").click()
        assert page.get_by_role("link", name="openapi.json").get_attribute("href") == "openapi.json"
        shell, python = page.locator("details pre").all_inner_texts()
        assert f"'{address}predict?model=two'" in shell
        assert "Bearer $MULTIBOX_TOKEN" in shell
        page.get_by_role("combobox", name="Model").select_option("one")
        page.wait_for_url("**/?model=one")
    # The lines run as they stand
    (tmp_path / "photo.jpg").write_bytes(photo(format="JPEG"))
    given = {"cwd": tmp_path, "capture_output": True, "text": True, "env": {**os.environ, "MULTIBOX_TOKEN": "abc"}}
    done = subprocess.run([sys.executable, "-c", python], **given)
    assert done.stdout.splitlines()[0] == "cat 0.9 [20, 30, 120, 130]", done.stderr
    assert stub.asked[-1]["headers"]["authorization"] == "Bearer abc"
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-c", shell], **given)
        assert len(json.loads(done.stdout)["detections"]) == 5
        assert stub.asked[-1]["headers"]["authorization"] == "Bearer abc"
