"""Check that notebooks, modules and texts agree: `python tools/check.py`. Exits 1 where something does not.

Nothing in the checkout is written: exports and cleaning are tried in a temporary copy.
"""

import ast
import configparser
import filecmp
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
LIMIT_KB = 500


def source(cell: dict) -> str:
    "The text of a cell."
    return "".join(cell["source"])


def directives(cell: dict) -> list[str]:
    "The `#|` lines of a cell, without the mark."
    return re.findall(r"^#\|\s*(.+?)\s*$", source(cell), re.M)


def code_cells(notebook: dict) -> list[dict]:
    "The code cells of a notebook that hold anything."
    return [c for c in notebook["cells"] if c["cell_type"] == "code" and source(c).strip()]


def address(path: Path) -> tuple[int, str]:
    "A notebook's number and letter: `01a_clips` sorts after `01_data`."
    number, letter = re.match(r"(\d+)([a-z]?)_", path.name).groups()
    return int(number), letter


def module_of(path: Path) -> str:
    "The module a notebook must export to by its name: `07_eval.cluster` to `eval.cluster`."
    return re.sub(r"^\d+[a-z]?_", "", path.stem)


def only_imports(code: str) -> bool | None:
    "True where a cell is imports alone, False where it mixes them, None where it has none (or is not plain Python)."
    try:
        body = ast.parse(re.sub(r"^\s*[%!].*$", "", code, flags=re.M)).body
    except SyntaxError:
        return None
    imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
    return all(imports) if any(imports) else None


def check_cells(notebooks: dict[Path, dict]) -> list[str]:
    "Ids, directives, imports, sizes and recorded outputs."
    said = []
    seen: dict[str, Path] = {}
    for path, notebook in notebooks.items():
        for cell in notebook["cells"]:
            if seen.setdefault(cell.get("id", ""), path) != path or not cell.get("id"):
                said.append(f"{path.name}: cell id {cell.get('id')!r} is missing or used twice")
        ids = [c.get("id") for c in notebook["cells"]]
        said += [f"{path.name}: cell id {i} is used twice" for i in set(ids) if ids.count(i) > 1]
        cells = code_cells(notebook)
        for cell in cells:
            found = directives(cell)
            if "export" in found and len(found) > 1:
                said.append(f"{path.name}: an exported cell carries more than one directive: {found}")
            if only_imports(source(cell)) is False:
                said.append(f"{path.name}: cell {cell['id']} mixes imports and code")
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if output["output_type"] == "error":
                    said.append(f"{path.name}: cell {cell['id']} was recorded with an error in it")
                if WIDGET in data and not set(data) - {WIDGET, "text/plain"}:
                    said.append(f"{path.name}: cell {cell['id']} shows a widget without a picture")
        plain = [c for c in cells if not directives(c)]
        if plain and not any(c.get("outputs") for c in cells):
            said.append(f"{path.name}: nothing was recorded; run `python tools/run_nbs.py nbs/{path.name}`")
        size = path.stat().st_size / 1024
        if size > LIMIT_KB:
            said.append(f"{path.name}: {size:.0f} kB, the limit is {LIMIT_KB}")
    return said


def check_modules(notebooks: dict[Path, dict]) -> list[str]:
    "Every module has its notebook, and exported cells import only from lower numbers."
    said = []
    numbered = {p: nb for p, nb in notebooks.items() if re.match(r"\d+[a-z]?_", p.name)}
    order = {}
    for path, notebook in numbered.items():
        named = [d.split()[1] for c in code_cells(notebook) for d in directives(c) if d.startswith("default_exp")]
        if named and named != [module_of(path)]:
            said.append(f"{path.name}: exports to {named}, its name says {module_of(path)!r}")
        if named:
            order[module_of(path)] = address(path)
    for module in (ROOT / "timet").rglob("*.py"):
        name = ".".join(module.relative_to(ROOT / "timet").with_suffix("").parts)
        if module.name not in ("__init__.py", "_modidx.py") and name not in order:
            said.append(f"timet/{module.relative_to(ROOT / 'timet')}: no notebook exports it")
    for path, notebook in numbered.items():
        for cell in code_cells(notebook):
            if "export" not in directives(cell):
                continue
            for name in re.findall(r"^\s*(?:from|import)\s+timet\.([\w.]+)", source(cell), re.M):
                if name not in order:
                    said.append(f"{path.name}: imports timet.{name}, which no notebook exports")
                elif order[name] >= address(path):
                    said.append(f"{path.name}: an exported cell imports timet.{name}, which has a higher number")
    return said


def same(left: Path, right: Path) -> list[str]:
    "The files of two folders that differ or are in one alone."
    compared = filecmp.dircmp(left, right, ignore=["__pycache__", ".ipynb_checkpoints"])
    found = [*compared.left_only, *compared.right_only]
    found += [n for n in compared.common_files if (left / n).read_bytes() != (right / n).read_bytes()]
    for name in compared.common_dirs:
        found += [f"{name}/{n}" for n in same(left / name, right / name)]
    return found


def check_drift() -> list[str]:
    "What `nbdev_export` and `nbdev_clean` would change, tried in a copy."
    said = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("nbs", "timet"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        for name in ("settings.ini", "setup.py"):
            shutil.copy(ROOT / name, copy / name)
        for command in ("nbdev_export", "nbdev_clean"):
            tool = Path(sys.executable).parent / command
            done = subprocess.run([tool], cwd=copy, capture_output=True, text=True)
            if done.returncode:
                said.append(f"{command} failed: {done.stderr.strip()[-400:]}")
        said += [
            f"timet/{n}: not what its notebook exports; run `nbdev_export`"
            for n in same(ROOT / "timet", copy / "timet")
        ]
        said += [f"nbs/{n}: not clean; run `nbdev_clean`" for n in same(ROOT / "nbs", copy / "nbs")]
    return said


def check_texts() -> list[str]:
    "The README is the index, and `constraints.txt` says what `settings.ini` says."
    said = []
    done = subprocess.run([sys.executable, ROOT / "tools/readme.py", "--check"], capture_output=True, text=True)
    if done.returncode:
        said.append(done.stderr.strip().splitlines()[-1])
    config = configparser.ConfigParser(interpolation=None, delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = " ".join(config["DEFAULT"][k] for k in ("requirements", "lab_requirements", "dev_requirements")).split()
    for line in (ROOT / "constraints.txt").read_text().split("\n"):
        name = re.match(r"[\w-]+", line)
        if name and not any(re.match(r"[\w-]+", w).group() == name.group() for w in wanted):
            said.append(f"constraints.txt: {line} bounds something that settings.ini does not ask for")
    return said


def check_style() -> list[str]:
    "Ruff, both as linter and as formatter."
    said = []
    for words in (["check", "-q", "."], ["format", "--check", "-q", "."]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            said.append(
                f"ruff {words[0]}: {(done.stdout + done.stderr).strip()[-2000:] or 'some files are not formatted'}"
            )
    return said


if __name__ == "__main__":
    notebooks = {p: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "nbs").rglob("*.ipynb"))}
    notebooks = {p: nb for p, nb in notebooks.items() if ".ipynb_checkpoints" not in p.parts}
    findings = check_cells(notebooks) + check_modules(notebooks) + check_drift() + check_texts() + check_style()
    print("\n".join(findings) or f"{len(notebooks)} notebooks, their modules and texts agree")
    sys.exit(bool(findings))
