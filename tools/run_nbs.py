"""Run notebooks in place with a real kernel and keep their outputs: `python tools/run_nbs.py nbs/03_*.ipynb`.

Cells that nbdev would not test (`#| eval: false`, or a flag of `tst_flags`) keep the output they have. A live widget
that also offers a picture leaves the picture, since a reader on the web sees no widget.
"""

import base64
import configparser
import io
import re
import sys
import time
from functools import cache
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SKIP = "skip-execution"
WIDGET = "application/vnd.jupyter.widget-view+json"


def flags() -> set[str]:
    "The words that make nbdev skip a cell."
    config = configparser.ConfigParser(interpolation=None, delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return set(config["DEFAULT"]["tst_flags"].split())


def skipped(source: str, words: set[str]) -> bool:
    "Does a directive of this cell keep it from running in a test?"
    found = re.findall(r"^\s*#\s*\|\s*(\w+)(?::\s*(\w+))?", source, re.M)
    return any(d in words or (d == "eval" and v.lower() == "false") for d, v in found)


@cache
def encode(picture: str, kind: str, width: int) -> str:
    "A picture as base64: PNG in 256 colours for drawings, JPEG for frames, whose grain PNG cannot shorten."
    image, data = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), io.BytesIO()
    if width < image.width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    if kind == "image/png":
        image.quantize(256, dither=Image.Dither.NONE).save(data, "png", optimize=True)
    else:
        image.save(data, "jpeg", quality=75, optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def slim(picture: str, limit: int) -> dict[str, str]:
    "A recorded PNG in so many characters, under the name of its kind: first fewer colours, then JPEG, then smaller."
    width = Image.open(io.BytesIO(base64.b64decode(picture))).width
    tries = [("image/png", width), *(("image/jpeg", round(width * scale)) for scale in (1, 0.9, 0.8, 0.7, 0.6))]
    for kind, wide in tries:
        small = encode(picture, kind, wide)
        if len(small) <= limit:
            break
    return {kind: small} if len(small) < len(picture) else {"image/png": picture}


def fit(notebook: nbformat.NotebookNode, most: int = 480_000) -> None:
    "Make the largest pictures smaller until the notebook is small enough to be committed."
    outputs = [o["data"] for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    pictures = [(data, data.pop("image/png")) for data in outputs]
    for limit in (120_000, 80_000, 60_000, 50_000, 42_000, 35_000, 28_000):
        for data, picture in pictures:
            for kind in ("image/png", "image/jpeg"):
                data.pop(kind, None)
            data.update({"image/png": picture} if len(picture) <= limit else slim(picture, limit))
        if len(nbformat.writes(notebook).encode()) < most:
            return


def record(path: Path, words: set[str]) -> float:
    "Execute one notebook, write it back, and return the seconds it took."
    notebook = nbformat.read(path, as_version=4)
    tagged = [c for c in notebook.cells if c.cell_type == "code" and skipped(c.source, words)]
    for cell in tagged:
        cell.metadata.setdefault("tags", []).append(SKIP)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
    ).execute()
    seconds = time.perf_counter() - start
    for cell in tagged:
        cell.metadata["tags"].remove(SKIP)
        if not cell.metadata["tags"]:
            del cell.metadata["tags"]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if len(output.get("data", {})) > 1:
                output["data"].pop(WIDGET, None)
    notebook.metadata.pop("widgets", None)
    fit(notebook)
    nbformat.write(notebook, path)
    return seconds


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {record(Path(name), flags()):.1f} s", flush=True)
