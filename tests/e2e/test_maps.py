"""Lesson 30 as a lecturer uses it: every knob by keyboard, clicks on the picture, play, a reload, a dark page, voila."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_lessons import kernel_idle, look, run_all, save

pytestmark = pytest.mark.timeout(900)
NAME = "lab/10_propagated_maps.ipynb"
FIRST, ARRIVED, OTHER, FRAME, PATCH, SCORE = range(6)


class Sheet:
    "The picture with its controls, as a page shows it."

    def __init__(self, page, scope: str):
        self.page = page
        self.view = page.locator(f"{scope}:has(img.timet-picture)").last
        self.picture = self.view.locator("img.timet-picture")
        self.picture.wait_for(timeout=300_000)
        self.picture.scroll_into_view_if_needed()

    def control(self, label: str):
        "What the keyboard moves: the handle of a slider, or a list."
        row = self.view.locator(f".widget-inline-hbox:has(> .widget-label:text-is('{label}'))")
        return row.locator(".noUi-handle, select, input").first

    def after(self, act: Callable[[], None]) -> None:
        "Do something, and wait for another picture."
        old = self.picture.get_attribute("src")
        act()
        self.page.wait_for_function("([image, old]) => image.src !== old && image.complete && image.naturalWidth > 0",
                                    arg=[self.picture.element_handle(), old], timeout=60_000)  # fmt: skip

    def cells(self, name: str) -> list[np.ndarray]:
        "The six cells without their titles and rims."
        seen = look(self.page, self.picture, name)
        wide, high = self.picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        seen = seen[:: max(1, round(len(seen) / high))] if len(seen) != high else seen
        width = (wide - 16) // 3
        height = 216
        corners = [(r * (height + 33) + 25, c * (width + 8)) for r in range(2) for c in range(3)]
        return [seen[y + 4 : y + height - 4, x + 4 : x + width - 4] for y, x in corners]


def changed(before: list[np.ndarray], after: list[np.ndarray]) -> set[int]:
    "Which cells differ in more than a few pixels."
    differ = {i for i, (a, b) in enumerate(zip(before, after)) if a.shape != b.shape}
    return differ | {i for i in set(range(6)) - differ if (np.abs(before[i] - after[i]).max(-1) > 40).mean() > 0.002}


# what is moved, with which key, which cells must change, and which must not
MOVES = [
    ("frame", "ArrowRight", {ARRIVED, OTHER, FRAME, SCORE}, {FIRST}),
    ("window", "Home", {ARRIVED, SCORE}, {FIRST, OTHER, FRAME}),
    ("window", "End", {ARRIVED, SCORE}, {FIRST, OTHER, FRAME}),
    ("top-k", "Home", {ARRIVED, SCORE}, {FIRST, OTHER, FRAME}),
    ("top-k", "End", {ARRIVED}, {FIRST, OTHER, FRAME}),
    ("temperature", "End", {PATCH}, {FIRST, OTHER, FRAME}),
    ("context", "Home", {ARRIVED, SCORE}, {FIRST, OTHER, FRAME}),
    ("clusters", "ArrowRight", {FIRST, ARRIVED}, {OTHER, FRAME}),
    ("delta t", "ArrowLeft", {FRAME, SCORE}, set()),
    ("compare", "ArrowDown", {OTHER, SCORE}, {FRAME, PATCH}),
    ("compare", "ArrowDown", {OTHER, SCORE}, {FIRST, ARRIVED, FRAME, PATCH}),
    ("checkpoint", "ArrowDown", {FIRST, ARRIVED}, {FRAME}),
    ("clip", "ArrowDown", {FIRST, ARRIVED, OTHER, FRAME}, set()),
]


def test_every_knob_a_click_play_errors_and_a_reload(lab: str, notebook: Callable[[str], str], desk: Path, page):
    run_all(page, lab, notebook(NAME))
    sheet = Sheet(page, ".jp-NotebookPanel:visible .jp-OutputArea-output")
    now = sheet.cells("30_start")
    for i, (label, key, must, must_not) in enumerate(MOVES):
        before = now
        handle = sheet.control(label)
        handle.focus()
        sheet.after(lambda handle=handle, key=key: handle.press(key))
        kernel_idle(page)
        now = sheet.cells(f"30_{i:02d}_{label.replace(' ', '_')}")
        moved = changed(before, now)
        assert must <= moved and not must_not & moved, (label, key, moved)

    box, before = sheet.picture.bounding_box(), now
    sheet.after(lambda: sheet.picture.click(position={"x": box["width"] * 0.05, "y": box["height"] * 0.4}))
    kernel_idle(page)
    now = sheet.cells("30_click")
    moved = changed(before, now)
    assert PATCH in moved and not {ARRIVED, OTHER, FRAME} & moved
    assert sheet.view.get_by_text("patch in row").is_visible()

    before = now
    field = sheet.control("path")
    field.fill("no/such/video.mp4")
    sheet.view.get_by_role("button", name="Open").click()
    sheet.view.get_by_text("cannot find no/such/video.mp4").wait_for(timeout=60_000)
    assert changed(before, sheet.cells("30_missing")) == set()
    field.fill("")

    play = sheet.view.locator(".widget-play button")
    sheet.after(play.nth(0).click)
    sheet.after(lambda: None)  # it goes on by itself
    play.nth(1).click()
    kernel_idle(page)

    # a reload: the kernel's newest picture is there, not the first one
    sheet.control("frame").focus()
    sheet.after(lambda: sheet.control("frame").press("End"))
    kernel_idle(page)
    seen, value = look(page, sheet.picture, "30_before_reload"), sheet.control("frame").get_attribute("aria-valuenow")
    save(page, desk / Path(NAME).name)
    sheet = reloaded(page)
    again = look(page, sheet.picture, "30_after_reload")
    assert again.shape == seen.shape and np.abs(again - seen).max() <= 8
    assert sheet.control("frame").get_attribute("aria-valuenow") == value

    choose_theme(page, "JupyterLab Dark")
    try:
        sheet = reloaded(page)
        page.wait_for_function(CORNER, arg=[sheet.picture.element_handle(), 17], timeout=60_000)
        sheet.control("frame").focus()
        sheet.after(lambda: sheet.control("frame").press("ArrowLeft"))
        kernel_idle(page)
        assert (look(page, sheet.picture, "30_dark")[2, -2] < 40).all()
    finally:
        choose_theme(page, "JupyterLab Light")


# is the upper right corner of the picture of this brightness?
CORNER = """([image, level]) => {
    if (!image.complete || !image.naturalWidth) return false
    const canvas = document.createElement("canvas")
    canvas.width = image.naturalWidth, canvas.height = image.naturalHeight
    const pen = canvas.getContext("2d")
    pen.drawImage(image, 0, 0)
    return pen.getImageData(canvas.width - 1, 0, 1, 1).data[0] === level
}"""


def choose_theme(page, theme: str) -> None:
    "What the settings menu does; seen after a reload."
    page.evaluate(
        """async theme => {
            const token = document.cookie.match(/_xsrf=([^;]*)/)
            const answer = await fetch('/lab/api/settings/@jupyterlab/apputils-extension:themes', {
                method: 'PUT', body: JSON.stringify({ raw: JSON.stringify({ theme }) }),
                headers: { 'Content-Type': 'application/json', 'X-XSRFToken': token ? token[1] : '' },
                signal: AbortSignal.timeout(60000) })
            if (!answer.ok) throw new Error(await answer.text())
        }""",
        theme,
    )


def reloaded(page) -> Sheet:
    "The same sheet after the page was loaded again."
    page.reload(wait_until="domcontentloaded")
    sheet = Sheet(page, ".jp-NotebookPanel:visible .jp-OutputArea-output")
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=sheet.picture.element_handle())
    kernel_idle(page)
    return sheet


@contextlib.contextmanager
def voila(path: Path, home: Path) -> Iterator[str]:
    "Voila on a free port. Each request of its page runs the notebook, so only the port is waited for."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "voila", str(path), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
           "JUPYTER_DATA_DIR": str(home / "data"), "IPYTHONDIR": str(home / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}  # fmt: skip
    log = home / "voila.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 90
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"voila did not come up:\n{log.read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def test_voila_serves_it_as_it_is(notebook: Callable[[str], str], desk: Path, tmp_path: Path, browser):
    pytest.importorskip("voila")
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page, errors, foreign = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    own = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(own) else foreign.append(r.url))
    page.route(lambda url: not url.startswith(own), lambda route: route.abort())
    with voila(desk / notebook(NAME), tmp_path) as url:
        page.goto(url, timeout=300_000, wait_until="domcontentloaded")
        sheet = Sheet(page, ".widget-vbox")
        first = sheet.cells("30_voila_start")
        handle = sheet.control("frame")
        handle.focus()
        sheet.after(lambda: handle.press("Home"))
        after = sheet.cells("30_voila_moved")
        assert {ARRIVED, OTHER, FRAME} <= changed(first, after) and FIRST not in changed(first, after)
        box = sheet.picture.bounding_box()
        sheet.after(lambda: sheet.picture.click(position={"x": box["width"] * 0.05, "y": box["height"] * 0.4}))
        assert PATCH in changed(after, sheet.cells("30_voila_click"))
    context.close()
    # voila's own page asks a CDN for the icons of Font Awesome; it works without
    assert [url for url in foreign if "font-awesome" not in url.lower() and "fontawesome" not in url.lower()] == []
    assert errors == []
