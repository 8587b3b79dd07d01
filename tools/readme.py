"""Render `nbs/index.ipynb` to `README.md` without quarto: `python tools/readme.py [--check]`.

Cells marked `#| hide` are dropped, of `#| echo: false` the output stays; code, text and PNG outputs stay; pictures go to `README_files/`.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]


def render() -> tuple[str, dict[str, bytes]]:
    "The README's text and its pictures by name."
    notebook = nbformat.read(ROOT / "nbs/index.ipynb", 4)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    notebook.cells = [c for c in notebook.cells if not re.match(r"\s*#\|\s*hide\b", c.source)]
    for cell in notebook.cells:
        if re.match(r"\s*#\|\s*echo:\s*false\b", cell.source):
            cell.source = ""
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    pictures = resources["outputs"]
    for name in pictures:
        body = body.replace(f"]({name})", f"](README_files/{name})")
    body = re.sub(r"\]\((\w[\w./]+\.ipynb)", r"](nbs/\1", body)  # links between notebooks, seen from the root
    body = body.replace("](../", "](").replace("```python\n\n```", "")
    body = re.sub(r"\n\s*\n(\s*\n)*", "\n\n", body)
    return f"<!-- Rendered from nbs/index.ipynb by tools/readme.py -->\n\n{body.strip()}\n", pictures


if __name__ == "__main__":
    text, pictures = render()
    readme = ROOT / "README.md"
    if "--check" in sys.argv:
        if not readme.exists() or readme.read_text(encoding="utf-8") != text:
            sys.exit("README.md is not what nbs/index.ipynb says: run `python tools/readme.py`")
    else:
        readme.write_text(text, encoding="utf-8")
        folder = ROOT / "README_files"
        for name, data in pictures.items():
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
