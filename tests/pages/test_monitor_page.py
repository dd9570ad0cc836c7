"""The monitor's page in a browser: it follows a run, overlays runs, stops one, and fits a phone."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multibox.cli.monitor import listen, make_server

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from fake_runs import HOSTILE, FakeRun, old_run
finally:
    sys.path.remove(str(HERE))

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path) -> Path:
    first = FakeRun(tmp_path / "runs" / "first", began=time.time() - 9000)
    first.go(400)
    first.status("finished")
    second = FakeRun(tmp_path / "runs" / "grid" / HOSTILE.replace("/", "-") / "seed-0")
    second.go(60)
    second.status("failed", error=HOSTILE)
    old_run(tmp_path / "runs" / "older")
    return tmp_path / "runs"


@pytest.fixture
def address(runs) -> Iterator[str]:
    with listen("127.0.0.1", 0) as listener:
        server = make_server(runs, "127.0.0.1", listener, None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(5)


def headings(page: Any) -> list[str]:
    return page.locator(".charts h3").all_inner_texts()


def wait_until(page: Any, expression: str, seconds: float = 10) -> None:
    """Wait until an expression is true; Playwright's own waiting is eval, which the page forbids."""
    began = time.monotonic()
    while not page.evaluate(expression):
        assert time.monotonic() - began < seconds, expression
        page.wait_for_timeout(50)


def points(page: Any, chart: str = "Loss") -> int:
    """Return the number of points of the first curve of a chart."""
    curve = page.locator(".charts > div", has=page.get_by_role("heading", name=chart, exact=True)).locator("path").first
    return curve.get_attribute("d").count("L") + 1


def test_the_page_follows_a_run(address, runs, open_page) -> None:
    run = FakeRun(runs / "live")
    run.go(60)
    with open_page(address) as page:
        page.get_by_text("live", exact=True).first.wait_for()
        # The run at work and nothing else is ticked
        assert page.locator(".now h3").all_inner_texts() == ["live"]
        page.locator(".charts svg").first.wait_for()
        assert headings(page)[:3] == ["Loss", "mAP at IoU 0.5", "Parts of the loss"]
        before = points(page)
        run.go(60)
        page.get_by_text("step 120 of 400").wait_for()
        wait_until(page, "document.querySelectorAll('.charts circle').length >= 4")
        assert points(page) == before + 30
        assert "live" in page.title()
        assert page.title().startswith("30 %")
        page.get_by_text("step 100, mAP").wait_for()
        slider = page.get_by_role("slider", name="Validation")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        page.get_by_text("live, step 50, mAP").wait_for()
        wait_until(page, "document.querySelector('.samples img').naturalWidth === 640")
        run.go(50)
        page.get_by_text("step 170 of 400").wait_for()
        # A look back stays where it is when a validation comes
        assert page.get_by_text("live, step 50, mAP").is_visible()
        run.status("validating")
        page.locator(".now .state", has_text="validating").wait_for()
        new = FakeRun(runs / "new")
        page.get_by_role("checkbox", name="new").wait_for()
        new.go(4)
        assert page.get_by_role("checkbox", name="new").is_checked() is False


def test_several_runs_are_overlaid_and_compared(address, open_page, overflow) -> None:
    for width, dark in ((1280, True), (390, False)):
        with open_page(address, width=width, dark=dark) as page:
            for name in ("first", "older"):
                page.get_by_role("checkbox", name=name).check()
            page.get_by_role("checkbox", name="seed-0").focus()
            page.keyboard.press("Space")
            wait_until(page, "document.querySelectorAll('.charts > div:first-child path').length >= 6")
            assert page.locator(".now h3").count() == 3
            assert page.locator(".run .bad", has_text="onerror").is_visible()
            page.get_by_role("slider", name="Smoothing").focus()
            page.keyboard.press("End")
            page.get_by_role("combobox", name="Over").select_option("seconds")
            page.get_by_text("since the start").first.wait_for()
            assert page.get_by_role("combobox", name="Classes").locator("option").count() >= 5
            page.get_by_role("combobox", name="Classes").select_option("ant")
            assert page.locator("#settings tbody tr").count() >= 1
            assert overflow(page) == 0
            page.reload()
            wait_until(page, "document.querySelectorAll('.now h3').length === 3")
            page.get_by_role("checkbox", name="older").uncheck()
            wait_until(page, "document.querySelectorAll('.now h3').length === 2")


def test_the_stop_button_asks_first(address, runs, open_page) -> None:
    run = FakeRun(runs / "live")
    run.go(10)
    with open_page(address) as page:
        button = page.get_by_role("button", name="Stop and save")
        button.focus()
        page.keyboard.press("Enter")
        page.get_by_text("Stop live?").wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("Stop live?").wait_for(state="hidden")
        assert not (runs / "live" / "stop").exists()
        button.click()
        page.get_by_role("button", name="Save and stop").click()
        page.get_by_text("Asked to stop").wait_for()
        assert (runs / "live" / "stop").exists()
        (runs / "live" / "stop").unlink()
        run.status("stopped")
        page.locator(".now .state", has_text="stopped").wait_for()
        assert button.is_hidden()


def test_an_empty_folder_waits_for_its_first_run(tmp_path, open_page) -> None:
    with listen("127.0.0.1", 0) as listener:
        server = make_server(tmp_path / "none", "127.0.0.1", listener, None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with open_page(f"http://127.0.0.1:{listener.getsockname()[1]}/") as page:
                page.get_by_text("No run is here yet").wait_for()
                FakeRun(tmp_path / "none" / "born").go(20)
                page.get_by_role("checkbox", name="born").wait_for()
                assert page.get_by_role("checkbox", name="born").is_checked()
                page.locator(".charts svg").first.wait_for()
                server.should_exit = True
                page.get_by_text("the monitor has ended").wait_for()
                thread.join(5)
                page.goto("about:blank")
        finally:
            server.should_exit = True
            thread.join(5)


def test_hundreds_of_runs_can_be_filtered(address, runs, open_page) -> None:
    status = (runs / "first" / "status.json").read_text()
    for number in range(300):
        (runs / f"many-{number:03}").mkdir()
        (runs / f"many-{number:03}" / "status.json").write_text(status)
    began = time.monotonic()
    with open_page(address) as page:
        page.get_by_role("checkbox", name="many-299").wait_for()
        assert time.monotonic() - began < 5
        page.get_by_role("searchbox").fill("many-12")
        wait_until(page, "document.querySelectorAll('.runs tbody tr').length === 10")
        # One is ticked from the start
        for number in range(120, 127):
            page.get_by_role("checkbox", name=f"many-{number}").set_checked(True)
        wait_until(page, "document.querySelectorAll('.now h3').length === 8")
        page.get_by_role("checkbox", name="many-127").click()
        page.get_by_text("at most 8 runs").wait_for()
        assert page.get_by_role("checkbox", name="many-127").is_checked() is False
