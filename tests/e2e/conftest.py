"""A real JupyterLab and a real browser. Without Chromium these tests are skipped; with REQUIRE_E2E=1 that is an error."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).resolve().parents[2] / "nbs"
DONE = "EVERY CELL WAS RUN"
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # every cell is in the page, also those that have to be scrolled to
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


@pytest.fixture(scope="session")
def chromium() -> str:
    "The browser of the system, or the one that CHROMIUM names."
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found and os.path.exists(found):
        return found
    lacking = "no chromium: install it (`apt-get install chromium`) or name it in CHROMIUM"
    if os.environ.get("REQUIRE_E2E") == "1":
        pytest.fail(lacking)
    pytest.skip(lacking)


@pytest.fixture(scope="session")
def desk(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The folder that JupyterLab shows: copies of notebooks, never the notebooks themselves."
    return tmp_path_factory.mktemp("desk")


@pytest.fixture
def notebook(desk: Path) -> Callable[[str], str]:
    "Copy a notebook without its outputs, with a last cell that says when all is done; the copy's file name comes back."

    def copy(name: str) -> str:
        book = nbformat.read(NBS / name, as_version=4)
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        words = DONE.rpartition(" ")
        book.cells.append(nbformat.v4.new_code_cell(f"print({words[0]!r}, {words[2]!r})"))
        nbformat.write(book, desk / Path(name).name)
        return Path(name).name

    return copy


@contextlib.contextmanager
def serve(command: list[str], url: str, env: dict[str, str], log: Path) -> Iterator[None]:
    "Start a server, wait until it answers, and end it with its kernels."
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 90
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"JupyterLab did not come up:\n{log.read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=2).read()
                break
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def lab(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "The address of a JupyterLab that knows nothing of its user's settings."
    home = tmp_path_factory.mktemp("jupyter")
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    env = {**os.environ, **{key: str(home / value) for key, value in places.items()}, "JUPYTER_PREFER_ENV_PATH": "1"}
    overrides = home / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    flags = {
        "ServerApp.root_dir": desk,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": "",
        "ServerApp.password": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": None,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{key}={value}" for key, value in flags.items()]
    with serve(command, f"{url}/api/status", env, home / "lab.log"):
        yield url


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        yield window
        window.close()


@pytest.fixture
def page(browser) -> Iterator:
    "A page that must neither fail nor ask anyone but this machine for anything."
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    errors, foreign = [], []
    own = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    yield page
    context.close()
    assert errors == []
    assert foreign == []
