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


def slim(picture: str, limit: int = 60_000) -> str:
    "A recorded PNG in 256 colours, and smaller where it still takes more than so many characters: grain costs most."
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    while True:
        data = io.BytesIO()
        image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(data, "png", optimize=True)
        small = base64.b64encode(data.getvalue()).decode()
        if len(small) <= limit or image.width < 450:
            return min(picture, small, key=len)
        image = image.resize((round(0.85 * image.width), round(0.85 * image.height)), Image.Resampling.LANCZOS)


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
            if len(output.get("data", {}).get("image/png", "")) > 50_000:
                output["data"]["image/png"] = slim(output["data"]["image/png"])
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    return seconds


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {record(Path(name), flags()):.1f} s", flush=True)
