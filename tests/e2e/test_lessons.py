"""What a reader does: open a lesson in JupyterLab, run it, move a slider, and see another picture."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DONE
from PIL import Image

pytestmark = pytest.mark.timeout(900)


def kernel_idle(page) -> None:
    "JupyterLab calls a kernel idle that is not there yet: look at its name too."
    page.wait_for_function(
        """() => {
            const panel = [...document.querySelectorAll('.jp-NotebookPanel')].find(e => e.offsetParent)
            if (!panel) return false
            const name = panel.querySelector('.jp-Toolbar-kernelName')
            const state = panel.querySelector('.jp-Notebook-ExecutionIndicator')
            return name && state && name.innerText.trim() !== 'No Kernel' && state.dataset.status === 'idle'
        }""",
        timeout=90_000,
    )


def run_all(page, lab: str, name: str) -> None:
    "Open a notebook and run every cell."
    page.goto(f"{lab}/lab/workspaces/e2e-{name.split('.')[0]}/tree/{name}?reset", wait_until="domcontentloaded")
    page.locator(".jp-NotebookPanel:visible .jp-Notebook .jp-Cell").first.wait_for(timeout=90_000)
    kernel_idle(page)
    page.get_by_role("menuitem", name="Run", exact=True).first.click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-OutputArea-output", has_text=DONE).wait_for(timeout=600_000)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0


def save(page, file: Path) -> None:
    "Save, as a reader would, until the file holds the widgets: a page loaded anew shows what the file holds."
    for _ in range(20):
        # keys go to the notebook only once the focus has left its widgets
        page.locator(".jp-NotebookPanel:visible .jp-InputPrompt:visible").first.click()
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1500)
        clean = page.evaluate("() => !document.querySelector('.lm-TabBar-tab.jp-mod-dirty')")
        if clean and "widget-view+json" in file.read_text(encoding="utf-8"):
            return
    raise AssertionError(f"{file.name} was not saved with its widgets")


def look(page, picture, name: str) -> np.ndarray:
    "The picture as the reader sees it; kept in the folder that SHOTS names, if any."
    seen = picture.screenshot()
    if os.environ.get("SHOTS"):
        Path(os.environ["SHOTS"]).mkdir(parents=True, exist_ok=True)
        (Path(os.environ["SHOTS"]) / f"{name}.png").write_bytes(seen)
        page.screenshot(path=Path(os.environ["SHOTS"]) / f"{name}_page.png")
    return np.asarray(Image.open(io.BytesIO(seen)).convert("RGB"), int)


@pytest.mark.parametrize("name", ["03_feature_forwarder.ipynb", "lab/00_widgets.ipynb"])
def test_every_slider_changes_the_picture(name: str, lab: str, notebook: Callable[[str], str], page):
    run_all(page, lab, notebook(name))
    views = page.locator(".jp-NotebookPanel:visible .jp-OutputArea-output:has(img.timet-picture)")
    assert views.count() >= 1
    for i in range(views.count()):
        view = views.nth(i)
        picture, handles = view.locator("img.timet-picture"), view.locator(".noUi-handle")
        picture.scroll_into_view_if_needed()
        assert handles.count() >= 1
        for j in range(handles.count()):
            before, source = look(page, picture, f"{name[:2]}_{i}_{j}_before"), picture.get_attribute("src")
            readout = view.locator(".widget-readout").nth(j).inner_text()
            handle = handles.nth(j)
            at_end = float(handle.get_attribute("aria-valuenow")) >= float(handle.get_attribute("aria-valuemax"))
            handle.focus()
            handle.press("ArrowLeft" if at_end else "ArrowRight")
            page.wait_for_function("([image, old]) => image.src !== old && image.complete && image.naturalWidth > 0",
                                   arg=[picture.element_handle(), source], timeout=60_000)  # fmt: skip
            assert view.locator(".widget-readout").nth(j).inner_text() != readout
            after = look(page, picture, f"{name[:2]}_{i}_{j}_after")
            assert after.shape != before.shape or np.abs(after - before).max() > 20
