"""Lessons 31 and 33 as a reader uses them: every control, the buttons of a run, a click on a class, and a reload."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_lessons import kernel_idle, look, run_all, save

pytestmark = pytest.mark.timeout(900)


def settle(page, picture, source: str) -> None:
    "Until the picture is another one, and there."
    page.wait_for_function("([image, old]) => image.src !== old && image.complete && image.naturalWidth > 0",
                           arg=[picture.element_handle(), source], timeout=90_000)  # fmt: skip


def differs(before: np.ndarray, after: np.ndarray) -> bool:
    return after.shape != before.shape or np.abs(after - before).max() > 20


def content(picture) -> list[int]:
    "The bytes of the picture, whatever part of it the window shows."
    return picture.evaluate("async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]")


def act(page, picture, name: str, move: Callable[[], object]) -> None:
    "Move something and see another picture."
    picture.scroll_into_view_if_needed()
    before, source = look(page, picture, f"{name}_before"), picture.get_attribute("src")
    move()
    settle(page, picture, source)
    assert differs(before, look(page, picture, f"{name}_after"))


def says(page, picture, words: str, seconds: float = 240) -> None:
    "Until a screen reader would say these words of the picture."
    page.wait_for_function("([image, words]) => new RegExp(words).test(image.alt)",
                           arg=[picture.element_handle(), words], timeout=1000 * seconds)  # fmt: skip


def choose(select) -> None:
    "The next entry of a list, or the one before where it is the last."
    now, many = select.evaluate("list => list.selectedIndex"), select.locator("option").count()
    select.select_option(index=now + 1 if now + 1 < many else now - 1)


def reload(page, file: Path) -> None:
    "Save, as a reader would, and load the page anew."
    save(page, file)
    page.reload(wait_until="domcontentloaded")
    page.locator(".jp-NotebookPanel:visible .jp-Notebook .jp-Cell").first.wait_for(timeout=90_000)
    kernel_idle(page)


def views(page):
    return page.locator(".jp-NotebookPanel:visible .jp-OutputArea-output:has(img.timet-picture)")


def test_33_a_run_is_started_paused_resumed_and_stopped(lab: str, notebook: Callable[[str], str], desk: Path, page):
    run_all(page, lab, notebook("lab/13_watch_it_learn.ipynb"))
    played, mine = views(page).nth(0), views(page).nth(1)
    picture = played.locator("img.timet-picture")
    says(page, picture, "finished, step 12 of 12", 10)
    act(page, picture, "33_moment", lambda: played.locator(".noUi-handle").press("ArrowLeft"))
    act(page, picture, "33_map", lambda: choose(played.locator("select")))

    picture, handle = mine.locator("img.timet-picture"), mine.locator(".noUi-handle")
    press = lambda label: mine.get_by_role("button", name=label, exact=True).click()  # noqa: E731
    picture.scroll_into_view_if_needed()
    says(page, picture, "ready, step 0 of 400", 10)
    press("Pause")
    mine.locator(".widget-html", has_text="only one that is running can be paused").wait_for()
    before = look(page, picture, "33_ready")
    press("Start")
    says(page, picture, "running, step ([6-9]|[1-9][0-9])")
    assert mine.locator(".widget-html", has_text="only one").count() == 0
    page.wait_for_function("handle => +handle.getAttribute('aria-valuemax') >= 1", arg=handle.element_handle())
    assert differs(before, look(page, picture, "33_running"))
    act(page, picture, "33_while_running", lambda: choose(mine.locator("select")))
    press("Pause")
    says(page, picture, "paused, step")
    paused = picture.get_attribute("alt")
    log = desk / "runs" / "demo" / "log.jsonl"
    lines = log.read_text()
    look(page, picture, "33_paused")
    seen = content(picture)

    reload(page, desk / "13_watch_it_learn.ipynb")
    mine = views(page).nth(1)
    picture = mine.locator("img.timet-picture")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    assert picture.get_attribute("alt") == paused
    assert content(picture) == seen
    look(page, picture, "33_reloaded")
    assert log.read_text() == lines

    mine.get_by_role("button", name="Resume", exact=True).click()
    says(page, picture, "running, step")
    act(page, picture, "33_resumed", lambda: None)
    mine.get_by_role("button", name="Stop", exact=True).click()
    says(page, picture, "stopped, step")
    look(page, picture, "33_stopped")
    assert log.read_text().startswith(lines) and (log.parent / "backbone.safetensors").exists()


def test_31_bars_are_asked_and_clicked(lab: str, notebook: Callable[[str], str], desk: Path, page):
    run_all(page, lab, notebook("lab/11_per_class.ipynb"))
    view = views(page).first
    picture, chart, lists = view.locator("img.timet-picture"), view.locator(".js-plotly-plot"), view.locator("select")
    picture.scroll_into_view_if_needed()
    chart.locator(".barlayer .point path").first.wait_for()
    assert chart.locator(".ytitle").text_content() == "IoU whole set, %"

    act(page, picture, "31_protocol", lambda: choose(lists.nth(0)))
    protocol = lists.nth(0).evaluate("list => list.value")
    title = "words => document.querySelector('.js-plotly-plot .ytitle')?.textContent === words"
    page.wait_for_function(title, arg=f"IoU {protocol}, %")
    act(page, picture, "31_class", lambda: choose(lists.nth(1)))
    shapes = (
        "() => [...document.querySelectorAll('.js-plotly-plot .barlayer path')].map(e => e.getAttribute('d')).join()"
    )
    spread = page.evaluate(shapes)
    act(page, picture, "31_seeds", lambda: view.locator(".noUi-handle").press("ArrowLeft"))
    page.wait_for_function(f"old => {{ const now = ({shapes})(); return now && now !== old }}", arg=spread)

    chart.scroll_into_view_if_needed()
    names = [t.text_content() for t in chart.locator(".xtick text").all()]
    box = chart.locator(".barlayer .trace").nth(1).locator(".point path").nth(2).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 3, box["y"] + box["height"] * 0.8)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.8)
    told = chart.locator(".hoverlayer .hovertext")
    told.first.wait_for()
    assert f"pixels are {names[2]}" in told.first.text_content()
    look(page, chart, "31_hover")

    now = lists.nth(1).evaluate("list => list.value")
    picture.scroll_into_view_if_needed()
    other = next(i for i, name in enumerate(names) if name != now)
    size = picture.bounding_box()
    place = {"x": size["width"] * (0.11 + 0.87 * (other + 0.5) / len(names)), "y": size["height"] * 0.15}
    act(page, picture, "31_click", lambda: picture.click(position=place))
    assert lists.nth(1).evaluate("list => list.value") == names[other]
    clicked = content(picture)

    reload(page, desk / "11_per_class.ipynb")
    view = views(page).first
    picture, chart = view.locator("img.timet-picture"), view.locator(".js-plotly-plot")
    picture.scroll_into_view_if_needed()
    chart.locator(".barlayer .point path").first.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    assert chart.locator(".ytitle").text_content() == f"IoU {protocol}, %"
    assert content(picture) == clicked
    look(page, picture, "31_reloaded")
