"""The report in a real browser: the values under the pointer, the legend, the axes, and a page that follows a run.

Needs the package playwright and Chromium: the program that ASCEND_CPT_BROWSER names, or chromium on the PATH (Debian:
apt install chromium).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.monitor.record import ValidationRecord
from ascend_cpt.monitor.report.write_report import write_report
from ascend_cpt.monitor.sinks import JsonlSink
from tests.unit.monitor.report.test_report import write_run
from tests.unit.monitor.report.test_serve import Served, serve
from tests.unit.monitor.test_heat_map import write_needles
from tests.unit.monitor.test_sinks import make_step

pytestmark = pytest.mark.slow
__all__ = ["serve"]  # a fixture

WAIT_MS = 120_000
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)<b>"


def find_browser() -> str:
    names = [os.environ.get("ASCEND_CPT_BROWSER", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH; install it, or set ASCEND_CPT_BROWSER to its program")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements/dev.txt)")
    program = find_browser()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address and wait for its first chart. At the end, the page must have had no errors and other requests."""
    contexts: list[Any] = []
    problems: list[str] = []

    def start(address: str, *, width: int = 1280, scheme: str = "light", wait_for: str = ".plot .main-svg") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: None if request.url.startswith(address) else problems.append(request.url))
        page.goto(address)
        page.wait_for_selector(wait_for)
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []


def write_long_run(folder: Path, level: float, num_steps: int = 400) -> Path:
    """Write a run in two phases, with a step on which the loss is higher by 5, and a validation every 100 steps."""
    phases = [
        {"name": "first", "first_step": 0, "stop_step": 300, "tokens": {"web": 1}},
        {"name": "second", "first_step": 300, "stop_step": 400, "tokens": {"web": 1}},
    ]
    write_run(folder, phases)
    (folder / "metrics.jsonl").unlink()
    sink = JsonlSink(folder / "metrics.jsonl", 0)
    for step in range(1, num_steps + 1):
        loss = level + (5 if step == 250 else 0)
        sink.write(replace(make_step(step, loss=loss), total_steps=num_steps, step_time_s=18.0))
        if step % 100 == 0:
            sink.write(ValidationRecord(step=step, name="general", loss=level, num_labels=9))
    sink.close()
    return folder


@pytest.fixture
def two_runs(tmp_path: Path) -> str:
    folders = [write_long_run(tmp_path / HOSTILE, 2.0), write_long_run(tmp_path / "other", 3.0)]
    write_report(folders, tmp_path / "page.html")
    return (tmp_path / "page.html").as_uri()


def loss_chart(page: Any) -> Any:
    return page.locator("#charts .chart").first


def drawn(page: Any, path: str) -> Any:
    """A value of the first chart as plotly has drawn it."""
    return page.evaluate(f"document.querySelector('#charts .plot').{path}")


def wait_until(page: Any, condition: str) -> None:
    """Wait for a JavaScript expression. The page's security policy forbids playwright's own wait_for_function."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(100)


def hover(page: Any, share: float) -> str:
    """Move the pointer over the loss chart and return the text of the label."""
    area = loss_chart(page).locator(".nsewdrag").bounding_box()
    page.mouse.move(area["x"] + area["width"] * share, area["y"] + area["height"] / 2, steps=3)
    page.wait_for_selector("#charts .plot .hoverlayer .legend")
    return str(loss_chart(page).locator(".hoverlayer").text_content())


def test_pointer_shows_the_values_of_all_curves(two_runs: str, open_page: Callable[..., Any]) -> None:
    page = open_page(two_runs)
    text = hover(page, 0.25)
    for part in ("step 1", ", each step : 2", ", each step : 3", "other : 3", "<img src=x onerror"):
        assert part in text, (part, text)
    assert page.locator("img").count() == 0
    assert page.locator("#comparison").text_content().count("<img src=x onerror=alert(1)>") == 1
    titles = page.locator(".modebar-btn").evaluate_all("buttons => buttons.map(one => one.dataset.title)")
    assert titles and not [title for title in titles if "hare" in title or "loud" in title]


def test_legend_hides_a_run(two_runs: str, open_page: Callable[..., Any]) -> None:
    page = open_page(two_runs)
    runs = "data.map(trace => trace.meta.run)"
    assert set(drawn(page, runs)) == {0, 1}
    button = page.locator(".legend button").nth(1)
    button.click()
    wait_until(page, f"!document.querySelector('#charts .plot').{runs}.includes(1)")
    assert button.get_attribute("aria-pressed") == "false" and "other" not in hover(page, 0.5)
    button.click()
    wait_until(page, f"document.querySelector('#charts .plot').{runs}.includes(1)")
    page.locator(".legend button").nth(1).dblclick()
    wait_until(page, f"!document.querySelector('#charts .plot').{runs}.includes(0)")


def test_axis_and_scale(two_runs: str, open_page: Callable[..., Any]) -> None:
    page = open_page(two_runs)
    end, title = "data[0].x.at(-1)", "layout.xaxis.title.text"
    assert (drawn(page, end), drawn(page, title)) == (400, "step")
    page.click("#axis-tokens")
    assert (drawn(page, end), drawn(page, title)) == (400 * 4096, "tokens")
    page.click("#axis-time")
    assert drawn(page, title) == "training time (h)" and drawn(page, end) == pytest.approx(400 * 18 / 3600)
    shapes = drawn(page, "layout.shapes.filter(shape => shape.type === 'rect').map(shape => [shape.x0, shape.x1])")
    assert shapes == [[0, pytest.approx(1.5)], [pytest.approx(1.5), pytest.approx(2)]], "the phases move along"
    assert drawn(page, "layout.yaxis.type") == "linear"
    page.click("#scale-log")
    assert drawn(page, "layout.yaxis.type") == "log"
    page.click("#scale-linear")
    assert drawn(page, "layout.yaxis.type") == "linear"
    assert page.locator("#axis-time").get_attribute("aria-pressed") == "true"


def test_zoom_is_shared_and_can_be_undone(two_runs: str, open_page: Callable[..., Any]) -> None:
    page = open_page(two_runs)
    area = loss_chart(page).locator(".nsewdrag").bounding_box()
    page.mouse.move(area["x"] + area["width"] * 0.25, area["y"] + area["height"] / 2)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.5, area["y"] + area["height"] / 2, steps=5)
    page.mouse.up()
    wait_until(page, "document.querySelector('#charts .plot').layout.xaxis.range[1] < 250")
    second = "document.querySelectorAll('#charts .plot')[1].layout.xaxis.range"
    assert page.evaluate(second) == drawn(page, "layout.xaxis.range")
    area = loss_chart(page).locator(".nsewdrag").bounding_box()
    page.mouse.dblclick(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    wait_until(page, "document.querySelector('#charts .plot').layout.xaxis.range[1] >= 400")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screen(tmp_path: Path, open_page: Callable[..., Any], scheme: str) -> None:
    folders = [
        write_needles(tmp_path / "a_run_with_a_long_name_of_forty_characters"),
        write_long_run(tmp_path / "b", 2),
    ]
    write_report(folders, tmp_path / "page.html")
    page = open_page((tmp_path / "page.html").as_uri(), width=400, scheme=scheme)
    heights = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, heights, 600):  # charts are drawn when they come into view
        page.evaluate(f"scrollTo(0, {top})")
        page.wait_for_timeout(300)
    wait_until(page, "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    assert page.evaluate("document.documentElement.scrollWidth") == 400, "nothing is wider than the screen"
    assert page.locator(".heatmaplayer").count() >= 4
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert ink == {"light": "rgb(28, 32, 36)", "dark": "rgb(230, 232, 234)"}[scheme]
    background = {"light": "#fff", "dark": "#14171a"}[scheme]
    assert drawn(page, "layout.paper_bgcolor") == background


def test_page_follows_a_run_and_keeps_the_zoom(
    tmp_path: Path, open_page: Callable[..., Any], serve: Callable[..., Served]
) -> None:
    run = write_long_run(tmp_path / "one", 2.0)
    served = serve(run)
    page = open_page(f"http://127.0.0.1:{served.port}/")
    assert page.locator("#status").text_content() == "updates automatically"
    page.evaluate("zoom([100, 200])")
    sink = JsonlSink(run / "metrics.jsonl", 400)
    sink.write(replace(make_step(401, loss=2.5), total_steps=500))
    sink.close()
    wait_until(page, "document.querySelector('#charts .plot').data[0].x.at(-1) === 401")
    assert "updated at" in page.locator("#status").text_content()
    assert "401 of 500" in page.locator("#sections").text_content()
    assert drawn(page, "layout.xaxis.range") == [100, 200]


def test_page_shows_that_a_run_has_no_steps_and_then_its_charts(
    tmp_path: Path, open_page: Callable[..., Any], serve: Callable[..., Served]
) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(ValidationRecord(step=0, name="held", loss=2.0, num_labels=9))
    served = serve(tmp_path)
    page = open_page(f"http://127.0.0.1:{served.port}/", wait_for="#status.problem")
    assert "has no steps yet" in page.locator("#status").text_content()
    for step in (1, 2):
        sink.write(make_step(step))
    sink.close()
    page.wait_for_selector(".plot .main-svg")
