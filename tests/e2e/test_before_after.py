"""Lesson 32 in JupyterLab and in voila: every control as a hand would move it, and what must change."""

import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_lessons import look, run_all, save

from timet.core import samples_dir

pytestmark = pytest.mark.timeout(900)
NAME = "lab/12_before_after.ipynb"


class Bench:
    "The controls as a person finds them, by their labels."

    def __init__(self, page, view):
        self.page, self.view, self.shots = page, view, 0
        self.picture = view.locator("img.timet-picture")

    def control(self, kind: str, label: str):
        exact = self.page.locator(".widget-label", has_text=re.compile(f"^{label}$"))
        return self.view.locator(f".{kind}", has=exact)

    def pixels(self) -> np.ndarray:
        "The picture as it was sent."
        data = self.picture.evaluate("async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))")
        return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"), int)

    def changed(self, act: Callable[[], object], wait: float = 60) -> tuple[np.ndarray, np.ndarray]:
        "Do something; the picture before and after it, once it is another."
        before, source = self.pixels(), self.picture.get_attribute("src")
        act()
        self.page.wait_for_function("([e, old]) => e.src !== old && e.complete && e.naturalWidth > 0",
                                    arg=[self.picture.element_handle(), source], timeout=1000 * wait)  # fmt: skip
        self.shots += 1
        look(self.page, self.picture, f"32_{self.shots:02d}")
        after = self.pixels()
        assert before.shape != after.shape or (before != after).any()
        return before, after

    def says(self, text: str) -> str:
        line = self.view.locator(".widget-html", has_text=text).first
        line.wait_for(timeout=120_000)
        return line.inner_text()


def panels(picture: np.ndarray, height: int = 288) -> np.ndarray:
    return picture[25 : 25 + height]


def beneath(picture: np.ndarray, height: int = 288) -> np.ndarray:
    return picture[25 + height :]  # below the titles and the panels


def cursor(picture: np.ndarray) -> int:
    "The column of the dark line at the upper end of the curve."
    return int(beneath(picture)[79:83].sum((0, 2)).argmin())


def test_every_control_does_what_it_says(lab: str, desk: Path, notebook: Callable[[str], str], page):
    run_all(page, lab, notebook(NAME))
    view = page.locator(".jp-NotebookPanel:visible .jp-OutputArea-output:has(img.timet-picture)").last
    view.scroll_into_view_if_needed()
    bench = Bench(page, view)
    bench.picture.scroll_into_view_if_needed()
    look(page, bench.picture, "32_00")

    frame = bench.control("widget-hslider", "frame").locator(".noUi-handle")
    before, after = bench.changed(lambda: (frame.focus(), frame.press("ArrowRight")))
    assert cursor(after) > cursor(before) and (panels(before) != panels(after)).any()

    clusters = bench.control("widget-hslider", "clusters").locator(".noUi-handle")
    before, after = bench.changed(lambda: (clusters.focus(), clusters.press("ArrowRight")))
    assert cursor(after) == cursor(before) and (beneath(before) != beneath(after)).any()
    bench.changed(lambda: clusters.press("ArrowLeft"))

    opacity = bench.control("widget-hslider", "opacity").locator(".noUi-handle")
    before, after = bench.changed(lambda: (opacity.focus(), opacity.press("ArrowLeft")))
    assert (beneath(before) == beneath(after)).all() and (panels(before) != panels(after)).any()

    later = bench.control("widget-dropdown", "later").locator("select")
    before, after = bench.changed(lambda: later.select_option("1/12 s"))
    assert (panels(before) == panels(after)).all() and (beneath(before) != beneath(after)).any()
    bench.changed(lambda: later.select_option("1/2 s"))

    chance = view.locator(".widget-checkbox", has_text="beyond chance").locator("input")
    before, after = bench.changed(lambda: chance.click())
    assert (panels(before) == panels(after)).all() and (beneath(before) != beneath(after)).any()
    bench.changed(lambda: chance.click())

    show = bench.control("widget-dropdown", "show").locator("select")
    before, after = bench.changed(lambda: show.select_option("classes"))
    assert after.shape[0] > before.shape[0]  # the legend
    before, after = bench.changed(lambda: show.select_option("lost patches"))
    orange = [((p[..., 0] > p[..., 2] + 60).mean()) for p in np.array_split(panels(after), 2, axis=1)]
    assert orange[0] > 2 * orange[1]  # the start loses more
    bench.changed(lambda: show.select_option("clusters"))

    clip = bench.control("widget-dropdown", "clip").locator("select")
    before, after = bench.changed(lambda: clip.select_option("clip_07"))
    assert (panels(before) != panels(after)).mean() > 0.3
    bench.changed(lambda: clip.select_option("clip_05"))

    find = view.get_by_role("button", name="where they differ most")
    before, after = bench.changed(lambda: find.click())
    assert cursor(before) != cursor(after) and "difference 1 of" in bench.says("difference 1 of")
    bench.changed(lambda: find.click())
    bench.says("difference 2 of")

    for kind, name in (("mp4", "before_after_clip_05.mp4"), ("GIF", "before_after_clip_05.gif")):
        view.get_by_role("button", name=f"save {kind}").click()
        bench.says(f"saved runs/{name}")
        assert (desk / "runs" / name).stat().st_size > 10_000
    view.get_by_role("button", name="save GIF").click()
    bench.says("saved runs/before_after_clip_05-2.gif")

    player = view.locator(".widget-play button")
    bench.changed(lambda: player.first.click())
    bench.changed(lambda: None)
    player.first.click()  # the same button pauses

    folder = bench.control("widget-text", "video or folder").locator("input")
    folder.fill("no/such/film.mp4")
    folder.press("Enter")
    assert "cannot find no/such/film.mp4" in bench.says("cannot find")
    film = samples_dir() / "train/videos/clip_03.mp4"
    before, after = bench.changed(lambda: (folder.fill(str(film)), folder.press("Enter")), wait=240)
    page.wait_for_function("e => e.value === 'clip_03'", arg=clip.element_handle())
    assert (panels(before) != panels(after)).mean() > 0.3
    bench.changed(lambda: (folder.fill(""), folder.press("Enter")))

    wanted = bench.pixels()
    save(page, desk / Path(NAME).name)
    page.reload(wait_until="domcontentloaded")
    again = page.locator(".jp-NotebookPanel:visible .jp-OutputArea-output:has(img.timet-picture)").last
    again.wait_for(timeout=120_000)
    bench = Bench(page, again)
    bench.picture.scroll_into_view_if_needed()
    look(page, bench.picture, "32_reload")
    assert (bench.pixels() == wanted).all()
    frame = bench.control("widget-hslider", "frame").locator(".noUi-handle")
    from playwright.sync_api import TimeoutError as TooLate

    for left in (3, 2, 1, 0):  # the picture is shown before the page has found its kernel again
        try:
            bench.changed(lambda: (frame.focus(), frame.press("ArrowLeft")), wait=30)
            break
        except TooLate:
            if not left:
                raise


def test_voila_serves_it(chromium: str, desk: Path, notebook: Callable[[str], str], browser, tmp_path: Path):
    if importlib.util.find_spec("voila") is None:
        lacking = "no voila: pip install voila"
        pytest.fail(lacking) if os.environ.get("REQUIRE_E2E") == "1" else pytest.skip(lacking)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "voila", notebook(NAME), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with open(tmp_path / "voila.log", "w") as log:
        server = subprocess.Popen(command, cwd=desk, stdout=log, stderr=subprocess.STDOUT)
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    try:
        end = time.monotonic() + 90
        while True:  # each GET runs the notebook, so only the port is asked for
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "voila.log").read_text()[-2000:]
            time.sleep(0.3)
        page, errors = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        # voila's page asks a CDN for icons; without a network it does without
        own = (f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", "data:", "blob:")
        foreign = []
        page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/", wait_until="domcontentloaded", timeout=300_000)
        picture = page.locator("img.timet-picture").last
        picture.wait_for(timeout=300_000)
        bench = Bench(page, page.locator(".widget-vbox:has(img.timet-picture)").last)
        picture.scroll_into_view_if_needed()
        bench.shots = 50
        frame = bench.control("widget-hslider", "frame").locator(".noUi-handle")
        before, after = bench.changed(lambda: (frame.focus(), frame.press("ArrowRight")))
        assert cursor(after) > cursor(before)
        bench.changed(lambda: bench.view.get_by_role("button", name="where they differ most").click())
        bench.says("difference 1 of")
        assert errors == []
        assert all("fontawesome" in url for url in foreign), foreign
    finally:
        context.close()
        server.terminate()
        server.wait(20)
