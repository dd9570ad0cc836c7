import pytest
from PIL import Image

from multibox.pages.tour import NEXT, Exhibit, opening


def test_the_opening_names_each_step_and_the_next_commands() -> None:
    exhibit = Exhibit("tour-data", "The <data>", "See `multibox data show` & more.", Image.new("RGB", (30, 20)))
    text = opening([exhibit], 125.4)
    assert "2 min 5 s" in text
    assert '<a href="#tour-data">The &lt;data&gt;</a>' in text
    assert "See <code>multibox data show</code> &amp; more." in text
    assert all(command in text for command, _ in NEXT)


@pytest.mark.slow
def test_the_demo_ends_with_one_page(tmp_path, open_page, overflow, monkeypatch, capsys) -> None:
    from multibox.cli import demo

    monkeypatch.setattr(demo, "IMAGES", 40)
    demo.demo(out=tmp_path / "tour", epochs=1)
    said = capsys.readouterr().out
    assert all(command in said for command, _ in NEXT)
    for width, dark in ((1280, False), (390, True)):
        with open_page(tmp_path / "tour" / "index.html", width=width, dark=dark) as page:
            assert overflow(page) == 0
            assert page.locator("#tour-data img").is_visible()
            page.get_by_role("link", name="The report").click()
            assert page.locator("#summary .cards").is_visible()
            page.screenshot(path=tmp_path / f"tour-{width}.png")
