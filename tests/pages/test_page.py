import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.pages.page import build_page, to_json
from multibox.pages.page_images import crop_around, data_uri, heat_uri

TRICKY = '</script><script>throw new Error("escaped")</script><!-- & "quoted" 细胞'
SCRIPT = (Path(__file__).parent / "sample.js").read_text(encoding="utf-8")


def test_data_of_any_kind_stands_in_a_page() -> None:
    values = {
        "text": TRICKY,
        "array": np.array([[1.5, np.nan]]),
        "tuple": (1, np.float32(2)),
        "none": None,
        "inf": np.inf,
    }
    text = to_json(values)
    assert "<" not in text
    assert json.loads(text) == {"text": TRICKY, "array": [[1.5, None]], "tuple": [1, 2.0], "none": None, "inf": None}


def test_a_crop_knows_its_box_and_stays_inside() -> None:
    image = Image.new("RGB", (100, 50))
    part, box = crop_around(image, (90, 40, 100, 50), margin=1.0)
    assert part.size == (20, 20)
    assert box == [10, 10, 20, 20]
    assert crop_around(image, (200, 80, 300, 90))[0].width >= 1


def test_images_become_data(tmp_path) -> None:
    assert data_uri(Image.new("RGBA", (2000, 10))).startswith("data:image/jpeg;base64,")
    assert heat_uri(np.array([[0.0, 1.0], [np.nan, 0.5]], np.float32)).startswith("data:image/png;base64,")


@pytest.mark.slow
def test_the_widgets_work_in_a_browser(tmp_path, open_page, overflow, monkeypatch) -> None:
    from multibox.pages import page as pages

    real = pages.asset
    monkeypatch.setattr(pages, "asset", lambda name: SCRIPT if name == "sample.js" else real(name))
    heat = heat_uri(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    rows = [{"name": TRICKY, "ap": 0.25}, {"name": "b", "ap": None}, {"name": "c", "ap": 0.75}]
    data = {"image": data_uri(Image.new("RGB", (60, 40), "teal")), "name": TRICKY, "heat": heat, "rows": rows}
    path = tmp_path / "page.html"
    path.write_text(build_page(TRICKY, body="", data=data, scripts=["sample.js"]), encoding="utf-8")
    for width, dark in ((1280, False), (390, True)):
        with open_page(path, width=width, dark=dark) as page:
            assert overflow(page) == 0
            assert page.locator("h1").inner_text() == TRICKY
            page.get_by_role("button", name="AP", exact=True).click()
            assert page.locator("tbody tr td").nth(0).inner_text() == "c"
            page.get_by_role("slider", name="Score").focus()
            page.keyboard.press("ArrowRight")
            assert page.locator("output").inner_text() == "0.31"
            page.locator(".picture [role=button]").focus()
            page.keyboard.press("Enter")
            assert page.title() == "clicked"
            page.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)


@pytest.mark.slow
def test_suppression_in_the_page_is_that_of_prediction(tmp_path, open_page) -> None:
    import torch

    from multibox.ops.nms import suppress

    path = tmp_path / "page.html"
    path.write_text(build_page("suppression", body="", data={}), encoding="utf-8")
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (200, 2))], 1).astype(np.float32)
    scores, labels = np.sort(rng.uniform(0, 1, 200))[::-1], rng.integers(0, 3, 200)
    candidates = [
        {"box": box, "score": score, "label": label}
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]
    kept = np.zeros(200, bool)
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        kept[rows] = suppress(torch.from_numpy(boxes[rows]), torch.tensor([len(rows)]), 0.45, False).numpy()
    with open_page(path) as page:
        fate = page.evaluate("(c) => multibox.suppress(c, {score: 0, nms: 0.45})", candidates)
    assert np.array_equal(np.array(fate) == -1, kept)
